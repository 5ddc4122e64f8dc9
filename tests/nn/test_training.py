from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spahgc.nn import Config, Edges, fit, train, training


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_training_lowers_every_term(cohort, small):
    config = replace(small, epochs=40, learning_rate=2e-3)
    model, history = train(cohort(config=config), config)
    assert not model.training
    assert set(history) == {"loss", "mse", "pearson", "contrast_target", "contrast_reference"}
    assert all(len(values) == 40 and np.isfinite(values).all() for values in history.values())
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["mse"][-1] < 0.5 * history["mse"][0]
    assert history["pearson"][-1] > 0.7 > history["pearson"][0]
    assert history["contrast_target"][-1] < history["contrast_target"][0]
    total = (
        history["mse"][-1]
        + 0.5 * (1 - history["pearson"][-1])
        + 0.2 * history["contrast_target"][-1]
        + 0.1 * history["contrast_reference"][-1]
    )
    assert history["loss"][-1] == pytest.approx(total, rel=1e-5)


def test_overfits_a_tiny_planted_problem(cohort, small):
    config = replace(small, epochs=150, learning_rate=5e-3, weight_target=0.0, weight_reference=0.0)
    slides = cohort(n_slides=2, n_spots=12, n_genes=3, config=config)
    model, history = train(slides, config)
    assert "contrast_target" not in history
    with torch.no_grad():
        for data, y in slides:
            assert (model(data) - y).square().mean() < 0.02 * y.var()


def test_same_seed_same_weights(cohort, small):
    config = replace(small, dropout=0.2)
    runs = [train(cohort(), config, seed=seed) for seed in (1, 1, 2)]
    assert equal(weights(runs[0][0]), weights(runs[1][0]))
    assert runs[0][1] == runs[1][1]
    assert not equal(weights(runs[0][0]), weights(runs[2][0]))


def test_global_random_state_neither_used_nor_changed(cohort, small):
    config = replace(small, dropout=0.2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights(train(cohort(), config, seed=1)[0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert equal(first, weights(train(cohort(), config, seed=1)[0]))
    with pytest.raises(RuntimeError, match="stop here"):
        train(cohort(), config, validate=lambda model: (_ for _ in ()).throw(RuntimeError("stop here")))
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_graphs_are_not_changed(cohort, small):
    slides, copies = cohort(), cohort()
    train(slides, small)
    for (graph, y), (other, other_y) in zip(slides, copies, strict=True):
        for mine, theirs in zip(graph, other, strict=True):
            tensors = (mine, theirs) if isinstance(mine, Edges) else ([mine], [theirs])
            assert mine is theirs is None or all(torch.equal(*pair) for pair in zip(*tensors, strict=True))
        assert torch.equal(y, other_y)


def test_slide_order_is_shuffled_from_the_seed(cohort, small, monkeypatch):
    seen = []
    forward = training.StepLoss.forward

    def spy(self, graph, expression):
        seen.append(len(expression))
        return forward(self, graph, expression)

    monkeypatch.setattr(training.StepLoss, "forward", spy)
    train(cohort(n_slides=4), replace(small, epochs=5))
    epochs = [tuple(seen[i : i + 4]) for i in range(0, 20, 4)]
    assert all(sorted(epoch) == [24, 25, 26, 27] for epoch in epochs)
    assert len(set(epochs)) > 1


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.5, 0.2, 0.5, float("nan")], 1), ([float("nan"), 0.2, 0.9], 2)])
def test_the_weights_of_the_best_epoch_are_returned(cohort, small, scores, best):
    """The first of equal ones; an epoch without a score is never the best."""
    states = []

    def validate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        states.append(weights(model))
        return scores[len(states) - 1]

    model, history = train(cohort(), replace(small, epochs=len(scores)), validate=validate)
    np.testing.assert_array_equal(history["validation"], scores)
    assert len(history["loss"]) == len(scores)
    assert equal(weights(model), states[best])
    assert not equal(states[0], states[-1])


def test_the_loop_stops_when_it_is_told(cohort):
    """And calls back after each step and each epoch."""

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(()))

        def forward(self, measured):
            error = (self.value - measured).square().mean()
            return {"loss": error, "root": error.sqrt()}

    steps, calls, loss = [(torch.tensor([1.0, 3.0]),), (torch.tensor([2.0]),)], [], Mean()
    history = fit(
        loss,
        steps,
        ["a", "b"],
        epochs=9,
        learning_rate=0.1,
        weight_decay=0.0,
        shuffle=0,
        after_step=lambda: calls.append(loss.value.item()),
        after_epoch=lambda history: len(history["loss"]) == 4,
    )
    assert set(history) == {"loss", "root"}
    assert len(history["loss"]) == len(history["root"]) == 4
    assert len(calls) == 8
    assert calls == sorted(calls)
    assert history["loss"] == sorted(history["loss"], reverse=True)


def test_validation_does_not_change_training(cohort, small):
    config = replace(small, dropout=0.2)
    plain = train(cohort(), config)[0]
    rising = iter(range(10))
    validated = train(cohort(), config, validate=lambda model: next(rising))[0]
    assert equal(weights(plain), weights(validated))


def test_training_through_components(cohort, small):
    """As the default preset is trained."""
    config = replace(small, epochs=60, learning_rate=3e-3, weight_target=0.0, weight_reference=0.0)
    slides = cohort(config=config)
    components = torch.linalg.svd(torch.cat([y for _, y in slides]), full_matrices=False).Vh[:3].contiguous()
    model, history = train(slides, config, components=components)
    assert history["mse"][-1] < 0.5 * history["mse"][0]
    assert torch.equal(model.components, components)
    with torch.no_grad():
        assert torch.linalg.matrix_rank(model(slides[0][0]) - model.head.bias @ components) == 3


def test_target_encoder_moves_in_training(cohort, small, monkeypatch):
    made = []

    class Spy(training.TargetEncoder):
        def __init__(self, *args):
            super().__init__(*args)
            self.start = [p.clone() for p in self.module.parameters()]
            made.append(self)

    monkeypatch.setattr(training, "TargetEncoder", Spy)
    model, _ = train(cohort(), replace(small, epochs=2))
    for own, start, other in zip(made[0].module.parameters(), made[0].start, model.encoder.parameters(), strict=True):
        assert own.grad is None
        assert not torch.equal(own, start)
        assert (other - start).abs().sum() > (own - start).abs().sum()


def test_a_loss_that_is_not_finite_names_epoch_and_slide(cohort, small):
    slides = cohort()
    slides[1][1][3, 2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"NaN or infinite in epoch 1, on 'C2' \(loss"):
        train(slides, small, names=["B4", "C2", "C3"])


def test_errors(cohort, small):
    slides = cohort()
    with pytest.raises(ValueError, match="no slides"):
        train([], small)
    with pytest.raises(ValueError, match="no finite score"):
        train(slides, small, validate=lambda model: float("nan"))
    (data, y), *rest = slides
    message = r"'slide {}' has embeddings \(24, {}\) and expression \({}\), .*the features and genes of 'slide 0', "
    with pytest.raises(ValueError, match=message.format(0, 6, "23, 5")):
        train([(data, y[:23]), *rest], small)
    with pytest.raises(ValueError, match=message.format(1, 6, "24, 3") + r"\(6, 5\)"):
        train([slides[0], (data, y[:, :3])], small)
    with pytest.raises(ValueError, match=message.format(1, 4, "24, 5") + r"\(6, 5\)"):
        train([slides[0], cohort(n_features=4)[0]], small)


def test_paper_preset_runs(cohort):
    config = Config(epochs=1)
    model, history = train(cohort(config=config), config)
    assert np.isfinite(history["loss"]).all()
    assert model.head.weight.shape == (5, 256)

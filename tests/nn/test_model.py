from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm, leaky_relu, linear

from spahgc.nn import Config, Edges, SpaHGCNetwork, TargetEncoder, slide_graph


def make(config, **kwargs):
    torch.manual_seed(0)
    return SpaHGCNetwork(6, 5, config, **kwargs).eval()


def test_config_is_the_paper_and_survives_json():
    config = Config()
    assert (config.hidden, config.n_layers, config.heads) == (256, 4, 4)
    assert (config.n_references, config.n_near, config.n_close) == (7, 5, 3)
    assert (config.mask_target, config.mask_reference) == (0.1, 0.9)
    assert (config.weight_pearson, config.weight_target, config.weight_reference) == (0.5, 0.2, 0.1)
    assert (config.learning_rate, config.weight_decay, config.epochs) == (1e-4, 1e-4, 200)
    assert Config(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": 10}, ValueError, "must be a multiple of `heads`"),
        ({"n_layers": 0}, ValueError, "`n_layers` must be an integer of at least 1, got 0"),
        ({"heads": 2.0}, TypeError, "`heads` must be an integer"),
        ({"dropout": 1.0}, ValueError, "`dropout` must be a finite number of at least 0 and less than 1"),
        ({"mask_target": -0.1}, ValueError, "`mask_target` must be a finite number between 0 and 1"),
        ({"weight_pearson": float("nan")}, ValueError, "`weight_pearson` must be a finite number"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be a finite number greater than 0"),
    ],
)
def test_config_errors(change, error, message):
    with pytest.raises(error, match=message):
        Config(**change)


@torch.no_grad()
def test_encoder_equals_the_steps_of_the_design(arrays, small):
    """Input maps, GraphSAGE written out, mean over edge types, LeakyReLU(0.2), head; attention is checked elsewhere."""
    graph = slide_graph(*arrays, n_references=3, n_near=2, n_close=2).tensors()
    model = make(small)

    def input_map(maps, x):
        x = leaky_relu(linear(x, maps[0].weight, maps[0].bias), 0.2)
        return layer_norm(linear(x, maps[3].weight, maps[3].bias), (small.hidden,), maps[4].weight, maps[4].bias)

    def sage(conv, x, neighbours):
        rows = []
        for i in range(len(x)):
            mean = torch.stack([x[s] for s in neighbours[i]]).mean(dim=0)
            rows.append(conv.lin_l.weight @ mean + conv.lin_l.bias + conv.lin_r.weight @ x[i])
        return torch.stack(rows)

    encoder = model.encoder
    target, reference = input_map(encoder.target, graph.target), input_map(encoder.reference, graph.reference)
    expression = linear(graph.reference[:, 6:], encoder.expression.weight, encoder.expression.bias)
    close = graph.close.sender.view(len(reference), -1)
    for layer in encoder.layers:
        to_target, to_reference = layer.refer(target, reference, expression, graph.refer, graph.back)
        target, reference = (
            leaky_relu((sage(layer.near, target, graph.near.sender.view(len(target), -1)) + to_target) / 2, 0.2),
            leaky_relu((sage(layer.close, reference, close) + to_reference) / 2, 0.2),
        )
    pooled = model.pooling(target, model.pooling.answer(reference), graph.refer)
    expected = linear(pooled, model.head.weight, model.head.bias)
    torch.testing.assert_close(model(graph), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_order_of_spots_permutes_predictions(arrays, small):
    z_t, xy, z_r, y_r = arrays
    model = make(small)
    expected = model(slide_graph(z_t, xy, z_r, y_r).tensors())
    rng = np.random.default_rng(1)
    t, r = rng.permutation(len(z_t)), rng.permutation(len(z_r))
    found = model(slide_graph(z_t[t], xy[t], z_r[r], y_r[r]).tensors())
    torch.testing.assert_close(found, expected[t], atol=1e-5, rtol=1e-5)
    assert expected.std(dim=0).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("switch", ["use_near", "use_close", "use_refer", "use_pooling"])
def test_switches_take_their_edges_out(arrays, small, switch):
    """With a component off, its edges have no effect on the prediction; with it on, they have."""
    z_t, xy, z_r, y_r = arrays
    graph = slide_graph(z_t, xy, z_r, y_r, n_references=3).tensors()
    n, m = len(graph.target), len(graph.reference)
    near, close, refer = (
        edges.sender.view(len(edges.start) - 1, -1) for edges in (graph.near, graph.close, graph.refer)
    )
    refer = Edges.of(refer.roll(1, 0), m)
    changed = {
        "use_near": graph._replace(near=Edges.of(near.flip(0), n)),
        "use_close": graph._replace(close=Edges.of(close.flip(0), m)),
        "use_refer": graph._replace(refer=refer, back=refer.reversed()),
        "use_pooling": graph._replace(refer=refer, back=refer.reversed()),
    }[switch]
    # Layers and pooling read the same edges: look at each with the other off.
    other = {"use_refer": {"use_pooling": False}, "use_pooling": {"use_refer": False}}.get(switch, {})
    on, off = make(replace(small, **other)), make(replace(small, **other, **{switch: False}))
    assert (on(graph) - on(changed)).abs().max() > 1e-4
    torch.testing.assert_close(off(graph), off(changed), atol=0, rtol=0)
    assert sum(p.numel() for p in off.parameters()) < sum(p.numel() for p in on.parameters())


@torch.no_grad()
def test_without_any_edges_a_spot_predicts_from_itself(arrays, small):
    z_t, xy, z_r, y_r = arrays
    off = {"use_near": False, "use_close": False, "use_refer": False, "use_pooling": False}
    model = make(replace(small, **off))
    whole = model(slide_graph(z_t, xy, z_r, y_r).tensors())
    alone = model(slide_graph(z_t[3:4], xy[3:4], z_r, y_r).tensors())
    torch.testing.assert_close(whole[3:4], alone)
    assert whole.std(dim=0).min() > 1e-3


@torch.no_grad()
def test_state_dict_round_trip_through_numpy(arrays, small):
    data = slide_graph(*arrays).tensors()
    model = make(small, components=torch.ones(2, 5))
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    assert "components" in state
    assert not any("target_encoder" in name for name in state)
    torch.manual_seed(9)
    other = SpaHGCNetwork(6, 5, small, components=torch.zeros(2, 5)).eval()
    assert not torch.equal(other(data), model(data))
    other.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    assert torch.equal(other(data), model(data))


def test_contrast_uses_views_and_leaves_the_target_encoder_without_gradient(arrays, small):
    data = slide_graph(*arrays).tensors()
    model = make(small).train()
    follower = TargetEncoder(model.encoder)
    terms = model.contrast(data, follower, torch.Generator().manual_seed(0))
    assert all(0 < term.item() < 4 for term in terms)
    sum(terms).backward()
    assert all(p.grad is None for p in follower.module.parameters())
    assert model.encoder.target[0].weight.grad.abs().sum() > 0
    assert model.head.weight.grad is None
    # The views come from the generator.
    again, other = (model.contrast(data, follower, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert again == terms
    assert other != terms


def test_prediction_is_of_the_unmasked_graph(arrays, small):
    """In training mode, without dropout, the prediction is the one of evaluation mode: no mask is drawn."""
    data = slide_graph(*arrays).tensors()
    model = make(small)
    expected = model(data)
    torch.testing.assert_close(model.train()(data), expected, atol=0, rtol=0)


def test_mixed_precision_gives_float32_predictions_and_finite_gradients(arrays, small):
    """The path of CUDA, with the CPU's autocast."""
    data = slide_graph(*arrays).tensors()
    model = make(small).train()
    expected = model(data).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(data)
        contrast = model.contrast(data, TargetEncoder(model.encoder), torch.Generator().manual_seed(0))
    assert prediction.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in contrast)
    torch.testing.assert_close(prediction, expected, atol=0.05, rtol=0.05)
    assert not torch.equal(prediction, expected)
    (prediction.square().mean() + sum(contrast)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_errors(arrays, small):
    data = slide_graph(*arrays).tensors()
    with pytest.raises(ValueError, match=r"must be \(n_components, 5\), one column per gene, got \(2, 4\)"):
        SpaHGCNetwork(6, 5, small, components=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="6 target and 11 reference features, but this network takes 6 and 10"):
        SpaHGCNetwork(6, 4, small)(data)


def test_components_are_neither_trained_nor_shared(small):
    components = torch.ones(2, 5)
    model = SpaHGCNetwork(6, 5, small, components=components)
    assert "components" not in dict(model.named_parameters())
    components += 1
    assert torch.equal(model.components, torch.ones(2, 5))

"""Networks of the published methods against plain loops, PyTorch and SciPy; how they are fitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, elu, normalize

from spahgc._geometry import spatial_knn
from spahgc._slides import Cohort, expression_of
from spahgc.methods import BLEEP, EGN, M2OST, TRIPLEX, Hist2ST, HisToGene, MclSTExp, NetworkMethod, STNet, THItoGene
from spahgc.methods.hist2st import to_counts, zinb_loss
from spahgc.methods.network import ExpressionScale, SlideNetwork, Transformer, grid_positions

N, D, G, H = 20, 7, 5, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    coordinates = np.column_stack(np.divmod(np.arange(N), 5)).astype(float)
    return {
        "embedding": torch.randn(N, D),
        "position": torch.from_numpy(grid_positions(coordinates)),
        "neighbors": torch.from_numpy(spatial_knn(coordinates, 4)),
    }


def layers_of(method: NetworkMethod) -> Any:
    """Layers of a method for D features and G genes, in evaluation mode."""
    return SlideNetwork(method, D, ExpressionScale(np.zeros(G), np.ones(G))).eval()


# Layers.


@pytest.mark.parametrize("n", [N, 1])
def test_graph_layers_are_graphsage_and_graph_attention(inputs: dict[str, Tensor], n: int) -> None:
    """Against a loop over spots; a spot alone has no neighbor."""
    z, xy, neighbors = inputs["embedding"][:n], inputs["position"][:n], inputs["neighbors"] if n > 1 else None
    neighbors = torch.empty(1, 0, dtype=torch.int64) if neighbors is None else neighbors
    sage, gat = layers_of(Hist2ST(hidden=H)), layers_of(THItoGene(hidden=H))
    states = [sage.transformer(sage.stem(z) + sage.position(xy))]
    for layer in sage.graph:
        mean = torch.stack([states[-1][row].sum(dim=0) / max(len(row), 1) for row in neighbors])
        states.append((layer.lin_l(mean) + layer.lin_r(states[-1])).relu())
    torch.testing.assert_close(Hist2ST().forward(sage, z, xy, neighbors), sage.head(torch.stack(states).mean(dim=0)))
    state = gat.transformer(gat.stem(z) + gat.position(xy))
    for layer in gat.graph:
        mapped = layer.lin(state).view(n, 4, -1)
        rows = []
        for i, row in enumerate(neighbors):
            members = [i, *row.tolist()]
            scores = (mapped[i] * layer.att_dst[0]).sum(dim=1) + (mapped[members] * layer.att_src[0]).sum(dim=2)
            weights = nn.functional.leaky_relu(scores, 0.2).softmax(dim=0)
            rows.append((weights[:, :, None] * mapped[members]).sum(dim=0).flatten())
        state = elu(torch.stack(rows) + layer.bias)
    torch.testing.assert_close(THItoGene().forward(gat, z, xy, neighbors), gat.head(state))


@pytest.mark.parametrize("training", [True, False])
def test_attention_stores_no_matrix_of_spots_by_spots(training: bool) -> None:
    """The blockwise kernel alone is allowed, forward and backward, with gradients and without."""
    layer = Transformer(16, 2, 0.2).train(training)
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.FLASH_ATTENTION]):
        layer(torch.randn(50, 16)).sum().backward()
        with torch.no_grad(), torch.autograd.profiler.profile() as profile:
            layer(torch.randn(50, 16))
    assert layer[0].self_attn.in_proj_weight.grad is not None
    names = {event.name for event in profile.function_events}
    assert any("flash_attention" in name for name in names)
    assert not any("native_multi_head_attention" in name or "transformer_encoder_layer_fwd" in name for name in names)


# Positions.


def test_grid_positions_of_a_grid() -> None:
    rng = np.random.default_rng(0)
    expected = np.array([[x, y] for x in range(9) for y in range(5) if (x, y) not in {(2, 2), (7, 1)}])
    found = grid_positions(expected * 83.0 + [1000, 300] + rng.uniform(-5, 5, expected.shape), 16)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64


def test_grid_positions_that_do_not_fit_or_are_few() -> None:
    line = np.column_stack([np.arange(40.0), np.zeros(40)])
    found = grid_positions(line, 10)
    assert found[:, 0].min() == 0
    assert found[:, 0].max() == 9
    assert (np.diff(found[:, 0]) >= 0).all()
    np.testing.assert_array_equal(grid_positions(np.array([[5.0, 7.0]]), 10), [[0, 0]])
    np.testing.assert_array_equal(grid_positions(np.full((3, 2), 5.0), 10), np.zeros((3, 2)))
    np.testing.assert_array_equal(grid_positions(line, 1), np.zeros((40, 2)))


# The count likelihood.


def test_zinb_against_scipy() -> None:
    rng = np.random.default_rng(0)
    counts = rng.negative_binomial(2, 0.3, (30, G)).astype(float)
    log_mean, inflation = rng.normal(1, 1, (30, G)), rng.normal(-1, 1, (30, G))
    log_theta = rng.normal(0, 1, G)
    mu, theta, pi = np.exp(log_mean), np.exp(log_theta), 1 / (1 + np.exp(-inflation))
    mass = pi * (counts == 0) + (1 - pi) * stats.nbinom.pmf(counts, theta, theta / (theta + mu))
    found = zinb_loss(*(torch.from_numpy(v) for v in (counts, log_mean, log_theta, inflation)))
    assert found.item() == pytest.approx(-np.log(mass).mean(), rel=1e-9)


def test_zinb_gradients() -> None:
    counts = torch.tensor([[0.0, 1.5, 0.0], [2.0, 0.0, 300.0]], dtype=torch.float64)
    arguments = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3), (3,), (2, 3))]
    assert torch.autograd.gradcheck(lambda *a: zinb_loss(counts, *a), arguments)


@pytest.mark.parametrize("size", [0.0, 50.0, -50.0, 1e4, -1e4])
def test_zinb_is_finite_at_the_extremes(size: float) -> None:
    counts = torch.tensor([[0.0, 1e-3, 1e4]])
    arguments = [torch.full(shape, size, requires_grad=True) for shape in ((1, 3), (3,), (1, 3))]
    loss = zinb_loss(counts, *arguments)
    loss.backward()
    assert loss.isfinite()
    assert all(a.grad.isfinite().all() for a in arguments)


def test_counts_of_expression() -> None:
    expression = torch.tensor([-3.0, 0.0, 1.0, 9.0, 50.0, 1e6])
    torch.testing.assert_close(to_counts(expression), torch.tensor([0.0, 0.0, math.e - 1, math.exp(9) - 1, 1e4, 1e4]))


# Networks.


def test_bleep_loss_against_a_plain_loop(inputs: dict[str, Tensor]) -> None:
    method, expression = BLEEP(hidden=H), torch.randn(N, G)
    net = layers_of(method)
    images, expressions = net.image(inputs["embedding"]), net.expression(expression)
    total = 0.0
    targets = [
        torch.stack([(images[i] @ images[j] + expressions[i] @ expressions[j]) / 2 for j in range(N)]).softmax(0)
        for i in range(N)
    ]
    for i in range(N):
        row = torch.stack([images[i] @ expressions[j] for j in range(N)]).log_softmax(0)
        column = torch.stack([images[j] @ expressions[i] for j in range(N)]).log_softmax(0)
        total -= sum((targets[i][j] * row[j] + targets[j][i] * column[j]).item() for j in range(N))
    found = method.losses(net, expression, inputs["embedding"])["contrast"]
    assert found.item() == pytest.approx(total / 2 / N, rel=1e-4)


def test_mclstexp_contrasts_each_spot_with_all_others(inputs: dict[str, Tensor]) -> None:
    method, expression, given = MclSTExp(hidden=H), torch.randn(N, G), (inputs["embedding"], inputs["position"])
    net = layers_of(method)
    logits = net.image(inputs["embedding"]) @ method.express(net, expression, *given).T
    own = torch.arange(N)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(method.losses(net, expression, *given)["contrast"], expected)
    swapped = method.express(net, expression, inputs["embedding"], inputs["position"].flip(0))
    assert not torch.equal(swapped, method.express(net, expression, *given))


def test_retrieval_of_more_than_there_is(inputs: dict[str, Tensor]) -> None:
    method, expression = BLEEP(hidden=H, n_neighbors=999), torch.randn(N, G)
    net = layers_of(method)
    method.recall(net, lambda: [(expression, inputs["embedding"])])
    torch.testing.assert_close(method.forward(net, inputs["embedding"]), expression.mean(dim=0).expand(N, G))
    torch.testing.assert_close(net.keys, normalize(net.expression(expression), dim=1))
    assert not any(key in {"keys", "values"} for key in net.state_dict())


def test_egn_attends_to_its_exemplars_only(inputs: dict[str, Tensor]) -> None:
    net, exemplars = layers_of(EGN(hidden=H)), torch.randint(0, 12, (N, 3))
    embeddings, expressions = torch.randn(12, D), torch.randn(12, G)
    changed = expressions.clone()
    changed[3] += 5
    given = net, inputs["embedding"], exemplars, embeddings
    before, after = (EGN().forward(*given, y) for y in (expressions, changed))
    assert torch.equal((before != after).any(dim=1), (exemplars == 3).any(dim=1))


def test_triplex_losses(inputs: dict[str, Tensor]) -> None:
    method, expression, given = TRIPLEX(hidden=H, alpha=0.3), torch.randn(N, G), tuple(inputs.values())
    net = layers_of(method)
    tokens, fused = method.tokens(net, *given), method.forward(net, *given)
    around = torch.stack([net.stem(inputs["embedding"])[row, H : 2 * H].mean(dim=0) for row in inputs["neighbors"]])
    torch.testing.assert_close(tokens["neighborhood"], around)
    terms = method.losses(net, expression, *given)
    assert set(terms) == {"mse", "spot", "neighborhood", "slide"}
    torch.testing.assert_close(terms["mse"], (fused - expression).square().mean())
    own = net.heads["spot"](tokens["spot"])
    expected = 0.7 * (own - expression).square().mean() + 0.3 * (own - fused).square().mean()
    torch.testing.assert_close(terms["spot"], expected)


@pytest.mark.parametrize("kind", [HisToGene, Hist2ST, THItoGene, TRIPLEX, M2OST, STNet, EGN])
def test_networks_start_close_to_the_mean_of_the_genes(kind: type[NetworkMethod], inputs: dict[str, Tensor]) -> None:
    embedding, position, neighbors = inputs.values()
    exemplars = torch.randint(0, 12, (N, 3)), torch.randn(12, D), torch.randn(12, G)
    arguments = {HisToGene: (position,), STNet: (), M2OST: (embedding, embedding), EGN: exemplars}
    given = embedding, *arguments.get(kind, (position, neighbors))
    method = kind(hidden=H)
    net = layers_of(method)
    assert method.forward(net, *given).shape == (N, G)
    assert method.forward(net, *given).abs().mean() < 0.2
    sum(method.losses(net.train(), torch.randn(N, G), *given).values()).backward()
    assert [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None] == []


# How they are fitted.


@pytest.fixture
def stnet() -> Callable[..., STNet]:
    def make(**parameters: Any) -> STNet:
        method = STNet(hidden=32, dropout=0.1, **parameters)
        method._device = torch.device("cpu")
        return method

    return make


def test_fit_lowers_the_loss_and_takes_no_global_seed(cohort: Cohort, stnet: Callable[..., STNet]) -> None:
    first, history = stnet(learning_rate=1e-2)._train(cohort, 60, 4)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert len(history["mse"]) == 60
    assert not first.training
    torch.manual_seed(99)
    again, _ = stnet(learning_rate=1e-2)._train(cohort, 60, 4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_patience_ends_it(cohort: Cohort, stnet: Callable[..., STNet], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.9])
    monkeypatch.setattr("spahgc.methods.network._PATIENCE", 3)
    monkeypatch.setattr("spahgc.methods.network.mean_pearson", lambda *_: next(scores))
    _, history = stnet()._train(cohort.subset(["a", "b"]), 7, 0, "", cohort.subset(["c"]))
    assert history["validation"] == [0.1, 0.5, 0.4, 0.3, 0.2]
    assert len(history["loss"]) == 5


def test_a_loss_that_is_not_finite_names_the_slide(cohort: Cohort, stnet: Callable[..., STNet]) -> None:
    first, second, last = cohort.slides
    embedding = np.where(np.arange(36)[:, None] == 3, np.inf, second.embedding)
    broken = replace(cohort, slides=(first, replace(second, embedding=embedding), last))
    with pytest.raises(FloatingPointError, match="epoch 1, on .*'b'"):
        stnet()._train(broken, 2, 0)


def test_expression_is_standardized_over_all_spots(cohort: Cohort) -> None:
    flat = np.array(cohort.expression())
    flat[:, 2] = 1.5
    slides = tuple(replace(s, expression=y) for s, y in zip(cohort, cohort.split(flat), strict=True))
    scale = ExpressionScale.fit(replace(cohort, slides=slides))
    found = scale(flat)
    expected = (flat - flat.mean(axis=0)) / np.where(np.arange(6) == 2, np.inf, flat.std(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(scale.inverse_transform(found), flat, atol=1e-5)
    assert expression_of(cohort.slides[0]).dtype == found.dtype

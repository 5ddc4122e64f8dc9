"""Layers and networks of the baselines against plain loops and SciPy; the loop that fits them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.nn import GATConv, SAGEConv

from spahgc.nn import baselines, spatial_knn
from spahgc.nn.baselines import Network, Training, fit_network, grid_positions, layers, zinb_loss
from spahgc.nn.baselines.tokens import to_counts

N, D, G, H = 20, 7, 5, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    coordinates = np.column_stack(np.divmod(np.arange(N), 5)).astype(float)
    return {
        "embedding": torch.randn(N, D),
        "position": torch.from_numpy(grid_positions(coordinates, 16)),
        "neighbors": torch.from_numpy(spatial_knn(coordinates, 4)),
        "views": torch.randn(N, 3, D),
        "exemplars": torch.randint(0, 12, (N, 3)),
        "exemplar_embedding": torch.randn(12, D),
        "exemplar_expression": torch.randn(12, G),
    }


def edges(neighbors: Tensor) -> Tensor:
    """From neighbour to spot, as PyG has it."""
    return torch.stack([neighbors.reshape(-1), torch.arange(len(neighbors)).repeat_interleave(neighbors.shape[1])])


# Layers.


def test_sage_against_pyg(inputs: dict[str, Tensor]) -> None:
    layer, states = layers.SageLayer(H), torch.randn(N, H)
    other = SAGEConv(H, H)
    other.lin_r.weight, other.lin_l.weight, other.lin_l.bias = layer.own.weight, layer.other.weight, layer.own.bias
    other.lin_r.bias = None
    expected = other(states, edges(inputs["neighbors"])).relu()
    torch.testing.assert_close(layer(states, inputs["neighbors"]), expected)


def test_gat_against_pyg(inputs: dict[str, Tensor]) -> None:
    layer, states = layers.GatLayer(H, 2), torch.randn(N, H)
    other = GATConv(H, H // 2, heads=2, bias=False)
    other.lin.weight = layer.map.weight
    other.att_dst, other.att_src = nn.Parameter(layer.receiver[None]), nn.Parameter(layer.sender[None])
    expected = nn.functional.elu(other(states, edges(inputs["neighbors"])))
    torch.testing.assert_close(layer(states, inputs["neighbors"]), expected)


def test_graph_layers_of_a_spot_alone() -> None:
    none = torch.empty(1, 0, dtype=torch.int64)
    state = torch.randn(1, H)
    sage, gat = layers.SageLayer(H), layers.GatLayer(H, 2)
    torch.testing.assert_close(sage(state, none), sage.own(state).relu())
    torch.testing.assert_close(gat(state, none), nn.functional.elu(gat.map(state)))


def test_transformer_layer_against_a_plain_loop() -> None:
    layer, tokens = layers.TransformerLayer(H, 2, 0.5).eval(), torch.randn(N, H)
    query, key, value = layer.query_key_value(layer.norm(tokens)).split(H, dim=1)
    attended = torch.empty(N, H)
    for i in range(N):
        for head in (slice(0, 4), slice(4, 8)):
            weights = torch.stack([query[i, head] @ key[j, head] / math.sqrt(4) for j in range(N)]).softmax(dim=0)
            attended[i, head] = sum(weights[j] * value[j, head] for j in range(N))
    expected = tokens + layer.output(attended)
    expected = expected + layer.feed_forward(expected)
    torch.testing.assert_close(layer(tokens), expected, atol=1e-5, rtol=1e-5)


def test_attention_stores_no_matrix_of_spots_by_spots() -> None:
    """The blockwise kernel alone is allowed, forwards and backwards."""
    layer = layers.TransformerLayer(16, 4, 0.2)
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.FLASH_ATTENTION]):
        layer(torch.randn(50, 16)).sum().backward()
    assert layer.query_key_value.weight.grad is not None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_dropout(share: float) -> None:
    layer = layers.Dropout(share)
    values = torch.full((501, 203), 2.0, requires_grad=True)
    found = layer(values)
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(1 - share, abs=0.01)
    assert found.mean().item() == pytest.approx(2.0, rel=0.03)
    assert len(found[kept].unique()) == 1
    found.sum().backward()
    torch.testing.assert_close(values.grad, found / 2)
    torch.manual_seed(4)
    again = layer(values)
    torch.manual_seed(4)
    assert torch.equal(layer(values), again)
    if share:
        # Neither rows nor columns go together.
        assert kept.float().mean(dim=0).std() < 0.06
        assert kept.float().mean(dim=1).std() < 0.06
        assert not torch.equal(layer(values), again)
    assert layer.eval()(values) is values


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
    with pytest.raises(ValueError, match="`n_positions` must be an integer of at least 1"):
        grid_positions(line, 0)


# The count likelihood.


def test_zinb_against_scipy() -> None:
    rng = np.random.default_rng(0)
    counts = rng.negative_binomial(2, 0.3, (30, G)).astype(float)
    log_mean, inflation = rng.normal(1, 1, (30, G)), rng.normal(-1, 1, (30, G))
    log_theta = rng.normal(0, 1, G)
    mu, theta, pi = np.exp(log_mean), np.exp(log_theta), 1 / (1 + np.exp(-inflation))
    mass = pi * (counts == 0) + (1 - pi) * stats.nbinom.pmf(counts, theta, theta / (theta + mu))
    constant = np.vectorize(math.lgamma)(counts + 1)
    found = zinb_loss(*(torch.from_numpy(v) for v in (counts, log_mean, log_theta, inflation)))
    assert found.item() == pytest.approx(-(np.log(mass) + constant).mean(), rel=1e-9)


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
    network, expression = baselines.BLEEP(D, G, hidden=H, temperature=0.5).eval(), torch.randn(N, G)
    images, expressions = network.image(inputs["embedding"]), network.expression(expression)
    total = 0.0
    targets = [
        torch.stack([0.5 * (images[i] @ images[j] + expressions[i] @ expressions[j]) / 2 for j in range(N)]).softmax(0)
        for i in range(N)
    ]
    for i in range(N):
        row = torch.stack([images[i] @ expressions[j] / 0.5 for j in range(N)]).log_softmax(0)
        column = torch.stack([images[j] @ expressions[i] / 0.5 for j in range(N)]).log_softmax(0)
        total -= sum((targets[i][j] * row[j] + targets[j][i] * column[j]).item() for j in range(N))
    assert network.losses(inputs, expression)["contrast"].item() == pytest.approx(total / 2 / N, rel=1e-4)


def test_mclstexp_contrasts_each_spot_with_all_others(inputs: dict[str, Tensor]) -> None:
    network, expression = baselines.MclSTExp(D, G, hidden=H, n_positions=16).eval(), torch.randn(N, G)
    logits = network.image(inputs["embedding"]) @ network.express(inputs, expression).T
    own = torch.arange(N)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(network.losses(inputs, expression)["contrast"], expected)
    swapped = inputs | {"position": inputs["position"].flip(0)}
    assert not torch.equal(network.express(swapped, expression), network.express(inputs, expression))


def test_retrieval_of_more_than_there_is(inputs: dict[str, Tensor]) -> None:
    network, expression = baselines.BLEEP(D, G, hidden=H, n_retrieved=999).eval(), torch.randn(N, G)
    network.recall([(inputs, expression)])
    torch.testing.assert_close(network(inputs), expression.mean(dim=0).expand(N, G))
    assert not any(key in {"keys", "values"} for key in network.state_dict())


def test_egn_attends_to_its_exemplars_only(inputs: dict[str, Tensor]) -> None:
    network = baselines.EGN(D, G, hidden=H, heads=2).eval()
    changed = inputs["exemplar_expression"].clone()
    changed[3] += 5
    moved = (network(inputs | {"exemplar_expression": changed}) != network(inputs)).any(dim=1)
    assert torch.equal(moved, (inputs["exemplars"] == 3).any(dim=1))


def test_triplex_losses(inputs: dict[str, Tensor]) -> None:
    network, expression = baselines.TRIPLEX(D, G, hidden=H, heads=2, alpha=0.3).eval(), torch.randn(N, G)
    tokens, fused = network.tokens(inputs), network(inputs)
    around = torch.stack([network.stem(inputs["embedding"])[row, H : 2 * H].mean(dim=0) for row in inputs["neighbors"]])
    torch.testing.assert_close(tokens["neighborhood"], around)
    terms = network.losses(inputs, expression)
    assert set(terms) == {"mse", "spot", "neighborhood", "slide"}
    torch.testing.assert_close(terms["mse"], (fused - expression).square().mean())
    own = network.heads["spot"](tokens["spot"])
    expected = 0.7 * (own - expression).square().mean() + 0.3 * (own - fused).square().mean()
    torch.testing.assert_close(terms["spot"], expected)


@pytest.mark.parametrize("kind", ["HisToGene", "Hist2ST", "THItoGene", "TRIPLEX", "M2OST", "STNet", "EGN"])
def test_networks_start_close_to_the_mean_of_the_genes(kind: str, inputs: dict[str, Tensor]) -> None:
    scale = {"mean": torch.zeros(G), "spread": torch.ones(G)} if kind == "Hist2ST" else {}
    network: Network = getattr(baselines, kind)(D, G, hidden=H, **scale).eval()
    assert network(inputs).shape == (N, G)
    assert network(inputs).abs().mean() < 0.2
    sum(network.train().losses(inputs, torch.randn(N, G)).values()).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


# The loop.


def steps() -> list[tuple[dict[str, Tensor], Tensor]]:
    torch.manual_seed(3)
    weights = torch.randn(D, G) / math.sqrt(D)
    embeddings = [torch.randn(30, D) for _ in range(3)]
    return [({"embedding": z}, z @ weights) for z in embeddings]


def make() -> Network:
    return baselines.STNet(D, G, hidden=32, dropout=0.1)


def test_fit_lowers_the_loss_and_is_reproducible() -> None:
    first, history = fit_network(make, steps(), Training(60, 1e-2, seed=4))
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert len(history["mse"]) == 60
    assert not first.training
    torch.manual_seed(99)
    again, _ = fit_network(make, steps(), Training(60, 1e-2, seed=4))
    other, _ = fit_network(make, steps(), Training(60, 1e-2, seed=5))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_patience_ends_it() -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.9])

    def validate(network: Network) -> float:
        assert not network.training
        return next(scores)

    _, history = fit_network(make, steps(), Training(7, patience=3), validate=validate)
    assert history["validation"] == [0.1, 0.5, 0.4, 0.3, 0.2]
    assert len(history["loss"]) == 5


def test_a_loss_that_is_not_finite_names_the_slide() -> None:
    bad = steps()
    bad[1][1][0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="epoch 1, on 'B'. Look for extreme values"):
        fit_network(make, bad, Training(2), names=["A", "B", "C"])

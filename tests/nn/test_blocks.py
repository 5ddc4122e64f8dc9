"""Blocks of a slide cover it, and have the surroundings that their spots gather from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spahgc.nn import GraphTensors, SpaHGCNetwork, slide_graph, spatial_blocks, spatial_knn, train


def test_every_spot_is_in_one_core():
    xy = np.random.default_rng(0).uniform(size=(1000, 2)) * (3, 1)
    blocks = spatial_blocks(xy, 150, n_near=5, hops=2)
    cores = np.concatenate([rows[core] for rows, core in blocks])
    np.testing.assert_array_equal(np.sort(cores), np.arange(1000))
    assert max(len(core) for _, core in blocks) <= 150
    assert len(blocks) == 8
    assert all(len(rows) > len(core) for rows, core in blocks)


def test_a_small_slide_is_one_block():
    ((rows, core),) = spatial_blocks(np.random.default_rng(0).uniform(size=(30, 2)), 30, n_near=5, hops=2)
    np.testing.assert_array_equal(rows, np.arange(30))
    np.testing.assert_array_equal(core, np.arange(30))


def test_spots_at_one_place_are_cut_as_well():
    blocks = spatial_blocks(np.zeros((50, 2)), 20, n_near=3, hops=1)
    assert sorted(len(core) for _, core in blocks) == [12, 12, 13, 13]


@torch.no_grad()
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_core_gathers_over_the_slide_what_it_gathers_on_the_whole(small, n_layers):
    """With the references' part off, the states of a block's core are those of the whole slide."""
    rng = np.random.default_rng(1)
    z, xy = rng.normal(size=(120, 6)).astype(np.float32), rng.uniform(size=(120, 2))
    z_r, y_r = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    torch.manual_seed(0)
    model = SpaHGCNetwork(6, 5, replace(small, n_layers=n_layers, use_refer=False, use_pooling=False)).eval()
    whole = model(slide_graph(z, xy, z_r, y_r, n_references=3, n_near=2, n_close=2).tensors())
    for rows, core in spatial_blocks(xy, 30, n_near=2, hops=n_layers):
        data = slide_graph(z[rows], xy[rows], z_r, y_r, n_references=3, n_near=2, n_close=2).tensors()
        torch.testing.assert_close(model(data)[core], whole[rows[core]], atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(rows[spatial_knn(xy[rows], 2)][core].shape[1], 2)


def test_the_loss_is_taken_over_the_core(small, cohort):
    """What is measured outside the core changes nothing; inside, it does."""

    def trained(change: int | None) -> torch.Tensor:
        graphs = []
        for data, y in cohort():
            graph: GraphTensors = data._replace(core=torch.arange(4, len(y)))
            values = y.clone()
            if change is not None:
                values[change] += 5
            graphs.append((graph, values))
        network, _ = train(graphs, small, seed=3)
        return network.head.weight

    assert torch.equal(trained(None), trained(0))
    assert not torch.equal(trained(None), trained(10))


@pytest.mark.parametrize("by_components", [False, True])
def test_predictions_of_a_core_are_paired_with_its_spots(small, cohort, by_components):
    """A core that lists all spots in another order trains the same network."""
    components = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) if by_components else None

    def trained(shuffled: bool) -> dict[str, list[float]]:
        graphs = []
        for i, (data, y) in enumerate(cohort()):
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(i))
            graphs.append((data._replace(core=order if shuffled else torch.arange(len(y))), y))
        return train(graphs, small, seed=3, components=components)[1]

    whole, shuffled = trained(False), trained(True)
    assert whole.keys() == shuffled.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(shuffled[name], values, rtol=1e-3, atol=1e-4, err_msg=name)

"""Two processes that train one network together (gloo, CPU), started as a user starts them: by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

import spahgc
from spahgc import _run
from spahgc.nn import SpaHGCNetwork, TargetEncoder, train
from spahgc.nn.loss import pearson_loss
from spahgc.nn.training import share

from .parallel_script import CASES, SEED, slides

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What both processes wrote, and how the launch ended."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*command, "-m", "tests.nn.parallel_script", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if not (out / "1.json").exists():
        pytest.fail(ended.stderr[-4000:])
    ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    arrays = [dict(np.load(out / f"{rank}.npz")) for rank in (0, 1)]
    return {"ended": ended, "ranks": ranks, "arrays": arrays}


def by_hand(n_slides: int, config, n_ranks: int) -> tuple[SpaHGCNetwork, dict[str, list[float]]]:
    """One process that averages the gradients of the slides of each step itself."""
    items = slides(n_slides)
    start, masks, shuffle = (int(s) for s in np.random.SeedSequence(SEED).generate_state(3))
    others = [int(np.random.SeedSequence(SEED, spawn_key=(r,)).generate_state(2)[1]) for r in range(1, n_ranks)]
    generators = [torch.Generator().manual_seed(s) for s in (masks, *others)]
    order_from = torch.Generator().manual_seed(shuffle)
    with torch.random.fork_rng():
        torch.manual_seed(start)
        model = SpaHGCNetwork(6, 4, config).train()
    target_encoder = TargetEncoder(model.encoder, config.ema_decay)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    history: dict[str, list[float]] = {"loss": [], "mse": []}
    for _ in range(config.epochs):
        order = torch.randperm(n_slides, generator=order_from).tolist()
        seen = []
        for first in range(0, n_slides, n_ranks):
            optimizer.zero_grad()
            left = min(n_ranks, n_slides - first)
            for rank in range(n_ranks):
                # A process without a slide draws masks for one that counts nothing.
                graph, y = items[order[(first + rank) % n_slides]]
                zero = torch.zeros(())
                contrasts = config.weight_target > 0
                contrast = model.contrast(graph, target_encoder, generators[rank]) if contrasts else (zero, zero)
                if rank < left:
                    predicted = model(graph)
                    mse, pearson = mse_loss(predicted, y), pearson_loss(predicted, y)
                    total = mse + 0.5 * pearson + config.weight_target * contrast[0]
                    total = total + config.weight_reference * contrast[1]
                    (total / left).backward()
                    seen.append((total.item(), mse.item()))
            optimizer.step()
            target_encoder.update(model.encoder)
        history["loss"].append(float(np.mean(seen, axis=0)[0]))
        history["mse"].append(float(np.mean(seen, axis=0)[1]))
    return model, history


def of(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}


def test_both_processes_took_part(run):
    assert [(found["rank"], found["size"]) for found in run["ranks"]] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("name", [*CASES, "validated"])
def test_weights_and_history_are_the_same_in_both(run, name):
    first, second = (of(arrays, name) for arrays in run["arrays"])
    assert len(first) == len(second) > 10
    assert all(np.array_equal(first[key], second[key]) for key in first)
    history = run["ranks"][0]["history"][name]
    assert history == run["ranks"][1]["history"][name]
    assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.parametrize("name", ["even", "uneven", "ablation"])
def test_a_step_averages_the_gradients_of_its_slides(run, name):
    n_slides, config = CASES[name]
    model, history = by_hand(n_slides, config, 2)
    alone, _ = by_hand(n_slides, config, 1)
    together = of(run["arrays"][0], name)
    weights = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    assert max(np.abs(together[key] - weights[key]).max() for key in weights) < 1e-6
    # The tolerance means something: a slide a step leads elsewhere.
    assert max(np.abs(together[key] - value.numpy()).max() for key, value in alone.state_dict().items()) > 1e-3
    for key, values in history.items():
        np.testing.assert_allclose(run["ranks"][0]["history"][name][key], values, rtol=1e-5)


def test_one_process_by_hand_is_what_train_does():
    """So that the reference of the test above is the training that everyone else gets."""
    n_slides, config = CASES["even"]
    expected, history = train(slides(n_slides), config, seed=SEED)
    model, by_hand_history = by_hand(n_slides, config, 1)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
    np.testing.assert_allclose(history["loss"], by_hand_history["loss"], rtol=1e-6)


def test_both_processes_choose_the_same_epoch(run):
    for found in run["ranks"]:
        assert found["history"]["validated"]["validation"] == [0.1, 0.9, 0.3, 0.2]
    best, two = of(run["arrays"][1], "validated"), of(run["arrays"][1], "two epochs")
    assert all(np.array_equal(best[key], two[key]) for key in best)


def test_train_through_the_table(run):
    first, second = (arrays["predicted"] for arrays in run["arrays"])
    assert first.shape == (36, 8)
    assert first.std() > 0
    assert np.array_equal(first, second)
    for found in run["ranks"]:
        assert found["params"]["n_processes"] == 2
    assert run["ranks"][0]["bars"] == [True, True]
    assert run["ranks"][1]["bars"] == [False, False]


def test_errors_reach_both_processes(run):
    first, second = (found["errors"] for found in run["ranks"])
    assert first == second
    assert "were given different slides, hyperparameters or seeds" in first["seeds"]
    assert first["seeds"] == first["slides"]
    assert "There are 2 processes for 1 slides" in first["too few"]
    assert first["infinite"].startswith("FloatingPointError: The loss became NaN or infinite in epoch 1, on 'c'")


def test_a_process_that_fails_ends_the_other(run):
    assert run["ended"].returncode != 0
    assert "this process lost its disk" in run["ended"].stderr


@pytest.mark.parametrize(("n", "size"), [(4, 2), (5, 2), (5, 3), (7, 4), (3, 3), (3, 1)])
def test_every_slide_counts_once(n, size):
    class Ranks:
        world_size = size

    order = np.random.default_rng(n).permutation(n).tolist()
    parts = []
    for rank in range(size):
        Ranks.global_rank = rank
        parts.append(share(order, Ranks))
    steps = list(zip(*parts, strict=True))
    assert len(steps) == -(-n // size)
    counted = [i for step in steps for i, weight in step if weight > 0]
    assert counted == order
    for step in steps:
        weights = [weight for _, weight in step]
        assert sum(weights) == pytest.approx(size)
        assert len({weight for weight in weights if weight > 0}) == 1


TABLE = {"A1": "A", "A2": "A", "B1": "B"}


def test_errors_before_training(planted, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(RuntimeError, match="torchrun --nproc-per-node=2 script.py"):
        spahgc.tl.train(planted(TABLE), panel=8, distributed=True)
    message = "Method 'ridge' trains in one process. Methods that support distributed=True: 'spahgc'"
    with pytest.raises(ValueError, match=message):
        spahgc.tl.train(planted(TABLE), panel=8, method="ridge", distributed=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    with pytest.raises(ImportError, match=r"pip install 'spahgc\[distributed\]'"):
        _run.launched_fabric(torch.device("cpu"))


def test_one_device_needs_no_lightning(planted, monkeypatch):
    for name in ("lightning", "lightning.fabric", "lightning_fabric"):
        monkeypatch.setitem(sys.modules, name, None)
    params = {"network": {"epochs": 1, "hidden": 16, "n_references": 5}, "n_seeds": 1}
    assert "n_processes" not in spahgc.tl.train(planted(TABLE), panel=8, method_params=params).params


def test_processes_that_train_apart_are_told(planted, monkeypatch, caplog):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("WORLD_SIZE", "2")
    spahgc.tl.train(planted(TABLE), panel=8, method="ridge")
    assert "each trains a model of its own" in caplog.text

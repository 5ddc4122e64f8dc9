"""What each of two processes runs in `test_parallel.py`, started by torchrun; writes what it found for the test."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spahgc.nn import Config, SpaHGCNetwork, slide_graph, train

CONFIG = Config(
    hidden=16,
    n_layers=2,
    heads=4,
    dropout=0.0,
    n_references=3,
    n_near=2,
    n_close=2,
    epochs=3,
    learning_rate=1e-3,
    weight_decay=0.1,
)
# Much of the network takes no part in this.
ABLATION = {"use_pooling": False, "use_refer": False, "weight_target": 0.0, "weight_reference": 0.0}
CASES = {
    "even": (4, CONFIG),
    "uneven": (5, CONFIG),
    "ablation": (4, replace(CONFIG, **ABLATION)),
    "dropout": (3, replace(CONFIG, dropout=0.3)),
}
"""Number of slides, and hyperparameters."""
SEED = 7


def slides(n: int) -> list:
    """Slides of different sizes, each the target of references from the others."""
    rng = np.random.default_rng(0)
    z = [rng.normal(size=(20 + 2 * i, 6)).astype(np.float32) for i in range(n)]
    y = [(values @ np.ones((6, 4)) + rng.normal(size=(len(values), 4))).astype(np.float32) for values in z]
    found = []
    for i in range(n):
        z_r, y_r = (np.concatenate([values for j, values in enumerate(side) if j != i]) for side in (z, y))
        graph = slide_graph(z[i], rng.uniform(size=(len(z[i]), 2)), z_r, y_r, n_references=3, n_near=2, n_close=2)
        found.append((graph.tensors(), torch.from_numpy(y[i])))
    return found


class Breaks(Sequence):
    """Slides that cannot be read any more after some reads, as on a machine whose disk fails."""

    def __init__(self, items: list, n_reads: int) -> None:
        self.items, self.left = items, n_reads

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        self.left -= 1
        if self.left < 0:
            raise OSError("this process lost its disk")
        return self.items[i]


def main(out: Path) -> None:
    from ..conftest import _mend_torchvision, _planted

    torch.set_num_threads(1)
    _mend_torchvision()
    import spahgc
    from spahgc._run import launched_fabric
    from spahgc.nn import training

    spahgc.settings.device = "cpu"
    fabric = launched_fabric(torch.device("cpu"))
    rank = fabric.global_rank
    arrays, found = {}, {"rank": rank, "size": fabric.world_size, "errors": {}, "history": {}, "bars": []}

    def keep(name: str, model: SpaHGCNetwork, history: dict) -> None:
        arrays.update({f"{name}.{key}": value.numpy() for key, value in model.state_dict().items()})
        found["history"][name] = history

    for name, (n, config) in CASES.items():
        keep(name, *train(slides(n), config, seed=SEED, fabric=fabric))

    calls = []

    def validate(model: SpaHGCNetwork) -> float:
        calls.append(rank)
        return [0.1, 0.9, 0.3, 0.2][len(calls) - 1]

    longer = replace(CONFIG, epochs=4)
    keep("validated", *train(slides(3), longer, seed=SEED, fabric=fabric, validate=validate))
    keep("two epochs", *train(slides(3), replace(CONFIG, epochs=2), seed=SEED, fabric=fabric))

    bar = training.tqdm
    training.tqdm = lambda *args, **kwargs: found["bars"].append(not kwargs["disable"]) or bar(*args, **kwargs)
    table = _planted({"A1": "A", "A2": "A", "B1": "B"})
    params = {"network": {"epochs": 2, "hidden": 16, "n_references": 5}, "n_seeds": 2}
    model = spahgc.tl.train(table, panel=8, method_params=params, rng=3, distributed=True, progress=True)
    target = _planted({"C1": "C"})
    spahgc.tl.predict(model, target)
    arrays["predicted"] = target.obsm["spahgc"].to_numpy()
    found["params"] = model.params
    training.tqdm = bar

    infinite = slides(4)
    infinite[2][1][3, 1] = torch.inf
    wrong = {
        "seeds": lambda: train(slides(4), CONFIG, seed=rank, fabric=fabric),
        "slides": lambda: train(slides(4 + rank), CONFIG, fabric=fabric),
        "too few": lambda: train(slides(2)[:1], CONFIG, fabric=fabric),
        "infinite": lambda: train(infinite, CONFIG, names=["a", "b", "c", "d"], fabric=fabric),
    }
    for name, call in wrong.items():
        try:
            call()
        except (ValueError, FloatingPointError) as error:
            found["errors"][name] = f"{type(error).__name__}: {error}"

    np.savez(out / f"{rank}.npz", **arrays)
    (out / f"{rank}.json").write_text(json.dumps(found))
    # The last: one process fails in the midst of a training, and the other waits for its gradients.
    items = slides(4)
    train(Breaks(items, len(items) + 2) if rank == 1 else items, replace(CONFIG, epochs=100_000), fabric=fabric)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

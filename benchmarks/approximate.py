"""From which size on an approximate index pays: to build it and search with it, against the exact search.

python benchmarks/approximate.py

Banks are made of slides of 4,000 spots with 512 features, as the default preset's nodes have: smooth fields over each
slide (``fields``), or spots around the same 300 centres on all slides (``clusters``). ``real`` are MobileNet embeddings
of all real slides, standardized per slide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
from _cases import slide  # noqa: E402
from _common import RESULTS, data_dir, machine, write_json  # noqa: E402
from _search_tables import approximate_table  # noqa: E402

K = 15
SPOTS, FEATURES = 4000, 512
N_QUERIES = 2000
N_SLIDES = (12, 50)


def banks() -> Iterator[tuple[str, list[np.ndarray], np.ndarray]]:
    """Name, features of each slide, and those of spots of another slide to search for."""
    yield "real", *_real()
    for n in N_SLIDES:
        for name, make in (("fields", _fields), ("clusters", _clusters)):
            *slides, target = (make(i) for i in range(n + 1))
            yield name, slides, target[:N_QUERIES]


def _real() -> tuple[list[np.ndarray], np.ndarray]:
    slides = []
    for path in sorted((data_dir() / "embeddings" / "mobilenet_v1").glob("*.npz")):
        with np.load(path) as stored:
            slides.append(_standardized(stored["X"].astype(np.float32)))
    *slides, target = sorted(slides, key=len)
    return slides, target[:N_QUERIES]


def _standardized(values: np.ndarray) -> np.ndarray:
    from spahgc._slides import Slide, standardize

    return standardize(Slide("", None, values, np.zeros((len(values), 2)))).embedding


def _fields(seed: int) -> np.ndarray:
    return _standardized(slide("", "", SPOTS, d=FEATURES, g=1, seed=seed).embedding)


def _clusters(seed: int, n_clusters: int = 300, rank: int = 24) -> np.ndarray:
    """Each cluster has a centre, directions in which it varies, and noise; a slide has more of some than of others."""
    rng = np.random.default_rng(seed)
    centres, axes = _centres(n_clusters, rank)
    of = rng.choice(n_clusters, SPOTS, p=rng.dirichlet(np.full(n_clusters, 0.5)))
    values = centres[of] + 0.3 * rng.normal(size=(SPOTS, FEATURES))
    for cluster in np.unique(of):
        here = of == cluster
        values[here] += rng.normal(size=(here.sum(), rank)) @ axes[cluster]
    return values.astype(np.float32)


@lru_cache
def _centres(n_clusters: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(n_clusters, FEATURES)), rng.normal(size=(n_clusters, rank, FEATURES)) / rank**0.5


def measure(name: str, slides: list[np.ndarray], query: np.ndarray) -> dict[str, Any]:
    """Time on the processor, as others may be busy on this machine, and recall."""
    import faiss

    from spahgc._slides import Stack
    from spahgc.nn import ApproximateIndex, cosine_topk

    start = time.process_time()
    index = ApproximateIndex(slides, K)
    built = time.process_time()
    _, found = index.search(query)
    searched = time.process_time()
    _, exact = cosine_topk(query, Stack(slides), K)
    ended = time.process_time()
    return {
        "name": name,
        "rows": sum(map(len, slides)),
        "features": query.shape[1],
        "n_lists": index.n_lists,
        "n_probed": index.n_probed,
        "recall": index.recall,
        "recall_of_target": float((found >= exact[:, -1:]).mean()),
        "build_seconds": built - start,
        "index_seconds": (searched - built) / len(query) * 1000,
        "exact_seconds": (ended - searched) / len(query) * 1000,
        "megabytes": len(faiss.serialize_index(index._index)) / 1e6,
    }


def main() -> None:
    """Measure all, and print the table."""
    import torch

    torch.set_num_threads(1)
    content = {"machine": machine(), "k": K, "banks": [measure(*bank) for bank in banks()]}
    write_json(RESULTS / "approximate.json", content)
    print(approximate_table(content))


if __name__ == "__main__":
    main()

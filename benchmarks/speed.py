"""Speed and memory of each stage, against a plain reference and against what the machine can do.

python benchmarks/speed.py                 every stage, each in a process of its own on one core; a table and JSON
python benchmarks/speed.py --only epoch    some stages; the others keep the figures that they have
python benchmarks/speed.py --million       prediction of a million spots on two cores as well
python benchmarks/speed.py --gpu           the stages that use torch, on the GPU

Ratios are of one run: the rate of the machine's own matrix products is measured in the same process right before.
Medians of `--repeats` (five).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

CHILD = "SPAHGC_SPEED_CHILD"
if CHILD in os.environ:
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[_name] = os.environ[CHILD]

import numpy as np  # noqa: E402
from _cases import CASES, slide  # noqa: E402
from _common import RESULTS, machine, write_json  # noqa: E402
from _measure import Anonymous, bandwidth, matmul_rate, peak, reset_peak, rss, timed, trim  # noqa: E402
from _speed_table import speed_table  # noqa: E402

PUBLISHED = {"her2st": (585.0, 84.0), "visium": (3810.0, 84.0)}
"""Seconds of a fold of 200 epochs the published way, and the GFLOP/s of the core they were measured on (issue 5)."""


def stage_machine(device: str, repeats: int) -> dict[str, Any]:
    return {"gflops": matmul_rate(device, repeats), "bandwidth_gb_s": bandwidth(device, repeats)}


def stage_retrieval(device: str, repeats: int) -> dict[str, Any]:
    """16k spots against 64k reference spots of 1024 features, K = 7."""
    import torch
    from _plain import nearest

    from spahgc.nn import cosine_topk

    rng = np.random.default_rng(0)
    bank = rng.standard_normal((65536, 1024), dtype=np.float32)
    query = rng.standard_normal((16384, 1024), dtype=np.float32)
    cosine_topk(query[:512], bank[:20000], 7, device=device)
    reset_peak()
    before = rss()
    seconds = timed(lambda: cosine_topk(query, bank, 7, device=device), repeats)
    used = peak() - before
    b, q = torch.from_numpy(bank).to(device).T, torch.from_numpy(query).to(device)

    def products() -> None:
        for start in range(0, len(q), 256):
            q[start : start + 256] @ b
        if device != "cpu":
            torch.cuda.synchronize()

    product_seconds = timed(products, repeats)
    sample = 20
    plain = timed(lambda: nearest(query[:sample], bank, 7), 1)[0] / sample * len(query)
    return {
        "seconds": seconds,
        "products_seconds": product_seconds,
        "share_of_product_rate": median(product_seconds) / median(seconds),
        "memory_mb": used,
        "plain_seconds_extrapolated": plain,
        "plain_spots_measured": sample,
    }


def stage_bank(device: str, repeats: int) -> dict[str, Any]:
    """256 spots against two million (of HEST-1k's size) in half precision, in a memory-mapped file of 4 GB."""
    import tempfile

    from spahgc.nn import cosine_topk

    n, d = 2_000_000, 1024
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=RESULTS.parent) as folder:
        path = Path(folder) / "bank.npy"
        bank = np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
        for start in range(0, n, 50_000):
            bank[start : start + 50_000] = rng.standard_normal((50_000, d), dtype=np.float32)
        query = np.asarray(bank[:256], np.float32) + rng.standard_normal((256, d), dtype=np.float32)
        del bank
        opening = timed(lambda: np.load(path, mmap_mode="r"), repeats)
        bank = np.load(path, mmap_mode="r")
        cosine_topk(query[:8], bank[:20_000], 7, device=device)
        with Anonymous() as memory:
            seconds = timed(lambda: cosine_topk(query, bank, 7, device=device), min(repeats, 3))
        found = float((cosine_topk(query, bank, 1, device=device)[0][:, 0] == np.arange(256)).mean())
    return {
        "rows": n, "features": d, "open_seconds": opening, "seconds": seconds, "memory_mb": memory.most,
        "own_row_found": found,
    }  # fmt: skip


def stage_model_bank(device: str, repeats: int, n: int = 2_000_000) -> dict[str, Any]:
    """A saved model of the default preset with a reference of HEST-1k's size: opened, and 500 spots predicted."""
    import tempfile

    from _cases import model_bank

    from spahgc.tl import Model

    target = slide("T", "Q", 500, d=1024, g=1, seed=9).without_expression()
    with tempfile.TemporaryDirectory(dir=RESULTS.parent) as folder:
        start = time.perf_counter()
        path = model_bank(Path(folder), n)
        making = time.perf_counter() - start
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        trim()
        with Anonymous() as opening_memory:
            opening = timed(lambda: Model.load(path), repeats)
        model = Model.load(path)
        model.method.to(device)
        trim()
        with Anonymous() as memory:
            seconds = timed(lambda: model.predict([target], progress=False), min(repeats, 3))
        verifying = timed(lambda: Model.load(path, verify=True), 1)
    return {
        "rows": n, "slides": len(model.reference), "features": 1024, "genes": len(model.genes), "size_mb": size,
        "precision": "full",
        "making_seconds": making, "open_seconds": opening, "open_memory_mb": opening_memory.most,
        "target_spots": len(target), "seconds": seconds, "memory_mb": memory.most, "verify_seconds": verifying,
    }  # fmt: skip


def stage_graphs(device: str, repeats: int) -> dict[str, Any]:
    """All graphs of one fold of the Visium case, retrieval included, and the share of each step."""
    import cProfile
    import pstats

    from spahgc.methods._references import References, TrainingGraphs
    from spahgc.nn import Config, slide_graph

    cohort, target = CASES["visium"]()
    config = Config()
    values = {one.name: one.expression.astype(np.float64) for one in cohort}
    reset_peak()
    before = rss()
    sizes: list[int] = []

    def build() -> None:
        references = References([one.embedding for one in cohort], config.n_references)
        graphs = TrainingGraphs(cohort, values, config, references=references, max_nodes=20_000, device=device)
        graph = slide_graph(
            target.embedding, target.coordinates, cohort.embedding(), cohort.expression(),
            n_references=config.n_references, n_near=config.n_near, n_close=config.n_close, device=device,
        )  # fmt: skip
        sizes[:] = [*(len(item.reference) for item, _ in graphs), len(graph.joint)]

    seconds = timed(build, repeats)
    used = peak() - before
    profile = cProfile.Profile()
    profile.enable()
    build()
    profile.disable()
    steps = {
        ("retrieval.py", "cosine_topk"): "retrieval and reference edges",
        ("retrieval.py", "_best_of"): "of it exact scores",
        ("_geometry.py", "__call__"): "spatial neighbors",
    }
    total = pstats.Stats(profile).total_tt
    shares = {
        steps[Path(path).name, name]: cumulative / total
        for (path, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items()
        if (Path(path).name, name) in steps
    }
    return {"seconds": seconds, "memory_mb": used, "reference_nodes": sizes, "shares": shares}


def stage_epoch(case: str, device: str, repeats: int) -> dict[str, Any]:
    """One training epoch of the paper's preset: the package, compiled by torch, and the plain reference."""
    import torch
    from _plain import Epoch, predict
    from torch.utils.flop_counter import FlopCounterMode

    from spahgc.nn import Config, SpaHGCNetwork, TargetEncoder, slide_graph
    from spahgc.nn.training import StepLoss, Steps

    cohort, _ = CASES[case]()
    config = Config(dropout=0.0)
    slides = []
    for one in cohort:
        others = cohort.subset([other.name for other in cohort if other.name != one.name])
        graph = slide_graph(one.embedding, one.coordinates, others.embedding(), others.expression())
        slides.append((graph.tensors().to(device), torch.from_numpy(one.expression).to(device)))
    cuda = device != "cpu"
    torch.manual_seed(0)
    network = SpaHGCNetwork(cohort.slides[0].embedding.shape[1], len(cohort.genes), config).to(device)
    with torch.no_grad():
        graph, _ = slides[0]
        gap = (network(graph) - predict(network, graph, graph.target, graph.reference)).abs().max().item()
    steps = Steps(slides, torch.device(device))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    second, masks = TargetEncoder(network.encoder, config.ema_decay), torch.Generator(device).manual_seed(0)

    loss = StepLoss(network, second, masks)

    def epoch(step_loss: Any = loss) -> None:
        network.train()
        for i in range(len(steps)):
            optimizer.zero_grad(set_to_none=True)
            step_loss(*steps[i])["loss"].backward()
            optimizer.step()
            second.update(network.encoder)
        if cuda:
            torch.cuda.synchronize()

    plain = Epoch(network, slides)

    def plain_epoch() -> None:
        plain()
        if cuda:
            torch.cuda.synchronize()

    result: dict[str, Any] = {"largest_difference": gap}
    rate = matmul_rate(device)
    for name, action in (("ours", epoch), ("plain", plain_epoch)):
        action()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        if not cuda:
            reset_peak()
        before = torch.cuda.memory_allocated() / 1e6 if cuda else rss()
        seconds = timed(action, repeats)
        used = (torch.cuda.max_memory_allocated() / 1e6 if cuda else peak()) - before
        with FlopCounterMode(display=False) as counter:
            action()
        gflop = counter.get_total_flops() / 1e9
        share = gflop / median(seconds) / rate
        result[name] = {"seconds": seconds, "memory_mb": used, "gflop": gflop, "share_of_product_rate": share}
    if not cuda:
        result["operators"] = _operators(epoch)
    compiled = torch.compile(loss, dynamic=True)
    (first,) = timed(lambda: epoch(compiled), 1)
    result["compiled"] = {"first_seconds": first, "seconds": timed(lambda: epoch(compiled), repeats)}
    return {**result, "gflops": rate, "speedup": median(result["plain"]["seconds"]) / median(result["ours"]["seconds"])}


def _operators(action: Callable[[], None], most: int = 8) -> dict[str, float]:
    """Share of the time of the operators that take most."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        action()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: event.self_cpu_time_total / total for event in events[:most]}


def stage_fold(case: str, device: str, repeats: int) -> dict[str, Any]:
    """The default preset, from embeddings to predictions of the held-out slide."""
    from spahgc.methods import Run, get_method

    cohort, target = CASES[case]()
    rate = matmul_rate(device) if device == "cpu" else 0.0
    reset_peak()
    before = rss()

    def fold() -> None:
        run = Run(seed=0, device=device, split_by="slide")
        get_method("spahgc").fit(cohort, run).to(device).predict(target)

    seconds = timed(fold, min(repeats, 3))
    published, then = PUBLISHED[case]
    return {
        "seconds": seconds,
        "memory_mb": peak() - before,
        "gflops": rate,
        "published_seconds": published,
        "published_gflops": then,
        "speedup": published / median(seconds),
        "speedup_at_equal_gflops": published * then / rate / median(seconds) if rate else None,
    }


def stage_predict(n_spots: int, device: str, repeats: int) -> dict[str, Any]:
    """Prediction of a table of n spots (1024 features, 300 genes) by the default, from two slides of 1,000 spots."""
    import anndata as ad
    import pandas as pd

    import spahgc
    from spahgc._slides import Cohort
    from spahgc._tables._cohorts import Recipe
    from spahgc.methods import Run, get_method
    from spahgc.methods.spahgc import PRESETS
    from spahgc.tl import Model

    genes = tuple(f"g{i}" for i in range(300))
    reference = Cohort(tuple(slide(f"S{i}", f"P{i}", 1000, d=1024, g=300, seed=i) for i in range(2)), genes)
    method = get_method("spahgc", network={"epochs": 1}).fit(reference.standardized(), Run(split_by="patient"))
    model = Model(method, reference, Recipe(genes, "none", "image_made", 1024, None), params={})
    target = slide("T", "Q", n_spots, d=1024, g=1, seed=9)
    obs = pd.DataFrame({"region": pd.Categorical(["T"] * n_spots)}, index=[f"s{i}" for i in range(n_spots)])
    adata = ad.AnnData(obs=obs, obsm={"image_made": target.embedding, "spatial": target.coordinates})
    del target
    spahgc.settings.progress = False
    reset_peak()
    before = rss()
    seconds = timed(
        lambda: spahgc.tl.predict(model, adata, library_key="region", device=device), repeats if n_spots < 50_000 else 1
    )
    predictions = n_spots * len(genes) * 4 / 1e6
    hidden = 2 * n_spots * PRESETS["default"].network["hidden"] * 4 / 1e6
    used = peak() - before
    return {
        "spots": n_spots, "seconds": seconds, "memory_mb": used, "predictions_mb": predictions,
        "two_hidden_states_mb": hidden, "beyond_mb": used - predictions, "inputs_mb": n_spots * 1024 * 4 / 1e6,
    }  # fmt: skip


SIZES = (1_000, 4_000, 16_000, 64_000, 256_000)
STAGES: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "machine": stage_machine,
    "retrieval": stage_retrieval,
    "bank": stage_bank,
    "model bank": stage_model_bank,
    "graphs": stage_graphs,
    **{f"epoch {case}": lambda device, repeats, case=case: stage_epoch(case, device, repeats) for case in CASES},
    **{f"fold {case}": lambda device, repeats, case=case: stage_fold(case, device, repeats) for case in CASES},
    **{f"predict {n}": lambda device, repeats, n=n: stage_predict(n, device, repeats) for n in SIZES},
    "predict 1000000": lambda device, repeats: stage_predict(1_000_000, device, repeats),
}


def main() -> None:
    """Run the stages, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", help=f"stages, or how they begin: {', '.join(STAGES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--million", action="store_true", help="predict a million spots as well, on two cores")
    parser.add_argument("--gpu", action="store_true", help="on the GPU; figures go to speed_gpu.json")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = "cuda" if args.gpu else "cpu"
    if args.stage:
        print(json.dumps(STAGES[args.stage](device, args.repeats)))
        return
    path = RESULTS / ("speed_gpu.json" if args.gpu else "speed.json")
    content = json.loads(path.read_text()) if path.is_file() else {"stages": {}}
    wanted = [name for name in STAGES if name != "predict 1000000" or args.million]
    if args.only:
        wanted = [name for name in STAGES if any(name.startswith(only) for only in args.only)]
    for name in wanted:
        threads = "2" if name == "predict 1000000" else "1"
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        command = [sys.executable, __file__, "--stage", name, "--repeats", str(args.repeats)]
        done = subprocess.run(
            [*command, *(["--gpu"] if args.gpu else [])],
            env={**os.environ, CHILD: threads},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"Stage {name!r} failed with exit status {done.returncode}.")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        content["machine"] = machine()
        content["stages"][name] = {
            **found,
            "cores": int(threads),
            "stage_seconds": time.perf_counter() - start,
            "commit": content["machine"]["commit"],
        }
        write_json(path, content)
    print(speed_table(content))


if __name__ == "__main__":
    main()

"""The speed benchmark as Markdown: what the script prints, and what the documentation shows."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from statistics import median
from typing import Any

CASE_NAMES = {
    "visium": "Visium size (three slides of 4,000 spots, 1024 features, 785 genes)",
    "her2st": "her2st (four slides of 181 to 283 spots, 378 features, 300 genes)",
}


def speed_table(content: Mapping[str, Any]) -> str:
    """All stages that there are, as sections of Markdown."""
    stages = content["stages"]
    parts = [
        _machine(content),
        _retrieval(stages),
        _bank(stages),
        _model_bank(stages),
        _graphs(stages),
        _epochs(stages),
        _folds(stages),
        _predict(stages),
    ]
    return "\n\n".join(part for part in parts if part)


def _machine(content: Mapping[str, Any]) -> str:
    found, machine = content["stages"].get("machine"), content["machine"]
    if found is None:
        return ""
    return (
        f"{machine['processor']}, one core unless said otherwise: {found['gflops']:.0f} GFLOP/s in matrix products, "
        f"{found['bandwidth_gb_s']:.1f} GB/s copying. torch {machine['versions']['torch']}."
    )


def _retrieval(stages: Mapping[str, Any]) -> str:
    found = stages.get("retrieval")
    if found is None:
        return ""
    seconds = median(found["seconds"])
    return (
        "**Retrieval**, the 7 most similar of 65,536 reference spots for 16,384 spots, 1024 features: "
        f"{seconds:.1f} s, {100 * found['share_of_product_rate']:.0f} % of the rate of the bare matrix products, "
        f"{found['memory_mb']:.0f} MB beyond the inputs. Spot by spot with L1 distances and a heap: "
        f"{found['plain_seconds_extrapolated']:.0f} s (from {found['plain_spots_measured']} spots), "
        f"{found['plain_seconds_extrapolated'] / seconds:.0f} times as long."
    )


def _bank(stages: Mapping[str, Any]) -> str:
    found = stages.get("bank")
    if found is None:
        return ""
    return (
        f"**A bank of {found['rows']:,} spots**, {found['features']} features in half precision, memory-mapped: opened "
        f"in {1000 * median(found['open_seconds']):.1f} ms; the 7 most similar for 256 spots in "
        f"{median(found['seconds']):.1f} s, {found['memory_mb']:.0f} MB beside the mapped file. The spots are rows of "
        f"the bank with as much noise as signal; {100 * found['own_row_found']:.0f} % find their own row first."
    )


def _model_bank(stages: Mapping[str, Any]) -> str:
    found = stages.get("model bank")
    if found is None:
        return ""
    return (
        f"**A saved model with a reference of {found['rows']:,} spots** ({found['slides']:,} slides, "
        f"{found['features']} features, {found['genes']} genes; default preset, "
        f"{found.get('precision', 'half')} precision, "
        f"{found['size_mb'] / 1000:.1f} GB; trained on 4,000 spots, so the predictions mean nothing): opened in "
        f"{median(found['open_seconds']):.2f} s, {found['open_memory_mb']:.0f} MB; a slide of {found['target_spots']} "
        f"spots predicted in {median(found['seconds']):.0f} s, {found['memory_mb']:.0f} MB beside the mapped file. "
        f"Checking the whole file takes {median(found['verify_seconds']):.0f} s."
    )


def _graphs(stages: Mapping[str, Any]) -> str:
    found = stages.get("graphs")
    if found is None:
        return ""
    shares = "; ".join(f"{name} {100 * share:.0f} %" for name, share in found["shares"].items())
    nodes = ", ".join(f"{n:,}" for n in found["reference_nodes"])
    return (
        f"**Graphs** of one fold at Visium size, retrieval included: {median(found['seconds']):.1f} s, "
        f"{found['memory_mb']:.0f} MB beyond the inputs ({nodes} reference nodes). Shares: {shares}."
    )


def _epochs(stages: Mapping[str, Any]) -> str:
    rows = []
    for name, case in CASE_NAMES.items():
        found = stages.get(f"epoch {name}")
        if found is None:
            continue
        for who in ("ours", "plain"):
            side = found[who]
            rows.append(
                f"| {case if who == 'ours' else ''} | {'spahgc' if who == 'ours' else 'plain reference'} | "
                f"{median(side['seconds']):.2f} | {side['gflop']:.0f} | {100 * side['share_of_product_rate']:.0f} % | "
                f"{side['memory_mb']:.0f} |"
            )
        rows.append(f"| | **times faster** | **{found['speedup']:.2f}** | | | |")
    if not rows:
        return ""
    head = (
        "**One training epoch of the paper's preset**\n\n"
        "| case | | s | GFLOP | share of the matrix-product rate | MB above the data |\n|---|---|---|---|---|---|\n"
    )
    operators = [
        f"{name}: "
        + ", ".join(f"`{op}` {100 * share:.0f} %" for op, share in stages[f"epoch {name}"]["operators"].items())
        for name in CASE_NAMES
        if "operators" in stages.get(f"epoch {name}", {})
    ]
    tail = "\n\nWhere the time goes, by operator. " + ". ".join(operators) + "." if operators else ""
    compiled = [
        f"{name}: {median(one['seconds']):.2f} s, after {one['first_seconds']:.0f} s for the first epoch"
        for name in CASE_NAMES
        if (one := stages.get(f"epoch {name}", {}).get("compiled"))
    ]
    if compiled:
        tail += "\n\n`torch.compile` is not used; with it: " + "; ".join(compiled) + "."
    return head + "\n".join(rows) + tail


def _folds(stages: Mapping[str, Any]) -> str:
    rows = []
    for name, case in CASE_NAMES.items():
        found = stages.get(f"fold {name}")
        if found is not None:
            equal = found["speedup_at_equal_gflops"]
            rows.append(
                f"| {case} | {median(found['seconds']):.1f} | {found['memory_mb']:.0f} | "
                f"{found['published_seconds']:.0f} | {found['speedup']:.0f} | {f'{equal:.0f}' if equal else ''} |"
            )
    if not rows:
        return ""
    return (
        "**A whole fold of the default preset**, from embeddings to predictions\n\n"
        "| case | s | MB above the data | the published way, s (on a core of 84 GFLOP/s) | times faster | "
        "times faster at equal GFLOP/s |\n|---|---|---|---|---|---|\n" + "\n".join(rows)
    )


def _predict(stages: Mapping[str, Any]) -> str:
    found = [stages[name] for name in stages if name.startswith("predict ")]
    if not found:
        return ""
    found.sort(key=lambda one: one["spots"])
    rows = [
        f"| {one['spots']:,} | {one['cores']} | {median(one['seconds']):.1f} | {one['inputs_mb']:.0f} | "
        f"{one['predictions_mb']:.0f} | {one['two_hidden_states_mb']:.0f} | {one['beyond_mb']:.0f} |"
        for one in found
    ]
    alone = [one for one in found if one["cores"] == 1]
    exponent = ""
    if len(alone) > 2:
        first, last = alone[1], alone[-1]
        slope = log(median(last["seconds"]) / median(first["seconds"])) / log(last["spots"] / first["spots"])
        exponent = f"\n\nFrom {first['spots']:,} to {last['spots']:,} spots the time grows with the power {slope:.2f}."
    return (
        "**Prediction** by the default preset (1024 features, 300 genes), memory in MB\n\n"
        "| target spots | cores | s | inputs | predictions | hidden states of two layers "
        "| beyond inputs and predictions |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + exponent
    )

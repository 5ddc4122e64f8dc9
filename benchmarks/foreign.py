"""How a slide that the reference does not cover shows: median support of every target under every model.

python benchmarks/foreign.py    both embeddings, under two minutes

Models are references of one tissue; targets are unseen slides of the same tissue (each held out in turn), all slides of
the other tissues, and C4 in other colors (blue first, inverted, gray) and at other scales. No expression is used.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from _common import RESULTS, data_dir, machine, write_json
from _data import TASKS, split, table

EMBEDDINGS = ("texture", "mobilenet")
CHANGES = {"blue first": 1.0, "inverted": 1.0, "gray": 1.0, "twice as large": 2.0, "half as large": 0.5}


def changed(change: str) -> Any:
    """Texture embeddings of C4 with another image, or another scale."""
    import spahgc

    folder = data_dir() / "her2st" / "data"
    from PIL import Image

    pixels = np.asarray(Image.open(next((folder / "ST-imgs" / "C" / "C4").glob("*"))).convert("RGB"))
    pixels = {
        "blue first": pixels[..., ::-1],
        "inverted": 255 - pixels,
        "gray": np.repeat(pixels.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
    }.get(change, pixels)
    files = (folder / "ST-cnts" / "C4.tsv.gz", folder / "ST-spotfiles" / "C4_selection.tsv")
    sdata = spahgc.io.read_st(*files, np.ascontiguousarray(pixels), slide="C4", patient="C")
    mpp = sdata["table"].uns["spatial"]["C4"]["scalefactors"]["microns_per_pixel"]
    spahgc.pp.image_embedding(sdata, microns_per_pixel=mpp * CHANGES[change], progress=False)
    return sdata["table"]


def main() -> None:
    """Fit the support of every reference, and print the table."""
    import spahgc

    spahgc.settings.progress = False
    runs: list[dict[str, Any]] = []

    def run(reference: Any, adata: Any, use_rep: str, **about: str) -> None:
        model = spahgc.tl.train(reference, method="gene_mean", panel=50, use_rep=use_rep, library_key="region")
        blind = adata[:, :0].copy()
        blind.uns = {}
        spahgc.tl.predict(model, blind, library_key="region", write_layer=False)
        for slide, summary in blind.uns["spahgc"]["slides"].items():
            runs.append({**about, "slide": slide, "embedding": use_rep, **summary})

    for embedding in EMBEDDINGS:
        use_rep = f"image_{embedding}"
        for task in TASKS:
            reference, target = split(task)
            reference = reference.copy()
            reference.uns = {}
            run(reference, target, use_rep, model=task.dataset, target=task.dataset, kind=task.kind)
        whole = {dataset: table(dataset) for dataset in ("her2st", "mob_st", "colon")}
        for dataset in whole:
            whole[dataset].uns = {}
        for ours, reference in whole.items():
            for theirs in whole.keys() - {ours}:
                run(reference, whole[theirs], use_rep, model=ours, target=theirs, kind="foreign")
        if embedding == "texture":
            reference = whole["her2st"][whole["her2st"].obs["region"] != "C4"].copy()
            for change in CHANGES:
                run(reference, changed(change), use_rep, model="her2st", target=change, kind="changed")
    write_json(RESULTS / "foreign.json", {"machine": machine(), "runs": runs})
    print(report(json.loads((RESULTS / "foreign.json").read_text())))


def report(content: dict[str, Any]) -> str:
    """Table of median supports, and the errors of the limit."""
    from spahgc.tl._support import LOW_MEDIAN

    lines = [
        "| model | target | kind | embedding | slides | median support | flagged |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    groups: dict[tuple[str, ...], list[float]] = {}
    for one in content["runs"]:
        groups.setdefault(tuple(one[k] for k in ("model", "target", "kind", "embedding")), []).append(
            one["median_support"]
        )
    for group, values in groups.items():
        flagged = sum(value < LOW_MEDIAN for value in values)
        span = f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
        lines.append(f"| {' | '.join(group)} | {len(values)} | {span} | {flagged} |")
    for embedding in dict.fromkeys(one["embedding"] for one in content["runs"]):
        of_kind = {
            foreign: [
                one["median_support"] < LOW_MEDIAN
                for one in content["runs"]
                if one["embedding"] == embedding and one["kind"] != "changed" and (one["kind"] == "foreign") == foreign
            ]
            for foreign in (True, False)
        }
        lines.append(
            f"\n{embedding}: median support below {LOW_MEDIAN:g} for {sum(of_kind[True])} of {len(of_kind[True])} "
            f"foreign slides, and for {sum(of_kind[False])} of {len(of_kind[False])} unseen slides of the same tissue."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

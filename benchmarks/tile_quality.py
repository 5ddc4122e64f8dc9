"""Tile quality on real slides: faulty tiles found, good tiles flagged, and what faults cost.

`pp.tile_quality` on every slide as it is (her2st, mob_st, colon_visium), which counts the good tiles that are flagged;
and on her2st C4 and colon section 1 after vertical strips of the image were blurred (Gaussian, as sharpness is lost out
of focus), inked (blue and green pen: multiplied; black pen: 85 % opaque) or folded (multiplied by the tissue beside the
strip). A tile is clearly faulty if at least 60 % of its width lies in a strip, and untouched if none does. On C4,
the mean Pearson of 300 genes, trained on B4, C2, C3 and C5, is given for all spots, and for those that are "ok", which
are compared with the same spots of the clean image. Prints tables and writes results/tile_quality.json.

    python benchmarks/tile_quality.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _common import RESULTS, machine, write_json
from _data import case, split
from alignment import element, slide, slides

WIDTH_UM, PERIOD_UM = {"blur": 300.0, "ink": 300.0, "fold": 200.0}, 1500.0
TILE_UM = 112.0
PENS = {"blue": (40, 70, 190), "green": (30, 150, 70)}
BLACK = (30, 30, 32)
METHODS = ("ridge", "context_kernel")


def faulty(pixels: np.ndarray, mpp: float, fault: str) -> np.ndarray:
    """A copy of an image (y, x, 3) with faulty strips."""
    from scipy.ndimage import gaussian_filter

    kind, _, how = fault.partition(" ")
    made, glass = pixels.copy(), np.percentile(pixels[::16, ::16].reshape(-1, 3), 95, axis=0)
    width, period, margin = (round(length / mpp) for length in (WIDTH_UM[kind], PERIOD_UM, 40))
    for left in range(0, pixels.shape[1], period):
        right = min(left + width, pixels.shape[1])
        strip = pixels[:, left:right].astype(np.float32)
        if kind == "blur":
            first = max(0, left - margin)
            wide = pixels[:, first : right + margin].astype(np.float32)
            sigma = float(how.removesuffix(" um")) / mpp
            strip = gaussian_filter(wide, (sigma, sigma, 0))[:, left - first : right - first]
        elif how == "black":
            strip = 0.15 * strip + 0.85 * np.array(BLACK, np.float32)
        elif kind == "ink":
            strip = strip * np.array(PENS[how], np.float32) / 255
        else:
            under = pixels[:, right : 2 * right - left][:, ::-1]
            strip = strip[:, -under.shape[1] :] if under.shape[1] else strip[:, :0]
            strip, left = np.minimum(strip * under / glass, 255), right - under.shape[1]
        made[:, left:right] = strip.astype(np.uint8)
    return made


def touched(centers: np.ndarray, mpp: float, kind: str) -> np.ndarray:
    """Share of each tile's width that lies in a strip."""
    across = centers[:, :1] * mpp + np.linspace(-TILE_UM / 2, TILE_UM / 2, 113)
    return (across % PERIOD_UM < WIDTH_UM[kind]).mean(axis=1)


FAULTS = ("blur 2 um", "blur 4 um", "blur 8 um", "ink blue", "ink green", "ink black", "fold")


def pearson(model: Any, target: Any) -> float:
    """Mean Pearson of the genes of the panel."""
    import spahgc

    spahgc.tl.predict(model, target, library_key="region", progress=False)
    spahgc.tl.evaluate(target, library_key="region")
    return round(float(np.nanmean(target.var["spahgc_pearson"])), 4)


def main() -> None:
    import pandas as pd
    from spatialdata.models import Image2DModel

    import spahgc

    spahgc.settings.verbosity = "error"
    reference, stored = split(case("C4"))
    models = {
        name: spahgc.tl.train(reference, method=name, use_rep="image_texture", library_key="region", progress=False)
        for name in METHODS
    }
    good, found, cost = [], [], []
    for name, picture, table, mpp in slides():
        sdata = slide("S", element(picture, "S"), table.obsm["spatial"], table, mpp, counts=False)
        spahgc.pp.tile_quality(sdata)
        verdict = sdata["table"].obs["tile_quality"]
        good.append({"slide": name, "spots": len(verdict), **verdict.value_counts().to_dict()})
        print(good[-1], flush=True)
        if name not in ("her2st C4", "colon 1"):
            continue
        pixels = np.moveaxis(np.asarray(picture["scale0"].image.data), 0, -1)
        clean = {method: pearson(model, stored.copy()) for method, model in models.items()}
        for fault in FAULTS:
            image = Image2DModel.parse(
                faulty(pixels, mpp, fault), dims=("y", "x", "c"), scale_factors=[2, 2, 2], chunks=(3, 512, 512)
            ).persist()
            sdata = slide("S", element(image, "S"), table.obsm["spatial"], table, mpp, counts=False)
            spahgc.pp.tile_quality(sdata)
            verdict = sdata["table"].obs["tile_quality"].astype(str)
            share = touched(table.obsm["spatial"], mpp, fault.split()[0])
            bad, untouched = share >= 0.6, share == 0
            row = {
                "slide": name,
                "fault": fault,
                "faulty": int(bad.sum()),
                "found": float((verdict[bad] != "ok").mean()),
            }
            row["untouched"], row["flagged"] = int(untouched.sum()), float((verdict[untouched] != "ok").mean())
            found.append(row | {"verdicts": verdict[bad].value_counts().to_dict()})
            print(found[-1], flush=True)
            if name != "her2st C4":
                continue
            spahgc.pp.image_embedding(sdata, progress=False, resume=False)
            spoilt = stored.copy()
            of = sdata["table"].obs_names.get_indexer(stored.obs_names)
            spoilt.obsm["image_texture"] = sdata["table"].obsm["image_texture"][of]
            kept = verdict.to_numpy()[of] == "ok"
            for method, model in models.items():
                scores = {"clean": clean[method], "spoilt": pearson(model, spoilt.copy())}
                scores |= {"ok": pearson(model, spoilt[kept].copy()), "ok_clean": pearson(model, stored[kept].copy())}
                cost.append({"fault": fault, "method": method, "kept": int(kept.sum()), **scores})
                print(cost[-1], flush=True)
    print(pd.DataFrame(good).to_string(), pd.DataFrame(found).to_string(), pd.DataFrame(cost).to_string(), sep="\n\n")
    write_json(
        RESULTS / "tile_quality.json", {"machine": machine(), "as_they_are": good, "faults": found, "accuracy": cost}
    )


if __name__ == "__main__":
    main()

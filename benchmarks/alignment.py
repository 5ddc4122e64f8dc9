"""Alignment doctor on the real slides: faults found, fixes right, false alarms.

`pp.check_alignment` on every slide as it is (her2st, mob_st, colon_visium), with its counts and without; on slides
whose spots are a little off, as registrations are; and on her2st C2 and colon section 1 after each of 8 symmetries of
the image frame times scales 1, hires, lowres and 1/2, with and without counts. A fix is right where no spot is further
than 5 um from its place afterwards. Prints tables and writes results/alignment.json.

    python benchmarks/alignment.py
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from _common import RESULTS, data_dir, machine, write_json

HER2ST = ("B4", "C2", "C3", "C4", "C5")
MOB = ("01", "02", "11")
MPP_COLON = 0.97
RIGHT_UM = 5.0
WIDTHS = {"hires": 2000, "lowres": 600}
"""In pixels, of the images that coordinates are taken for."""
SYMMETRIES = {
    "none": ("x", "y"),
    "swap": ("y", "x"),
    "flip x": ("w - x", "y"),
    "flip y": ("x", "h - y"),
    "180": ("w - x", "h - y"),
    "90 ccw": ("y", "w - x"),
    "90 cw": ("h - y", "x"),
    "anti": ("h - y", "w - x"),
}
"""What becomes of x and y in a frame of width w and height h: written out, and not taken from spahgc."""


def spoilt(centres: np.ndarray, symmetry: str, width: float, height: float) -> np.ndarray:
    """Spot centres after a symmetry of the image frame."""
    x, y = centres.T
    values = {"x": x, "y": y, "w - x": width - x, "h - y": height - y}
    return np.column_stack([values[part] for part in SYMMETRIES[symmetry]])


def slide(name: str, picture: Any, centres: np.ndarray, table: Any, mpp: float, *, counts: bool) -> Any:
    """A SpatialData of one slide with given spot centres."""
    import anndata as ad
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    obs = table.obs[[c for c in ("array_row", "array_col") if c in table.obs]].copy()
    obs["region"], obs["spot_id"] = pd.Categorical([name] * len(obs)), obs.index.to_numpy()
    made = ad.AnnData(
        table.X if counts else None, obs=obs, var=table.var if counts else None, obsm={"spatial": centres.copy()}
    )
    width = picture["scale0"].sizes["x"]
    factors = {f"tissue_{label}_scalef": pixels / width for label, pixels in WIDTHS.items()}
    made.uns["spatial"] = {name: {"images": {}, "scalefactors": {"microns_per_pixel": mpp, **factors}}}
    shapes = ShapesModel.parse(
        centres, geometry=0, radius=30 / mpp, index=obs.index, transformations={name: Identity()}
    )
    linked = TableModel.parse(made, region=name, region_key="region", instance_key="spot_id")
    return SpatialData(images={f"{name}_image": picture}, shapes={name: shapes}, tables={"table": linked})


def slides() -> Iterator[tuple[str, Any, Any, float]]:
    """Name, image element, table with coordinates and counts, micrometres per pixel."""
    import spahgc

    root = data_dir()
    for sample in HER2ST:
        sdata = spahgc.datasets.her2st(root / "her2st", slides=[sample])
        yield f"her2st {sample}", sdata[f"{sample}_image"], sdata["table"], _mpp(sdata, sample)
    for number in MOB:
        folder, name = root / "mob_st" / number, f"mob_{number}"
        sdata = spahgc.io.read_st(folder / "counts.tsv.gz", folder / "spots.tsv", folder / "he.jpg", slide=name)
        yield f"mob {number}", sdata[f"{name}_image"], sdata["table"], _mpp(sdata, name)
    for number in (1, 2):
        yield f"colon {number}", *colon(number), MPP_COLON


def _mpp(sdata: Any, name: str) -> float:
    return float(sdata["table"].uns["spatial"][name]["scalefactors"]["microns_per_pixel"])


def colon(number: int) -> tuple[Any, Any]:
    """Image element and table of a section of the mouse colon."""
    import anndata as ad
    from PIL import Image
    from spatialdata.models import Image2DModel

    folder = data_dir() / "colon_visium"
    table = ad.read_h5ad(folder / f"section{number}.h5ad")
    table.obsm["spatial"] = np.asarray(table.obsm["spatial"], dtype=np.float64)
    with Image.open(folder / f"section{number}.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    picture = Image2DModel.parse(pixels, dims=("y", "x", "c"), scale_factors=[2, 2, 2], chunks=(3, 512, 512))
    return picture.persist(), table


def element(picture: Any, name: str) -> Any:
    """The image in the coordinate system of a slide's name."""
    from spatialdata.transformations import Identity, set_transformation

    set_transformation(picture, Identity(), name)
    return picture


def judged(sdata: Any, *, fix: bool = False) -> tuple[pd.Series, float]:
    """The row of the only slide, and the seconds it took."""
    import spahgc

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spahgc.pp.check_alignment(sdata, fix=fix)
        report = spahgc.get.alignment(sdata["table"])
    return report.iloc[0], time.perf_counter() - start


def untouched(name: str, picture: Any, table: Any, mpp: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows for a slide as it is, and for one whose spots are turned by 1 degree and shifted by up to 100 um."""
    rows = []
    centres = table.obsm["spatial"]
    angle, shift = np.deg2rad(rng.choice([-1.0, 1.0])), rng.uniform(-100, 100, 2) / mpp
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = centres.mean(axis=0)
    off = (centres - middle) @ turn.T + middle + shift
    for counts in (True, False):
        if counts and table.n_vars == 0:
            continue
        for what, at in (("as it is", centres), ("a little off", off)):
            row, seconds = judged(slide("S", picture, at, table, mpp, counts=counts))
            rows.append(
                {
                    "slide": name,
                    "spots": what,
                    "off_um": round(float(np.hypot(*(at - centres).T).mean() * mpp), 1),
                    "counts": counts,
                    "verdict": row["verdict"],
                    "outline": round(row["given_outline"], 3),
                    "expression": round(row["given_expression"], 3),
                    "next": row["candidate"],
                    "next_outline": round(row["candidate_outline"], 3),
                    "next_expression": round(row["candidate_expression"], 3),
                    "lead": round(row["given_score"] - row["candidate_score"], 3),
                    "seconds": round(seconds, 2),
                }
            )
    return rows


def faults(name: str, picture: Any, table: Any, mpp: float) -> list[dict[str, Any]]:
    """A row for each symmetry, scale, with and without counts."""
    width, height = picture["scale0"].sizes["x"], picture["scale0"].sizes["y"]
    truth = table.obsm["spatial"]
    scales = {"1": 1.0, **{label: pixels / width for label, pixels in WIDTHS.items()}, "1/2": 0.5}
    rows = []
    for counts in (True, False):
        for label, factor in scales.items():
            for symmetry in SYMMETRIES:
                if label == "1" and symmetry == "none":
                    continue
                given = factor * spoilt(truth, symmetry, width, height)
                sdata = slide("S", picture, given, table, mpp, counts=counts)
                row, seconds = judged(sdata, fix=True)
                points = sdata["S"].geometry
                now = np.column_stack([points.x, points.y])
                error = float(np.abs(now - truth).max() * mpp)
                moved = float(np.abs(sdata["table"].obsm["spatial"] - truth).max() * mpp)
                rows.append(
                    {
                        "slide": name,
                        "counts": counts,
                        "scale": label,
                        "symmetry": symmetry,
                        "verdict": row["verdict"],
                        "fixed": bool(row["fixed"]),
                        "error_um": round(max(error, moved), 3),
                        "lead": round(row["candidate_score"] - row["given_score"], 3),
                        "seconds": round(seconds, 2),
                    }
                )
    return rows


def main() -> None:
    rng = np.random.default_rng(0)
    quiet: list[dict[str, Any]] = []
    loud: list[dict[str, Any]] = []
    for name, picture, table, mpp in slides():
        picture = element(picture, "S")
        print(name, flush=True)
        quiet += untouched(name, picture, table, mpp, rng)
        if name in ("her2st C2", "colon 1"):
            loud += faults(name, picture, table, mpp)
    calm, broken = pd.DataFrame(quiet), pd.DataFrame(loud)
    broken["found"] = ~broken["verdict"].isin(["ok", "unclear"])
    broken["right"] = broken["fixed"] & (broken["error_um"] <= RIGHT_UM)
    summary = (
        broken.groupby(["slide", "counts"])
        .agg(
            n=("found", "size"),
            found=("found", "sum"),
            fixes_right=("right", "sum"),
            unclear=("verdict", lambda verdict: int((verdict == "unclear").sum())),
            worst_error_um=("error_um", lambda error: float(error[broken.loc[error.index, "fixed"]].max())),
            smallest_lead=("lead", "min"),
            seconds=("seconds", "median"),
        )
        .reset_index()
    )
    # Off by a spot or so, "shifted" is the truth; anything else but "ok" and "unclear" is a false alarm.
    allowed = calm["verdict"].isin(["ok", "unclear"]) | ((calm["verdict"] == "shifted") & (calm["off_um"] > 0))
    alarms = calm[~allowed]
    with pd.option_context("display.width", 220, "display.max_columns", 30, "display.max_rows", 200):
        print("Untouched slides\n", calm.to_string(index=False))
        print(f"\nFalse alarms: {len(alarms)} of {len(calm)}; unclear: {int((calm['verdict'] == 'unclear').sum())}")
        print("\nFaults\n", summary.to_string(index=False))
        odd = broken[~broken["right"]]
        print("\nNot mended\n", odd.to_string(index=False) if len(odd) else "none")
    write_json(
        RESULTS / "alignment.json",
        {
            "machine": machine(),
            "false_alarms": len(alarms),
            "untouched": quiet,
            "summary": summary.to_dict(orient="records"),
            "faults": loud,
        },
    )


if __name__ == "__main__":
    main()

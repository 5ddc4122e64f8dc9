"""The slides of the demonstration, real or drawn, and what a run on them gives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _keys as keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

MARKER_GENES = {
    "ERBB2": "HER2, the receptor these tumours overexpress",
    "COL1A1": "collagen of the stroma",
    "IGKC": "plasma cells",
}
"""Genes to draw, named before any prediction was looked at."""
DRAWN_GENES = {
    "density-00": "planted: density of the nuclei",
    "colour-00": "planted: colour of the tissue",
    "context-00": "planted: density of the nuclei around the spot",
    "noise-00": "not linked to the image: nothing can predict it",
}


@dataclass(frozen=True)
class Example:
    """Slides to show the main job on.

    Parameters
    ----------
    name
        What the slides are.
    origin
        Where they come from.
    reference, target
        The slides; the target's measured expression is put aside and used for the scores only.
    genes
        Genes to draw, and what they stand for; those outside the panel are left out.
    drawn
        Whether the slides are drawn, not real.
    """

    name: str
    origin: str
    reference: SpatialData
    target: SpatialData
    genes: Mapping[str, str]
    drawn: bool = False


@dataclass(frozen=True)
class Result:
    """What a run gave, for the report."""

    example: Example
    target: AnnData
    """Table of the target with measured counts, the prediction of spahgc and its scores."""
    scores: pd.DataFrame
    """Scores of all methods, a row per gene, metric and method."""
    summary: pd.DataFrame
    """:func:`summarize` of the scores."""
    history: dict[str, list[float]]
    seconds: dict[str, float]
    seed: int

    @property
    def shared_patients(self) -> list[str]:
        """Patients that are on both sides."""
        return [str(patient) for patient in self.params["shared_patients"]]

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters of the prediction."""
        params: Mapping[str, Any] = self.target.uns[keys.PREDICTION][keys.PARAMS]
        return params


def find_data(data: Path | None) -> tuple[Path | None, list[Path]]:
    """The folder of real slides, `None` if there is none, and where it was looked for."""
    if data is not None:
        if not (data / "her2st").is_dir():
            raise FileNotFoundError(f"There is no folder her2st in {data} (--data).")
        return data, [data]
    named = os.environ.get("SPAHGC_DATA_DIR")
    looked = [Path(named)] if named else [Path("..") / "shared" / "data"]
    return next((folder for folder in looked if (folder / "her2st").is_dir()), None), looked


def real_slides(folder: Path) -> Example:
    """HER2+ breast cancer: C4 is the target, one of patient C, as three of the reference slides are."""
    from .datasets import her2st

    path = folder / "her2st"
    return Example(
        name="HER2+ breast cancer",
        origin=f"{path} (Andersson et al., Nature Communications 2021)",
        reference=her2st(path, slides=["B4", "C2", "C3", "C5"]),
        target=her2st(path, slides=["C4"]),
        genes=MARKER_GENES,
    )


def drawn_slides(seed: int, **parameters: Any) -> Example:
    """Drawn slides: four of two patients are the reference, one of a third patient is the target."""
    from spatialdata import SpatialData

    from .datasets import synthetic_cohort

    everything = synthetic_cohort(**{"n_slides": 5, "n_patients": 3, "rng": seed, **parameters})
    table = everything.tables[keys.TABLE]
    slides = list(table.obs[keys.REGION].cat.categories)

    def part(names: list[str]) -> SpatialData:
        from spatialdata.models import TableModel

        rows = table[table.obs[keys.REGION].isin(names)].copy()
        rows.obs[keys.REGION] = rows.obs[keys.REGION].cat.remove_unused_categories()
        rows.uns[keys.SPATIAL] = {name: rows.uns[keys.SPATIAL][name] for name in names}
        rows = TableModel.parse(
            rows, region=names, region_key=keys.REGION, instance_key=keys.INSTANCE, overwrite_metadata=True
        )
        return SpatialData(
            images={f"{name}_image": everything.images[f"{name}_image"] for name in names},
            shapes={name: everything.shapes[name] for name in names},
            tables={keys.TABLE: rows},
        )

    return Example(
        name="Synthetic cohort",
        origin="spahgc.datasets.synthetic_cohort",
        reference=part(slides[:-1]),
        target=part(slides[-1:]),
        genes=DRAWN_GENES,
        drawn=True,
    )


def he_only(sdata: SpatialData) -> SpatialData:
    """The slides as if they had H&E only: images, shapes, and a table of spots that has no genes at all."""
    from spatialdata import SpatialData

    blind = sdata.tables[keys.TABLE][:, :0].copy()
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={keys.TABLE: blind})


def with_measurement(predicted: AnnData, measured: AnnData) -> AnnData:
    """The measured table with a prediction that was made without it."""
    joined = measured.copy()
    key = keys.PREDICTION
    joined.obsm[key], joined.uns[key] = predicted.obsm[key], predicted.uns[key]
    joined.obs[keys.support(key)] = predicted.obs[keys.support(key)]
    return joined

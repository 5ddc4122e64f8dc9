"""A tile beside the reference tiles behind its prediction."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from skimage.transform import resize
from spatialdata import SpatialData

import spahgc


@pytest.fixture(scope="module")
def slides() -> tuple[SpatialData, SpatialData]:
    """Two reference slides and a target, predicted and explained."""
    reference = spahgc.datasets.synthetic_cohort(n_slides=2, n_patients=2, n_spots=25, n_genes=20, rng=1)
    target = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1, n_spots=25, n_genes=20, rng=2)
    for sdata in (reference, target):
        spahgc.pp.image_embedding(sdata, progress=False)
    model = spahgc.tl.train(
        reference["table"],
        panel=5,
        split_by="slide",
        method_params={"n_seeds": 1, "network": {"epochs": 1, "hidden": 16, "n_references": 4}},
        progress=False,
    )
    spahgc.tl.predict(model, target["table"], progress=False)
    spahgc.tl.explain(model, target["table"])
    return target, reference


def test_tiles_and_what_is_said_of_them(slides: tuple[SpatialData, SpatialData]) -> None:
    target, reference = slides
    table = target["table"]
    gene, spot = table.obsm["spahgc"].columns[0], table.obs_names[7]
    axes = spahgc.pl.evidence(reference, target, spot, gene=gene, n_tiles=3)
    behind = spahgc.get.evidence(table, spot, adata_ref=reference["table"]).head(3)
    assert len(axes) == 4
    assert axes[0].get_title() == spot
    predicted, agreement = table.obsm["spahgc"].loc[spot, gene], table.obs.loc[spot, "spahgc_agreement"]
    assert axes[0].get_xlabel() == f"{gene} predicted {predicted:.2f}\nagreement {agreement:.2f}"
    assert axes[0].get_ylabel() == "log1p counts per 10k"
    counts = reference["table"].X.toarray().astype(np.float64)
    measured = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    frame = pd.DataFrame(measured, reference["table"].obs_names, reference["table"].var_names)
    for ax, (_, row) in zip(axes[1:], behind.iterrows(), strict=True):
        value = frame.loc[row["reference"], gene]
        assert ax.get_title() == f"weight {100 * row['weight']:.0f} %"
        assert ax.get_xlabel() == f"{row['slide']} ({row['patient']})\nmeasured {value:.2f}"
    # Tiles are those of the spots: the same spot of the same slide gives the same picture.
    own = spahgc.pl.evidence(reference, target, spot, n_tiles=1)[0].images[0].get_array()
    np.testing.assert_array_equal(own, axes[0].images[0].get_array())
    others = spahgc.pl.evidence(reference, target, table.obs_names[8], n_tiles=1)[0].images[0].get_array()
    assert not np.array_equal(own, others)


def test_tiles_are_cut_around_the_spots(slides: tuple[SpatialData, SpatialData]) -> None:
    """The picture of a reference spot is the image around its place, of the width that was asked for."""
    target, reference = slides
    row = spahgc.get.evidence(target["table"], target["table"].obs_names[0]).iloc[0]
    drawn = spahgc.pl.evidence(reference, target, target["table"].obs_names[0], n_tiles=1, tile_um=60)[1].images[0]
    tile = np.asarray(drawn.get_array(), dtype=float)
    image = next(image for name, image in reference.images.items() if name.startswith(row["slide"]))
    pixels = np.moveaxis(np.asarray(image["scale0"].ds["image"] if hasattr(image, "groups") else image), 0, -1)
    scale = reference["table"].uns["spatial"][row["slide"]]["scalefactors"]["microns_per_pixel"]
    padded = np.pad(pixels, ((200, 200), (200, 200), (0, 0)), mode="symmetric").astype(float)

    def error(dx: float, dy: float) -> float:
        x, y, half = row["x"] + dx + 200, row["y"] + dy + 200, 30 / scale
        around = padded[round(y - half) : round(y + half), round(x - half) : round(x + half)]
        return float(np.abs(resize(around, tile.shape) - tile).mean())

    moved = [error(dx, dy) for dx, dy in ((30, 0), (-30, 0), (0, 30), (0, -30))]
    assert error(0, 0) < 0.5 * min(moved)


def test_slides_of_the_model_that_are_blocks_of_an_image(slides: tuple[SpatialData, SpatialData]) -> None:
    target, reference = slides
    table, own = reference["table"], target["table"].copy()
    table.obs["block"] = np.where(np.arange(table.n_obs) % 2 == 0, "even", "odd")
    own.obs["block"] = "target"
    model = spahgc.tl.train(table, panel=5, method="knn", library_key="block", patient_key="block")
    spahgc.tl.predict(model, own, library_key="block", key_added="knn")
    spahgc.tl.explain(model, own, library_key="block", key="knn")
    again = SpatialData(images=dict(target.images), shapes=dict(target.shapes), tables={"table": own})
    axes = spahgc.pl.evidence(reference, again, own.obs_names[0], n_tiles=2, key="knn")
    assert {ax.get_xlabel() for ax in axes[1:]} <= {"even", "odd"}


def test_own_axes_and_other_widths(slides: tuple[SpatialData, SpatialData]) -> None:
    target, reference = slides
    spot = target["table"].obs_names[3]
    _, axes = plt.subplots(1, 3)
    assert spahgc.pl.evidence(reference, target, spot, n_tiles=2, tile_um=60, ax=axes) == list(axes)
    assert axes[0].get_xlim() == (0, 60)
    with pytest.raises(ValueError, match="`ax` must hold 4 Axes, one per panel, got 3"):
        spahgc.pl.evidence(reference, target, spot, n_tiles=3, ax=axes)
    with pytest.raises(ValueError, match="`n_tiles` must be an integer of at least 1, got 0"):
        spahgc.pl.evidence(reference, target, spot, n_tiles=0)
    with pytest.raises(KeyError, match="Gene 'NONE' is not in the panel"):
        spahgc.pl.evidence(reference, target, spot, gene="NONE")
    with pytest.raises(TypeError, match="`sdata_target` must be a SpatialData, got an object of type AnnData"):
        spahgc.pl.evidence(reference, target["table"], spot)
    with pytest.raises(KeyError, match="No spot 'nowhere'"):
        spahgc.pl.evidence(reference, target, "nowhere")


def test_agreement_on_tissue(slides: tuple[SpatialData, SpatialData]) -> None:
    target, _ = slides
    ax = spahgc.pl.support(target, what="agreement")
    values = target["table"].obs["spahgc_agreement"].to_numpy()
    np.testing.assert_allclose(ax.collections[0].get_array(), values, rtol=1e-6)
    assert ax.get_title() == f"agreement, median {np.median(values):.2f}"
    with pytest.raises(ValueError, match="`what` must be one of 'support', 'agreement', got 'other'"):
        spahgc.pl.support(target, what="other")  # type: ignore[arg-type]
    bare = target["table"].copy()
    del bare.obs["spahgc_agreement"]
    with pytest.raises(KeyError, match=r"no 'spahgc_agreement'.*Run spahgc\.tl\.explain first"):
        spahgc.pl.support(bare, what="agreement")

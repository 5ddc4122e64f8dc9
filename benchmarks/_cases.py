"""Made slides of a given size for the speed benchmark, and her2st as arrays. The numbers mean nothing; sizes do."""

from __future__ import annotations

from typing import Any

import numpy as np


def slide(name: str, patient: str, n: int, *, d: int, g: int, seed: int, latent: int = 128) -> Any:
    """A slide on a hexagonal lattice, with embeddings and expression that follow smooth fields, and noise.

    The fields' weights fall off, so that some spots are similar to many, as they are on real slides: graphs then have
    about as many reference nodes.
    """
    from spahgc._slides import Slide

    shared, rng = np.random.default_rng(7), np.random.default_rng(seed)
    into_z = (shared.normal(size=(latent, d)) * np.arange(1, latent + 1)[:, None] ** -0.8).astype(np.float32)
    into_y = shared.normal(size=(latent, g)).astype(np.float32)
    side = int(np.ceil(np.sqrt(n)))
    row, column = np.divmod(np.arange(n), side)
    xy = np.column_stack([(column + 0.5 * (row % 2)) * 100.0, row * 86.6])
    waves = rng.normal(size=(2, latent)) / 1500
    field = np.empty((n, d), np.float32)
    expression = np.empty((n, g), np.float32)
    for start in range(0, n, 8192):
        rows = slice(start, min(start + 8192, n))
        factors = np.sin(xy[rows] @ waves + np.arange(latent)) + rng.normal(0, 0.7, (rows.stop - rows.start, latent))
        factors = factors.astype(np.float32)
        signal = factors @ into_z
        field[rows] = signal + 0.2 * signal.std() * rng.standard_normal(signal.shape, dtype=np.float32)
        expression[rows] = factors @ into_y / 5 + rng.standard_normal((len(factors), g), dtype=np.float32)
    return Slide(name, patient, field, xy, expression)


def visium() -> tuple[Any, Any]:
    """Three reference slides and a target of Visium's size: 4,000 spots, 1024 features, 785 genes."""
    return _fold([slide(f"S{i}", f"P{i}", 4000, d=1024, g=785, seed=i) for i in range(4)])


def her2st() -> tuple[Any, Any]:
    """Four slides of her2st as the reference and C4 as the target, texture embeddings, 300 genes."""
    from _data import table

    from spahgc._tables import reference_cohort, target_slides

    adata = table("her2st")
    held = adata.obs["region"].astype(str) == "C4"
    cohort, recipe = reference_cohort(
        adata[~held],
        panel=300,
        normalize_as="log1p",
        use_rep="image_texture",
        library_key="region",
        patient_key="patient",
        layer=None,
    )
    (target,) = target_slides(adata[held], recipe, library_key="region", patient_key="patient")
    return cohort.standardized(), target.slide.read()


CASES = {"visium": visium, "her2st": her2st}


def _fold(slides: list[Any]) -> tuple[Any, Any]:
    from spahgc._slides import Cohort, standardize

    *reference, target = slides
    genes = tuple(f"g{i}" for i in range(target.expression.shape[1]))
    return Cohort(tuple(reference), genes).standardized(), standardize(target.without_expression())

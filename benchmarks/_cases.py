"""Made slides of a given size for the speed benchmark, and her2st as arrays. The numbers mean nothing; sizes do."""

from __future__ import annotations

from pathlib import Path
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

    from spahgc._tables._cohorts import reference_cohort, target_slides

    adata = table("her2st")
    held = adata.obs["region"].astype(str) == "C4"
    cohort, recipe = reference_cohort(
        adata[~held],
        panel=300,
        normalize="log1p",
        use_rep="image_texture",
        library_key="region",
        patient_key="patient",
        layer=None,
    )
    (target,) = target_slides(adata[held], recipe, library_key="region", patient_key="patient")
    return cohort.standardized(), target.slide.read()


CASES = {"visium": visium, "her2st": her2st}


def model_bank(folder: Path, n_spots: int, *, d: int = 1024, g: int = 300, per_slide: int = 4000) -> Path:
    """A folder of a model of the default preset whose reference is made slides of `n_spots` in all.

    Networks, kernel and linear fits are of four slides of 1,000 spots, so what it predicts means nothing; what is read,
    searched and computed for a prediction is that of a model of so many spots. Returned is the folder; beside it lie
    the embeddings and the like that it was made of.
    """
    import spahgc
    from spahgc._slides import Cohort, Rows, Slide, standardize
    from spahgc._tables._cohorts import Recipe
    from spahgc.methods import Run, get_method
    from spahgc.methods._features import GeneScale

    genes = tuple(f"g{i}" for i in range(g))
    small = Cohort(tuple(slide(f"S{i}", f"P{i}", 1000, d=d, g=g, seed=i) for i in range(4)), genes).standardized()
    method = get_method("spahgc", network={"epochs": 1}).fit(small, Run(split_by="patient"))

    def table(name: str, width: int) -> Any:
        return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (n_spots, width))

    embedding, expression = table("embedding", d), table("expression", g)
    nodes = {name: table(name, array.shape[1]) for name, array in method.reference_rows().items()}
    slides = []
    for start in range(0, n_spots, per_slide):
        rows = slice(start, min(start + per_slide, n_spots))
        one = slide(f"R{start:08d}", f"R{start}", rows.stop - start, d=d, g=g, seed=start)
        embedding[rows], expression[rows] = one.embedding, one.expression
        for name, features in nodes.items():
            features[rows] = method._node_features(standardize(one), name.removeprefix("nodes."))
        slides.append(Slide(one.name, one.patient, Rows(embedding[rows]), one.coordinates, Rows(expression[rows])))
    reference = Cohort.in_order(slides, genes)
    scale = GeneScale.fit(reference)
    state = {**method.state(), "mean": scale.mean, "std": scale.std, **nodes}
    method.restore(state, reference.standardized())
    recipe = Recipe(genes, "none", "image_made", d, None)
    spahgc.tl.Model(method, reference, recipe, params={}).save(folder / "model")
    return folder / "model"


def _fold(slides: list[Any]) -> tuple[Any, Any]:
    from spahgc._slides import Cohort, standardize

    *reference, target = slides
    genes = tuple(f"g{i}" for i in range(target.expression.shape[1]))
    return Cohort(tuple(reference), genes).standardized(), standardize(target.without_expression())

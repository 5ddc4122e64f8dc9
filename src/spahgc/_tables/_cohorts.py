"""Tables to slides as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, cast

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._settings import logger
from .._slides import (
    Cohort,
    Float32,
    Float64,
    Normalize,
    Rows,
    Slide,
    canonical_order,
    rank_genes,
    share_in_common,
    spot_depth,
    spot_signatures,
    standardization,
)
from .._slides import normalize as in_unit
from . import _slots as check
from ._patients import patient_names

SAME_SECTION = 0.5  # share of spots that two slides have in common from which on they are one section
# Parameters of an embedding that describe a slide or a run, and do not affect whether embeddings are comparable.
_RUN_ONLY = {
    *(keys.MPP, keys.MPP_SOURCE, "precision", "n_padded", "n_jobs", "batch_size", "version", "spahgc_version"),
    *("image", "images"),
}


@dataclass(frozen=True)
class Recipe:
    """Panel, unit and embedding, which reference and target must share; `encoder` is `None` if it was not recorded."""

    genes: tuple[str, ...]
    normalize: Normalize
    use_rep: str
    width: int
    encoder: dict[str, Any] | None


class TargetSlide(NamedTuple):
    """Slide to predict, in canonical order, and the rows of its spots in the table."""

    slide: Slide
    rows: NDArray[np.intp]


class ReferenceSlots(NamedTuple):
    """Checked slots of a reference table without features that are no genes, with rows and patient by slide."""

    table: AnnData
    use_rep: str
    library_key: str
    matrix: Any
    embedding: Float32
    coordinates: Float64
    cellularity: Float32 | None
    rows: dict[str, NDArray[np.intp]]
    patients: dict[str, str]


def reference_slots(
    adata: AnnData,
    *,
    normalize: Normalize,
    use_rep: str | None,
    library_key: str | None,
    patient_key: str,
    layer: str | None,
) -> ReferenceSlots:
    """Read and check what training reads from a table."""
    what = "reference"
    check.check_table(adata, what=what)
    library_key = check.library_column(adata, library_key, what=what)
    hint = f" If every slide is from another patient, pass patient_key={library_key!r}."
    check.column(adata, patient_key, what=what, parameter="patient_key", hint=hint)
    adata = check.genes_only(adata, what=what)
    use_rep = check.representation(adata, use_rep, what=what)
    matrix = check.expression(adata, layer, what=what, normalize=normalize)
    embedding = check.embedding(adata, use_rep, what=what)
    coordinates, cellularity = check.coordinates(adata, what=what), check.cellularity(adata, what=what)
    rows = tissue_rows(adata, library_key, what=what)
    named = patient_names(adata.obs[patient_key])
    patients = {}
    for name, index in rows.items():
        if len(index) < 2:
            raise ValueError(f"Slide {name!r} of the reference has 1 spot; at least 2 are needed. Leave it out.")
        if not check.measured(matrix[index]).any():
            raise ValueError(
                f"Slide {name!r} of the reference is all zero: no expression was measured. Leave it out of the "
                f"reference; as an H&E-only slide it can be a target."
            )
        if (embedding[index] == embedding[index[0]]).all():
            raise ValueError(
                f"Slide {name!r} of the reference has the same embedding in obsm[{use_rep!r}] for all {len(index)} "
                f"spots, so nothing can be learned from it. Embed it again, or leave it out."
            )
        owners = named.iloc[index].unique()
        if None in owners:
            raise ValueError(
                f"The patient of slide {name!r} of the reference is not known: obs[{patient_key!r}] has "
                f"{format_names(adata.obs[patient_key].iloc[index].unique(), most=3)}.{hint}"
            )
        if len(owners) > 1:
            raise ValueError(
                f"Slide {name!r} of the reference has several patients in obs[{patient_key!r}]: "
                f"{format_names(owners)}. Correct the column, or give the part of each patient a slide name of its own."
            )
        patients[name] = owners[0]
    _check_different(embedding, rows, "spots have the same embeddings")
    if check.are_counts(matrix):
        codes = np.random.default_rng(0).random((matrix.shape[1], 1))
        _check_different(matrix @ codes, rows, "spots have the same counts")
    return ReferenceSlots(adata, use_rep, library_key, matrix, embedding, coordinates, cellularity, rows, patients)


def reference_cohort(
    adata: AnnData, *, panel: int | Sequence[str], normalize: Normalize, **columns: Any
) -> tuple[Cohort, Recipe]:
    """Reference slides of a table with their panel; `columns` are those of :func:`reference_slots`."""
    slots = reference_slots(adata, normalize=normalize, **columns)
    chosen = _panel_columns(slots.table, panel, {name: slots.matrix[index] for name, index in slots.rows.items()})
    slides = [
        Slide(
            name,
            slots.patients[name],
            slots.embedding[index],
            slots.coordinates[index],
            in_unit(slots.matrix[index], normalize, genes=chosen),
            None if slots.cellularity is None else slots.cellularity[index],
        )
        for name, index in slots.rows.items()
    ]
    genes = tuple(slots.table.var_names[chosen].astype(str))
    encoder = encoder_params(adata, slots.use_rep)
    return Cohort(tuple(slides), genes), Recipe(genes, normalize, slots.use_rep, slots.embedding.shape[1], encoder)


def _check_different(values: NDArray[np.floating], rows: Mapping[str, NDArray[np.intp]], finding: str) -> None:
    """Raise if two slides of a reference are the same section, by the values of their spots."""
    signatures = spot_signatures(values)
    for one, other in combinations(rows, 2):
        if (share := share_in_common(signatures[rows[one]], signatures[rows[other]])) >= SAME_SECTION:
            raise ValueError(
                f"Slides {one!r} and {other!r} of the reference are the same section: {share:.0%} of their {finding}. "
                "Leave one of them out; otherwise what is trained on passes for new."
            )


def embedding_recipe(adata: AnnData, use_rep: str | None) -> Recipe:
    """Recipe of a reference table without a panel."""
    check.check_table(adata, what="reference")
    use_rep = check.representation(adata, use_rep, what="reference")
    width = check.embedding(adata, use_rep, what="reference").shape[1]
    return Recipe((), "none", use_rep, width, encoder_params(adata, use_rep))


def target_slides(
    adata: AnnData, recipe: Recipe, *, library_key: str | None, patient_key: str | None
) -> list[TargetSlide]:
    """Slides of a target table; their expression is never read."""
    what = "target"
    check.check_table(adata, what=what)
    library_key = check.library_column(adata, library_key, what=what)
    use_rep = check.representation(adata, recipe.use_rep, what=what)
    embedding = check.embedding(adata, use_rep, what=what)
    if embedding.shape[1] != recipe.width:
        raise ValueError(
            f"The reference has embeddings of width {recipe.width} in obsm[{recipe.use_rep!r}], the target of width "
            f"{embedding.shape[1]}. Embed both with the same encoder: spahgc.pp.image_embedding(sdata, encoder=...)."
        )
    _check_same_encoder(recipe.encoder, encoder_params(adata, use_rep), use_rep)
    coordinates, cellularity = check.coordinates(adata, what=what), check.cellularity(adata, what=what)
    targets: list[TargetSlide] = []
    whole = slide_rows(adata, library_key)
    for name, on in tissue_rows(adata, library_key, what=what).items():
        # Spots beside the tissue are predicted apart, with the statistics of those on it.
        for index in (on, np.setdiff1d(whole[name], on)):
            if not len(index):
                continue
            if index is on and (embedding[on] == embedding[on[0]]).all():
                finding = "one spot" if len(on) == 1 else f"one embedding in obsm[{use_rep!r}] for all {len(on)} spots"
                raise ValueError(
                    f"Slide {name!r} of the target has {finding}. Embeddings are standardized by slide, so all spots "
                    f"would get one prediction. Is {library_key!r} (library_key) the column with the slide?"
                )
            rows = index[canonical_order(coordinates[index], embedding[index, :4])]
            lazy = cast("Float32", Rows(embedding, rows))
            density = None if cellularity is None else cellularity[rows]
            moments = None if index is on else standardization(targets[-1].slide.embedding)
            slide = Slide(name, patient_of(adata, rows, patient_key), lazy, coordinates[rows], None, density, moments)
            targets.append(TargetSlide(slide, rows))
    return targets


def patient_of(adata: AnnData, rows: NDArray[np.intp], patient_key: str | None) -> str | None:
    """Patient of some spots; `None` if there is none, or more than one."""
    if patient_key is None or patient_key not in adata.obs:
        return None
    patients = patient_names(adata.obs[patient_key].iloc[rows]).unique()
    return patients[0] if len(patients) == 1 else None


def measured_expression(
    adata: AnnData, genes: Sequence[str], normalize: Normalize, *, layer: str | None
) -> tuple[Float32, Float64, NDArray[np.bool_]]:
    """Measured expression of some genes, depth of the spots (NaN without counts), and whether a spot has any counts."""
    adata = check.genes_only(adata, what="target")
    matrix = check.expression(adata, layer, what="target", normalize=normalize)
    depth = spot_depth(matrix) if check.are_counts(matrix) else np.full(adata.n_obs, np.nan)
    chosen = adata.var_names.get_indexer(list(genes))
    return in_unit(matrix, normalize, genes=chosen), depth, check.measured(matrix)


def slide_rows(adata: AnnData, library_key: str) -> dict[str, NDArray[np.intp]]:
    """Rows of each slide, by name."""
    names = adata.obs[library_key].astype(str).to_numpy()
    return {name: np.flatnonzero(names == name) for name in sorted(set(names))}


def tissue_rows(adata: AnnData, library_key: str, *, what: str) -> dict[str, NDArray[np.intp]]:
    """Rows of each slide's spots on tissue; all of a slide whose ``in_tissue`` is 0 throughout."""
    on, rows, beside = check.on_tissue(adata, what=what), slide_rows(adata, library_key), 0
    for name, index in rows.items():
        empty = adata.obs[keys.IN_TISSUE].iloc[index].isna() if keys.IN_TISSUE in adata.obs else np.False_
        if empty.any() and not empty.all():
            raise ValueError(
                f"{what}.obs['{keys.IN_TISSUE}'] is missing for {empty.sum()} of {len(index)} spots of slide {name!r}. "
                "Write 0 for spots beside the tissue and 1 for the others."
            )
        if not on[index].any():
            logger.warning(
                "obs['%s'] is 0 for all spots of slide %r of %s, so it is not used.", keys.IN_TISSUE, name, what
            )
            continue
        rows[name] = index[on[index]]
        beside += len(index) - len(rows[name])
    if beside:
        logger.warning(
            "%d of %d spots of %s lie beside the tissue (obs['%s']): they do not enter panel, training and scores.",
            beside, adata.n_obs, what, keys.IN_TISSUE,
        )  # fmt: skip
    return rows


def encoder_params(adata: AnnData, use_rep: str) -> dict[str, Any] | None:
    """Recorded parameters of an embedding, without those of a single slide or run; `None` if there are none."""
    params = keys.part(adata.uns, use_rep, keys.PARAMS)
    return {key: plain(value) for key, value in params.items() if key not in _RUN_ONLY} if params else None


def plain(value: Any) -> Any:
    """Plain Python types, as they were before a file turned lists into arrays."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_same_encoder(reference: dict[str, Any] | None, target: dict[str, Any] | None, use_rep: str) -> None:
    if reference is None or target is None or reference == target:
        return
    ours, theirs = _flat(reference), _flat(target)
    pairs = {
        key: [repr(side[key]) if key in side else "not recorded" for side in (ours, theirs)] for key in ours | theirs
    }
    details = "; ".join(f"{key}: reference {a}, target {b}" for key, (a, b) in sorted(pairs.items()) if a != b)
    raise ValueError(
        f"obsm[{use_rep!r}] of reference and target were made differently ({details}). Embed both in the same way with "
        f"spahgc.pp.image_embedding."
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return out


def _panel_columns(adata: AnnData, panel: int | Sequence[str], by_slide: dict[str, Any]) -> NDArray[np.intp]:
    matrices = list(by_slide.values())
    if isinstance(panel, int | np.integer):
        if any(check.negative(matrix) for matrix in matrices):
            raise ValueError(
                "An integer `panel` ranks genes by the dispersion of their counts, but the reference has negative "
                "values. Name the genes instead: panel=[...]."
            )
        ranked = rank_genes(matrices)
        ranked = ranked[[check.is_storable(name) for name in adata.var_names[ranked]]]
        if len(ranked) == 0:
            raise ValueError(
                "No gene of the reference varies on every slide and is detected in more than 5 % of its spots."
            )
        return ranked[:panel]
    wanted = list(dict.fromkeys(str(gene) for gene in panel))
    if not wanted:
        raise ValueError("`panel` is empty. Name at least one gene, or give a number of genes.")
    check.genes_in(wanted, adata.var_names, what="reference")
    unusable = [name for name in wanted if not check.is_storable(name)]
    if unusable:
        raise ValueError(
            f"Genes {format_names(unusable)} of the panel cannot name columns of HDF5 and Zarr files. A name must not "
            f"contain '/', be empty, or be '.', '..' or '_index'. Rename them in reference.var_names."
        )
    check.check_on_panels(adata, wanted, by_slide)
    return np.asarray(adata.var_names.get_indexer(wanted), dtype=np.intp)

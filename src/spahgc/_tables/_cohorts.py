"""AnnData tables to slides as arrays, and back: what every ``tl`` function reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._slides import Cohort, Float32, Normalize, Rows, Slide, canonical_order, normalize, rank_genes, spot_depth
from . import _slots as check

if TYPE_CHECKING:
    from anndata import AnnData


# What decides whether two embeddings can be compared; the rest of an embedding's parameters describes the slide or
# the run.
_RUN_ONLY = {
    *(keys.MPP, keys.MPP_SOURCE, "precision", "n_padded", "n_jobs", "batch_size", "version", "spahgc_version"),
    *("image", "images"),
}


@dataclass(frozen=True)
class Recipe:
    """How a table becomes slides: what has to be the same for reference and target."""

    genes: tuple[str, ...]
    """The panel."""
    normalize: Normalize
    """Unit of the expression."""
    use_rep: str
    """Embedding, key of ``obsm``."""
    width: int
    """Width of the embedding."""
    encoder: dict[str, Any] | None
    """Parameters of the encoder, where ``uns`` has them."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "genes": list(self.genes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**values, "genes": tuple(values["genes"])})


@dataclass(frozen=True, eq=False)
class TargetSlide:
    """A slide to predict, in canonical order, and the rows of the table its spots came from."""

    slide: Slide
    rows: NDArray[np.intp]


def reference_cohort(
    adata: AnnData,
    *,
    panel: int | Sequence[str],
    normalize_as: Normalize,
    use_rep: str | None,
    library_key: str | None,
    patient_key: str,
    layer: str | None,
) -> tuple[Cohort, Recipe]:
    """The reference slides of a table, checked, with their panel.

    An integer `panel` takes that many genes by :func:`~spahgc._expression.rank_genes` over these slides.
    """
    what = "reference"
    check.check_table(adata, what=what)
    library_key = check.library_column(adata, library_key, what=what)
    check.column(
        adata,
        patient_key,
        what=what,
        parameter="patient_key",
        hint=f"If every slide is from another patient, pass patient_key={library_key!r}.",
    )
    use_rep = check.representation(adata, use_rep, what=what)
    matrix = (
        check.expression(adata, layer, what=what)
        if normalize_as == "none"
        else check.counts(adata, layer, what=what, normalize=normalize_as)
    )
    embedding = check.embedding(adata, use_rep, what=what)
    coordinates = check.coordinates(adata, what=what)
    cellularity = check.cellularity(adata, what=what)
    rows = slide_rows(adata, library_key)
    for name, index in rows.items():
        if len(index) < 2:
            raise ValueError(f"Slide {name!r} of the reference has 1 spot; it takes at least two. Leave it out.")
        if not check.measured(matrix[index]).any():
            raise ValueError(
                f"Slide {name!r} of the reference is all zero: no expression was measured. Leave it out of the "
                f"reference; as a slide with H&E only it can be a target."
            )
        if (embedding[index] == embedding[index[0]]).all():
            raise ValueError(
                f"Slide {name!r} of the reference has one and the same embedding in obsm[{use_rep!r}] for all its "
                f"{len(index)} spots: nothing can be learnt from it. Embed it again, or leave it out."
            )
    columns = _panel_columns(adata, panel, [matrix[index] for index in rows.values()])

    slides = []
    for name, index in rows.items():
        patients = adata.obs[patient_key].iloc[index].astype(str).unique()
        if len(patients) > 1:
            raise ValueError(
                f"Slide {name!r} of the reference has several patients in obs[{patient_key!r}]: "
                f"{format_names(patients)}."
            )
        values = normalize(matrix[index], normalize_as, genes=columns)
        density = None if cellularity is None else cellularity[index]
        slides.append(Slide(name, patients[0], embedding[index], coordinates[index], values, density))
    genes = tuple(adata.var_names[columns].astype(str))
    recipe = Recipe(genes, normalize_as, use_rep, embedding.shape[1], encoder_params(adata, use_rep))
    return Cohort(tuple(slides), genes), recipe


def embedding_recipe(adata: AnnData, use_rep: str | None) -> Recipe:
    """What a reference table asks of the embeddings of a target, without a panel."""
    use_rep = check.representation(adata, use_rep, what="reference")
    width = check.embedding(adata, use_rep, what="reference").shape[1]
    return Recipe((), "none", use_rep, width, encoder_params(adata, use_rep))


def target_slides(
    adata: AnnData, recipe: Recipe, *, library_key: str | None, patient_key: str | None
) -> list[TargetSlide]:
    """The slides of a target table, without expression: it is never read here."""
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
    coordinates = check.coordinates(adata, what=what)
    cellularity = check.cellularity(adata, what=what)

    targets = []
    for name, index in slide_rows(adata, library_key).items():
        patient = None
        if patient_key is not None and patient_key in adata.obs:
            patients = adata.obs[patient_key].iloc[index].dropna().astype(str).unique()
            patient = patients[0] if len(patients) == 1 else None
        density = None if cellularity is None else cellularity[index]
        order = canonical_order(coordinates[index], embedding[index, :4])
        slide = Slide(
            name,
            patient,
            cast("Float32", Rows(embedding, index[order])),
            coordinates[index[order]],
            cellularity=None if density is None else density[order],
        )
        targets.append(TargetSlide(slide, index[order]))
    return targets


def measured_expression(
    adata: AnnData, genes: Sequence[str], how: Normalize, *, layer: str | None
) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_]]:
    """Measured expression of some genes in the unit `how`, with the depth of the spots.

    Returns
    -------
    Expression, float32 (n_obs, n_genes); depth, (n_obs,), NaN where the values are no counts, as `how` ``"none"``
    allows; whether a spot has any expression, (n_obs,).
    """
    what = "target"
    matrix = (
        check.expression(adata, layer, what=what)
        if how == "none"
        else check.counts(adata, layer, what=what, normalize=how)
    )
    columns = adata.var_names.get_indexer(list(genes))
    depth = spot_depth(matrix) if check.are_counts(matrix) else np.full(adata.n_obs, np.nan)
    return normalize(matrix, how, genes=columns), depth, check.measured(matrix)


def slide_rows(adata: AnnData, library_key: str) -> dict[str, NDArray[np.intp]]:
    """Rows of each slide, by name."""
    names = adata.obs[library_key].astype(str).to_numpy()
    return {name: np.flatnonzero(names == name) for name in sorted(set(names))}


def encoder_params(adata: AnnData, use_rep: str) -> dict[str, Any] | None:
    """What ``uns`` says about how an embedding was made, less what concerns one slide or run; `None` if nothing."""
    entry = adata.uns.get(use_rep)
    if not isinstance(entry, dict) or keys.PARAMS not in entry:
        return None
    return {key: plain(value) for key, value in entry[keys.PARAMS].items() if key not in _RUN_ONLY}


def plain(value: Any) -> Any:
    """Python types, as they were before a file turned lists into arrays."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_same_encoder(reference: dict[str, Any] | None, target: dict[str, Any] | None, use_rep: str) -> None:
    if reference is None or target is None or reference == target:
        return
    ours, theirs = _flat(reference), _flat(target)
    said = "; ".join(
        f"{key}: reference {_shown(ours, key)}, target {_shown(theirs, key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if _shown(ours, key) != _shown(theirs, key)
    )
    raise ValueError(
        f"obsm[{use_rep!r}] was made differently in reference and target ({said}). Embed both alike with "
        f"spahgc.pp.image_embedding."
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of fields under names with dots, so that a message shows those that differ and no others."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return out


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not recorded"


def _panel_columns(adata: AnnData, panel: int | Sequence[str], matrices: list[Any]) -> NDArray[np.intp]:
    if isinstance(panel, str):
        raise TypeError(f"panel is a number of genes or a list of gene names, not the single string {panel!r}.")
    if isinstance(panel, int | np.integer):
        if panel < 1:
            raise ValueError(f"panel is at least 1 gene, not {panel}.")
        if any(check.negative(matrix) for matrix in matrices):
            raise ValueError(
                "A number for panel takes genes by the dispersion of their counts, and the reference has negative "
                "values. Name the genes: panel=[...]."
            )
        ranked = rank_genes(matrices)
        ranked = ranked[[check.is_storable(name) for name in adata.var_names[ranked]]]
        if len(ranked) == 0:
            raise ValueError(
                "No gene of the reference varies on every slide and is found in more than 5 % of its spots."
            )
        return ranked[:panel]
    wanted = list(dict.fromkeys(str(gene) for gene in panel))
    if not wanted:
        raise ValueError("panel is an empty list; name at least one gene, or give a number of genes.")
    check.genes_in(wanted, adata.var_names, what="reference")
    unusable = [name for name in wanted if not check.is_storable(name)]
    if unusable:
        raise ValueError(
            f"Genes {format_names(unusable)} of the panel have names that cannot be those of columns in a file (no "
            f"'/', not empty, '.', '..' or '_index'). Rename them in reference.var_names."
        )
    return np.asarray(adata.var_names.get_indexer(wanted), dtype=np.intp)

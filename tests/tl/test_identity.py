"""Who a slide is: its patient and its section, whatever they are called; which spots and features count."""

from __future__ import annotations

import logging
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import spahgc
from spahgc._tables._patients import patient_name

RIDGE: dict[str, Any] = {"method": "ridge", "panel": 5, "progress": False}


@pytest.fixture
def tables() -> tuple[ad.AnnData, ad.AnnData]:
    return spahgc.datasets.synthetic_tables()


@pytest.mark.parametrize(
    "value",
    ["   ", "", "NA", "nan", "NaN", "unknown", "Unknown ", "none", "N/A", "-", "<NA>", None, np.nan, pd.NA, pd.NaT]
    + ["not collected", "missing: not provided", "#N/A", "restricted access", b"nan", "TBD"],
)
def test_unknown_patients(value: object, tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    assert patient_name(value) is None
    reference, target = tables
    target.obs["patient"] = pd.Series([value] * target.n_obs, index=target.obs_names, dtype=object)
    spahgc.tl.predict(reference, target, **RIDGE)
    params = target.uns["spahgc"]["params"]
    assert params["shared_patients"] == []
    assert params["split_by"] == "patient"
    assert params["patient_not_known"] == params["target_slides"]
    assert {entry["patient"] for entry in target.uns["spahgc"]["slides"].values()} == {"not known"}
    reference.obs["patient"] = pd.Series([value] * reference.n_obs, index=reference.obs_names, dtype=object)
    with pytest.raises(ValueError, match="patient"):
        spahgc.tl.train(reference, **RIDGE)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(1, 1.0), ("1", 1.0), ("1.0", 1), (" P1 ", "P1"), ("Patient  3", "Patient 3"), (7, "7")]
)
def test_one_patient_under_two_spellings(ours: object, theirs: object, tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    reference, target = tables
    patients = reference.obs["patient"].astype(object)
    reference.obs["patient"] = patients.where(patients != patients.iloc[0], ours)
    target.obs["patient"] = theirs
    spahgc.tl.predict(reference, target, **RIDGE)
    params = target.uns["spahgc"]["params"]
    assert params["shared_patients"] == [patient_name(theirs)]
    assert params["split_by"] == "slide"


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        ("P1", "p1", True),
        ("01", 1, True),
        ("P-1", "P_1", True),
        ("P01", "P1", True),
        ("P1", "P11", False),
        (10, 1, False),
    ],
)
def test_names_that_are_nearly_alike(
    ours: object, theirs: object, alike: bool, tables: tuple[ad.AnnData, ad.AnnData], caplog: pytest.LogCaptureFixture
) -> None:
    reference, target = tables
    patients = reference.obs["patient"].astype(object)
    reference.obs["patient"] = patients.where(patients != patients.iloc[0], ours)
    target.obs["patient"] = theirs
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        spahgc.tl.predict(reference, target, **RIDGE)
    assert ("counted as different" in caplog.text) == alike
    assert not alike or (repr(str(ours)) in caplog.text and repr(str(theirs)) in caplog.text)


def renamed(adata: ad.AnnData, name: str, patient: str) -> ad.AnnData:
    """First slide of a table under another name."""
    region = adata.obs["region"].astype(str)
    copy = adata[(region == region.iloc[0]).to_numpy()].copy()
    copy.obs["region"], copy.obs["patient"] = name, patient
    copy.obs_names = [f"{name}_{i}" for i in range(copy.n_obs)]
    return copy


@pytest.mark.parametrize("change", ["name", "order", "crop", "embedding", "counts"])
def test_one_section_under_two_names(change: str, tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    reference, _ = tables
    copy = renamed(reference, "again", "P9")
    if change == "order":
        copy = copy[::-1].copy()
    if change == "crop":
        copy = copy[: int(0.7 * copy.n_obs)].copy()
    if change == "embedding":  # made again: only the counts are the same
        copy.obsm["image_own"] = copy.obsm["image_own"] + np.random.default_rng(0).normal(0, 0.1, (copy.n_obs, 1))
    if change == "counts":  # an H&E-only copy, or other counts
        copy.X = copy.X[np.random.default_rng(0).permutation(copy.n_obs)]
    both = ad.concat([reference, copy], uns_merge="first")
    both.obs["region"] = both.obs["region"].astype("category")
    with pytest.raises(ValueError, match="are the same section"):
        spahgc.tl.train(both, **RIDGE)
    with pytest.raises(ValueError, match="are the same section"):
        spahgc.tl.cross_validate(both, methods=["ridge"], panel=5, progress=False)


@pytest.mark.parametrize("same", ["embedding", "counts"])
@pytest.mark.parametrize("saved", [False, True])
def test_a_target_that_the_model_has_seen(
    saved: bool, same: str, tables: tuple[ad.AnnData, ad.AnnData], tmp_path: Any
) -> None:
    reference, target = tables
    model = spahgc.tl.train(reference, **RIDGE)
    if saved:
        model.save(tmp_path / "model")
        model = spahgc.tl.Model.load(tmp_path / "model")
    seen = renamed(reference, "again", "P9")
    if same == "embedding":
        seen = seen[:, :0].copy()
    else:  # embedded again, as after a flip or another compression of the image
        seen.obsm["image_own"] = seen.obsm["image_own"] + np.random.default_rng(0).normal(0, 0.1, (seen.n_obs, 1))
    with pytest.warns(UserWarning, match="'again' is one of the reference slides .*the model has seen its expression"):
        spahgc.tl.predict(model, seen, progress=False)
    spahgc.tl.predict(model, target, progress=False)  # no warning
    target.X = np.full(target.shape, -0.5)  # no counts: predicted all the same
    spahgc.tl.predict(model, target, progress=False)


# Spots beside the tissue.


def with_glass(adata: ad.AnnData, mark: Any) -> ad.AnnData:
    """A table with as many spots beside each slide's tissue, of other embeddings and counts."""
    rng = np.random.default_rng(0)
    beside = adata.copy()
    beside.obs_names = [f"{name}_beside" for name in adata.obs_names]
    beside.obsm["image_own"] = rng.normal(50, 3, beside.obsm["image_own"].shape)
    beside.obsm["spatial"] = beside.obsm["spatial"] + 1e4
    beside.X = rng.poisson(3.0, beside.shape).astype(np.float32)
    both = ad.concat([adata, beside], uns_merge="first")
    both.obs["region"] = both.obs["region"].astype("category")
    both.obs["in_tissue"] = mark([True] * adata.n_obs + [False] * adata.n_obs)
    return both


MARKS = {
    "numbers": lambda on: np.asarray(on, int),
    "floats": lambda on: np.asarray(on, float),
    "bool": lambda on: np.asarray(on),
    "text": lambda on: ["TRUE" if one else "FALSE" for one in on],
    "words": lambda on: pd.Categorical(["True" if one else "False" for one in on]),
    "nullable": lambda on: pd.array([1 if one else 0 for one in on], dtype="Int64"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_spots_beside_the_tissue_change_nothing(mark: str, tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    reference, target = tables
    more_ref, more = with_glass(reference, MARKS[mark]), with_glass(target, MARKS[mark])
    spahgc.tl.predict(reference, target, **RIDGE)
    spahgc.tl.predict(more_ref, more, **RIDGE)
    pd.testing.assert_frame_equal(more.obsm["spahgc"].iloc[: target.n_obs], target.obsm["spahgc"], check_exact=True)
    shown = spahgc.get.predicted(more)
    assert list(shown.obs_names) == list(target.obs_names)
    assert spahgc.get.predicted(more, all_spots=True).n_obs == more.n_obs
    for table in (target, more):
        spahgc.tl.evaluate(table)
    pd.testing.assert_frame_equal(spahgc.get.scores(more), spahgc.get.scores(target), check_exact=True)
    for table in (reference, more_ref):
        spahgc.tl.cross_validate(table, methods=["ridge"], panel=5, n_jobs=1, progress=False)
    pd.testing.assert_frame_equal(
        spahgc.get.cross_validation(more_ref), spahgc.get.cross_validation(reference), check_exact=True
    )


def test_a_column_that_is_broken(tables: tuple[ad.AnnData, ad.AnnData], caplog: pytest.LogCaptureFixture) -> None:
    reference, target = tables
    reference.obs["in_tissue"] = 0
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        model = spahgc.tl.train(reference, **RIDGE)
    assert "'in_tissue'] is 0 for all spots of slide" in caplog.text
    assert sum(map(len, model.reference)) == reference.n_obs
    target.obs["in_tissue"] = "perhaps"
    with pytest.raises(ValueError, match="in_tissue'. must be 0 or 1.*'perhaps'"):
        spahgc.tl.predict(model, target, progress=False)
    target.obs["in_tissue"] = np.where(np.arange(target.n_obs) < 3, np.nan, 1)
    with pytest.raises(ValueError, match="target.obs.'in_tissue'. is missing for 3 of .* spots of slide"):
        spahgc.tl.predict(model, target, progress=False)


# Features that are no genes.

CONTROLS = [
    *("NegControlProbe_00001", "NegControlCodeword_0500", "antisense_PROKR2", "BLANK_0006", "Blank-12"),
    *("UnassignedCodeword_0001", "DeprecatedCodeword_0321", "Intergenic_Region_1", "Negative3", "NegPrb12"),
    *("SystemControl7", "FalseCode3", "ERCC-00002", "mouse_IgG1k_isotype_control", "CD3_TotalSeqB", "SIRV101"),
    *("mouse_IgG2a", "DEPRECATED_ENSG00000111", "ADT_CD4", "prot_CD45", "Hashtag1", "SYSTEM_CONTROL_4"),
]
GENES = [
    "ADTRP",
    "PROTS1",
    "HTOL",
    "ERCC1",
    "ERCC6L2",
    "NEGR1",
    "SIRT1",
    "PHIP",
    "CD3E",
    "BLK",
    "ANTXR1",
    "INTS1",
    "Negr1",
    "IGHG1",
    "TOTAL1",
]


def test_controls_by_name() -> None:
    table = ad.AnnData(np.ones((2, len(CONTROLS + GENES))), var=pd.DataFrame(index=CONTROLS + GENES))
    assert list(spahgc._tables._slots.genes_only(table, what="x").var_names) == GENES


@pytest.mark.parametrize("kind", ["Antibody Capture", "CRISPR Guide Capture", "Negative Control Probe", "protein"])
def test_features_that_are_no_genes(
    kind: str, tables: tuple[ad.AnnData, ad.AnnData], caplog: pytest.LogCaptureFixture
) -> None:
    reference, target = tables
    extra = np.random.default_rng(0).poisson(1000.0, (reference.n_obs, 8))
    proteins = ad.AnnData(extra, obs=reference.obs[[]], var=pd.DataFrame(index=[f"CD{i}.1" for i in range(8)]))
    reference.var["feature_types"], proteins.var["feature_types"] = "Gene Expression", kind
    both = ad.concat([reference, proteins], axis=1, merge="first", uns_merge="first")
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        mixed = spahgc.tl.train(both, **RIDGE)
    assert "8 of " in caplog.text
    assert "'CD0.1'" in caplog.text
    assert mixed.fingerprint == spahgc.tl.train(reference, **RIDGE).fingerprint
    for table in (reference, both):
        spahgc.tl.cross_validate(table, methods=["ridge"], panel=5, n_jobs=1, progress=False)
    pd.testing.assert_frame_equal(
        spahgc.get.cross_validation(both), spahgc.get.cross_validation(reference), check_exact=True
    )


@pytest.mark.parametrize(
    "names",
    [
        *(("y", "x"), ("pxl_row_in_fullres", "pxl_col_in_fullres"), ("imagerow", "imagecol"), ("row", "col")),
        *(("y_centroid", "x_centroid"), ("center_y", "center_x"), ("CenterY_global_px", "CenterX_global_px")),
    ],
)
def test_positions_are_read_by_name(names: tuple[str, str], tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    _, target = tables
    expected = target.obsm["spatial"].copy()
    target.obsm["spatial"] = pd.DataFrame(expected[:, ::-1], index=target.obs_names, columns=list(names))
    np.testing.assert_array_equal(spahgc._tables._slots.coordinates(target, what="target"), expected)


@pytest.mark.parametrize("kind", ["barcodes", "constant"])
def test_a_target_without_differences(kind: str, tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    reference, target = tables
    if kind == "constant":
        target.obsm["image_own"] = np.ones_like(target.obsm["image_own"])
    target.obs["slide"] = target.obs_names if kind == "barcodes" else target.obs["region"]
    reference.obs["slide"] = reference.obs["region"]
    with pytest.raises(ValueError, match=r"would get one prediction. Is 'slide' \(library_key\) the column"):
        spahgc.tl.predict(reference, target, library_key="slide", **RIDGE)


def test_a_store_that_lost_a_block(tables: tuple[ad.AnnData, ad.AnnData], tmp_path: Any) -> None:
    reference, target = tables
    spahgc.tl.predict(reference, target, store=tmp_path / "p.zarr", **RIDGE)
    blocks = [path for path in (tmp_path / "p.zarr" / "X").rglob("*") if path.is_file() and path.name[0].isdigit()]
    blocks[0].unlink()
    with pytest.raises(ValueError, match="p.zarr is damaged: 1 of its 1 blocks are missing"):
        spahgc.get.predicted(target)


def test_biotypes_are_genes(tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    """``feature_type`` of CELLxGENE's schema holds biotypes of GENCODE."""
    reference, _ = tables
    reference.var["feature_type"] = ["protein_coding", "lncRNA"] * (reference.n_vars // 2) + ["TEC"] * (
        reference.n_vars % 2
    )
    assert spahgc._tables._slots.genes_only(reference, what="x") is reference


@pytest.mark.parametrize(("one", "other"), [(b"P1", "P1"), ("Jose\u0301", "Jos\u00e9"), ("\uff30\uff11", "P1")])
def test_one_name_in_several_forms(one: Any, other: str) -> None:
    assert patient_name(one) == patient_name(other) is not None

"""Bad input: the message says what, where, what is available and what to run; nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import spahgc

Change = Callable[[ad.AnnData], Any]


@dataclass
class Case:
    """Change of a table (in place, or a new table is returned), options of the call, and the expected error."""

    words: str
    change: Change = lambda table: None
    options: dict[str, Any] = field(default_factory=dict)
    error: type[Exception] = ValueError

    def changed(self, table: ad.AnnData) -> ad.AnnData:
        made = self.change(table)
        return table if made is None else made


def obsm(key: str, value: Any) -> Change:
    """Set a slot of obsm, to a value or to what a function makes of the one that is there; `None` removes it."""

    def change(table: ad.AnnData) -> None:
        made = value(table.obsm[key]) if callable(value) else value
        if made is None:
            del table.obsm[key]
        else:
            table.obsm[key] = made

    return change


def put(rows: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed[rows] = value
        return changed

    return change


def x(make: Callable[[np.ndarray], Any]) -> Change:
    def change(table: ad.AnnData) -> None:
        table.X = make(table.X.toarray())

    return change


def missing_value(column: str) -> Change:
    def change(table: ad.AnnData) -> None:
        table.obs[column] = table.obs[column].astype(object)
        table.obs.iloc[:3, table.obs.columns.get_loc(column)] = np.nan

    return change


def empty_slide_among_others(table: ad.AnnData) -> None:
    table.X = sp.diags_array((table.obs["region"] != "A2").to_numpy().astype(np.float32)) @ table.X


def no_link(table: ad.AnnData) -> None:
    del table.uns["spatialdata_attrs"]


def two_patients(table: ad.AnnData) -> None:
    table.obs["patient"] = ["A", "B"] * (table.n_obs // 2)


def rare(values: np.ndarray) -> np.ndarray:
    """Counts of one gene on every slide, but in 3 % of the spots."""
    counts = np.zeros_like(values)
    counts[[0, 36, 72], 0] = 5
    return counts


BOTH = {
    "no spots": Case("{what} has no spots", lambda t: t[:0].copy()),
    "no embedding": Case(
        r"{what}.obsm has no (embedding|'image_toy')(?=.*Available in obsm: 'spatial')(?=.*spahgc.pp.image_embedding)",
        obsm("image_toy", None),
        error=KeyError,
    ),
    "use_rep is not there": Case(
        "reference.obsm has no 'image_uni' .use_rep.*image_embedding.*'image_toy'",
        options={"use_rep": "image_uni"},
        error=KeyError,
    ),
    "NaN embedding": Case(
        r"{what}.obsm\['image_toy'\] has NaN or infinite values in 2 of \d+ spots, e.g. '\w\d_4x0'.*Embed them again",
        obsm("image_toy", put(([4, 9], [1, 2]), np.nan)),
    ),
    "infinite embedding": Case("has NaN or infinite values in 1 of", obsm("image_toy", put(([4], [1]), np.inf))),
    "embedding that is no matrix": Case(
        r"{what}.obsm\['image_toy'\] must be a numeric matrix", obsm("image_toy", lambda z: z[:, :0])
    ),
    "no coordinates": Case(
        "{what}.obsm has no 'spatial'.*Available in obsm: 'image_toy'.*read_st", obsm("spatial", None), error=KeyError
    ),
    "NaN coordinates": Case(
        r"{what}.obsm\['spatial'\] has NaN or infinite values in 1 of \d+ spots, e.g. '\w\d_2x0'",
        obsm("spatial", put(([2], [1]), np.nan)),
    ),
    "coordinates of the wrong shape": Case(
        r"{what}.obsm\['spatial'\] must have shape \(n_obs, 2\).*got \(\d+, 3\)",
        obsm("spatial", lambda s: s[:, [0, 1, 1]]),
    ),
    "duplicate spots": Case(
        r"{what}.obs_names has 1 duplicated names: '\w\d_1x0'.*obs_names_make_unique",
        lambda t: setattr(t, "obs_names", [t.obs_names[1], *t.obs_names[1:]]),
    ),
    "duplicate genes": Case(
        "{what}.var_names has 1 duplicated names: 'G01'.*var_names_make_unique",
        lambda t: setattr(t, "var_names", ["G01", *t.var_names[1:]]),
    ),
    "slides not named": Case(
        "{what} does not say which slide.*library_key.*available: 'region'",
        no_link,
        error=KeyError,
    ),
    "slide missing for some spots": Case(
        r"{what}.obs\['region'\] \(library_key\) is missing for 3 spots", missing_value("region")
    ),
    "library_key is not there": Case(
        "(target|reference).obs has no column 'slide' .library_key.*'region'",
        options={"library_key": "slide"},
        error=KeyError,
    ),
}
REFERENCE = {
    "several embeddings": Case(
        "reference.obsm has several embeddings: 'image_toy', 'image_uni'. Pass use_rep",
        lambda t: t.obsm.update(image_uni=np.ones((t.n_obs, 4))),
        error=KeyError,
    ),
    "embedding that does not vary": Case(
        r"Slide 'A1' of the reference has the same embedding in obsm\['image_toy'\] for all 36 spots",
        obsm("image_toy", put(slice(0, 36), 0.5)),
    ),
    "no X": Case(
        "reference has no expression .X is None.*an H&E-only slide can be a target", lambda t: setattr(t, "X", None)
    ),
    "no genes in the table": Case("reference has no expression .n_vars is 0", lambda t: t[:, :0].copy()),
    "a slide of one spot": Case(
        "Slide 'A2' of the reference has 1 spot; at least 2 are needed", lambda t: t[:37].copy()
    ),
    "one slide": Case(
        "at least two reference slides.*only 'A1'.*method='ridge'",
        lambda t: t[:36].copy(),
        {"method": "spahgc", "preset": "paper"},
    ),
    "rare genes": Case("No gene of the reference varies on every slide.*more than 5 %", x(rare)),
    "all zero": Case("reference.X is all zero", x(lambda v: v * 0)),
    "a slide without counts": Case("Slide 'A2' of the reference is all zero.*target", empty_slide_among_others),
    "negative": Case("reference.X has negative values.*layer=.*normalize='none'", x(lambda v: v - 1)),
    "no whole numbers": Case("reference.X has values that are not whole.*layer=", x(np.log1p)),
    "counts in raw": Case(
        r"Raw counts are in .raw: adata = adata.raw.to_adata\(\)", lambda t: (setattr(t, "raw", t), x(np.log1p)(t))[0]
    ),
    "expected counts": Case(
        r"Expected or corrected counts.*X.round\(\).*normalize_total.*normalize='none'", x(lambda v: 0.93 * v)
    ),
    "text in X": Case(r"reference.X does not hold a matrix of numbers", x(lambda v: np.full(v.shape, "a", object))),
    "fields of view on top of each other": Case(
        r"local to each field of view: the 4 fields in obs\['fov'\].*obs\['CenterX_global_px'\]",
        lambda t: t.obs.insert(0, "CenterX_global_px", 1.0) or t.obs.insert(0, "fov", np.arange(t.n_obs) % 4),
    ),
    "NaN counts": Case("reference.X has NaN or infinite", x(lambda v: np.where(v > 9, np.nan, v))),
    "layer is not there": Case(
        "reference.layers has no 'counts' .layer.*Available: none; X is", options={"layer": "counts"}, error=KeyError
    ),
    "patient_key is not there": Case(
        "reference.obs has no column 'donor' .patient_key.*'patient'.*patient_key='region'",
        options={"patient_key": "donor"},
        error=KeyError,
    ),
    "patient missing": Case("patient.*missing for 3 spots", missing_value("patient")),
    "two patients on a slide": Case(
        r"Slide 'A1' of the reference has several patients in obs\['patient'\]: 'A', 'B'",
        two_patients,
    ),
    "genes that are not there": Case(
        "2 of 3 requested genes are not in reference.var_names: 'ERBB2', 'ESR1'.*24 genes such as 'G00'",
        options={"panel": ["G01", "ERBB2", "ESR1"]},
        error=KeyError,
    ),
    "Ensembl ids asked for": Case(
        "Ensembl ids, the other symbols", options={"panel": ["ENSG00000141736", "ENSG00000091831"]}, error=KeyError
    ),
    "genes in lower case": Case("only in upper and lower case", options={"panel": ["g01", "g02"]}, error=KeyError),
    "one gene as a string": Case(
        "`panel` must be .*a sequence of strings, got 'G01'", options={"panel": "G01"}, error=TypeError
    ),
    "no genes": Case("`panel` is empty", options={"panel": []}),
    "zero genes": Case("`panel` must be an integer of at least 1.*got 0", options={"panel": 0}),
    "gene name with a slash": Case(
        "Genes 'G/1' of the panel cannot name columns of HDF5 and Zarr files.*Rename",
        lambda t: setattr(t, "var_names", ["G/1", *t.var_names[1:]]),
        {"panel": ["G/1", "G02"]},
    ),
    "numbered panel of centred values": Case(
        "dispersion of their counts.*negative.*Name the genes", x(lambda v: v - 5.5), {"normalize": "none"}
    ),
    "unknown method": Case(
        "No method 'rigde'. Available: .*'gene_mean'.*'ridge'.*'spahgc'", options={"method": "rigde"}
    ),
    "unknown preset": Case(
        "must be one of 'default', 'fast', 'paper' or None, got 'papr'", options={"method": "spahgc", "preset": "papr"}
    ),
    "preset of another method": Case(
        "preset='paper' is for method='spahgc'; 'ridge' has no presets", options={"preset": "paper"}
    ),
    "two presets": Case(
        "preset='paper' and method_params.'preset'.='default' disagree",
        options={"method": "spahgc", "preset": "paper", "method_params": {"preset": "default"}},
    ),
    "unknown method parameter": Case(
        "'knn' has no parameter 'k'. Available: 'n_neighbors'", options={"method": "knn", "method_params": {"k": 3}}
    ),
    "parameter of a method without any": Case(
        "'gene_mean' has no parameter 'k'. Available: none", options={"method": "gene_mean", "method_params": {"k": 3}}
    ),
    "parameter that cannot be saved": Case(
        "`method_params` must hold numbers.*so that the model can be saved",
        options={"method": "knn", "method_params": {"n_neighbors": object()}},
        error=TypeError,
    ),
    "fewer spots than neighbours": Case(
        "knn averages 500 reference spots .*but the reference has only 108",
        options={"method": "knn", "method_params": {"n_neighbors": 500}},
    ),
    "fewer spots of other slides than K": Case(
        "K = 80 spots of other slides.*only 72.*'n_references': 72",
        options={"method": "spahgc", "method_params": {"network": {"n_references": 80}}},
    ),
    "unknown split": Case("must be one of 'patient', 'slide', got 'spot'", options={"split_by": "spot"}),
    "device": Case(
        "Device 'mps' is not available.*settings.device = 'auto' or 'cpu'",
        options={"method": "spahgc", "device": "mps"},
    ),
}
TARGET = {
    "another width": Case(
        r"reference has embeddings of width 10 in obsm\['image_toy'\], the target of width 7.*same encoder",
        obsm("image_toy", lambda z: z[:, :7]),
    ),
    "another tile size": Case(
        r"'image_toy'.*made differently.*tile_um: reference 100.0, target 55.0.*image_embedding",
        lambda t: t.uns["image_toy"]["params"].update(tile_um=55.0),
    ),
    "other fields of view": Case(
        r"fields_of_view: reference \[1.0, 2.0\], target \[1.0\]",
        lambda t: t.uns["image_toy"]["params"].update(fields_of_view=[1.0]),
    ),
    "a parameter more": Case(
        "stain: reference not recorded, target 'macenko'",
        lambda t: t.uns["image_toy"]["params"].update(stain="macenko"),
    ),
    "key_added with a slash": Case("must consist of letters.*got 'a/b'", options={"key_added": "a/b"}),
    "no key_added": Case("`key_added` must consist of letters", options={"key_added": ""}),
    "key_added like an embedding": Case(
        "'image_pred' would be taken for an embedding", options={"key_added": "image_pred"}
    ),
    "key_added of coordinates": Case(
        "key_added='spatial' is the name of a slot with another meaning", options={"key_added": "spatial"}
    ),
    "key_added of a layer": Case(r"layers\['spahgc'\]", lambda t: t.layers.update(spahgc=t.X.copy())),
    "key_added of something in uns": Case(r"uns\['spahgc'\]", lambda t: t.uns.update(spahgc={"mine": 1})),
    "a column where support goes": Case(
        r"obs\['mine_support'\]", lambda t: t.obs.insert(0, "mine_support", 1.0), {"key_added": "mine"}
    ),
    "a column where scores go": Case(
        r"var\['mine_pearson'\]", lambda t: t.var.insert(0, "mine_pearson", 1.0), {"key_added": "mine"}
    ),
}


def check(
    case: Case,
    what: str,
    reference: ad.AnnData | spahgc.tl.Model,
    target: ad.AnnData,
    snapshot: Callable[[Any], Any],
) -> None:
    """The call fails with the words, and leaves both tables as they were."""
    before = snapshot(reference), snapshot(target)
    settled = isinstance(reference, spahgc.tl.Model)
    options = case.options if settled else {"method": "ridge", "panel": 6, **case.options}
    with pytest.raises(case.error, match="(?s)" + case.words.replace("{what}", what)) as caught:
        spahgc.tl.predict(reference, target, **options)
    assert (snapshot(reference), snapshot(target)) == before
    # One line a person can read: no repr of arrays, no double blanks.
    assert "\n" not in str(caught.value)
    assert "  " not in str(caught.value)


@pytest.mark.parametrize("name", [*BOTH, *REFERENCE])
def test_reference(name: str, reference: ad.AnnData, target: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    case = {**BOTH, **REFERENCE}[name]
    check(case, "reference", case.changed(reference), target, snapshot)
    assert "spahgc" not in target.obsm


@pytest.mark.parametrize("name", [*(name for name in BOTH if not BOTH[name].options), *TARGET])
def test_target(
    name: str,
    reference: ad.AnnData,
    target: ad.AnnData,
    models: Callable[[str], spahgc.tl.Model],
    snapshot: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = {**BOTH, **TARGET}[name]
    target = case.changed(target)
    check(case, "target", models("ridge"), target, snapshot)
    # A bad target does not cost a training.
    monkeypatch.setattr("spahgc.tl._train.train", lambda *args, **kwargs: pytest.fail("trained before it looked"))
    check(case, "target", reference, target, snapshot)


def test_spatialdata_instead_of_its_table(reference: ad.AnnData, target: ad.AnnData) -> None:
    from spatialdata import SpatialData

    sdata = SpatialData()
    for call, argument in (
        (lambda: spahgc.tl.predict(sdata, target), "`reference` must be an AnnData or a Model.* SpatialData. Pass its"),
        (lambda: spahgc.tl.predict(reference, sdata), "`adata_target` must be an AnnData.* SpatialData. Pass its"),
        (lambda: spahgc.tl.train(sdata), "`adata_ref` must be "),
        (lambda: spahgc.tl.evaluate(sdata), "`adata` must be "),
    ):
        with pytest.raises(TypeError, match=rf"{argument}.* table: sdata\['table'\]"):
            call()
    for other in ("model/", pd.DataFrame(), None, object()):
        with pytest.raises(TypeError, match="`reference` must be an AnnData or a Model, got "):
            spahgc.tl.predict(other, target)


def test_backed_table(reference: ad.AnnData, target: ad.AnnData, tmp_path: Any) -> None:
    reference.write_h5ad(tmp_path / "reference.h5ad")
    backed = ad.read_h5ad(tmp_path / "reference.h5ad", backed="r")
    with pytest.raises(ValueError, match=re.escape("reference is backed by a file. Load it into memory")):
        spahgc.tl.predict(backed, target)


@pytest.mark.parametrize("what", ["lazy", "dask", "disk", "csc on disk", "big-endian", "object", "nullable", "arrow"])
def test_containers(what: str, reference: ad.AnnData, target: ad.AnnData, tmp_path: Any) -> None:
    """Matrices in other containers are read and give the same prediction; a lazy table says how to load it."""
    import h5py

    spahgc.tl.predict(reference, target, panel=5, method="ridge", key_added="plain")
    reference.layers["csc"] = reference.X.tocsc()
    reference.write_h5ad(tmp_path / "reference.h5ad")
    z = pd.DataFrame(reference.obsm["image_toy"], index=reference.obs_names).rename(columns="f{}".format)
    with h5py.File(tmp_path / "reference.h5ad") as file:
        if what == "lazy":
            with pytest.raises(ValueError, match=r"reference is backed by a file.*adata.to_memory\(\)"):
                spahgc.tl.train(ad.experimental.read_lazy(file), method="ridge")
            return
        if what == "dask":
            reference.X = ad.experimental.read_elem_lazy(file["X"])
        elif "disk" in what:
            reference.X = ad.io.sparse_dataset(file["layers/csc" if "csc" in what else "X"])
        elif what == "big-endian":
            reference.X = reference.X.toarray().astype(">f8")
            reference.obsm["image_toy"] = reference.obsm["image_toy"].astype(">f4")
            reference.obsm["spatial"] = reference.obsm["spatial"].astype(">f8")
        elif what == "object":
            reference.X = reference.X.toarray().astype(object)
        else:
            reference.obsm["image_toy"] = z.astype("Float32" if what == "nullable" else "float[pyarrow]")
        spahgc.tl.predict(reference, target, panel=5, method="ridge")
    np.testing.assert_array_equal(target.obsm["spahgc"], target.obsm["plain"])


def test_one_reference_slide(reference: ad.AnnData, target: ad.AnnData) -> None:
    one = reference[reference.obs["region"] == "A1"].copy()
    for method in ("spahgc", "ridge", "context_ridge", "knn", "gene_mean"):
        spahgc.tl.predict(one, target, panel=5, method=method)
        assert target.obs["spahgc_support"].between(0, 1).all()
        assert np.isfinite(target.obsm["spahgc"].to_numpy()).all()


def test_parameters_of_numpy_types_are_taken(reference: ad.AnnData, target: ad.AnnData, tmp_path: Any) -> None:
    model = spahgc.tl.train(reference, panel=4, method="knn", method_params={"n_neighbors": np.int64(3)})
    model.save(tmp_path / "model")
    spahgc.tl.predict(spahgc.tl.Model.load(tmp_path / "model"), target)
    assert target.uns["spahgc"]["params"]["method_params"] == {"n_neighbors": 3}


def test_names_that_cannot_be_stored_are_left_out_of_a_numbered_panel(reference: ad.AnnData) -> None:
    names = spahgc.tl.train(reference, panel=24, method="gene_mean").genes
    reference.var_names = [f"{name}/x" if name in names[:2] else name for name in reference.var_names]
    assert spahgc.tl.train(reference, panel=24, method="gene_mean").genes == names[2:]


def test_a_failure_while_the_record_is_made_writes_nothing(
    models: Callable[[str], spahgc.tl.Model],
    target: ad.AnnData,
    snapshot: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = snapshot(target)

    def fail(*args: Any) -> None:
        raise RuntimeError("no fingerprint")

    monkeypatch.setattr(spahgc.tl.Model, "fingerprint", property(fail))
    with pytest.raises(RuntimeError, match="no fingerprint"):
        spahgc.tl.predict(models("ridge"), target)
    assert snapshot(target) == before


def test_an_embedding_has_columns(reference: ad.AnnData) -> None:
    key = next(iter(reference.obsm.keys() - {"spatial"}))
    reference.obsm[key] = reference.obsm[key][:, :1]
    assert spahgc.tl.train(reference, method="ridge", panel=3).recipe.width == 1
    reference.obsm[key] = reference.obsm[key][:, :0]
    with pytest.raises(ValueError, match=f"reference.obsm.'{key}'. must"):
        spahgc.tl.train(reference, method="ridge", panel=3)


@pytest.mark.parametrize("factor", [0.0, 1e-200, 1e155])
def test_positions_tell_the_spots_apart(factor: float, reference: ad.AnnData) -> None:
    reference.obsm["spatial"] = reference.obsm["spatial"] * factor
    with pytest.raises(ValueError, match=r"reference.obsm\['spatial'\] does not tell the spots apart"):
        spahgc.tl.train(reference, method="ridge", panel=3)


def test_counts_that_float32_does_not_hold(reference: ad.AnnData) -> None:
    counts = np.asarray(reference.X.toarray() if hasattr(reference.X, "toarray") else reference.X, np.float64)
    counts[0, 0] = 2**24 + 1
    reference.X = counts
    with pytest.raises(ValueError, match="reference.X has values of 16,777,216 or more"):
        spahgc.tl.train(reference, method="ridge", panel=3)


@pytest.mark.parametrize("wrong", ["text", 3, [1], {"slide": 3}, {"params": "x", "scores": {}, "methods": 1}, None])
def test_slots_in_another_form(wrong: Any, reference: ad.AnnData, target: ad.AnnData) -> None:
    """Whatever is found where results lie, the error names the slot; links and scales in another form count as none."""
    calls: dict[str, Callable[[ad.AnnData], Any]] = {
        "spahgc_scores": spahgc.get.scores, "spahgc_cv": spahgc.get.cross_validation, "alignment": spahgc.get.alignment,
        "spahgc_trust": spahgc.get.trust, "spatialdata_attrs": lambda table: spahgc.tl.train(table, panel=3),
    }  # fmt: skip
    for slot, call in calls.items():
        table = reference.copy()
        table.uns[slot] = wrong
        with pytest.raises((KeyError, ValueError), match=slot.removeprefix("spahgc_")):
            call(table)
    target.uns["image_toy"] = target.uns["spatial"] = wrong
    spahgc.tl.predict(reference, target, method="ridge", panel=3)
    spahgc.pl.support(target, slide="T1", show=False)

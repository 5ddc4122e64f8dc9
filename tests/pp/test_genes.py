"""One namespace for the genes of several tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd

import spahgc
from spahgc._tables._slots import difference, ensembl_id, genes_in
from spahgc.pp import harmonize_genes
from spahgc.pp._genes import is_damaged, read_names

HUMAN = {
    "ERBB2": "ENSG00000141736",
    "TP53": "ENSG00000141510",
    "GAPDH": "ENSG00000111640",
    "HLA-DRB1": "ENSG00000196126",
    "AC000001.1": "ENSG00000000001",
    "MARCHF1": "ENSG00000145416",
}


def table(names: list[str], *, n: int = 5, seed: int = 0, **columns: list[Any]) -> ad.AnnData:
    """Counts of some genes, sparse, with further columns of ``var``."""
    counts = sp.random(n, len(names), density=0.6, rng=np.random.default_rng(seed), format="csr")
    counts.data = np.ceil(counts.data * 9).astype(np.float32)
    made = ad.AnnData(counts.astype(np.float32), var=pd.DataFrame(columns, index=range(len(names))).astype(object))
    made.var.index = pd.Index(names, dtype=object)
    made.obs_names = [f"s{seed}_{i}" for i in range(n)]
    return made


def report(adata: ad.AnnData) -> pd.DataFrame:
    return adata.uns["spahgc_genes"]["report"]


# Names as strings


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ENSG00000141736", "ENSG00000141736"),
        ("ENSG00000141736.13", "ENSG00000141736"),
        ("ENSMUSG00000062312.4", "ENSMUSG00000062312"),
        ("ENSG00000002586.20_PAR_Y", "ENSG00000002586_PAR_Y"),
        *((name, "") for name in ("ENST00000269571", "ENSA", "AC000001.1", "RP11-34P13.7", "ENSG0000014173", "")),
    ],
)
def test_ensembl_ids(name: str, expected: str) -> None:
    assert ensembl_id(name) == expected


def test_what_a_spreadsheet_makes_of_a_name() -> None:
    damaged = ["1-Mar", "2-Sep", "01-dec", "Mar-01", "2001-03-01", "2019-09-02 00:00:00", "2.31E+13"]
    genes = ["MARCH1", "Sept2", "DEC1", "NKX2-1", "HLA-DRB1", "DEC-205", "7SK", "MT-ND1", "1-8D"]
    assert [name for name in damaged + genes if is_damaged(name)] == damaged


def test_first_usable_name_of_each_kind() -> None:
    shown = [" ERBB2 ", "1-Mar", "nan", "ENSG00000141510.2"]
    adata = table(shown, mine=["", None, "", "TP53"], gene_ids=["", "ENSG00000145416", "", "TP53"])
    genes = read_names(adata, "mine")
    assert genes["shown"].tolist() == shown
    assert genes["symbol"].tolist() == ["ERBB2", "", "", "TP53"]
    assert genes["id"].tolist() == ["", "ENSG00000145416", "", "ENSG00000141510"]


def test_difference_of_two_lists_of_names() -> None:
    symbols, ids = list(HUMAN), list(HUMAN.values())
    assert difference(symbols, ids) == difference(ids, symbols) == "kind"
    assert difference([f"{gene}.3" for gene in ids], ids) == "version"
    assert difference([gene.lower() for gene in symbols], symbols) == "case"
    assert difference(["A", "B"], symbols) == ""


# One table


def test_a_clean_table_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    adata = table(list(HUMAN), gene_ids=list(HUMAN.values()))
    before = adata.copy()
    assert harmonize_genes(adata) is None
    assert list(adata.var_names) == list(HUMAN)
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert report(adata).shape == (0, 4)
    assert not caplog.records
    assert adata.uns["spahgc_genes"]["params"]["ids"] == "symbol"


@pytest.mark.parametrize("name", ["gene_ids", "feature_id", "Ensembl_ID"])
def test_symbols_to_ids_and_back(name: str) -> None:
    """What var_names held stays beside them."""
    adata = table(list(HUMAN), **{name: [f"{gene}.7" for gene in HUMAN.values()]})
    made = harmonize_genes(adata, ids="ensembl", copy=True)
    assert list(made.var_names) == list(HUMAN.values())
    assert list(adata.var_names) == list(HUMAN)
    assert (made.X != adata.X).nnz == 0
    assert set(report(made)["what"]) == {"renamed"}
    assert set(report(made)["why"]) == {"Ensembl id of this symbol"}
    assert list(made.var["gene_symbols"]) == list(HUMAN)
    harmonize_genes(made, ids="symbol")
    assert set(report(made)["why"]) == {"symbol of this Ensembl id"}
    assert list(made.var_names) == list(HUMAN)
    assert [gene.split(".")[0] for gene in made.var[name]] == list(HUMAN.values())


def test_blanks_and_versions_go_and_dots_in_symbols_stay() -> None:
    adata = table([" ERBB2", "AC000001.1", "RP11-34P13.7 ", "HLA-DRB1", "NKX2-1"])
    harmonize_genes(adata)
    assert list(adata.var_names) == ["ERBB2", "AC000001.1", "RP11-34P13.7", "HLA-DRB1", "NKX2-1"]
    assert report(adata).to_dict("list") == {
        "gene": [" ERBB2", "RP11-34P13.7 "],
        "name": ["ERBB2", "RP11-34P13.7"],
        "what": ["renamed"] * 2,
        "why": ["blanks around the name"] * 2,
    }
    ids = table([f"{gene}.{i}" for i, gene in enumerate(HUMAN.values())])
    harmonize_genes(ids)
    assert list(ids.var_names) == list(HUMAN.values())
    assert set(report(ids)["why"]) == {"version of the Ensembl id"}


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, lambda x: x.toarray()])
def test_counts_of_one_gene_are_summed(make: Any) -> None:
    """Against the sums by pandas, in ``X`` and layers; all other slots are carried along."""
    names = ["TP53", "ERBB2", "TP53", "GAPDH", " ERBB2", "TP53"]
    adata = table(names, kind=list("abcdef"))
    adata.var["n"], adata.var["same"], adata.var["mark"] = np.arange(6), [1, 2, 1, 3, 2, 1], np.arange(6) < 3
    adata.X = make(adata.X)
    adata.layers["twice"] = make(sp.csr_matrix(adata.X) * 2)
    adata.varm["load"] = np.arange(12.0).reshape(6, 2)
    adata.varp["pair"] = np.arange(36.0).reshape(6, 6)
    adata.obsm["spatial"], adata.obsp["near"] = np.ones((5, 2)), sp.eye(5, format="csr")
    adata.uns["mine"] = {"a": 1}
    dense = pd.DataFrame(np.asarray(adata.to_df()), columns=[name.strip() for name in names])
    expected = dense.T.groupby(level=0, sort=False).sum().T

    made = harmonize_genes(adata, copy=True)
    assert list(made.var_names) == ["TP53", "ERBB2", "GAPDH"] == list(expected.columns)
    np.testing.assert_array_equal(made.to_df(), expected)
    np.testing.assert_array_equal(made.to_df("twice"), 2 * expected)
    assert type(made.X) is type(adata.X)
    assert made.X.dtype == np.float32
    assert made.X.sum() == adata.X.sum()
    assert list(made.var["kind"]) == ["a", "b", "d"]
    assert list(made.var["same"]) == [1, 2, 3]
    assert made.var["n"].isna().tolist() == [True, True, False]
    assert made.var["mark"].tolist() == [True, True, False]
    np.testing.assert_array_equal(made.varm["load"], adata.varm["load"][[0, 1, 3]])
    np.testing.assert_array_equal(made.varp["pair"], adata.varp["pair"][np.ix_([0, 1, 3], [0, 1, 3])])
    assert made.uns["mine"] == {"a": 1}
    assert set(made.obsm) == {"spatial"}
    assert set(made.obsp) == {"near"}
    assert report(made)["what"].value_counts().to_dict() == {"summed": 5, "renamed": 1}

    first = harmonize_genes(adata, duplicates="first", copy=True)
    np.testing.assert_array_equal(first.to_df(), dense.to_numpy()[:, [0, 1, 3]])
    assert report(first).query("what == 'dropped'")["gene"].tolist() == ["TP53", " ERBB2", "TP53"]
    with pytest.raises(ValueError, match=r"2 names stand for several genes of adata: TP53 \(TP53, TP53, TP53\), ERBB2"):
        harmonize_genes(adata, duplicates="error")


def test_sums_do_not_overflow() -> None:
    adata = ad.AnnData(np.full((2, 2), 200, np.uint8))
    adata.var_names = ["A", "A "]
    harmonize_genes(adata)
    assert adata.X.tolist() == [[400], [400]]


def test_two_ids_of_one_symbol() -> None:
    """As MATR3 in 10x's reference: one name as a symbol, two as ids."""
    ids = ["ENSG00000015479", "ENSG00000280987", "ENSG00000141510"]
    adata = table(ids, feature_name=["MATR3", "MATR3", "TP53"])
    assert harmonize_genes(adata, ids="symbol", copy=True).var_names.tolist() == ["MATR3", "TP53"]
    assert harmonize_genes(adata, copy=True).var_names.tolist() == ids
    symbols = table(["MATR3", "TP53", "GAPDH"])  # and not guessed for a table that has symbols only
    harmonize_genes(symbols, reference=table(ids, feature_name=["MATR3", "MATR3", "TP53"]), min_shared=0.3)
    assert symbols.var_names.tolist() == ["MATR3", "ENSG00000141510", "GAPDH"]
    assert report(symbols).set_index("gene")["why"]["MATR3"] == f"ambiguous: {ids[0]}, {ids[1]}"


@pytest.mark.parametrize("matrix", ["X", "layers['logged']"])
def test_only_counts_are_summed(matrix: str) -> None:
    adata = table(["TP53", "TP53", "ERBB2"])
    if matrix == "X":
        adata.X = adata.X / 3
    else:
        adata.layers["logged"] = adata.X.log1p()
    with pytest.raises(ValueError, match="does not hold counts that could be added up") as error:
        harmonize_genes(adata)
    assert f"adata.{matrix} does" in str(error.value)
    harmonize_genes(adata, duplicates="first")
    assert adata.var_names.tolist() == ["TP53", "ERBB2"]


def test_dates_of_a_spreadsheet_are_reported_and_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    """MARCH1 and MARC1 both become 1-Mar: what is left under that name is nobody's."""
    adata = table(["ERBB2", "1-Mar", "TP53", "1-Mar", "2-Sep", ""])
    with pytest.raises(ValueError, match="Only 2 of 6 genes .* dates that a spreadsheet made of them"):
        harmonize_genes(adata)
    harmonize_genes(adata, min_shared=0.3)
    assert adata.var_names.tolist() == ["ERBB2", "TP53"]
    dropped = report(adata)
    assert dropped["gene"].tolist() == ["1-Mar", "1-Mar", "2-Sep", ""]
    assert dropped["why"].tolist() == ["a date or number that a spreadsheet made of a gene's name"] * 3 + ["no name"]
    assert "adata: 6 genes, now 2, 2 shared; 4 dropped." in caplog.text
    # with an id, another table knows the name
    damaged = table(["ERBB2", "1-Mar"], gene_ids=[HUMAN["ERBB2"], HUMAN["MARCHF1"]])
    other = table(["ERBB2", "MARCHF1"], gene_ids=[HUMAN["ERBB2"], HUMAN["MARCHF1"]])
    harmonize_genes([other, damaged])
    assert damaged.var_names.tolist() == ["ERBB2", "MARCHF1"]


def test_too_few_of_the_kind_asked_for() -> None:
    adata = table(list(HUMAN), gene_ids=[*list(HUMAN.values())[:2], None, np.nan, "", " "])
    with pytest.raises(ValueError, match=r"Only 2 of 6 genes \(33%\) are called by 'ensembl' names") as error:
        harmonize_genes(adata, ids="ensembl")
    assert "column of var, say gene_ids" in str(error.value)
    assert adata.uns == {}
    harmonize_genes(adata, ids="ensembl", min_shared=0.3)
    assert adata.var_names.tolist() == [*list(HUMAN.values())[:2], *list(HUMAN)[2:]]
    assert report(adata).query("what == 'kept'")["why"].tolist() == ["no Ensembl id is known"] * 4


def test_a_column_of_another_name() -> None:
    adata = table(["0", "1", "2"], my_names=["ERBB2", "TP53", None], other=list("abc"))
    harmonize_genes(adata, column="my_names")
    assert adata.var_names.tolist() == ["ERBB2", "TP53", "2"]
    with pytest.raises(KeyError, match=r"No table has a column 'gone' in var \(column\)\. Available: 'my_names'"):
        harmonize_genes(adata, column="gone")


# Several tables


def test_tables_with_different_names_join() -> None:
    """One has symbols, one ids with the symbols beside them, one ids only: what one knows serves the others."""
    symbols, ids = list(HUMAN), list(HUMAN.values())
    one = table(symbols[:5], seed=1)
    two = table([f"{gene}.2" for gene in ids[::-1]], seed=2, feature_name=symbols[::-1])
    three = table(ids, seed=3)
    sums = {
        name: [t[:, t.var_names.str.startswith(gene)].X.sum() for t in (two, three)] for name, gene in HUMAN.items()
    }
    harmonize_genes([one, two, three], ids="symbol")
    assert list(one.var_names) == symbols[:5]
    assert list(two.var_names) == symbols[::-1]
    assert list(three.var_names) == symbols
    for name, expected in sums.items():
        assert [two[:, name].X.sum(), three[:, name].X.sum()] == expected
    joined = ad.concat([one, two, three])
    assert sorted(joined.var_names) == sorted(symbols[:5])


def test_most_tables_decide_on_the_kind() -> None:
    symbols, ids = list(HUMAN), list(HUMAN.values())
    made = harmonize_genes([table(ids), table(ids), table(symbols, gene_ids=ids)], copy=True)
    assert [list(one.var_names) for one in made] == [ids] * 3
    made = harmonize_genes([table(ids), table(symbols, gene_ids=ids)], copy=True)
    assert [list(one.var_names) for one in made] == [symbols] * 2


def test_of_two_releases_the_first_counts() -> None:
    ids = [HUMAN["MARCHF1"], HUMAN["TP53"], HUMAN["ERBB2"]]
    old, new = table(["MARCH1", "TP53", "ERBB2"], gene_ids=ids), table(["MARCHF1", "TP53", "ERBB2"], gene_ids=ids)
    harmonize_genes([new, old])
    assert old.var_names.tolist() == ["MARCHF1", "TP53", "ERBB2"]
    assert report(old).values.tolist() == [["MARCH1", "MARCHF1", "renamed", "another name of the same gene"]]


def test_two_genes_are_not_made_one_by_a_name_that_moved() -> None:
    """The first table calls gene 1 what the second calls gene 2."""
    one, two = HUMAN["ERBB2"], HUMAN["TP53"]
    first = table(["NEW", "X", "Y"], gene_ids=[one, "", ""])
    second = table(["OLD", "NEW", "X", "Y"], gene_ids=[one, two, "", ""])
    harmonize_genes([first, second])
    assert second.var_names.tolist() == ["OLD", "NEW", "X", "Y"]
    assert report(second).values.tolist() == [["OLD", "OLD", "kept", "ambiguous: NEW is another gene in this table"]]


def test_species_are_joined_only_on_request() -> None:
    human, mouse = table(["ERBB2", "TP53", "CD74"]), table(["Erbb2", "Trp53", "Cd74"])
    with pytest.raises(ValueError, match=r"Only 0 of 3 genes \(0%\) are shared") as error:
        harmonize_genes(mouse, reference=human)
    for said in ("adata has 'Erbb2', 'Trp53', 'Cd74'", "have 'ERBB2', 'TP53', 'CD74'", "pass ignore_case=True"):
        assert said in str(error.value)
    harmonize_genes(mouse, reference=human, ignore_case=True)
    assert mouse.var_names.tolist() == ["ERBB2", "Trp53", "CD74"]
    assert mouse.uns["spahgc_genes"]["params"]["n_shared"] == 2
    assert report(mouse)["why"].tolist() == ["upper and lower case"] * 2


def test_a_mixture_of_species_is_not_merged() -> None:
    """Human cells in a mouse: ERBB2 and Erbb2 are two genes."""
    mixed = table(["Erbb2", "ERBB2", "cd74", "Cd74", "TP53"])
    harmonize_genes(mixed, reference=["ERBB2", "CD74", "TP53"], ignore_case=True)
    assert mixed.var_names.tolist() == ["Erbb2", "ERBB2", "cd74", "Cd74", "TP53"]
    why = report(mixed).set_index("gene")["why"]
    assert why["Erbb2"] == "ambiguous: ERBB2, Erbb2 differ in upper and lower case only"
    assert why["cd74"] == "ambiguous: CD74, Cd74, cd74 differ in upper and lower case only"
    assert "TP53" not in why


def test_the_names_of_a_reference_are_kept() -> None:
    """Versions and blanks included, and its own symbols; genes it lacks stay."""
    versioned = [f"{gene}.9" for gene in HUMAN.values()]
    target = table([*HUMAN, "EXTRA"], gene_ids=[*HUMAN.values(), None])
    before = target.X.copy()
    harmonize_genes(target, reference=versioned)
    assert target.var_names.tolist() == [*versioned, "EXTRA"]
    assert (before != target.X).nnz == 0
    assert target.uns["spahgc_genes"]["params"]["n_shared"] == 6
    panel = ["TP53", "ERBB2"]  # a panel is smaller than the table, and is found as a whole
    harmonize_genes(target, reference=panel)
    assert target.uns["spahgc_genes"]["params"]["n_shared"] == 2
    assert {"TP53", "ERBB2", "GAPDH"} - set(target.var_names) == set()


def test_a_panel_that_shrinks() -> None:
    panel = ["ERBB2", "TP53", "GAPDH", "KRT5", "KRT8"]
    target = table(["ERBB2", "TP53", *(f"G{i}" for i in range(9))])
    with pytest.raises(ValueError, match=r"Only 2 of 5 genes \(40%\) are shared, fewer than min_shared=0\.5"):
        harmonize_genes(target, reference=panel)
    harmonize_genes(target, reference=panel, min_shared=0.4)
    with pytest.raises(
        ValueError, match="One side has Ensembl ids, the other symbols, and too few genes have both in the tables"
    ):
        harmonize_genes(target, reference=list(HUMAN.values()))


# What it is for, and how it is kept


def test_prediction_meets_a_target_in_another_naming(planted: Any) -> None:
    """The warning of predict and the error of evaluate name this function, and it helps."""
    reference, target = planted({"A1": "A", "A2": "A"}), planted({"B1": "B"})
    ids = [f"ENSG{i:011d}" for i in range(target.n_vars)]
    expected = target.copy()
    target.var["gene_symbols"] = target.var_names.to_numpy()
    target.var_names = [f"{gene}.1" for gene in ids]
    model = spahgc.tl.train(reference, method="ridge", panel=8, split_by="slide")
    with pytest.warns(UserWarning, match=r"None of the 8 predicted genes .* spahgc\.pp\.harmonize_genes converts"):
        spahgc.tl.predict(model, target)
    with pytest.raises(ValueError, match=r"spahgc\.pp\.harmonize_genes converts"):
        spahgc.tl.evaluate(target)
    harmonize_genes(target, reference=model.genes)
    for adata in (target, expected):
        spahgc.tl.predict(model, adata)
        spahgc.tl.evaluate(adata)
    columns = ["gene", "metric", "value"]
    pd.testing.assert_frame_equal(spahgc.get.scores(target)[columns], spahgc.get.scores(expected)[columns])
    with pytest.raises(KeyError, match="differ only in their versions"):
        genes_in([f"{gene}.1" for gene in ids], ids, what="reference")


def test_in_place_inside_of_spatialdata_and_before_concat(tmp_path: Path) -> None:
    slides = []
    for i, names in enumerate((["ERBB2", "ERBB2 ", "TP53"], [HUMAN["ERBB2"], HUMAN["TP53"]])):
        columns = {"feature_name": ["ERBB2", "TP53"]} if i else {}
        adata = table(names, seed=i, **columns)
        spots = pd.DataFrame({"x": range(5), "y": 0, "pixel_x": range(10, 60, 10), "pixel_y": 20})
        counts = pd.DataFrame(
            adata.X.toarray(), index=[f"{x}x0" for x in range(5)], columns=[*map(str, range(adata.n_vars))]
        )
        image = np.full((40, 70, 3), 200, np.uint8)
        sdata = spahgc.io.read_st(counts, spots, image, slide=f"S{i}", microns_per_pixel=2.0)
        sdata["table"].var_names = names
        for name, values in columns.items():
            sdata["table"].var[name] = values
        slides.append(sdata)
    harmonize_genes([slide["table"] for slide in slides], ids="symbol")
    assert slides[0]["table"].var_names.tolist() == ["ERBB2", "TP53"]
    joined = spahgc.io.concat(slides)
    assert joined["table"].var_names.tolist() == ["ERBB2", "TP53"]
    slides[0].write(tmp_path / "one.zarr")
    again = sd.read_zarr(tmp_path / "one.zarr")["table"]
    assert report(again).values.tolist() == report(slides[0]["table"]).values.tolist()


@pytest.mark.parametrize("names", [["ERBB2", "ERBB2 ", "1-Mar"], ["ERBB2", "TP53"]])
def test_report_survives_a_file(names: list[str], tmp_path: Path) -> None:
    adata = table(names)
    harmonize_genes(adata)
    adata.write_h5ad(tmp_path / "table.h5ad")
    again = ad.read_h5ad(tmp_path / "table.h5ad")
    assert list(report(again)) == ["gene", "name", "what", "why"]
    assert report(again).values.tolist() == report(adata).values.tolist()
    assert again.uns["spahgc_genes"]["params"]["n_after"] == adata.n_vars


def test_views_and_raw() -> None:
    adata = table(["A", "A ", "B"])
    adata.raw = adata.copy()
    view = adata[:3]
    harmonize_genes(view)
    assert view.shape == (3, 2)
    assert not view.is_view
    assert view.raw.var_names.tolist() == ["A", "A ", "B"]
    assert adata.shape == (5, 3)


def test_order_of_rows_and_repeated_calls_change_nothing() -> None:
    adata = table([" ERBB2", "ERBB2", "ENSG00000141510.1", "GAPDH"], gene_symbols=["", "", "TP53", ""])
    once = harmonize_genes(adata, copy=True)
    twice = harmonize_genes(once, copy=True)
    assert list(once.var_names) == list(twice.var_names) == ["ERBB2", "TP53", "GAPDH"]
    turned = harmonize_genes(adata[::-1].copy(), copy=True)
    np.testing.assert_array_equal(turned.to_df()[::-1], once.to_df())


def test_nothing_is_changed_where_one_of_several_fails() -> None:
    good, bad = table([" A", "B"]), table(["A", "A", "B"])
    bad.X = bad.X / 7
    with pytest.raises(ValueError, match=r"Genes of adata\[1\] have the same name \(A \(A, A\)\)"):
        harmonize_genes([good, bad])
    assert good.var_names.tolist() == [" A", "B"]
    assert good.uns == bad.uns == {}


MUST = "must be an AnnData or a sequence"


@pytest.mark.parametrize(
    ("adata", "options", "error", "message"),
    [
        (lambda t: [], {}, ValueError, "`adata` is an empty list"),
        (lambda t: sd.SpatialData(tables={"table": t}), {}, TypeError, r"Pass its table: sdata\['table'\]"),
        (lambda t: [t, 3], {}, TypeError, f"`adata` {MUST}"),
        (lambda t: [t, t], {}, ValueError, "the same table twice"),
        (lambda t: t[:, :0].copy(), {}, ValueError, "adata has no genes"),
        (lambda t: t, {"reference": "ERBB2"}, TypeError, f"`reference` {MUST} of strings"),
        (lambda t: t, {"reference": []}, ValueError, "`reference` has no genes"),
        (lambda t: t, {"reference": ["A"], "ids": "symbol"}, ValueError, "has no effect with a reference"),
        (lambda t: t, {"ids": "entrez"}, ValueError, "`ids` must be one of 'symbol', 'ensembl' or None, got 'entrez'"),
        (lambda t: t, {"duplicates": "mean"}, ValueError, "`duplicates` must be one of 'sum', 'first', 'error'"),
        (lambda t: t, {"min_shared": 50}, ValueError, "`min_shared` must be a finite number between 0 and 1"),
    ],
)
def test_refusals(adata: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        harmonize_genes(adata(table(["A", "B"])), **options)


def test_a_model_is_not_a_reference_but_its_genes_are(planted: Any) -> None:
    model = spahgc.tl.train(planted({"A1": "A", "A2": "A"}), method="ridge", panel=4, split_by="slide")
    with pytest.raises(TypeError, match="`reference` must be an AnnData or a sequence of strings"):
        harmonize_genes(table(["A"]), reference=model)


def test_on_a_real_table(data_dir: Path) -> None:
    """Half of the spots of the mouse colon get made-up ids with versions: joined again without a loss."""
    whole = ad.read_h5ad(data_dir / "colon_visium" / "section1.h5ad")
    one, two = whole[:1300].copy(), whole[1300:, ::-1].copy()
    two.var["gene_symbol"] = two.var_names.to_numpy()
    two.var_names = [f"ENSMUSG{i:011d}.{i % 12}" for i in range(two.n_vars)]
    assert not set(one.var_names) & set(two.var_names)
    harmonize_genes([one, two])
    joined = ad.concat([one, two])
    assert joined.shape == whole.shape
    assert (joined[:, whole.var_names].X != whole.X).nnz == 0

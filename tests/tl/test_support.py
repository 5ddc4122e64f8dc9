"""Support drops where the reference does not reach; a warning where spots are further apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import spahgc
from spahgc import tl
from spahgc._slides import Cohort, Slide
from spahgc.tl._support import N_NEIGHBORS, Support, pitches


def slide(name: str, embedding: np.ndarray) -> Slide:
    n = len(embedding)
    coordinates = np.column_stack([np.arange(n), np.zeros(n)])
    return Slide(name, "P", embedding.astype(np.float32), coordinates, np.zeros((n, 1), np.float32))


def drawn(name: str, n: int = 60) -> np.ndarray:
    """Embeddings of a slide: all slides from one distribution, one scale a feature."""
    rng = np.random.default_rng(sum(map(ord, name)))
    values = rng.normal(size=(n, 8)) * np.array([1, 1, 1, 1, 100, 100, 0.01, 0.01]) + 5
    return values.astype(np.float32)


@pytest.fixture
def cohort() -> Cohort:
    return Cohort(tuple(slide(name, drawn(name)) for name in ("a", "b", "c")), ("g",))


def test_against_a_plain_loop(cohort: Cohort) -> None:
    """With as many components as features, distances are those in the features scaled over the whole reference."""
    raw = cohort.embedding().astype(float)
    which = cohort.slide_index()
    target = drawn("t")[:10]

    def distance(point: np.ndarray, bank: np.ndarray) -> float:
        return float(
            np.sort([np.sqrt((((point - row) / raw.std(axis=0)) ** 2).sum()) for row in bank])[:N_NEIGHBORS].mean()
        )

    banks = [raw[which != slide] for slide in range(3)]
    own = [distance(raw[i], banks[which[i]]) for i in range(len(raw))]
    expected = []
    for point in target:
        mine = [distance(point, bank) for bank in banks]
        expected.append((1 + sum(d >= mine[slide] for d, slide in zip(own, which, strict=True))) / (1 + len(raw)))
    found = Support.fit(cohort)(target.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_arrays_make_it_again(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    support, target = Support.fit(cohort), drawn("t")
    again = Support.from_arrays(support.arrays())
    np.testing.assert_array_equal(again(target), support(target))
    for name, array in support.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    expected = support(target)
    monkeypatch.setattr("spahgc.tl._support._CHUNK", 1)  # the size of blocks does not matter
    np.testing.assert_array_equal(support(target), expected)


def test_of_many_spots_some_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly over the slides."""
    cohort = Cohort((*(slide(name, drawn(name, 2000)) for name in "abcd"), slide("e", drawn("e", 3))), ("g",))
    whole = Support.fit(cohort)
    monkeypatch.setattr("spahgc.tl._support.MAX_SPOTS", 1200)
    some = Support.fit(cohort)
    assert [len(bank) for bank in whole.banks] == [2000] * 4 + [3]
    assert sum(len(bank) for bank in some.banks) == 1200
    assert all(len(bank) in (299, 300, 301) for bank in some.banks[:4])
    # A slide that is too small to be among them does not count.
    monkeypatch.setattr("spahgc.tl._support.MAX_SPOTS", 3)
    assert [len(bank) for bank in Support.fit(cohort).banks] == [1, 1, 1]
    target = drawn("t", 200)
    found, expected = some(target), whole(target)
    assert np.corrcoef(found, expected)[0, 1] > 0.9
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.1)
    assert (some(target + 1000) == np.float32(1 / 1201)).all()


def test_about_uniform_for_another_slide_of_the_same_kind(cohort: Cohort) -> None:
    found = Support.fit(cohort)(drawn("another", 400))
    assert found.min() > 0
    assert found.max() <= 1
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.1)


def test_drops_with_the_distance_to_the_reference(cohort: Cohort) -> None:
    support, scale = Support.fit(cohort), cohort.embedding().std(axis=0)
    medians = [np.median(support((drawn("t") + shift * scale).astype(np.float32))) for shift in (0, 1, 2, 6)]
    assert medians[0] > 0.3
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] == pytest.approx(1 / 181)
    assert support(np.full((1, 8), -1e9, np.float32)) == support(np.full((1, 8), 1e9, np.float32)) > 0
    # A slide that standardising per slide would make look like the reference.
    assert np.median(support((drawn("t") * 5).astype(np.float32))) < 0.02
    # A spot of the reference itself: nearer than when its own slide does not count.
    assert (support(cohort.slides[0].embedding) <= 1).all()
    assert np.median(support(cohort.slides[0].embedding)) > 0.5


def test_one_reference_slide() -> None:
    support = Support.fit(Cohort((slide("a", drawn("a", 200)),), ("g",)))
    assert 0.3 < np.median(support(drawn("b", 200))) < 0.7
    assert (support((drawn("b") + 1e4).astype(np.float32)) == np.float32(1 / 201)).all()
    # Few spots and constant features.
    small = Cohort((slide("a", np.ones((3, 4))), slide("b", np.ones((2, 4)))), ("g",))
    np.testing.assert_array_equal(Support.fit(small)(np.ones((2, 4), np.float32)), 1.0)


def test_drops_for_mouse_brain_against_human_breast(data_dir: Path) -> None:
    """Texture embeddings of part of the spots: reference C2 and C3, targets C4 (same patient) and mouse brain."""
    rng = np.random.default_rng(0)

    def some(sdata: object, n: int) -> ad.AnnData:
        keep = rng.permutation(sdata["table"].n_obs)[:n]
        sdata["table"] = sdata["table"][np.sort(keep)].copy()
        spahgc.pp.image_embedding(sdata, progress=False)
        return sdata["table"]

    breast = {
        name: some(spahgc.datasets.her2st(data_dir / "her2st", slides=[name]), n)
        for name, n in (("C2", 60), ("C3", 60), ("C4", 40))
    }
    reference = ad.concat([breast["C2"], breast["C3"]], uns_merge="unique")
    reference.uns["image_texture"] = breast["C2"].uns["image_texture"]
    folder = data_dir / "mob_st" / "02"
    mouse = some(spahgc.io.read_st(None, folder / "spots.tsv", folder / "he.jpg", slide="mob"), 40)
    model = spahgc.tl.train(reference, method="gene_mean", panel=5, library_key="region")
    medians = {}
    for name, table in (("C4", breast["C4"]), ("mouse", mouse)):
        out = spahgc.tl.predict(model, table, copy=True)
        medians[name] = float(np.median(out.obs["spahgc_support"]))
    assert medians["C4"] > 0.3
    assert medians["mouse"] < 0.03


@pytest.fixture
def tables(planted: Callable[..., ad.AnnData]) -> tuple[ad.AnnData, ad.AnnData]:
    """Reference and target whose spots are 100 um apart, as the embedding records."""
    reference, target = planted({"A": "P1", "B": "P2"}), planted({"T": "P3"})
    for table in (reference, target):
        names = table.obs["region"].cat.categories
        table.uns["image_toy"]["params"]["microns_per_pixel"] = dict.fromkeys(names, 1.0)
    return reference, target


def rescaled(target: ad.AnnData, mpp: float) -> ad.AnnData:
    target.uns["image_toy"]["params"]["microns_per_pixel"]["T"] = mpp
    return target


def test_pitch_is_measured_in_micrometers(tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    reference, target = tables
    assert pitches(reference, "image_toy", None, what="reference") == {"A": 100.0, "B": 100.0}
    assert pitches(rescaled(target, 0.5), "image_toy", None, what="target") == {"T": 50.0}
    del target.uns["image_toy"]["params"]["microns_per_pixel"]  # nothing is said without a scale
    for table in (target, target[:1].copy()):
        assert pitches(table, "image_toy", None, what="target") == {}


@pytest.mark.parametrize("mpp", [0.49, 0.51, 1.0, 1.99, 2.01])
def test_warns_of_another_pitch(tables: tuple[ad.AnnData, ad.AnnData], mpp: float) -> None:
    reference, target = tables
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        tl.predict(reference, rescaled(target, mpp), method="ridge")
    said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert len(said) == (0 if 0.5 < mpp < 2 else 1)
    assert all(f"100 um apart in the reference, and in the target 'T' {100 * mpp:.3g} um" in text for text in said)


def test_a_trained_model_remembers(tables: tuple[ad.AnnData, ad.AnnData], tmp_path: Path) -> None:
    reference, target = tables
    tl.train(reference, method="ridge").save(tmp_path / "model")
    model = tl.Model.load(tmp_path / "model")
    assert model.params["pitch_um"] == {"A": 100.0, "B": 100.0}
    with pytest.warns(UserWarning, match="does not carry over"):
        tl.predict(model, rescaled(target, 3.0))

"""Support: what it is, and that it drops where the reference does not reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import spahgc
from spahgc._slides import Cohort, Slide
from spahgc.tl._support import N_NEIGHBORS, Support


def slide(name: str, embedding: np.ndarray) -> Slide:
    n = len(embedding)
    return Slide(
        name,
        "P",
        embedding.astype(np.float32),
        np.column_stack([np.arange(n), np.zeros(n)]),
        np.zeros((n, 1), np.float32),
    )


@pytest.fixture
def drawn() -> Callable[[str], np.ndarray]:
    """Embeddings of a slide: all slides from one distribution, one scale a feature."""

    def draw(name: str, n: int = 60) -> np.ndarray:
        rng = np.random.default_rng(sum(map(ord, name)))
        return rng.normal(size=(n, 8)) * np.array([1, 1, 1, 1, 100, 100, 0.01, 0.01]) + 5

    return draw


@pytest.fixture
def cohort(drawn: Callable[[str], np.ndarray]) -> Cohort:
    return Cohort(tuple(slide(name, drawn(name)) for name in ("a", "b", "c")), ("g",))


def test_against_a_plain_loop(cohort: Cohort, drawn: Callable[[str], np.ndarray]) -> None:
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


def test_arrays_make_it_again(cohort: Cohort, drawn: Callable[[str], np.ndarray]) -> None:
    support, target = Support.fit(cohort), drawn("t").astype(np.float32)
    again = Support.from_arrays(support.arrays())
    np.testing.assert_array_equal(again(target), support(target))
    for name, array in support.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)


def test_of_many_spots_some_count(drawn: Callable[[str], np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
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
    target = drawn("t", 200).astype(np.float32)
    found, expected = some(target), whole(target)
    assert np.corrcoef(found, expected)[0, 1] > 0.9
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.1)
    assert (some(target + 1000) == np.float32(1 / 1201)).all()


def test_about_uniform_for_another_slide_of_the_same_kind(cohort: Cohort, drawn: Callable[[str], np.ndarray]) -> None:
    found = Support.fit(cohort)(drawn("another", 400).astype(np.float32))
    assert found.min() > 0
    assert found.max() <= 1
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.1)


def test_drops_with_the_distance_to_the_reference(cohort: Cohort, drawn: Callable[[str], np.ndarray]) -> None:
    support, scale = Support.fit(cohort), cohort.embedding().std(axis=0)
    medians = [np.median(support((drawn("t") + shift * scale).astype(np.float32))) for shift in (0, 1, 2, 6)]
    assert medians[0] > 0.3
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] == pytest.approx(1 / 181)
    # A slide that standardising per slide would make look like the reference.
    assert np.median(support((drawn("t") * 5).astype(np.float32))) < 0.02


def test_between_zero_and_one(cohort: Cohort) -> None:
    support = Support.fit(cohort)
    assert support(np.full((1, 8), 1e9, np.float32)) == pytest.approx(1 / 181)
    assert support(np.full((1, 8), -1e9, np.float32)) > 0
    # A spot of the reference itself: nearer than when its own slide does not count.
    assert (support(cohort.slides[0].embedding) <= 1).all()
    assert np.median(support(cohort.slides[0].embedding)) > 0.5


def test_one_reference_slide(drawn: Callable[[str], np.ndarray]) -> None:
    support = Support.fit(Cohort((slide("a", drawn("a", 200)),), ("g",)))
    assert 0.3 < np.median(support(drawn("b", 200).astype(np.float32))) < 0.7
    assert (support((drawn("b") + 1e4).astype(np.float32)) == np.float32(1 / 201)).all()


def test_few_spots_and_constant_features() -> None:
    small = Cohort((slide("a", np.ones((3, 4))), slide("b", np.ones((2, 4)))), ("g",))
    np.testing.assert_array_equal(Support.fit(small)(np.ones((2, 4), np.float32)), 1.0)


def test_in_blocks(cohort: Cohort, drawn: Callable[[str], np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    target = drawn("t").astype(np.float32)
    whole = Support.fit(cohort)(target)
    monkeypatch.setattr("spahgc.tl._support._CHUNK", 1)
    np.testing.assert_array_equal(Support.fit(cohort)(target), whole)


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
    mouse = some(
        spahgc.io.read_st(None, folder / "spots.tsv", folder / "he.jpg", slide="mob"),
        40,
    )
    model = spahgc.tl.train(reference, method="gene_mean", panel=5, library_key="region")
    medians = {}
    for name, table in (("C4", breast["C4"]), ("mouse", mouse)):
        out = spahgc.tl.predict(model, table, copy=True)
        medians[name] = float(np.median(out.obs["spahgc_support"]))
    print(f"median support, reference C2 and C3: C4 {medians['C4']:.3f}, mouse {medians['mouse']:.3f}")  # noqa: T201
    assert medians["C4"] > 0.3
    assert medians["mouse"] < 0.03

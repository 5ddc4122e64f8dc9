"""Slides and cohorts: canonical order, splits, fingerprints, standardisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from spahgc._slides import Cohort, Rows, Slide, Stack, expression_of, standardize


def slide(name: str, patient: str | None = "P", *, n: int = 20, seed: int = 0) -> Slide:
    rng = np.random.default_rng([seed, *name.encode()])
    return Slide(
        name,
        patient,
        rng.normal(2, 3, size=(n, 5)).astype(np.float32),
        rng.permutation(np.column_stack(np.divmod(np.arange(n), 4))).astype(np.float64),
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.random(n).astype(np.float32),
    )


@pytest.fixture
def cohort() -> Cohort:
    return Cohort((slide("b", "Q"), slide("a", "P"), slide("c", "Q", n=12)), ("g0", "g1", "g2"))


# Order.


def test_canonical_order() -> None:
    one = slide("a")
    order = one.order
    np.testing.assert_array_equal(
        one.coordinates[order], np.array(sorted(map(tuple, one.coordinates), key=lambda p: p[::-1]))
    )


def test_spots_at_one_place_go_by_their_embedding() -> None:
    one = replace(slide("a"), coordinates=np.zeros((20, 2)))
    shuffled = one.take(np.random.default_rng(0).permutation(20))
    np.testing.assert_array_equal(shuffled.take(shuffled.order).embedding, one.take(one.order).embedding)


def test_a_cohort_has_one_order(cohort: Cohort) -> None:
    rng = np.random.default_rng(0)
    shuffled = Cohort(
        tuple(s.take(rng.permutation(len(s))) for s in rng.permutation(np.array(cohort.slides, dtype=object))),
        cohort.genes,
    )
    assert [s.name for s in shuffled] == ["a", "b", "c"]
    for mine, theirs in zip(shuffled, cohort, strict=True):
        np.testing.assert_array_equal(mine.embedding, theirs.embedding)
        np.testing.assert_array_equal(mine.coordinates, theirs.coordinates)
        np.testing.assert_array_equal(expression_of(mine), expression_of(theirs))
    assert shuffled.fingerprint() == cohort.fingerprint()
    assert all((np.diff(s.order) == 1).all() for s in shuffled)


def test_take_keeps_rows_together() -> None:
    one = slide("a")
    part = one.take(np.array([5, 2]))
    np.testing.assert_array_equal(part.embedding, one.embedding[[5, 2]])
    np.testing.assert_array_equal(part.coordinates, one.coordinates[[5, 2]])
    np.testing.assert_array_equal(expression_of(part), expression_of(one)[[5, 2]])
    np.testing.assert_array_equal(part.cellularity, one.cellularity[[5, 2]])
    assert replace(one, cellularity=None).take(np.array([5, 2])).cellularity is None
    assert len(one.take(one.coordinates[:, 0] > 2)) == len(part) * 4  # a mask
    assert one.without_expression().take(np.array([0])).expression is None


def test_arrays_of_a_cohort(cohort: Cohort) -> None:
    assert (len(cohort), cohort.n_spots, cohort.patients) == (3, 52, ("P", "Q", "Q"))
    index = cohort.slide_index()
    assert np.bincount(index).tolist() == [20, 20, 12]
    for i, one in enumerate(cohort):
        np.testing.assert_array_equal(cohort.embedding()[index == i], one.embedding)
        np.testing.assert_array_equal(cohort.expression()[index == i], one.expression)
    part = cohort.subset(["c", "a"])
    assert [s.name for s in part] == ["a", "c"]
    assert part.genes == cohort.genes
    parts = cohort.split(cohort.embedding())
    assert [len(part) for part in parts] == [20, 20, 12]
    moved = cohort.with_embeddings([part + 1 for part in parts])
    np.testing.assert_array_equal(moved.embedding(), cohort.embedding() + 1)
    np.testing.assert_array_equal(moved.expression(), cohort.expression())
    with pytest.raises(ValueError, match="Slide 'a' has no measured expression"):
        Cohort((slide("a").without_expression(),), cohort.genes).expression()


# Rows that are read when they are asked for.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows(dtype: type) -> None:
    rng = np.random.default_rng(0)
    values, index = rng.normal(size=(9, 2)).astype(dtype), np.array([3, 3, 8, 0])
    mean, scale = np.array([1.0, -2.0]), np.array([0.5, np.inf])
    rows = Rows(Rows(values, index), mean=mean, scale=scale)
    expected = ((values[index].astype(np.float32) - mean) / scale).astype(np.float32)
    assert rows.shape == (len(rows), 2) == expected.shape
    for part in (slice(None), slice(1, 3), np.array([[2, 0], [3, 3]])):
        assert rows[part].dtype == np.asarray(rows).dtype == np.float32
        np.testing.assert_array_equal(rows[part], expected[part])
    np.testing.assert_array_equal(np.asarray(rows), expected)


def test_stack_is_the_concatenation() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)).astype(np.float32) for n in (4, 1, 0, 6)]
    stack, whole = Stack([Rows(parts[0]), *parts[1:]]), np.concatenate(parts)
    assert (len(stack), stack.shape, stack.dtype) == (11, (11, 3), np.float32)
    np.testing.assert_array_equal(np.asarray(stack), whole)
    for start in range(12):
        for stop in range(start, 12):
            np.testing.assert_array_equal(stack[start:stop], whole[start:stop])
    for index in (rng.integers(0, 11, 30), rng.integers(0, 11, (5, 2)), np.arange(0), whole[:, 0] > 0):
        np.testing.assert_array_equal(stack[index], whole[index])
    for outside in (np.array([11]), np.array([-1, 2])):
        with pytest.raises(IndexError, match="there are rows 0 to 10"):
            stack[outside]


def test_a_slide_is_read_when_it_is_asked_to(cohort: Cohort) -> None:
    one = cohort.slides[0]
    unread = replace(one, embedding=Rows(one.embedding), expression=Rows(one.expression))
    read = unread.read()
    assert isinstance(unread.embedding, Rows) is isinstance(unread.expression, Rows) is True
    assert isinstance(read.embedding, np.ndarray) is isinstance(read.expression, np.ndarray) is True
    np.testing.assert_array_equal(read.embedding, one.embedding)
    np.testing.assert_array_equal(read.expression, one.expression)
    assert one.read().embedding is one.embedding


# Splits.


def test_splits(cohort: Cohort) -> None:
    assert cohort.splits() == (("a",), ("b", "c"))
    assert cohort.splits("slide") == (("a",), ("b",), ("c",))
    # With one patient nothing but slides can be held out.
    assert cohort.subset(["b", "c"]).splits() == (("b",), ("c",))
    assert cohort.subset(["b"]).splits() == (("b",),)


def test_no_patient_is_on_both_sides(cohort: Cohort) -> None:
    for group in cohort.splits():
        inside = {s.patient for s in cohort if s.name in group}
        assert inside.isdisjoint({s.patient for s in cohort if s.name not in group})


# Fingerprint.


CHANGES: dict[str, Callable[[Cohort], Cohort]] = {
    "gene": lambda c: replace(c, genes=("g0", "g1", "x")),
    "order of genes": lambda c: replace(c, genes=("g1", "g0", "g2")),
    "fewer slides": lambda c: c.subset(["a", "b"]),
    "name": lambda c: replace(c, slides=(replace(c.slides[0], name="0"), *c.slides[1:])),
    "patient": lambda c: replace(c, slides=(replace(c.slides[0], patient="R"), *c.slides[1:])),
    "embedding": lambda c: bump(c, "embedding"),
    "coordinates": lambda c: bump(c, "coordinates"),
    "expression": lambda c: bump(c, "expression"),
    "cellularity": lambda c: bump(c, "cellularity"),
    "no cellularity": lambda c: replace(c, slides=tuple(replace(s, cellularity=None) for s in c)),
    "shape": lambda c: replace(c, slides=(reshaped(c.slides[0]), *c.slides[1:])),
}


def reshaped(one: Slide) -> Slide:
    return replace(one, embedding=one.embedding.reshape(10, 10), coordinates=one.coordinates.reshape(10, 4))


def bump(cohort: Cohort, name: str) -> Cohort:
    array = getattr(cohort.slides[0], name).copy()
    array.flat[4] = np.nextafter(array.flat[4], np.inf, dtype=array.dtype)
    return replace(cohort, slides=(replace(cohort.slides[0], **{name: array}), *cohort.slides[1:]))


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_changes_with_anything(cohort: Cohort, change: str) -> None:
    assert CHANGES[change](cohort).fingerprint() != cohort.fingerprint()
    assert replace(cohort).fingerprint() == cohort.fingerprint()


# Standardisation.


def test_standardize_against_sklearn() -> None:
    one = slide("a")
    found = standardize(one)
    np.testing.assert_allclose(found.embedding, StandardScaler().fit_transform(one.embedding), atol=1e-5)
    assert found.embedding.dtype == np.float32
    np.testing.assert_array_equal(found.coordinates, one.coordinates)
    np.testing.assert_array_equal(expression_of(found), expression_of(one))
    np.testing.assert_array_equal(found.cellularity, one.cellularity)


NOISE = np.float32(1000) + np.where(np.arange(20) % 2, np.spacing(np.float32(1000)), 0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3e-9, NOISE])
def test_features_that_are_constant_up_to_rounding_become_zero(value: float | np.ndarray) -> None:
    one = slide("a")
    embedding = one.embedding.copy()
    embedding[:, 2] = value
    found = standardize(replace(one, embedding=embedding)).embedding
    assert (found[:, 2] == 0).all()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, [0, 1, 3, 4]].std(axis=0), 1, rtol=1e-5)


def test_standardizing_forgets_scale_and_offset(cohort: Cohort) -> None:
    changed = replace(cohort, slides=tuple(replace(s, embedding=s.embedding * 7 - 3) for s in cohort))
    np.testing.assert_allclose(changed.standardized().embedding(), cohort.standardized().embedding(), atol=1e-4)
    # Each slide on its own: another slide has no say.
    alone = cohort.subset(["a"]).standardized()
    np.testing.assert_array_equal(alone.slides[0].embedding, cohort.standardized().slides[0].embedding)
    assert (standardize(slide("a", n=1)).embedding == 0).all()


# Patients.


def test_no_patient_on_both_sides(cohort: Cohort) -> None:
    from spahgc._slides import check_no_shared_patients

    new, same, unknown = slide("t", "R"), slide("t2", "Q"), slide("t3", None)
    check_no_shared_patients(cohort, [new, unknown])
    with pytest.raises(
        ValueError, match=r"patient 'Q': held out 't2', reference 'b', 'c'\).*allow_shared_patients=True"
    ):
        check_no_shared_patients(cohort, [new, same])
    check_no_shared_patients(cohort, [new, same], allow_shared_patients=True)
    with pytest.raises(ValueError, match="Held-out slides 'b' are also part of the reference.*Remove them"):
        check_no_shared_patients(cohort, [cohort.slides[1]], allow_shared_patients=True)

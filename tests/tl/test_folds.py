"""Folds by patient and by slide; no patient on both sides unless that is asked for."""

from __future__ import annotations

import pytest

from spahgc.tl._folds import make_folds

PATIENTS = {"B1": "B", "A1": "A", "A2": "A", "C1": "C"}


def test_by_patient() -> None:
    folds = make_folds(PATIENTS)
    assert [(fold.name, fold.held_out, fold.training) for fold in folds] == [
        ("A", ("A1", "A2"), ("B1", "C1")),
        ("B", ("B1",), ("A1", "A2", "C1")),
        ("C", ("C1",), ("A1", "A2", "B1")),
    ]
    assert {fold.shared_patients for fold in folds} == {()}
    assert {fold.split_by for fold in folds} == {"patient"}


def test_order_does_not_matter() -> None:
    for by in ("patient", "slide"):
        turned = dict(reversed(PATIENTS.items()))
        assert make_folds(PATIENTS, split_by=by, allow_shared_patients=True) == make_folds(
            turned, split_by=by, allow_shared_patients=True
        )


def test_by_slide_of_different_patients() -> None:
    folds = make_folds({"x": "A", "y": "B"}, split_by="slide")
    assert [(fold.name, fold.training, fold.shared_patients) for fold in folds] == [
        ("x", ("y",), ()),
        ("y", ("x",), ()),
    ]


def test_shared_patients_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"2 of 4 held-out slides \('A1', 'A2'\).*allow_shared_patients=True"):
        make_folds(PATIENTS, split_by="slide")


def test_shared_patients_if_allowed() -> None:
    folds = {fold.name: fold for fold in make_folds(PATIENTS, split_by="slide", allow_shared_patients=True)}
    assert folds["A1"].shared_patients == ("A",)
    assert folds["A1"].split_by == "slide"
    # B1 is a new patient to its training slides, and is tuned for as one.
    assert folds["B1"].shared_patients == ()
    assert folds["B1"].split_by == "patient"


def test_one_patient() -> None:
    with pytest.raises(ValueError, match="All 2 slides are of one patient, 'A'.*split_by='slide', allow_shared_pat"):
        make_folds({"A1": "A", "A2": "A"})
    folds = make_folds({"A1": "A", "A2": "A"}, split_by="slide", allow_shared_patients=True)
    assert [fold.shared_patients for fold in folds] == [("A",), ("A",)]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least two slides; the reference has 'A1'"):
        make_folds({"A1": "A"})

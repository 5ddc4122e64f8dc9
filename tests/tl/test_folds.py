"""Folds by patient and by slide; no patient on both sides unless that is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from spahgc.tl._protocols import make_folds

PATIENTS = {"B1": "B", "A1": "A", "A2": "A", "C1": "C"}
SHARED: dict[str, Any] = {"split_by": "slide", "allow_shared_patients": True}


def test_by_patient() -> None:
    folds = make_folds(PATIENTS)
    assert [(fold.name, fold.held_out, fold.training) for fold in folds] == [
        ("A", ("A1", "A2"), ("B1", "C1")),
        ("B", ("B1",), ("A1", "A2", "C1")),
        ("C", ("C1",), ("A1", "A2", "B1")),
    ]
    assert {(fold.shared_patients, fold.split_by) for fold in folds} == {((), "patient")}


def test_by_slide() -> None:
    folds = make_folds({"x": "A", "y": "B"}, split_by="slide")
    assert [(fold.name, fold.training, fold.shared_patients) for fold in folds] == [
        ("x", ("y",), ()),
        ("y", ("x",), ()),
    ]
    shared = {fold.name: (fold.shared_patients, fold.split_by) for fold in make_folds(PATIENTS, **SHARED)}
    # B1 is a new patient to its training slides, and is tuned for as one.
    assert (shared["A1"], shared["B1"]) == ((("A",), "slide"), ((), "patient"))
    assert [fold.shared_patients for fold in make_folds({"A1": "A", "A2": "A"}, **SHARED)] == [("A",), ("A",)]


def test_order_does_not_matter() -> None:
    turned = dict(reversed(PATIENTS.items()))
    assert make_folds(PATIENTS) == make_folds(turned)
    assert make_folds(PATIENTS, **SHARED) == make_folds(turned, **SHARED)


@pytest.mark.parametrize(
    ("patients", "split_by", "message"),
    [
        (PATIENTS, "slide", r"2 of 4 held-out slides \('A1', 'A2'\).*allow_shared_patients=True"),
        ({"A1": "A", "A2": "A"}, "patient", "All 2 slides are of one patient, 'A'.*'slide', allow_shared_pat"),
        ({"A1": "A"}, "patient", "at least two slides; the reference has 'A1'"),
    ],
)
def test_errors(patients: dict[str, str], split_by: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_folds(patients, split_by=split_by)

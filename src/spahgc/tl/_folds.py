"""Folds of a cross-validation: which slides are held out together, and what they share with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._checks import format_names
from .._slides import SplitBy


@dataclass(frozen=True)
class Fold:
    """Slides that are held out together, and those that are trained on.

    Parameters
    ----------
    name
        The held-out patient or slide.
    held_out, training
        Names of slides.
    shared_patients
        Patients with slides on both sides.
    split_by
        What is held out in turn while tuning in the training slides: as the held-out slides relate to them.
    """

    name: str
    held_out: tuple[str, ...]
    training: tuple[str, ...]
    shared_patients: tuple[str, ...]
    split_by: SplitBy


def make_folds(
    patients: Mapping[str, str], *, split_by: SplitBy = "patient", allow_shared_patients: bool = False
) -> tuple[Fold, ...]:
    """Hold out each patient, or each slide, in turn.

    Parameters
    ----------
    patients
        Patient of each slide, by the slide's name.
    split_by
        What is held out.
    allow_shared_patients
        Train on other slides of the held-out slide's patient.

    Returns
    -------
    The folds, in the order of their names.

    Raises
    ------
    ValueError
        If only one fold is possible, or patients would be shared and are not allowed to be.
    """
    if split_by not in ("patient", "slide"):
        raise ValueError(f"split_by is 'patient' or 'slide', not {split_by!r}.")
    if len(patients) < 2:
        raise ValueError(f"Cross-validation takes at least two slides; the reference has {format_names(patients)}.")
    groups: dict[str, list[str]] = {}
    for slide, patient in patients.items():
        groups.setdefault(patient if split_by == "patient" else slide, []).append(slide)
    if len(groups) < 2:
        raise ValueError(
            f"All {len(patients)} slides are of one patient, {next(iter(groups))!r}: no patient is left to train on. "
            f"To see how well other slides of this same patient are predicted, pass split_by='slide', "
            f"allow_shared_patients=True; it says nothing about new patients."
        )
    folds = []
    for name in sorted(groups):
        held_out = tuple(sorted(groups[name]))
        training = tuple(sorted(set(patients) - set(held_out)))
        known = {patients[slide] for slide in training}
        shared = tuple(sorted({patients[slide] for slide in held_out} & known))
        # Tuning foresees slides of reference patients only where all held-out slides are.
        inner: SplitBy = "slide" if all(patients[slide] in known for slide in held_out) else "patient"
        folds.append(Fold(name, held_out, training, shared, inner))
    shared_folds = [fold for fold in folds if fold.shared_patients]
    if shared_folds and not allow_shared_patients:
        raise ValueError(
            f"With split_by='slide', {len(shared_folds)} of {len(folds)} held-out slides "
            f"({format_names((fold.name for fold in shared_folds), most=5)}) have other slides of their patient among the "
            f"training slides, and their scores would say nothing about new patients. Pass split_by='patient', or "
            f"allow_shared_patients=True if same-patient scores are what you want; they are labelled so."
        )
    return tuple(folds)

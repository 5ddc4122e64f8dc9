"""Folds of a cross-validation: which slides are held out together, and what they share with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._checks import format_names
from .._slides import SplitBy


@dataclass(frozen=True)
class Fold:
    """Slides held out together and training slides, with the patients on both sides.

    `name` is the held-out patient or slide, `split_by` the unit held out when tuning, as the held-out slides relate to
    the training slides.
    """

    name: str
    held_out: tuple[str, ...]
    training: tuple[str, ...]
    shared_patients: tuple[str, ...]
    split_by: SplitBy


def make_folds(
    patients: Mapping[str, str], *, split_by: SplitBy = "patient", allow_shared_patients: bool = False
) -> tuple[Fold, ...]:
    """Hold out each patient or each slide in turn, given the patient of each slide; folds are in order of name.

    Raises
    ------
    ValueError
        If only one fold is possible, or patients would be shared without `allow_shared_patients`.
    """
    if len(patients) < 2:
        raise ValueError(f"Cross-validation needs at least two slides; the reference has {format_names(patients)}.")
    groups: dict[str, list[str]] = {}
    for slide, patient in patients.items():
        groups.setdefault(patient if split_by == "patient" else slide, []).append(slide)
    if len(groups) < 2:
        raise ValueError(
            f"All {len(patients)} slides are of one patient, {next(iter(groups))!r}, so no patient is left to train "
            f"on. To score predictions of further slides of this patient, pass split_by='slide', "
            f"allow_shared_patients=True; this says nothing about new patients."
        )
    folds = []
    for name in sorted(groups):
        held_out = tuple(sorted(groups[name]))
        training = tuple(sorted(set(patients) - set(held_out)))
        known = {patients[slide] for slide in training}
        shared = tuple(sorted({patients[slide] for slide in held_out} & known))
        # Tuning holds out slides only if all held-out slides are of training patients.
        inner: SplitBy = "slide" if all(patients[slide] in known for slide in held_out) else "patient"
        folds.append(Fold(name, held_out, training, shared, inner))
    shared_folds = [fold for fold in folds if fold.shared_patients]
    if shared_folds and not allow_shared_patients:
        raise ValueError(
            f"With split_by='slide', {len(shared_folds)} of {len(folds)} held-out slides "
            f"({format_names((fold.name for fold in shared_folds), most=5)}) share their patient with training slides, "
            f"so their scores would say nothing about new patients. Pass split_by='patient', or "
            f"allow_shared_patients=True for same-patient scores, which are labeled so."
        )
    return tuple(folds)

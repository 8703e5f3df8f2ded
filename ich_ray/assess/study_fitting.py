"""Probabilities and thresholds of studies, where enough calibration patients have one of either kind.

The logit of a study is the highest of its slices, or that of a network for studies. The more slices, the higher the
highest: so it is scaled and moved, by Platt's method, whatever slices are calibrated by.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np

from ich_ray.assess.operating_points import OperatingPointSpec, operating_points
from ich_ray.bundle.logit_scaling import LogitScaling, bound_note, fit_scaling
from ich_ray.bundle.study_calibration import StudyCalibration, StudyLabel, StudyScaling
from ich_ray.data.study_labels import studies_of
from ich_ray.progress import say
from ich_ray.statistics.aggregation import patients_by_label
from ich_ray.statistics.metrics import POSITIVE_PATIENTS_OF_A_LABEL, log_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.logit_scaling import Method
    from ich_ray.bundle.operating_point import OperatingPoint
    from ich_ray.bundle.study_calibration import StudyScore
    from ich_ray.data.dataset import SliceSet
    from ich_ray.data.study_labels import LabelledStudies

__all__ = ["calibrate_studies", "fit_studies", "study_scores", "why_not_by_study"]

_METHOD: Method = "platt"
_PREFIX = "study_"


def calibrate_studies(
    bundle: Bundle,
    slices: SliceSet,
    logits: NDArray[np.float32],
    of_slices: Mapping[str, LogitScaling],
    before: StudyCalibration | None = None,
    wanted: OperatingPointSpec | None = None,
) -> StudyCalibration | None:
    """Fit the studies of slices and say what came out; None where slices name no study.

    `logits` are those of the slices, `[n, labels]`; see `fit_studies` for the others.
    """
    studies = studies_of(slices)
    if reason := why_not_by_study(slices, studies):
        say(f"  {reason}")
        return None
    scores, score = study_scores(bundle, slices, logits, studies)
    fingerprint = slices.dataset.manifest.fingerprint
    found = fit_studies(studies, scores, of_slices, score, fingerprint, before, wanted)
    _say(found)
    return found


def study_scores(
    bundle: Bundle, slices: SliceSet, logits: NDArray[np.float32], studies: LabelledStudies
) -> tuple[NDArray[np.float32], StudyScore]:
    """Logits of studies, `[studies, labels]`, and where they come from; `logits` are those of the slices."""
    found = bundle.study_label_logits(slices, logits)
    return found.logits[found.of_slice[studies.first]], found.score


def why_not_by_study(slices: SliceSet, studies: LabelledStudies) -> str:
    """Why nothing can be said of studies; empty if something can."""
    if slices.dataset.manifest.leak:
        return "by study: no figures, as roles were drawn by slice: a study stands in several of them"
    if not len(studies):
        return "by study: no figures, as no slice names its study"
    return ""


def fit_studies(
    studies: LabelledStudies,
    logits: NDArray[np.float32],
    of_slices: Mapping[str, LogitScaling],
    score: StudyScore,
    dataset: str,
    before: StudyCalibration | None = None,
    wanted: OperatingPointSpec | None = None,
) -> StudyCalibration:
    """Fit the logits of studies, label by label.

    Args:
        studies: of patients who trained nothing.
        logits: of studies, `[studies, labels]`, in the order of `of_slices`.
        of_slices: by label, what turns logits of slices into probabilities.
        score: where the logits come from.
        dataset: the fingerprint of the dataset that they are of.
        before: the calibration to compare with; that of slices where there is none.
        wanted: operating points of `any` beside the usual ones; subtypes have those.
    """
    asked = wanted or OperatingPointSpec()
    held = before.labels if before else {}
    labels: dict[StudyLabel, StudyScaling] = {
        name: _fitted(
            name,
            (studies.label(name), logits[:, column], studies.patients),
            scaling,
            held[name].scaling if name in held else scaling,
            asked if name == "any" else OperatingPointSpec(conservative=asked.conservative),
        )
        for column, (name, scaling) in enumerate(cast("Mapping[StudyLabel, LogitScaling]", of_slices).items())
    }
    unknown = studies.unknown + studies.unnamed
    return StudyCalibration(dataset=dataset, method=_METHOD, score=score, unknown=unknown, labels=labels)


def _fitted(
    name: StudyLabel,
    data: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.object_]],
    of_slices: LogitScaling,
    before: LogitScaling,
    wanted: OperatingPointSpec,
) -> StudyScaling:
    known = ~np.isnan(data[0])
    targets, logits, patients = data[0][known], data[1][known], data[2][known]
    held = patients_by_label(targets, patients)
    enough = min(held.values()) >= POSITIVE_PATIENTS_OF_A_LABEL
    scaling, notes = of_slices, [_few(name, held)]
    points: dict[str, OperatingPoint] = {}
    if enough:
        scaling = fit_scaling(_METHOD, targets, logits, of_slices.prior_shift)
        points, notes = _points(name, (targets, scaling(logits), patients), wanted)
        at_bound = bound_note(scaling)
        notes = [*([f"{_where(name)}: {at_bound}"] if at_bound else []), *notes]
    return StudyScaling(
        studies=len(targets),
        positives=int(targets.sum()),
        patients=held[1],
        scaled_by="own" if enough else "slices",
        temperature=scaling.temperature,
        prior_shift=scaling.prior_shift,
        bias=scaling.bias,
        log_loss_before=_loss(targets, before(logits)),
        log_loss_after=_loss(targets, scaling(logits)),
        operating_points=points,
        notes=tuple(notes),
    )


def _points(
    name: StudyLabel,
    data: tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.object_]],
    wanted: OperatingPointSpec,
) -> tuple[dict[str, OperatingPoint], list[str]]:
    found, notes = operating_points(*data, wanted, "study")
    return {f"{_PREFIX}{point}": value for point, value in found.items()}, [f"{_where(name)}: {one}" for one in notes]


def _few(name: StudyLabel, held: Mapping[int, int]) -> str:
    few, what = (held[1], "with") if held[1] < POSITIVE_PATIENTS_OF_A_LABEL else (held[0], "without")
    shown = "haemorrhage" if name == "any" else name
    return (
        f"{_where(name)}: {POSITIVE_PATIENTS_OF_A_LABEL} calibration patients must have a study {what} {shown}, got "
        f"{few}: studies have no probability or operating point of their own"
    )


def _where(name: StudyLabel) -> str:
    return "by study" if name == "any" else f"by study, {name}"


def _loss(labels: NDArray[np.float32], probabilities: NDArray[np.float64]) -> float | None:
    value = log_loss(labels, probabilities)
    return value if math.isfinite(value) else None


def _say(found: StudyCalibration) -> None:
    fitted = found.labels["any"]
    if fitted.scaled_by == "own" and fitted.log_loss_before is not None and fitted.log_loss_after is not None:
        points = ", ".join(f"{name} {point.threshold:.3f}" for name, point in fitted.operating_points.items())
        say(
            f"  by study: calibrated on {fitted.studies:,} studies, log loss {fitted.log_loss_before:.3f} -> "
            f"{fitted.log_loss_after:.3f}, thresholds: {points}"
        )
    for note in (note for scaling in found.labels.values() for note in scaling.notes):
        say(f"  {note}")

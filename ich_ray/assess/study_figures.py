"""Figures of studies, by their own probability and operating points.

A case is a study whose label is known. Figures use the draws of patients of the whole evaluation; nothing is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ich_ray.assess.interval_estimates import (
    Cases,
    Estimate,
    GroupFigures,
    PointFigures,
    as_estimate,
    enough_patients,
    measure,
)
from ich_ray.assess.study_fitting import study_scores, why_not_by_study
from ich_ray.bundle.logit_scaling import LogitScaling
from ich_ray.bundle.study_calibration import StudyScore
from ich_ray.data.study_labels import LabelledStudies, studies_of
from ich_ray.errors import IchRayError
from ich_ray.statistics.aggregation import most_probable
from ich_ray.statistics.bootstrap import FEWEST_PATIENTS
from ich_ray.statistics.calibration_error import ece_null_band
from ich_ray.statistics.metrics import chance_bound
from ich_ray.storage import Count, Line
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.operating_point import OperatingPoint
    from ich_ray.bundle.study_calibration import StudyLabel
    from ich_ray.data.dataset import SliceSet
    from ich_ray.statistics.bootstrap import PatientDraws

__all__ = ["ScoredStudies", "StudyFigures", "measure_studies", "score_studies"]


class StudyFigures(GroupFigures):
    """Figures of studies.

    Attributes:
        score: where their logits come from.
        unknown: studies without a label, which are not measured.
        unnamed: slices that name no study, which are not measured either.
        ece_null: see `Evaluation`; None where studies have no probability of their own.
        patient_level: a patient is positive with any positive study, negative where all are known to be, and as
            probable as the most probable study.
        subtypes: studies with a subtype against all studies without haemorrhage.
        labels: of a network that answers the subtypes, each by its own probability.
    """

    score: StudyScore
    unknown: Count = 0
    unnamed: Count = 0
    ece_null: Estimate | None = None
    patient_level: GroupFigures | None = None
    subtypes: dict[Line, GroupFigures] = {}  # noqa: RUF012  (a pydantic default, copied for each record)
    labels: dict[Line, GroupFigures] = {}  # noqa: RUF012
    notes: tuple[Line, ...] = ()

    @property
    def point(self) -> tuple[str, PointFigures] | None:
        """The operating point that decides; None where too few studies were there to fit any."""
        name = "study_f2" if "study_f2" in self.operating_points else next(iter(self.operating_points), None)
        return (name, self.operating_points[name]) if name else None


@dataclass(frozen=True)
class ScoredStudies:
    """Studies of some slices with what the bundle says of them.

    Attributes:
        probabilities: of all labels, `any` last, float64 `[studies, labels]`.
        score: where their logits come from.
    """

    studies: LabelledStudies
    probabilities: NDArray[np.float64]
    score: StudyScore

    def table(self) -> pa.Table:
        """studies.parquet: a row per study; a label that is not known is null."""
        truth = self.studies.label("any")
        columns = {"study": self.studies.names, "patient": self.studies.patients}
        subtypes = zip(SUBTYPES, self.probabilities.T[:-1], strict=False)
        return pa.table(
            {
                **{name: pa.array(values.tolist(), pa.string()) for name, values in columns.items()},
                "label": pa.array(np.nan_to_num(truth).astype(np.int8), mask=np.isnan(truth)),
                "slices": np.bincount(self.studies.of_slice[self.studies.of_slice >= 0], minlength=len(self.studies)),
                "probability": self.probabilities[:, -1],
                **{f"probability_{name}": column for name, column in subtypes},
            }
        )


def score_studies(bundle: Bundle, slices: SliceSet, logits: NDArray[np.float32]) -> ScoredStudies | str:
    """Probabilities of the studies of slices with logits `[n, labels]`, or why there are none.

    Raises:
        IchRayError: one is not finite.
    """
    if bundle.card.studies is None:
        return "by study: no figures, as the bundle was calibrated without studies; run `ich-ray calibrate` again"
    studies = studies_of(slices)
    if reason := why_not_by_study(slices, studies):
        return reason
    if studies.unknown == len(studies):
        return "by study: no figures, as no study has a label"
    scores, score = study_scores(bundle, slices, logits, studies)
    held = bundle.card.studies.labels
    names: list[StudyLabel] = [*bundle.card.parameters.predicted_labels]  # type: ignore[list-item]
    scalings = [held[name].scaling if name in held else LogitScaling() for name in names]
    found = np.stack([scale(column) for scale, column in zip(scalings, scores.T, strict=True)], 1)
    if not np.isfinite(found).all():
        raise IchRayError(
            f"{bundle.card.name}: probabilities of studies must be finite, got others; calibrate again, or retrain"
        )
    return ScoredStudies(studies, found, score)


def measure_studies(
    scored: ScoredStudies, bundle: Bundle, draws: PatientDraws, stated: float | None = None
) -> StudyFigures:
    """All figures of studies.

    Args:
        scored: studies, see `score_studies`.
        bundle: with a calibration of studies.
        draws: of the patients of the slices.
        stated: another prevalence of studies to give PPV and NPV for.
    """
    calibration, studies = bundle.card.studies, scored.studies
    assert calibration is not None  # noqa: S101  (without one there is nothing scored)
    probabilities, points = scored.probabilities[:, -1], calibration.operating_points
    calibrated = calibration.labels["any"].scaled_by == "own"
    truth = studies.label("any")
    known = np.flatnonzero(~np.isnan(truth))
    cases = Cases(truth[known].astype(np.float64), probabilities[known], studies.first[known], calibrated)
    whole = measure(cases, points, draws, stated)
    null = ece_null_band(probabilities[known]) if calibrated else None
    return StudyFigures(
        **whole.figures(),
        cases=whole.cases,
        score=scored.score,
        unknown=studies.unknown,
        unnamed=studies.unnamed,
        ece_null=as_estimate(null) if null else None,
        patient_level=measure(_patients(studies, probabilities), points, draws),
        subtypes=_subtypes(studies, probabilities, calibration.operating_points, draws),
        labels=_labels(scored, bundle, draws),
        notes=(*_few(cases, draws, calibrated), *_found(whole, null.high if null else None), *_unknown(studies)),
    )


def _patients(studies: LabelledStudies, probabilities: NDArray[np.float64]) -> Cases:
    """One case for each patient of whom it is known, the most probable study first."""
    _, whose = np.unique(studies.patients.astype(str), return_inverse=True)
    truth = studies.label("any")
    positive = np.bincount(whose, truth == 1) > 0
    known = positive | (np.bincount(whose, truth != 0) == 0)  # unknown ones differ from 0, too
    rows = most_probable(whose, probabilities)[known]
    return Cases(positive[known].astype(np.float64), probabilities[rows], studies.first[rows], calibrated=False)


def _subtypes(
    studies: LabelledStudies,
    probabilities: NDArray[np.float64],
    points: Mapping[str, OperatingPoint],
    draws: PatientDraws,
) -> dict[str, GroupFigures]:
    """For each subtype that a study has, its studies and those without any haemorrhage."""
    found = {}
    for name in SUBTYPES:
        held = studies.label(name) == 1
        if held.any():
            rows = np.flatnonzero(held | (studies.label("any") == 0))
            cases = Cases(held[rows].astype(np.float64), probabilities[rows], studies.first[rows], calibrated=False)
            found[str(name)] = measure(cases, points, draws)
    return found


def _labels(scored: ScoredStudies, bundle: Bundle, draws: PatientDraws) -> dict[str, GroupFigures]:
    """Each subtype that the bundle answers and some study has, by its own probability."""
    found, studies, calibration = {}, scored.studies, bundle.card.studies
    for column, name in enumerate(bundle.card.parameters.predicted_labels[:-1]):
        truth = studies.label(name)
        rows = np.flatnonzero(~np.isnan(truth))
        fitted = calibration.labels.get(name) if calibration else None  # type: ignore[call-overload]
        if fitted is not None and (truth == 1).any():
            own = fitted.scaled_by == "own"
            cases = Cases(truth[rows].astype(np.float64), scored.probabilities[rows, column], studies.first[rows], own)
            found[name] = measure(cases, fitted.operating_points, draws)
    return found


def _few(cases: Cases, draws: PatientDraws, calibrated: bool) -> list[str]:
    notes = []
    if not calibrated:
        notes.append(
            "Too few calibration patients had studies of either kind: a study is as probable as a slice of its logit "
            "would be, which is no probability of a study, and has no operating point."
        )
    if not enough_patients(cases, draws):
        notes.append(
            f"Fewer than {FEWEST_PATIENTS} test patients have a study with haemorrhage, or one without: shares have "
            "exact intervals, and other figures have none."
        )
    return notes


def _found(whole: GroupFigures, null_high: float | None) -> list[str]:
    notes, error = [], whole.metrics["ece"].value if "ece" in whole.metrics else None
    if whole.at_chance:
        bound = f"{chance_bound(whole.prevalence):.3f} at a prevalence of {whole.prevalence:.3f}"
        notes.append(f"At chance by study: average precision is not above {bound}.")
    if error is not None and null_high is not None and error > null_high:
        notes.append(
            f"The expected calibration error of studies, {error:.3f}, is more than a perfect model would show by "
            f"chance (up to {null_high:.3f}): their probabilities do not quite mean what they say."
        )
    return notes


def _unknown(studies: LabelledStudies) -> list[str]:
    told = [f"{studies.unknown:,} studies without a label of haemorrhage are left out."] if studies.unknown else []
    unnamed = f"{studies.unnamed:,} slices name no study, and are left out of figures by study."
    return [*told, *([unnamed] if studies.unnamed else [])]

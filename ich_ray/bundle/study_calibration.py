"""The records of what turns logits of studies into probabilities, and where these decide."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ich_ray.bundle.logit_scaling import LogitScaling, Method
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.storage import Count, Fingerprint, Line, Record
from ich_ray.vocabulary import Subtype

__all__ = ["StudyCalibration", "StudyLabel", "StudyScaling", "StudyScore"]

StudyLabel = Subtype | Literal["any"]
# Where the logit of a study comes from: the highest of its slices, or a network that answers for studies.
StudyScore = Literal["maximum", "study head"]


class StudyScaling(Record):
    """What turns the study logit of one label into a probability.

    Attributes:
        studies: of calibration patients whose label is known, `positives` of them with it, of `patients`.
        scaled_by: `own` where these fitted the numbers; `slices` where too few patients have or lack the label: the
            numbers are then those of slices, mean no probability of a study, and there is no operating point.
        log_loss_before: with the numbers of slices, or at another site with those before; None where it is undefined.
        operating_points: `study_f2`, `study_sensitivity_95` and so on.
    """

    studies: Count
    positives: Count
    patients: Count
    scaled_by: Literal["own", "slices"]
    temperature: float = Field(gt=0)
    prior_shift: float = 0.0
    bias: float = 0.0
    log_loss_before: float | None
    log_loss_after: float | None
    operating_points: dict[Line, OperatingPoint] = Field(default_factory=dict)
    notes: tuple[Line, ...] = ()

    @property
    def scaling(self) -> LogitScaling:
        """What turns its logits into probabilities."""
        return LogitScaling(self.prior_shift, self.temperature, self.bias)


class StudyCalibration(Record):
    """Probabilities and operating points of studies.

    Attributes:
        dataset: fingerprint of the dataset whose studies these are.
        score: where the logit that was scaled comes from.
        unknown: studies of the same patients without a label of `any`, and slices that name no study.
        labels: of each label that the bundle answers.
    """

    dataset: Fingerprint | Literal[""] = ""
    method: Method = "platt"
    score: StudyScore = "maximum"
    unknown: Count = 0
    labels: dict[StudyLabel, StudyScaling]

    @property
    def scaling(self) -> LogitScaling:
        """What turns study logits of `any` into probabilities."""
        return self.labels["any"].scaling

    @property
    def operating_points(self) -> dict[str, OperatingPoint]:
        """Those of `any`; none where too few studies were there."""
        return self.labels["any"].operating_points

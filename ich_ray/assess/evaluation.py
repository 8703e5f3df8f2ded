"""The record of an evaluation: the figures of all test slices, of groups of them, and of studies."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from ich_ray.assess.interval_estimates import CONFIDENCE, Estimate, Figures, GroupFigures, PointFigures
from ich_ray.assess.sequence_change import ChangedFigure
from ich_ray.assess.study_figures import StudyFigures
from ich_ray.storage import Count, Fingerprint, Line, Share, Time
from ich_ray.vocabulary import Level

__all__ = ["RESAMPLES", "Evaluation"]

RESAMPLES = 2000
_OF_SLICES = {*Figures.model_fields, "ece_null", "patient_level", "subtypes", "representations", "labels",
              "label_metrics"} - {"patients"}  # fmt: skip


class Evaluation(Figures):
    """evaluation.json: the figures of all test slices, and of groups of them.

    Intervals draw patients, not slices. Where that cannot tell, shares of slices have exact ones, other figures none.

    Attributes:
        dataset: fingerprint of the dataset whose test patients these are.
        opened: how often the test patients have been looked at with this bundle, this time included.
        ece_null: the expected calibration error that a perfect model of these probabilities shows: median and band. The
            error itself has no interval, as resamples raise it.
        patient_level: a patient is positive with any positive slice, and as probable as the most probable slice.
        subtypes: slices of a subtype against all slices without haemorrhage.
        representations: slices by how their scanner wrote them: pixel representation, and flags of their files.
        labels: of a network that answers the subtypes, each by its own probability: the slices whose label is known,
            with the subtype or without it. `label_metrics` are over all labels: the competition's log loss, and means
            over the subtypes where they are defined, `subtypes_measured`.
        studies: figures of studies, by their own probability; None where there are none, and not written then.
        sequence_change: what the sequence model changed, see `measure_change`; not written where there is none.
        level: what the labels are of. Where it is no slice, there are no figures of slices, and they are not written.
    """

    format: Literal[1] = 1
    dataset: Fingerprint | Literal[""] = ""
    slices: Count
    opened: Count
    time: Time
    confidence: Share = CONFIDENCE
    resamples: Count = RESAMPLES
    notes: tuple[Line, ...]
    ece_null: Estimate | None = None
    patient_level: GroupFigures | None = None
    subtypes: dict[Line, GroupFigures] = {}  # noqa: RUF012  (a pydantic default, copied for each record)
    representations: dict[Line, GroupFigures] = {}  # noqa: RUF012
    labels: dict[Line, GroupFigures] = {}  # noqa: RUF012
    label_metrics: dict[Line, Estimate] = {}  # noqa: RUF012
    studies: StudyFigures | None = None
    sequence_change: dict[Line, ChangedFigure] = {}  # noqa: RUF012
    level: Level = "slice"
    positives: Count = 0
    prevalence: Share = 0.0
    metrics: dict[Line, Estimate] = {}  # noqa: RUF012
    operating_points: dict[Line, PointFigures] = {}  # noqa: RUF012
    floors: dict[Line, float] = {}  # noqa: RUF012
    at_chance: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what says nothing: files are then as older versions wrote them."""
        nothing = {name for name in ("studies", "sequence_change") if not getattr(self, name)}
        nothing |= {"level"} if self.level == "slice" else _OF_SLICES
        return {name: value for name, value in write(self).items() if name not in nothing}

    @property
    def point(self) -> tuple[str, PointFigures] | None:
        """The operating point that decides: `f2`, or the first one if there is none of that name."""
        name = "f2" if "f2" in self.operating_points else next(iter(self.operating_points), None)
        return (name, self.operating_points[name]) if name else None

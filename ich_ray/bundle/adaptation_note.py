"""What the card of a bundle says of a site whose own labels its sequence model was fitted to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ich_ray.storage import Count, Fingerprint, Line, Record, Time

__all__ = ["AdaptationFigure", "AdaptationNote", "AdaptedPatients"]


class AdaptationFigure(Record):
    """A figure of `any` before an adaptation and after it.

    Both are calibrated on other patients of the same role.

    Attributes:
        difference: after less before, from `low` to `high` with 95 %: patients are drawn again, the same for both.
            Bounds are None where nothing can be said of them.
    """

    before: float
    after: float
    difference: float
    low: float | None
    high: float | None


class AdaptedPatients(Record):
    """Patients of one role of a site; `positives` are those with haemorrhage."""

    patients: Count
    positives: Count
    series: Count


class AdaptationNote(Record):
    """One adaptation.

    Attributes:
        dataset: fingerprint of the site's dataset.
        labels: whose labels it was fitted to; by those of `studies` alone the study head, else all of the model.
        train: who taught it; `validation`: who chose among its reports, `calibration`: who weighed and calibrated it.
        budget: series to show, over all reports, and `best`: series shown at the report that was kept; 0 where none was
            better than the start, and the model is as it was.
        loss_before, loss_after: on the validation patients at the start and at that report, scaled on these same
            patients: optimistic, they chose.
        figures: on the calibration patients, cross-fitted by patient: log_loss, average_precision and roc_auc of slices
            and, as `study_log_loss` and so on, of studies; empty where the patients are too few to part.
    """

    dataset: Fingerprint
    labels: Literal["slices", "studies"]
    train: AdaptedPatients
    validation: AdaptedPatients
    calibration: AdaptedPatients
    budget: Count
    best: Count
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1, le=65536)
    loss_before: float
    loss_after: float
    figures: dict[Line, AdaptationFigure] = Field(default_factory=dict)
    created: Time

    @property
    def changed(self) -> bool:
        """Whether the sequence model is another one than before."""
        return self.best > 0

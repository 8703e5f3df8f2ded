"""The one opening of the test patients.

Knows a calibrated bundle and the test role. It chooses nothing: thresholds and probabilities come from the card, which
were fitted without a test label. Each opening is written down before the first label is read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from ich_ray.data.dataset import SUBTYPES, PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.final.card import Card, write_card
from ich_ray.final.figures import CONFIDENCE, Cases, Counts, Estimate, GroupFigures, PointFigures, measure
from ich_ray.metrics import ranking_note
from ich_ray.progress import say
from ich_ray.reliability import ece_null_band
from ich_ray.resampling import PatientDraws
from ich_ray.results import open_search
from ich_ray.storage import Location, Record, write_json, write_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ich_ray.data.dataset import DatasetManifest, SliceSet
    from ich_ray.results import SearchResult

__all__ = ["Counts", "Estimate", "Evaluation", "GroupFigures", "PointFigures", "evaluate"]

RESAMPLES = 2000
# With a hundred positives the 95 % interval of a sensitivity of one half is 0.2 wide, even if they were independent.
_FEW_POSITIVES = 100


class Evaluation(Record):
    """evaluation.json. Intervals draw patients, not slices.

    Attributes:
        opened: how often the test patients have been looked at with this bundle, this time included.
        floors: what knowing only the prevalence would give, beside each figure.
        at_chance: average precision is at most 1.5 times the prevalence.
        ece_null: the expected calibration error that a perfect model of these probabilities shows: median and band.
        patient_level: a patient is positive with any positive slice, and as probable as the most probable slice.
        subtypes: slices of a subtype against all slices without haemorrhage.
        representations: slices by how their scanner wrote them: pixel representation, and flags of their files.
    """

    format: Literal[1] = 1
    slices: int
    patients: int
    positives: int
    prevalence: float
    opened: int
    time: float
    metrics: dict[str, Estimate]
    operating_points: dict[str, PointFigures]
    floors: dict[str, float]
    at_chance: bool
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    notes: tuple[str, ...]
    ece_null: Estimate | None = None
    patient_level: GroupFigures | None = None
    subtypes: dict[str, GroupFigures] = {}  # noqa: RUF012  (a pydantic default, copied for each record)
    representations: dict[str, GroupFigures] = {}  # noqa: RUF012

    @property
    def point(self) -> tuple[str, PointFigures] | None:
        """The operating point that decides: `f2`, or the first one if there is none of that name."""
        name = "f2" if "f2" in self.operating_points else next(iter(self.operating_points), None)
        return (name, self.operating_points[name]) if name else None


def evaluate(search: Location, *, prevalence: float | None = None) -> Evaluation:
    """Measure the calibrated bundle on the test patients; write evaluation.json, predictions.parquet and the card.

    It may be done again, and the count says so: figures that followed a look at the test patients are no test.

    Args:
        search: the search folder, with its calibrated bundle.
        prevalence: of slices with haemorrhage where the model is to be used; PPV and NPV are given for it, too.

    Raises:
        ConfigError: no bundle, a bundle that is not calibrated, no test slice, or an impossible prevalence.
        IntegrityError: the bundle is damaged, or the dataset is another one.
    """
    from ich_ray.final.bundle import load_bundle  # loads PyTorch

    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(f"--prevalence: 0 < prevalence < 1 must hold, got {prevalence:g}; give a share such as 0.02")
    found = open_search(search)
    dataset = PreparedDataset.open(found.record.dataset, fingerprint=found.record.fingerprint)
    bundle = load_bundle(found.files.bundle)
    if not bundle.card.operating_points or not found.files.calibration.exists():
        raise ConfigError(
            f"{found.files.bundle}: a calibrated bundle must be there before its test, got one without operating "
            "points; run `ich-ray calibrate` first"
        )
    if not dataset.manifest.roles["test"].slices:
        raise ConfigError("test role: slices must be there, got none; prepare a dataset with more patients")
    card = bundle.card.model_copy(update={"openings": bundle.card.openings + 1, "test": None})
    write_card(found.files.bundle, card)
    slices = dataset.role("test")
    probabilities = bundle.calibrated(bundle.slice_logits(slices))
    evaluation = _measure(slices, probabilities, card, prevalence, _notes(dataset.manifest, card))
    _write(found, slices, probabilities, evaluation)
    write_card(found.files.bundle, card.model_copy(update={"test": _summary(evaluation)}))
    _tell(evaluation, dataset.manifest.leak)
    return evaluation


def _measure(
    slices: SliceSet, probabilities: NDArray[np.float64], card: Card, stated: float | None, notes: tuple[str, ...]
) -> Evaluation:
    labels, points = slices.labels.astype(np.float64), card.operating_points
    draws = PatientDraws(slices.patients, resamples=RESAMPLES)
    every = np.arange(len(slices))
    whole = measure(Cases(labels, probabilities, every, calibrated=True), points, draws, stated)
    null = ece_null_band(probabilities)

    def groups(found: Iterator[tuple[str, NDArray[np.int64]]], calibrated: bool) -> dict[str, GroupFigures]:
        return {
            name: measure(Cases(labels[rows], probabilities[rows], rows, calibrated), points, draws, stated)
            for name, rows in found
        }

    return Evaluation(
        slices=len(slices),
        patients=whole.patients,
        positives=whole.positives,
        prevalence=whole.prevalence,
        opened=card.openings,
        time=time.time(),
        metrics=whole.metrics,
        operating_points=whole.operating_points,
        floors=whole.floors,
        at_chance=whole.at_chance,
        resamples=RESAMPLES,
        ece_null=Estimate(value=null.value, low=null.low, high=null.high),
        patient_level=measure(_patients(labels, probabilities, draws), points, draws),
        subtypes=groups(_subtypes(slices), calibrated=False),
        representations=groups(_representations(slices), calibrated=True),
        notes=(*notes, *_found(whole, null.high)),
    )


def _patients(labels: NDArray[np.float64], probabilities: NDArray[np.float64], draws: PatientDraws) -> Cases:
    """One case for each patient: any positive slice, the most probable one."""
    truth, most = np.zeros(draws.patients), np.zeros(draws.patients)
    np.maximum.at(truth, draws.of_slice, labels)
    np.maximum.at(most, draws.of_slice, probabilities)
    _, rows = np.unique(draws.of_slice, return_index=True)
    return Cases(truth, most, rows, calibrated=False)


def _subtypes(slices: SliceSet) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """For each subtype that is labelled, its slices and those without any haemorrhage."""
    for name in SUBTYPES:
        held = slices.dataset.label(name)[slices.rows] == 1
        if held.any():
            yield name, np.flatnonzero(held | (slices.labels == 0))


def _representations(slices: SliceSet) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The test slices of each pixel representation, then those with each flag, if they are not all."""
    columns = {
        name: slices.dataset.column(name)[slices.rows]
        for name in ("representation", "flags")
        if name in slices.dataset.slices.column_names
    }
    for column in columns.values():
        held = [{part for part in str(text or "").split(",") if part} for text in column]
        for name in sorted(set().union(*held)):
            rows = np.flatnonzero([name in parts for parts in held])
            if len(rows) < len(slices):
                yield name, rows


def _found(whole: GroupFigures, null_high: float) -> list[str]:
    notes = ["At chance: average precision is at most 1.5 times the prevalence."] if whole.at_chance else []
    error = whole.metrics["ece"].value
    if error is not None and error > null_high:
        notes.append(
            f"The expected calibration error of {error:.3f} is more than a perfect model would show by chance "
            f"(up to {null_high:.3f}): the probabilities do not quite mean what they say."
        )
    return notes


def _notes(manifest: DatasetManifest, card: Card) -> tuple[str, ...]:
    roles = manifest.roles
    ranked = ranking_note(sum(counts.positives for counts in roles.values()), roles["validation"].positives)
    notes = [manifest.leak] if manifest.leak else []
    notes += [ranked] if ranked else []
    if roles["test"].positives < _FEW_POSITIVES:
        notes.append(f"{roles['test'].positives} test positives: read the intervals, not the figures.")
    if card.openings > 1:
        notes.append(
            f"The test patients were opened {card.openings} times with this bundle: whatever was changed in between "
            "was chosen with knowledge of them."
        )
    return tuple(notes)


def _write(found: SearchResult, slices: SliceSet, probabilities: NDArray[np.float64], evaluation: Evaluation) -> None:
    table = pa.table(
        {
            "slice_id": slices.dataset.column("slice_id")[slices.rows],
            "patient": slices.patients,
            "label": slices.labels.astype(np.int8),
            "probability": probabilities,
        }
    )
    write_table(found.files.predictions, table)
    write_json(found.files.evaluation, evaluation.model_dump(mode="json"))


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.model_dump(mode="json", exclude={"format", "opened", "time", "resamples"})


def _tell(evaluation: Evaluation, leak: str) -> None:
    if leak:
        say(leak)
    point, floor = evaluation.operating_points["f2"], evaluation.floors["average_precision"]
    ap, sensitivity, ppv = (
        "undefined" if estimate.value is None else f"{estimate.value:.3f}"
        for estimate in (evaluation.metrics["average_precision"], point.sensitivity, point.ppv)
    )
    say(
        f"  test: {evaluation.slices:,} slices of {evaluation.patients:,} patients, average precision {ap} (floor "
        f"{floor:.3f}), sensitivity {sensitivity}, PPV {ppv} at threshold {point.threshold:.3f}"
    )

"""The one opening of the test patients.

Knows a calibrated bundle and the test role. It chooses nothing: thresholds and probabilities come from the card, which
were fitted without a test label. Each opening is written down before the first label is read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from ich_ray.assess.calibration import warn_if_outdated
from ich_ray.assess.interval_estimates import (
    CONFIDENCE,
    Cases,
    Counts,
    Estimate,
    Figures,
    GroupFigures,
    PointFigures,
    measure,
)
from ich_ray.assess.label_figures import measure_labels
from ich_ray.assess.point_rules import effective_positives
from ich_ray.bundle.card_file import read_card, write_card
from ich_ray.bundle.training_data import site_note
from ich_ray.bundle.training_patients import check_site
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import ranking_roles, ranking_slices
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.results import open_search
from ich_ray.statistics.aggregation import most_probable
from ich_ray.statistics.bootstrap import FEWEST_PATIENTS, PatientDraws
from ich_ray.statistics.calibration_error import ece_null_band
from ich_ray.statistics.metrics import chance_bound, ranking_note
from ich_ray.storage import (
    Count,
    Fingerprint,
    Line,
    Location,
    Share,
    Time,
    check_file,
    check_folder,
    locate,
    write_json,
    write_table,
)
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.data.dataset import SliceSet

__all__ = [
    "Counts",
    "Estimate",
    "Evaluation",
    "GroupFigures",
    "PointFigures",
    "dataset_ranking_note",
    "evaluate",
    "evaluate_site",
]

RESAMPLES = 2000
# With a hundred positives the 95 % interval of a sensitivity of one half is 0.2 wide, even if they were independent.
_FEW_POSITIVES = 100


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

    @property
    def point(self) -> tuple[str, PointFigures] | None:
        """The operating point that decides: `f2`, or the first one if there is none of that name."""
        name = "f2" if "f2" in self.operating_points else next(iter(self.operating_points), None)
        return (name, self.operating_points[name]) if name else None


def evaluate(search: Location, *, prevalence: float | None = None) -> Evaluation:
    """Measure the calibrated bundle on the test patients; write figures, predictions and the card.

    Writes evaluation.json, predictions.parquet and card.json. It may be done again, and the count says so: figures that
    followed a look at the test patients are no test.

    Args:
        search: the search folder, with its calibrated bundle.
        prevalence: of slices with any haemorrhage where the model is to be used; PPV and NPV are given for it, too,
            except of subtypes and of patients, whose prevalence is another one.

    Raises:
        ConfigError: no bundle, a bundle that is not calibrated, no test slice, or an impossible prevalence.
        IntegrityError: the bundle is damaged, or the dataset is another one.
        IchRayError: a logit or a probability is not finite.
    """
    found = open_search(search)
    dataset = PreparedDataset.of_search(found)
    warn_if_outdated(found, read_card(found.files.bundle))
    return _opened(found.files.bundle, dataset, (found.files.evaluation, found.files.predictions), prevalence)


def evaluate_site(bundle: Location, dataset: Location, out: Location, *, prevalence: float | None = None) -> Evaluation:
    """Measure a calibrated bundle on the test patients of another site.

    Writes evaluation.json and predictions.parquet below `out`, and the figures to the bundle's card, beside its own;
    openings are counted for each dataset.

    Args:
        bundle: for instance one that `recalibrate` made with the other patients of the site.
        dataset: of the site, prepared with the windows and the size of the bundle.
        out: folder of the two files.
        prevalence: see `evaluate`.

    Raises:
        ConfigError: what `evaluate` refuses, other windows or size, patients of the dataset that made the bundle, or
            `out` cannot be written.
        IntegrityError: the bundle or the dataset is damaged.
    """
    target = locate(out)
    check_folder(target, "--out")  # the opening is counted, even if its figures cannot be written
    site, folder = PreparedDataset.open(dataset), locate(bundle)
    card = read_card(folder)
    check_site(folder, card, site)
    if note := site_note(card.training_data, site, ("test",)):
        say(f"  slices of this site are unlike those that trained the bundle: {note}")
    return _opened(folder, site, (target / "evaluation.json", target / "predictions.parquet"), prevalence)


def _opened(folder: UPath, dataset: PreparedDataset, out: tuple[UPath, UPath], prevalence: float | None) -> Evaluation:
    """Open the test patients of `dataset` for the bundle in `folder`."""
    from ich_ray.bundle.bundle import load_bundle  # loads PyTorch

    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(f"--prevalence: 0 < prevalence < 1 must hold, got {prevalence:g}; give a share such as 0.02")
    bundle = load_bundle(folder)
    if not bundle.card.operating_points:
        raise ConfigError(
            f"{folder}: a calibrated bundle must be there before its test, got one without operating points; run "
            "`ich-ray calibrate` first"
        )
    if not dataset.manifest.roles["test"].slices:
        raise ConfigError("test role: slices must be there, got none; prepare a dataset with more patients")
    for file in out:
        check_file(file, "evaluate")
    dataset.verify("test")
    bundle.check_outputs()  # a network that gives no number costs no opening
    card, opened = _counted(bundle.card, dataset.manifest.fingerprint)
    write_card(folder, card)
    slices = dataset.role("test")
    probabilities = bundle.slice_label_probabilities(slices)
    evaluation = _measure(slices, probabilities, card, prevalence, opened)
    _write(out, slices, probabilities, evaluation)
    write_card(folder, _with_figures(card, evaluation))
    _log_summary(evaluation, dataset.manifest.leak)
    return evaluation


def _counted(card: Card, fingerprint: str) -> tuple[Card, int]:
    """The card with one more opening of the test patients of a dataset, without their figures; how many these are."""
    if fingerprint == card.dataset.fingerprint:
        return card.model_copy(update={"openings": card.openings + 1, "test": None}), card.openings + 1
    opened = card.site_openings.get(fingerprint, 0) + 1
    others = {name: figures for name, figures in card.site_tests.items() if name != fingerprint}
    counted = {"site_openings": {**card.site_openings, fingerprint: opened}, "site_tests": others}
    return card.model_copy(update=counted), opened


def _with_figures(card: Card, evaluation: Evaluation) -> Card:
    figures = evaluation.model_dump(mode="json", exclude={"format", "opened", "time", "resamples"})
    if evaluation.dataset == card.dataset.fingerprint:
        return card.model_copy(update={"test": figures})
    return card.model_copy(update={"site_tests": {**card.site_tests, evaluation.dataset: figures}})


def _measure(
    slices: SliceSet, by_label: NDArray[np.float64], card: Card, stated: float | None, opened: int
) -> Evaluation:
    labels, points, probabilities = slices.labels.astype(np.float64), card.operating_points, by_label[:, -1]
    draws = PatientDraws(slices.patients, resamples=RESAMPLES)
    every = np.arange(len(slices))
    whole = measure(Cases(labels, probabilities, every, calibrated=True), points, draws, stated)
    null = ece_null_band(probabilities)

    def groups(
        found: Iterator[tuple[str, NDArray[np.int64]]], calibrated: bool, stated: float | None = None
    ) -> dict[str, GroupFigures]:
        return {
            name: measure(Cases(labels[rows], probabilities[rows], rows, calibrated), points, draws, stated)
            for name, rows in found
        }

    of_labels = measure_labels(slices, by_label, card.subtypes, draws) if by_label.shape[1] > 1 else None
    return Evaluation(
        **whole.figures(),
        slices=len(slices),
        dataset=slices.dataset.manifest.fingerprint,
        opened=opened,
        time=time.time(),
        resamples=RESAMPLES,
        ece_null=Estimate(value=null.value, low=null.low, high=null.high),
        patient_level=measure(_patients(labels, probabilities, draws), points, draws),
        subtypes=groups(_subtypes(slices), calibrated=False),
        representations=groups(_representations(slices), calibrated=True, stated=stated),
        labels=dict(of_labels.labels) if of_labels else {},
        label_metrics=of_labels.metrics if of_labels else {},
        notes=(
            *_notes(slices.dataset, card, opened),
            *_few(slices),
            *_found(whole, null.high),
            *(of_labels.notes if of_labels else ()),
        ),
    )


def _patients(labels: NDArray[np.float64], probabilities: NDArray[np.float64], draws: PatientDraws) -> Cases:
    """One case for each patient: any positive slice, the most probable one."""
    truth = np.zeros(draws.patients)
    np.maximum.at(truth, draws.of_slice, labels)
    rows = most_probable(draws.of_slice, probabilities)
    return Cases(truth, probabilities[rows], rows, calibrated=False)


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


def _few(slices: SliceSet) -> list[str]:
    """What to say when too few patients have a slice of either kind for them to be drawn again."""
    held = {what: len(set(slices.patients[slices.labels == label])) for label, what in ((1, "with"), (0, "without"))}
    return [
        f"{patients} test {'patient has' if patients == 1 else 'patients have'} a slice {what} haemorrhage, and fewer "
        f"than {FEWEST_PATIENTS} cannot say what the next one would change: shares have exact intervals, which count "
        "the slices of a patient as one, and other figures have none."
        for what, patients in held.items()
        if patients < FEWEST_PATIENTS
    ]


def _found(whole: GroupFigures, null_high: float) -> list[str]:
    bound = f"{chance_bound(whole.prevalence):.3f} at a prevalence of {whole.prevalence:.3f}"
    notes = [f"At chance: average precision is not above {bound}."] if whole.at_chance else []
    error = whole.metrics["ece"].value
    if error is not None and error > null_high:
        notes.append(
            f"The expected calibration error of {error:.3f} is more than a perfect model would show by chance "
            f"(up to {null_high:.3f}): the probabilities do not quite mean what they say."
        )
    return notes


def dataset_ranking_note(dataset: PreparedDataset, pooled: bool = False) -> str | None:
    """`ranking_note` of a dataset; `pooled` where folds of train and validation patients ranked."""
    roles, counts = ranking_roles(pooled), dataset.manifest.roles
    ranking = ranking_slices(dataset, pooled)
    return ranking_note(
        sum(one.positives for one in counts.values()),
        sum(counts[role].positives for role in roles),
        effective_positives(ranking.labels, ranking.patients),
        where=" and ".join(roles),
    )


def _notes(dataset: PreparedDataset, card: Card, opened: int) -> tuple[str, ...]:
    manifest, roles = dataset.manifest, dataset.manifest.roles
    notes = [manifest.leak] if manifest.leak else []
    if manifest.fingerprint == card.dataset.fingerprint:  # it ranked the trials
        ranked = dataset_ranking_note(dataset, pooled=card.search.folds > 0)
        notes += [ranked] if ranked else []
    if roles["test"].positives < _FEW_POSITIVES:
        notes.append(f"{roles['test'].positives} test positives: read the intervals, not the figures.")
    if opened > 1:
        notes.append(
            f"The test patients were opened {opened} times with this bundle: whatever was changed in between "
            "was chosen with knowledge of them."
        )
    return tuple(notes)


def _write(
    out: tuple[UPath, UPath], slices: SliceSet, probabilities: NDArray[np.float64], evaluation: Evaluation
) -> None:
    table = pa.table(
        {
            "slice_id": slices.dataset.column("slice_id")[slices.rows],
            "patient": slices.patients,
            "label": slices.labels.astype(np.int8),
            "probability": probabilities[:, -1],
            **{f"probability_{name}": column for name, column in zip(SUBTYPES, probabilities.T[:-1], strict=False)},
        }
    )
    evaluated, predicted = out
    write_table(predicted, table, private=slices.dataset.manifest.clear)
    write_json(evaluated, evaluation.model_dump(mode="json"))


def _log_summary(evaluation: Evaluation, leak: str) -> None:
    if leak:
        say(leak)
    floor, ap = evaluation.floors["average_precision"], _read(evaluation.metrics["average_precision"])
    decided = ""
    if evaluation.point is not None:
        _, point = evaluation.point
        ratios = f"sensitivity {_read(point.sensitivity)}, PPV {_read(point.ppv)}"
        decided = f", {ratios} at threshold {point.threshold:.3f}"
    say(
        f"  test: {evaluation.slices:,} slices of {evaluation.patients:,} patients, average precision {ap} (floor "
        f"{floor:.3f}){decided}"
    )


def _read(estimate: Estimate) -> str:
    return "undefined" if estimate.value is None else f"{estimate.value:.3f}"

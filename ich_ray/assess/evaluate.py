"""The one opening of the test patients.

Knows a calibrated bundle and the test role. It chooses nothing: thresholds and probabilities come from the card, which
were fitted without a test label. Each opening is written down before the first label is read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from ich_ray.assess.calibration import warn_if_outdated
from ich_ray.assess.evaluation import RESAMPLES, Evaluation
from ich_ray.assess.evaluation_notes import notes_of_data, notes_of_figures, notes_of_patients
from ich_ray.assess.interval_estimates import Cases, Estimate, measure
from ich_ray.assess.label_figures import measure_labels
from ich_ray.assess.own_scaling import probabilities_alone
from ich_ray.assess.sequence_change import format_changed, measure_change
from ich_ray.assess.study_figures import ScoredStudies, StudyFigures, measure_studies, score_studies
from ich_ray.bundle.card_file import read_card, write_card
from ich_ray.bundle.training_data import site_note
from ich_ray.bundle.training_patients import check_site
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.results import open_search
from ich_ray.statistics.aggregation import most_probable
from ich_ray.statistics.bootstrap import PatientDraws
from ich_ray.statistics.calibration_error import ece_null_band
from ich_ray.storage import (
    Location,
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

    from ich_ray.assess.interval_estimates import GroupFigures
    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.card import Card
    from ich_ray.data.dataset import SliceSet

__all__ = ["evaluate", "evaluate_site"]


@dataclass(frozen=True)
class _Stated:
    """Prevalences to give PPV and NPV for: of slices, and of studies."""

    slices: float | None
    studies: float | None

    def check(self) -> None:
        """Refuse what is no share.

        Raises:
            ConfigError: it is not.
        """
        for flag, value in (("--prevalence", self.slices), ("--study-prevalence", self.studies)):
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"{flag}: 0 < prevalence < 1 must hold, got {value:g}; give a share such as 0.02")


def evaluate(search: Location, *, prevalence: float | None = None, study_prevalence: float | None = None) -> Evaluation:
    """Measure the calibrated bundle on the test patients; write figures, predictions and the card.

    Writes evaluation.json, predictions.parquet, studies.parquet and card.json. It may be done again, and the count says
    so: figures that followed a look at the test patients are no test.

    Args:
        search: the search folder, with its calibrated bundle.
        prevalence: of slices with any haemorrhage where the model is to be used; PPV and NPV are given for it, too,
            except of subtypes, patients and studies, whose prevalence is another one.
        study_prevalence: the same of studies.

    Raises:
        ConfigError: no bundle, a bundle that is not calibrated, no test slice, or an impossible prevalence.
        IntegrityError: the bundle is damaged, or the dataset is another one.
        IchRayError: a logit or a probability is not finite.
    """
    found = open_search(search)
    dataset = PreparedDataset.of_search(found)
    warn_if_outdated(found, read_card(found.files.bundle))
    files = _Files(found.files.evaluation, found.files.predictions, found.files.studies)
    return _opened(found.files.bundle, dataset, files, _Stated(prevalence, study_prevalence))


class _Files(NamedTuple):
    evaluation: UPath
    predictions: UPath
    studies: UPath


def evaluate_site(
    bundle: Location,
    dataset: Location,
    out: Location,
    *,
    prevalence: float | None = None,
    study_prevalence: float | None = None,
) -> Evaluation:
    """Measure a calibrated bundle on the test patients of another site.

    Writes evaluation.json, predictions.parquet and studies.parquet below `out`, and the figures to the bundle's card,
    beside its own; openings are counted for each dataset.

    Args:
        bundle: for instance one that `recalibrate` made with the other patients of the site.
        dataset: of the site, prepared with the windows and the size of the bundle.
        out: folder of the files.
        prevalence: see `evaluate`.
        study_prevalence: see `evaluate`.

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
    files = _Files(*(target / name for name in ("evaluation.json", "predictions.parquet", "studies.parquet")))
    return _opened(folder, site, files, _Stated(prevalence, study_prevalence))


def _opened(folder: UPath, dataset: PreparedDataset, out: _Files, stated: _Stated) -> Evaluation:
    """Open the test patients of `dataset` for the bundle in `folder`."""
    from ich_ray.bundle.bundle import load_bundle  # loads PyTorch

    stated.check()
    bundle = load_bundle(folder)
    if not bundle.card.operating_points:
        raise ConfigError(
            f"{folder}: a calibrated bundle must be there before its test, got one without operating points; run "
            "`ich-ray calibrate` first"
        )
    _check_labels(folder, bundle.card, dataset, stated)
    if not dataset.manifest.roles["test"].slices:
        raise ConfigError("test role: slices must be there, got none; prepare a dataset with more patients")
    for file in out:
        check_file(file, "evaluate")
    dataset.verify("test")
    bundle.check_outputs()  # a network that gives no number costs no opening
    card, opened = _counted(bundle.card, dataset.manifest.fingerprint)
    write_card(folder, card)
    slices = dataset.role("test")
    logits, own = bundle.slice_label_logits(slices), None
    probabilities = bundle.slice_label_probabilities(slices, logits)
    studies = score_studies(bundle, slices, logits)
    draws = PatientDraws(slices.patients, resamples=RESAMPLES)
    if dataset.manifest.level == "slice":
        evaluation = _measure(slices, probabilities, card, stated.slices, opened, draws)
    else:
        evaluation = _unlabeled(slices, card, opened)
    evaluation = _with_studies(evaluation, studies, bundle, draws, stated.studies)
    if bundle.sequence is not None:
        own = bundle.network_label_logits(slices)
        changed = measure_change(bundle, slices, logits, own, studies, draws)
        evaluation = evaluation.model_copy(update={"sequence_change": changed})
    _write(out, slices, probabilities, evaluation, None if own is None else probabilities_alone(card, own[:, -1]))
    if isinstance(studies, ScoredStudies):
        write_table(out.studies, studies.table(), private=dataset.manifest.clear)
    write_card(folder, _with_figures(card, evaluation))
    _log_summary(evaluation, dataset.manifest.leak)
    return evaluation


def _check_labels(folder: UPath, card: Card, dataset: PreparedDataset, stated: _Stated) -> None:
    """Refuse labels that this bundle cannot be measured by, before an opening is counted."""
    level = dataset.manifest.level
    if level == "slice":
        return
    if stated.slices is not None:
        raise ConfigError(
            f"--prevalence: slices with labels must be there, got labels of a {level} each; give --study-prevalence"
        )
    if card.studies is None:
        raise ConfigError(
            f"{folder}: probabilities of studies must be there to be measured by labels of a {level} each, got a "
            "bundle calibrated without; run `ich-ray calibrate` on its search, or `ich-ray recalibrate`"
        )


def _unlabeled(slices: SliceSet, card: Card, opened: int) -> Evaluation:
    """What there is to say of slices without labels."""
    manifest = slices.dataset.manifest
    return Evaluation(
        slices=len(slices),
        patients=len(set(slices.patients)),
        dataset=manifest.fingerprint,
        opened=opened,
        time=time.time(),
        resamples=RESAMPLES,
        level=manifest.level,
        notes=notes_of_data(slices.dataset, card, opened),
    )


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


def _with_studies(
    evaluation: Evaluation, studies: ScoredStudies | str, bundle: Bundle, draws: PatientDraws, stated: float | None
) -> Evaluation:
    """The evaluation with figures of studies, or with a note why there are none."""
    if isinstance(studies, str):
        return evaluation.model_copy(update={"notes": (*evaluation.notes, f"{studies[:1].upper()}{studies[1:]}.")})
    return evaluation.model_copy(update={"studies": measure_studies(studies, bundle, draws, stated)})


def _measure(
    slices: SliceSet,
    by_label: NDArray[np.float64],
    card: Card,
    stated: float | None,
    opened: int,
    draws: PatientDraws,
) -> Evaluation:
    labels, points, probabilities = slices.labels.astype(np.float64), card.operating_points, by_label[:, -1]
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
            *notes_of_data(slices.dataset, card, opened),
            *notes_of_patients(slices),
            *notes_of_figures(whole, null.high),
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


def _write(
    out: _Files,
    slices: SliceSet,
    probabilities: NDArray[np.float64],
    evaluation: Evaluation,
    without_sequence: NDArray[np.float64] | None,
) -> None:
    table = pa.table(
        {
            "slice_id": slices.dataset.column("slice_id")[slices.rows],
            "patient": slices.patients,
            "label": slices.labels.astype(np.int8) if evaluation.level == "slice" else pa.nulls(len(slices), pa.int8()),
            "probability": probabilities[:, -1],
            **{f"probability_{name}": column for name, column in zip(SUBTYPES, probabilities.T[:-1], strict=False)},
            **({} if without_sequence is None else {"probability_without_sequence": without_sequence}),
        }
    )
    write_table(out.predictions, table, private=slices.dataset.manifest.clear)
    write_json(out.evaluation, evaluation.model_dump(mode="json"))


def _log_summary(evaluation: Evaluation, leak: str) -> None:
    if leak:
        say(leak)
    if evaluation.level == "slice":
        _say_slices(evaluation)
    else:
        say(f"  test: {evaluation.slices:,} slices of {evaluation.patients:,} patients, without labels of their own")
    if evaluation.studies is not None:
        _say_studies(evaluation.studies)
    for name, figure in evaluation.sequence_change.items():
        say(f"  sequence model: {name} {format_changed(figure)}")


def _say_slices(evaluation: Evaluation) -> None:
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


def _say_studies(studies: StudyFigures) -> None:
    decided = ""
    if studies.point is not None:
        _, point = studies.point
        ratios = f"sensitivity {_read(point.sensitivity)}, specificity {_read(point.specificity)}"
        decided = f", {ratios} at threshold {point.threshold:.3f}"
    precision = _read(studies.metrics["average_precision"])
    floor = studies.floors["average_precision"]
    say(f"  by study: {studies.cases:,} studies, average precision {precision} (floor {floor:.3f}){decided}")
    for note in studies.notes:
        say(f"  {note}")


def _read(estimate: Estimate) -> str:
    return "undefined" if estimate.value is None else f"{estimate.value:.3f}"

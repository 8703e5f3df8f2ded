"""Probabilities and thresholds, fitted on the calibration patients and on nobody else.

Knows logits and labels of that role, and how many training slices of each class there were. It reads no image of any
other role.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from ich_ray.assess.ensemble_gain import format_ensemble_gain, measure_ensemble
from ich_ray.assess.operating_points import OperatingPointSpec, operating_points
from ich_ray.assess.own_scaling import trained_shift, with_own_scaling
from ich_ray.assess.study_fitting import calibrate_studies
from ich_ray.assess.subtype_calibration import fit_subtypes, subtype_shifts
from ich_ray.assess.tta_gain import format_gain, measure_tta
from ich_ray.bundle.card import CalibrationNote, EnsembleGain, SubtypeCalibration, TtaGain
from ich_ray.bundle.card_file import write_card
from ich_ray.bundle.logit_scaling import METHODS, LogitScaling, Method, bound_note, fit_scaling
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.bundle.study_calibration import StudyCalibration
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.progress import say
from ich_ray.refit.confirmation import chosen_trial
from ich_ray.results import open_search
from ich_ray.statistics.metrics import log_loss
from ich_ray.storage import Count, Fingerprint, Line, Location, Record, Share, write_json
from ich_ray.vocabulary import Subtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.card import Card
    from ich_ray.data.dataset import SliceSet
    from ich_ray.results import SearchResult

__all__ = [
    "Calibration",
    "calibrate",
    "check_method",
    "fit_calibration",
    "warn_if_outdated",
    "with_calibration",
    "with_gains",
    "with_studies",
    "with_subtypes",
]


class Calibration(Record):
    """calibration.json.

    Attributes:
        dataset: fingerprint of the dataset whose patients it was fitted on.
        prior_shift: log(w0 / w1) of the training class weights, added to the logit before the temperature divides it.
        bias: what Platt's method adds after that; 0 for a temperature alone.
        log_loss_before: on these slices, of what there was before: after a training the plain sigmoid of its logits, in
            which the class weights still are (`calibrate`, each time); at another site the calibration that the bundle
            came with (`recalibrate`). `log_loss_after`: of this one, on the same slices.
        operating_points: thresholds on the calibrated probability, with what they gave on these same slices.
        notes: which usual operating points could not be reached and why, and where a fit has reached its limits.
        subtypes: the same of each subtype, where the network answers them.
        tta_gain: of these slices, what test-time augmentation changed; None without.
        ensemble_gain: what an ensemble changed against its first network; None without, or with too few patients.
        studies: probabilities and operating points of the studies of these slices; None where they name none.
    """

    format: Literal[1] = 1
    dataset: Fingerprint | Literal[""] = ""
    slices: Count
    patients: Count
    positives: Count
    prevalence: Share
    method: Method = "temperature"
    temperature: float = Field(gt=0)
    prior_shift: float
    bias: float = 0.0
    log_loss_before: float
    log_loss_after: float
    operating_points: dict[Line, OperatingPoint]
    notes: tuple[Line, ...] = ()
    subtypes: dict[Subtype, SubtypeCalibration] = Field(default_factory=dict)
    tta_gain: TtaGain | None = None
    ensemble_gain: EnsembleGain | None = None
    studies: StudyCalibration | None = None


def calibrate(
    search: Location,
    *,
    method: Method = "temperature",
    beta: float | None = None,
    sensitivity: float | None = None,
    conservative: bool = False,
    points: Sequence[str] = (),
) -> Calibration:
    """Fit probabilities and operating points; write calibration.json and the bundle's card.

    Test figures that the card may hold belong to the calibration before and are taken out; the count of openings stays.

    Args:
        search: the search folder, with its bundle.
        method: `temperature`, or `platt`, which also moves the logits: better where classes were sampled differently.
        beta: also find the threshold with the highest F-beta of this beta.
        sensitivity: also find one of at least this sensitivity.
        conservative: targets of sensitivity hold for its lower 95 % bound; of subtypes, too, which else have the usual
            operating points alone.
        points: also find these, each by a registered rule: `youden`, or `sensitivity=0.93` where it takes a number.

    Raises:
        ConfigError: no bundle, or calibration patients without a positive or a negative slice.
        SensitivityError: no threshold reaches `sensitivity`.
        IntegrityError: the bundle is damaged, or the dataset is another one.
        IchRayError: a logit is not finite.
    """
    from ich_ray.bundle.bundle import load_bundle  # loads PyTorch

    wanted = OperatingPointSpec(beta, sensitivity, conservative, tuple(points))
    check_method(method)
    found = open_search(search)
    dataset = PreparedDataset.of_search(found)
    bundle = load_bundle(found.files.bundle)
    warn_if_outdated(found, bundle.card)
    dataset.verify("calibration")
    slices = dataset.role("calibration")
    # The blend with a sequence model is fitted on these patients, whatever the classes weighed in training.
    blended = bundle.card.sequence is not None
    shift = 0.0 if blended else trained_shift(bundle.card)
    logits = bundle.slice_label_logits(slices)
    calibration = fit_calibration(slices, logits[:, -1], LogitScaling(), method, shift, wanted)
    if bundle.card.parameters.labels == "all":
        shifts = subtype_shifts(dataset, bundle.card)
        calibration = with_subtypes(calibration, slices, logits, shifts, conservative=conservative)
    calibration = with_studies(calibration, bundle, slices, logits, wanted)
    calibration = with_gains(calibration, bundle, slices, logits[:, -1])
    write_json(found.files.calibration, calibration.model_dump(mode="json"))
    card = with_own_scaling(bundle.card.model_copy(update={"calibrations": ()}), bundle, slices, method)
    write_card(found.files.bundle, with_calibration(card, calibration))
    return calibration


def warn_if_outdated(found: SearchResult, card: Card) -> None:
    """Say it where the bundle is of another trial than the one that is chosen now."""
    if (chosen := chosen_trial(found).number) != card.search.trial:
        say(f"  the bundle is of trial {card.search.trial}, but trial {chosen} is chosen now: retrain to use it")


def check_method(method: str) -> None:
    """Refuse a method that does not exist.

    Raises:
        ConfigError: it does not.
    """
    if method not in METHODS:
        raise ConfigError(f"--method: one of {', '.join(METHODS)} must be given, got {method!r}")


def fit_calibration(
    slices: SliceSet,
    logits: NDArray[np.float32],
    before: LogitScaling,
    method: Method,
    shift: float,
    wanted: OperatingPointSpec,
) -> Calibration:
    """Fit `method` and the operating points to raw logits `[n]` of `slices`.

    Args:
        slices: of patients who trained nothing.
        logits: of these slices, in their order; finite, as `Bundle.slice_logits` gives them.
        before: the scaling to compare with; the default one is the plain sigmoid.
        method: how to fit.
        shift: of the training class weights.
        wanted: operating points.

    Raises:
        ConfigError: there is no slice with haemorrhage, or none without.
        SensitivityError: see `OperatingPointSpec`.
        IchRayError: `before` gives a slice no probability.
    """
    labels, positives = slices.labels, int(slices.labels.sum())
    if not 0 < positives < len(slices):
        raise ConfigError(
            f"calibration role: slices with and without haemorrhage must be there, got {positives} positive of "
            f"{len(slices)}; prepare a dataset with more patients"
        )
    earlier = before(logits)
    if not (finite := np.isfinite(earlier)).all():
        raise IchRayError(
            f"calibration: the one before must give every slice a probability, got {int((~finite).sum())} of "
            f"{len(slices)} without (temperature {before.temperature:g}); restore card.json or retrain"
        )
    scaling = fit_scaling(method, labels, logits, shift)
    probabilities, at_bound = scaling(logits), bound_note(scaling)
    points, notes = operating_points(labels, probabilities, slices.patients, wanted)
    calibration = Calibration(
        dataset=slices.dataset.manifest.fingerprint,
        slices=len(slices),
        patients=len(set(slices.patients)),
        positives=positives,
        prevalence=slices.prevalence,
        method=method,
        temperature=scaling.temperature,
        prior_shift=scaling.prior_shift,
        bias=scaling.bias,
        log_loss_before=log_loss(labels, earlier),
        log_loss_after=log_loss(labels, probabilities),
        operating_points=points,
        notes=(*([at_bound] if at_bound else ()), *notes),
    )
    _log_summary(calibration)
    return calibration


def with_subtypes(
    calibration: Calibration,
    slices: SliceSet,
    logits: NDArray[np.float32],
    shifts: Mapping[Subtype, float],
    before: Mapping[Subtype, LogitScaling] | None = None,
    *,
    conservative: bool = False,
) -> Calibration:
    """The calibration with those of the subtypes, from logits `[n, labels]`; see `fit_subtypes`."""
    of_any = LogitScaling(calibration.prior_shift, calibration.temperature, calibration.bias)
    found = fit_subtypes(slices, logits[:, :-1], of_any, calibration.method, shifts, before, conservative=conservative)
    for note in (note for subtype in found.values() for note in subtype.notes):
        say(f"  {note}")
    return calibration.model_copy(update={"subtypes": found})


def with_studies(
    calibration: Calibration,
    bundle: Bundle,
    slices: SliceSet,
    logits: NDArray[np.float32],
    wanted: OperatingPointSpec,
    before: StudyCalibration | None = None,
) -> Calibration:
    """The calibration with that of studies, from logits of slices `[n, labels]`; see `fit_studies`.

    What slices reach and studies do not is a note: they are fewer.
    """
    of_slices: dict[str, LogitScaling] = {name: one.scaling for name, one in calibration.subtypes.items()}
    of_slices["any"] = LogitScaling(calibration.prior_shift, calibration.temperature, calibration.bias)
    found = calibrate_studies(bundle, slices, logits, of_slices, before, replace(wanted, strict=False))
    return calibration.model_copy(update={"studies": found})


def with_gains(calibration: Calibration, bundle: Bundle, slices: SliceSet, logits: NDArray[np.float32]) -> Calibration:
    """The calibration, with what test-time augmentation and an ensemble change on its slices.

    `logits` are those of `any` that the bundle gave, `[n]`.
    """
    return _with_ensemble_gain(_with_tta_gain(calibration, bundle, slices, logits), bundle, slices, logits)


def _with_ensemble_gain(
    calibration: Calibration, bundle: Bundle, slices: SliceSet, logits: NDArray[np.float32]
) -> Calibration:
    if not bundle.card.members:
        return calibration
    gain = measure_ensemble(bundle, slices, logits, calibration.method, calibration.prior_shift)
    networks = f"ensemble of {len(bundle.networks)} networks against its first"
    if gain is None:
        say(f"  {networks}: too few calibration patients to tell")
        return calibration
    say(f"  {networks}, cross-fitted by patient in {gain.folds} folds: {format_ensemble_gain(gain)}")
    return calibration.model_copy(update={"ensemble_gain": gain})


def _with_tta_gain(
    calibration: Calibration, bundle: Bundle, slices: SliceSet, logits: NDArray[np.float32]
) -> Calibration:
    if not bundle.card.tta:
        return calibration
    plain = bundle.without_tta().slice_logits(slices)
    gain = measure_tta(slices, plain, logits, calibration.method, calibration.prior_shift)
    say(f"  test-time augmentation ({', '.join(bundle.card.tta)}) on these slices: {format_gain(gain)}")
    return calibration.model_copy(update={"tta_gain": gain})


def with_calibration(card: Card, calibration: Calibration) -> Card:
    """The card with a calibration in force and without the test figures of the one before."""
    values = calibration.model_dump(include={*CalibrationNote.model_fields})
    note = CalibrationNote(created=time.time(), **values)
    names = ("temperature", "prior_shift", "bias", "operating_points", "subtypes", "studies")
    fitted = {name: getattr(calibration, name) for name in names}
    calibrations = (*card.calibrations, note)
    return card.model_copy(update={**fitted, "calibrations": calibrations, "test": None, "site_tests": {}})


def _log_summary(calibration: Calibration) -> None:
    moved = f", bias {calibration.bias:+.2f}" if calibration.method == "platt" else ""
    thresholds = ", ".join(f"{name} {point.threshold:.3f}" for name, point in calibration.operating_points.items())
    say(
        f"  calibrated on {calibration.slices:,} slices: temperature {calibration.temperature:.2f}{moved}, log loss "
        f"{calibration.log_loss_before:.3f} -> {calibration.log_loss_after:.3f}, thresholds: {thresholds}"
    )
    for note in calibration.notes:
        say(f"  {note}")

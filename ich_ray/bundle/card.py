"""The card of a bundle: what the model is, how it was measured, what it must not be used for.

Knows the format of card.json and nothing of networks or weights, so that a report reads cards without PyTorch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ich_ray.bundle.logit_scaling import LogitScaling, Method
from ich_ray.bundle.members import MOST_MEMBERS, Member, differing_inputs
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.bundle.sequence_note import SequenceNote
from ich_ray.bundle.study_calibration import StudyCalibration
from ich_ray.bundle.training_data import TrainingData
from ich_ray.ct.windowing import MOST_WINDOWS, WindowSpec
from ich_ray.data.dataset import LARGEST_SIZE, RoleCounts
from ich_ray.data.folds import roles_of
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.input_shape import input_channels, input_shape
from ich_ray.storage import (
    Count,
    Fingerprint,
    JsonValue,
    Line,
    Record,
    Seed,
    Share,
    Time,
)
from ich_ray.trial_records import WeightsNote, judged
from ich_ray.vocabulary import Patients, Role, Split, Subtype, TtaView

__all__ = [
    "INTENDED_USE",
    "LIMITATIONS",
    "CalibrationNote",
    "Card",
    "EnsembleFigure",
    "EnsembleGain",
    "RetrainingNote",
    "SeedSpread",
    "SubtypeCalibration",
    "TtaFigure",
    "TtaGain",
    "limitations_of",
    "with_sequence_note",
]

INTENDED_USE = (
    "Research on detecting intracranial haemorrhage on single axial non-contrast head-CT slices, by people who check "
    "every result. Not for diagnosis, triage or any other clinical use."
)
LIMITATIONS = (
    "It sees one slice at a time: no neighbouring slices, no history, no earlier examination.",
    "Its figures hold for the scanners, patients and prevalence of its test role only. Detectors of this kind have "
    "lost much of their performance on patients of other hospitals: calibrate and evaluate again on local patients.",
    "PPV and NPV follow the prevalence of the test slices and change wherever that is another one.",
    "Labels of single slices are noisy near the first and the last slice that shows a bleeding.",
    "Artefacts, implants, early postoperative findings and calcification resemble blood and can be called so.",
)


def limitations_of(parameters: Hyperparameters, sequence: bool = False) -> tuple[str, ...]:
    """What a network of these parameters cannot do, alone or with a sequence model."""
    cut = ", cut to where its series shows the head" if parameters.crop == "head" else ""
    if sequence:
        beside = f" with {parameters.neighbors} on either side" if parameters.neighbors else ""
        seen = (
            f"It sees each slice{beside}{cut}, and weighs features of all slices of one series: a lone file, or a part "
            "of a series, is judged with less, and no other series is seen"
        )
    elif parameters.neighbors:
        seen = f"It sees a slice with {parameters.neighbors} on either side{cut}: no others of the series"
    elif cut:
        seen = f"It sees one slice at a time{cut}: no neighbouring slices"
    else:
        return LIMITATIONS
    return (f"{seen}, no history, no earlier examination.", *LIMITATIONS[1:])


class DatasetNote(Record):
    """Which data made the model, and by what their roles were drawn.

    A `split` by slice leaks, see `ich_ray.vocabulary.LEAK`.
    """

    fingerprint: Fingerprint
    roles: dict[Line, RoleCounts]
    split: Split = "patient"


class SearchNote(Record):
    """Which search chose it.

    Attributes:
        selection_value: as it was `judged`, the best of `trials` or, where it was `confirmed`, among the best: it is
            optimistic.
        confirmed: how a confirmation chose it, in words; empty if none did.
        folds: of the train and validation patients, by which trials were judged; 0 for the validation patients alone.
        repeats: how often these were divided.
        constraints: what every trial of the search had to keep; empty without any.
    """

    name: Line
    trial: Count
    trials: Count
    objective: Line
    selection_value: float | None
    confirmed: Line = ""
    folds: Count = 0
    repeats: Count = 1
    constraints: Line = Field(default="", exclude_if=lambda said: not said)

    @property
    def judged(self) -> str:
        """On which patients trials were judged, in words behind the objective."""
        return judged(self.folds, self.repeats)


class SeedSpread(Record):
    """How far seeds lie apart; `std` is the sample standard deviation, None of a single one."""

    seeds: Count
    failed: Count
    mean: float
    std: float | None
    low: float
    high: float

    def __str__(self) -> str:
        if self.std is None:
            return f"{self.mean:.4f} (a single seed, so without a spread)"
        failed = f", {self.failed} more failed" if self.failed else ""
        between = f"{self.low:.4f} to {self.high:.4f}"
        return f"mean {self.mean:.4f}, SD {self.std:.4f}, {between} over {self.seeds} seeds{failed}"


class RetrainingNote(Record):
    """How the weights were trained after the search had chosen the hyperparameters.

    Attributes:
        patients: who trained them.
        images: the budget, and `budget`, where it comes from; the weights are those at `best_images_seen`.
        seeds: all that were tried with validation patients held out; `seed` made these weights, chosen by `rule`.
        validation: mean, std, low and high of the objective over `seeds` on the validation patients, who also chose:
            no figure of performance. None if there is none.
    """

    patients: Patients
    images: Count
    budget: Line
    best_images_seen: Count
    seed: Seed
    seeds: tuple[Seed, ...]
    rule: Line
    validation: SeedSpread | None = None


class TtaFigure(Record):
    """A figure on the calibration patients without test-time augmentation and with it.

    Attributes:
        difference: with it less without it, from `low` to `high` with 95 %: patients are drawn again, the same for
            both. Bounds are None where nothing can be said of them.
    """

    without: float
    with_tta: float
    difference: float
    low: float | None
    high: float | None


class TtaGain(Record):
    """The gain of test-time augmentation for `any`.

    Logits with and without it are each calibrated by themselves on the same slices.
    """

    log_loss: TtaFigure
    average_precision: TtaFigure
    roc_auc: TtaFigure


class EnsembleFigure(Record):
    """A figure of the first network alone and of the ensemble; the rest as in `TtaFigure`."""

    single: float
    ensemble: float
    difference: float
    low: float | None
    high: float | None


class EnsembleGain(Record):
    """What an ensemble changes for `any` on the calibration patients, against its first network alone.

    Each is calibrated on other patients than those whom it is measured on (cross-fitted).

    Attributes:
        networks: of the ensemble.
        folds: of the calibration patients.
        single_ms: milliseconds a slice, on the device that calibrated, in batches, without reading.
        ensemble_ms: the same of the ensemble.
    """

    networks: Count
    folds: Count
    log_loss: EnsembleFigure
    average_precision: EnsembleFigure
    roc_auc: EnsembleFigure
    single_ms: float = Field(ge=0)
    ensemble_ms: float = Field(ge=0)


class CalibrationNote(Record):
    """Which patients calibrated it, and how well that went.

    Attributes:
        dataset: fingerprint of the dataset that they are of.
        log_loss_before: of these slices with the calibration before, or the plain sigmoid if it is the first;
            `log_loss_after`: with what was fitted.
        tta_gain: None without test-time augmentation.
        ensemble_gain: None without an ensemble, and where too few patients can tell.
    """

    dataset: Fingerprint | Literal[""]
    created: Time
    method: Method
    slices: Count
    patients: Count
    positives: Count
    prevalence: Share
    log_loss_before: float
    log_loss_after: float
    notes: tuple[Line, ...] = ()
    tta_gain: TtaGain | None = None
    ensemble_gain: EnsembleGain | None = None


class SubtypeCalibration(Record):
    """What turns the logit of a subtype into a probability, and where it decides.

    Attributes:
        slices: of the calibration role whose label is known, `positives` of them with the subtype, of `patients`.
        scaled_by: `own` where these fitted temperature and bias, `any` where too few patients have the subtype: the
            numbers are then those of `any`, and there is no operating point.
        log_loss_before: with the scaling before, `log_loss_after`: with this one; None where nothing was known.
    """

    slices: Count
    positives: Count
    patients: Count
    scaled_by: Literal["own", "any"]
    temperature: float = Field(gt=0)
    prior_shift: float
    bias: float = 0.0
    log_loss_before: float | None
    log_loss_after: float | None
    operating_points: dict[Line, OperatingPoint] = Field(default_factory=dict)
    notes: tuple[Line, ...] = ()

    @property
    def scaling(self) -> LogitScaling:
        """What turns its logits into probabilities."""
        return LogitScaling(self.prior_shift, self.temperature, self.bias)


class Card(Record):
    """card.json.

    Attributes:
        format: 2 where the network may answer several labels; cards of version 0.1.0 have 1.
        size: rows and columns of the images.
        label: what it decides by.
        retraining: None in cards of older versions.
        training_data: how the slices that trained the weights were taken; None in cards of older versions.
        members: networks beside the first, whose logits are averaged with its own; none where it is no ensemble.
        sequence: the model over the slices of a series whose logits are blended with the network's own; None without.
        tta: views of an image whose logits are averaged with its own; calibration and thresholds are of that mean.
        temperature: with `prior_shift` and `bias`: the probability is
            sigmoid((logit + prior_shift) / temperature + bias).
        operating_points: by name; empty until calibrated.
        subtypes: how their logits are read; empty until calibrated, and where the network answers `any` alone.
        studies: how logits of studies are read; None until calibrated, and in cards of older versions.
        calibrations: the one in force last; those before it are kept.
        test: a summary of the evaluation, None before it.
        openings: how often the test patients were looked at.
        site_tests: summaries of evaluations at other sites by the fingerprint of their dataset; `site_openings`: how
            often their test patients were looked at.
        checklist: what CLAIM 2024 and TRIPOD+AI ask for, answered anew whenever the card is written.
    """

    format: Literal[1, 2] = 2
    name: Line
    created: Time
    architecture: Line
    parameters: Hyperparameters
    image_shape: tuple[Count, Count, Count]
    size: int = Field(ge=1, le=LARGEST_SIZE)
    windows: tuple[WindowSpec, ...] = Field(min_length=1, max_length=MOST_WINDOWS)
    label: Line = "any"
    dataset: DatasetNote
    search: SearchNote
    retraining: RetrainingNote | None = None
    training_data: TrainingData | None = None
    members: tuple[Member, ...] = Field(default=(), max_length=MOST_MEMBERS)
    sequence: SequenceNote | None = None
    tta: tuple[TtaView, ...] = ()
    temperature: float = Field(default=1.0, gt=0)
    prior_shift: float = 0.0
    bias: float = 0.0
    operating_points: dict[Line, OperatingPoint] = Field(default_factory=dict)
    subtypes: dict[Subtype, SubtypeCalibration] = Field(default_factory=dict)
    studies: StudyCalibration | None = None
    calibrations: tuple[CalibrationNote, ...] = ()
    test: dict[Line, JsonValue] | None = None
    openings: Count = 0
    site_tests: dict[Fingerprint, dict[Line, JsonValue]] = Field(default_factory=dict)
    site_openings: dict[Fingerprint, Count] = Field(default_factory=dict)
    weights: WeightsNote
    versions: dict[Line, Line]
    intended_use: Line = INTENDED_USE
    limitations: tuple[Line, ...] = LIMITATIONS
    not_a_medical_device: Literal[True] = True
    checklist: dict[Line, Line] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_one_image(self) -> Card:
        """The network is built for `image_shape`, and sees what `windows` and `size` make."""
        if self.image_shape != (shape := (len(self.windows), self.size, self.size)):
            raise ValueError(f"image_shape must be {shape}, as windows and size say, got {self.image_shape}")
        if self.architecture != self.parameters.architecture:
            raise ValueError(f"architecture must be {self.parameters.architecture}, as in parameters")
        for member in self.members:
            if field := differing_inputs(self.parameters, member.parameters):
                raise ValueError(f"members must have the {field} of the first network")
            if len(member.shifts) != len(self.parameters.predicted_labels):
                raise ValueError(f"members must have a shift for each label, got {len(member.shifts)}")
        if len({*self.tta}) < len(self.tta):
            raise ValueError(f"tta must name each view once, got {', '.join(self.tta)}")
        if "depth_flip" in self.tta and not self.parameters.neighbors:
            raise ValueError("tta depth_flip is of networks that see neighbors, got neighbors: 0")
        if self.sequence is not None and {*self.sequence.blend} != {*self.parameters.predicted_labels}:
            raise ValueError(
                f"sequence must blend {', '.join(self.parameters.predicted_labels)}, got "
                f"{', '.join(self.sequence.blend) or 'none'}"
            )
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(channels, rows, columns)` of what the network is given, made of one image or of several.

        As they are prepared: it reduces them to its resolution itself, in `predict` and in ONNX alike.
        """
        return (input_shape(self.parameters, self.image_shape)[0], *self.image_shape[1:])

    @property
    def channels(self) -> list[str]:
        """What each channel of the network's input is: its window, and which neighbor it is of."""
        names = [window.name for window in self.windows]
        counts = input_channels(self.parameters, len(names))
        return [
            f"{name} {'below' if place < 0 else 'above'} {abs(place)}" if place else name
            for place, count in enumerate(counts, -self.parameters.neighbors)
            for name in names[:count]
        ]

    @property
    def each_parameters(self) -> tuple[Hyperparameters, ...]:
        """Those of each network, the first alone where it is no ensemble."""
        return (self.parameters, *(member.parameters for member in self.members))

    @property
    def each_weights(self) -> tuple[WeightsNote, ...]:
        """Those of each network, then of the sequence model where there is one."""
        of_sequence = () if self.sequence is None else (self.sequence.weights,)
        return (self.weights, *(member.weights for member in self.members), *of_sequence)

    @property
    def trained_by(self) -> tuple[Role, ...]:
        """The roles whose patients trained the weights."""
        return roles_of(self.retraining.patients if self.retraining else "train")

    @property
    def scaling(self) -> LogitScaling:
        """What turns its logits of `any` into probabilities."""
        return LogitScaling(self.prior_shift, self.temperature, self.bias)

    @property
    def scalings(self) -> tuple[LogitScaling, ...]:
        """Of each label that it answers, in the order of its logits; `any` is the last."""
        of_subtypes = {name: calibration.scaling for name, calibration in self.subtypes.items()}
        *subtypes, _ = self.parameters.predicted_labels
        return (*(of_subtypes.get(name, LogitScaling()) for name in subtypes), self.scaling)  # type: ignore[call-overload]


def with_sequence_note(card: Card, note: SequenceNote) -> Card:
    """The card of the same network with a sequence model; what was fitted without it is taken out.

    How often test patients were looked at stays on record.
    """
    alone, together = (limitations_of(card.parameters, sequence) for sequence in (False, True))
    first = together if card.limitations[-len(alone) :] == alone else card.limitations
    kept = card.limitations[: -len(alone)] if first is together else ()
    fields = (
        "temperature",
        "prior_shift",
        "bias",
        "operating_points",
        "subtypes",
        "studies",
        "calibrations",
        "test",
        "site_tests",
    )
    unmeasured = {name: Card.model_fields[name].get_default(call_default_factory=True) for name in fields}
    return card.model_copy(update={**unmeasured, "sequence": note, "limitations": (*kept, *first)})

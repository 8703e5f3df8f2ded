"""Records of a search: what search.json and the files beside it hold.

With what follows from one of them alone. Knows only JSON and the files' names: no Ray, no Optuna, no torch.
search/ledger.py writes these records, results.py reads them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

from pydantic import Field, ValidationError, field_validator, model_validator

from ich_ray.storage import (
    Address,
    Count,
    Fingerprint,
    Integer,
    JsonValue,
    Line,
    Record,
    RelativeFile,
    Seconds,
    Seed,
    Sha256,
    Share,
    Text,
    Time,
    first_problem,
)
from ich_ray.usage import ReportUsage, Usage, added
from ich_ray.vocabulary import LEAK, Precision, Split

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

__all__ = [
    "MOST_TRIALS",
    "OUT_OF_MEMORY",
    "STOPPED_BY_REQUEST",
    "Chance",
    "Chances",
    "CheckpointReference",
    "ControlRequest",
    "EndCheck",
    "ExecutionInfo",
    "FoldNote",
    "GrowthNote",
    "LaunchNote",
    "LogitsReference",
    "LostAttempt",
    "Objective",
    "QuarantineNote",
    "Report",
    "RequestNote",
    "SearchRecord",
    "TrialResult",
    "TrialState",
    "WeightsNote",
    "finite",
    "judged",
]

TrialState = Literal["running", "completed", "pruned", "failed"]
# A hundred thousand trials are more than anybody has searched with; what counts to here ends soon.
MOST_TRIALS = 10_000_000
MOST_FOLDS = 100
_Trials = Annotated[int, Field(ge=0, le=MOST_TRIALS)]
_Positive = Annotated[int, Field(ge=1, le=MOST_TRIALS)]
# Milliseconds since 1970 and a random number: sorted by time, and no two alike.
RequestId = Annotated[str, Field(pattern=r"^[0-9]{13}-[0-9a-f]{8}$")]
OUT_OF_MEMORY = "out_of_memory"
# Why a trial was pruned that somebody has ended by hand.
STOPPED_BY_REQUEST = "stopped_by_request"
Parameter = Line | Integer | float | bool


class LogitsReference(Record):
    """Logits of the slices that judge a network: `file`, below the search folder, and its SHA-256."""

    file: RelativeFile
    sha256: Sha256


class FoldNote(Record):
    """One fold at one report.

    Attributes:
        number: which network of the trial this is, from 0; repeats count on.
        images_seen: by this network alone; `whole` if that was its budget.
        value: the objective on the patients of this fold alone, None where it is undefined there.
        logits: of these patients' slices.
    """

    number: Annotated[int, Field(ge=0, lt=MOST_FOLDS**2)]
    images_seen: Count
    whole: bool
    value: float | None
    logits: LogitsReference


class Report(Record):
    """One measurement of a trial on the validation patients.

    Attributes:
        images_seen: training images shown so far: the budget unit; with folds, by all its networks.
        metrics: by name; a non-finite value becomes None, which JSON can hold.
        elapsed_s: training time of the trial so far, over all attempts.
        time: when it reached the ledger, seconds since 1970.
        fold: where trials are judged by folds, what the network of this fold gave; metrics are then of all folds so far
            at equally many images, pooled.
        usage: what it took since the report before; None in files of version 0.1.0.
    """

    images_seen: Count
    metrics: dict[Line, float | None]
    elapsed_s: Seconds
    time: Time
    fold: FoldNote | None = Field(default=None, exclude_if=lambda note: note is None)
    usage: ReportUsage | None = Field(default=None, exclude_if=lambda usage: usage is None)

    @property
    def network(self) -> int:
        """Which of its trial's networks it is of, from 0."""
        return self.fold.number if self.fold else 0

    @property
    def scalars(self) -> dict[str, float]:
        """Its numbers, for tools that draw curves: metrics, time, and as `usage/...` what it took."""
        used = self.usage.model_dump() if self.usage else {}
        told = {**self.metrics, "elapsed_s": self.elapsed_s, **{f"usage/{name}": value for name, value in used.items()}}
        return {name: value for name, value in told.items() if value is not None}

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, metrics: Any) -> Any:
        """What a training measures may be undefined; a file cannot say so in any other way than by null."""
        return finite(metrics) if isinstance(metrics, dict) else metrics


def finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """The metrics with None for what is not finite."""
    undefined = {name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: None if name in undefined else value for name, value in metrics.items()}


class CheckpointReference(Record):
    """A resumable state: `file` relative to the search folder, its SHA-256, and where training stood."""

    file: RelativeFile
    sha256: Sha256
    images_seen: Count


# Ray's id of a machine; empty where there was no Ray.
NodeId = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
# Ray's ids of accelerators within a machine; left out of files where they are none, as on CPUs.
Devices = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")], ...], Field(exclude_if=lambda devices: not devices)
]
# Causes of lost attempts that are no faults: a machine was taken away, with a notice and without one.
PREEMPTED, NODE_LOST = "preempted", "node_lost"
OF_NODES = (PREEMPTED, NODE_LOST)


class _FaultPlace(Record):
    """Where a fault was, and which one.

    Attributes:
        node: Ray's id of the machine, and `host`, its name.
        devices: of the machine.
        cause: a `Fault` of training/machine_faults.py, `silent`, `preempted` or `node_lost`, or OUT_OF_MEMORY where a
            larger share follows.
    """

    node: NodeId
    host: Line
    devices: Devices = ()
    cause: Line

    @property
    def place(self) -> str:
        """The machine by its name, and what of it."""
        return f"{self.host} (GPU {', '.join(sorted(self.devices))})" if self.devices else self.host


class LostAttempt(_FaultPlace):
    """An attempt at a trial that its machine or its process has ended, and not the trial.

    Attributes:
        devices: that the trial held.
        images_seen: that the trial had reported by then; it goes on from the state of that report, or if that was not
            whole yet of the one before.
    """

    detail: Text = ""
    images_seen: Count
    time: Time


class GrowthNote(Record):
    """A change of the processes of a running trial, onto slots that stood free or back.

    Attributes:
        workers: processes that it has slots for from now on; `ExecutionInfo` says how many train it.
        images_seen: that it had reported by then.
    """

    workers: Count
    images_seen: Count
    time: Time


class QuarantineNote(_FaultPlace):
    """A machine, or some accelerators of it, that get no trials until a time, and then one first.

    Attributes:
        devices: empty for all of the machine.
    """

    since: Time
    until: Time

    def covers(self, node: str, devices: Collection[str]) -> bool:
        """Whether a trial that holds these devices of a machine holds one that is out."""
        return self.node == node and (not self.devices or not {*self.devices}.isdisjoint(devices))


class LaunchNote(Record):
    """A kind of machine that the cluster could not start, what was said of it, and when that began."""

    kind: Line
    reason: Line
    time: Time


class WeightsNote(Record):
    """Weights that stand beside the card of a bundle: the file, and its hash."""

    file: RelativeFile
    sha256: Sha256


def judged(folds: int, repeats: int = 1) -> str:
    """See `Objective.judged`."""
    if not folds:
        return "on the validation patients"
    divided = f", divided {repeats} times" if repeats > 1 else ""
    return f"by {folds} folds of the train and validation patients{divided}"


class Objective(Record):
    """What a search optimizes.

    Attributes:
        folds: parts into which train and validation patients are divided; a trial trains a network without each, and
            is judged by what they say of the patients they have not seen. 0 for the validation patients alone; `auto`
            until the dataset has decided.
        repeats: how often they are divided, each time otherwise.
    """

    metric: Line = "average_precision"
    mode: Literal["max", "min"] = "max"
    folds: Annotated[int, Field(ge=0, le=MOST_FOLDS)] | Literal["auto"] = 0
    repeats: int = Field(default=1, ge=1, le=MOST_FOLDS)

    @field_validator("folds", mode="before")
    @classmethod
    def _counted(cls, folds: Any) -> Any:
        if folds == "auto" or (type(folds) is int and 0 <= folds <= MOST_FOLDS):
            return folds
        raise ValueError(f"must be a whole number up to {MOST_FOLDS}, 0 for none, or auto")

    @property
    def parts(self) -> int:
        """The folds as a number, 0 for none and until they are decided."""
        return self.folds if isinstance(self.folds, int) else 0

    @property
    def networks(self) -> int:
        """That a trial trains, one after the other."""
        return self.parts * self.repeats or 1

    @property
    def judged(self) -> str:
        """On which patients trials are judged, in words behind the metric."""
        return judged(self.parts, self.repeats)

    @property
    def sign(self) -> int:
        """Times which values are higher for better."""
        return 1 if self.mode == "max" else -1

    def better(self, one: float, other: float) -> bool:
        return one > other if self.mode == "max" else one < other

    def improves(self, value: float | None, best: float | None) -> TypeGuard[float]:
        """Whether a value is finite, and better than the best so far if there is one."""
        return value is not None and math.isfinite(value) and (best is None or self.better(value, best))

    def best(self, values: Iterable[float]) -> float:
        """Of at least one."""
        return max(values) if self.mode == "max" else min(values)


class ExecutionInfo(Record):
    """How a trial was computed.

    Attributes:
        device: its name, `cpu` for those.
        workers: processes that trained it together.
        images: where the training images lay: all of them on the device, or on the host for a batch at a time.
        mode: the precision, `float32` or `bfloat16 channels_last`; version 0.1.0 chose among more by the clock.
        rates: images a second that version 0.1.0 reached in each mode that it tried; else empty.
    """

    device: Line
    workers: Count
    images: Literal["device", "host"]
    mode: Line
    rates: dict[Line, float] = Field(default_factory=dict)

    def __str__(self) -> str:
        workers = f"{self.workers} x " if self.workers > 1 else ""
        return f"{workers}{self.device}, {self.mode}, images on {self.images}"


class TrialResult(Record):
    """One trial: a draw, what it reported, and how it ended.

    Attributes:
        state: `running` until it ends; then completed, pruned (stopped early) or failed.
        reason: why it was pruned or failed, a short code such as `rung_100000` or `diverged`.
        attempts: how often it was started.
        seed: of its weights and batches.
        at_chance: it spent its budget and its average precision is at most `chance_bound`.
        cost_gpu_s: accelerator seconds of all attempts.
        where: `host:pid` of the process that ran it last; empty before that.
        repeats: in a confirmation, the trial of the search that this one trains again.
        fold: in a confirmation on folds, the one it validates on.
        lost: attempts that faults of a machine or a process have ended.
        grown: changes of its processes at the end of a search, none of them an attempt.
        logits: without folds, what it said of the validation slices at its best report; of the best trials alone.
    """

    number: Count
    objective: Objective = Objective()
    parameters: dict[Line, Parameter]
    state: TrialState = "running"
    reason: Line = ""
    detail: Text = ""
    reports: tuple[Report, ...] = ()
    checkpoint: CheckpointReference | None = None
    attempts: Count = 1
    seed: Seed = 0
    at_chance: bool = False
    cost_gpu_s: Seconds = 0.0
    started: Time = 0.0
    ended: Time | None = None
    where: Line = ""
    setup: ExecutionInfo | None = None
    repeats: Count | None = None
    fold: Count | None = None
    lost: tuple[LostAttempt, ...] = Field(default=(), exclude_if=lambda lost: not lost)
    grown: tuple[GrowthNote, ...] = Field(default=(), exclude_if=lambda grown: not grown)
    logits: LogitsReference | None = Field(default=None, exclude_if=lambda reference: reference is None)

    @property
    def images_seen(self) -> int:
        return self.reports[-1].images_seen if self.reports else 0

    @property
    def machine(self) -> str:
        """The host of `where`."""
        return self.where.rpartition(":")[0] or self.where

    @property
    def folds_done(self) -> int:
        """Networks that have spent their budget, where trials are judged by folds."""
        return max((report.fold.number + 1 for report in self.reports if report.fold and report.fold.whole), default=0)

    @property
    def judged_reports(self) -> tuple[Report, ...]:
        """The reports that a trial is judged by: all, or with folds those of the last fold that is whole.

        Fewer folds are no match for more, and a fold that has just begun none for one at its end. Before the first one
        is whole it stands for itself.
        """
        last = max(0, self.folds_done - 1)
        return tuple(report for report in self.reports if report.fold is None or report.fold.number == last)

    @property
    def keeps_logits(self) -> bool:
        """Whether what its networks said of patients may be needed: to go on, or to compare others."""
        return self.state == "running" or (self.state != "failed" and (self.folds_done > 0 or self.logits is not None))

    @property
    def fold_values(self) -> tuple[float | None, ...]:
        """The objective on each fold alone, at the images of the best report; empty without folds."""
        return tuple(note.value for note in self.best_notes)

    @property
    def best_notes(self) -> tuple[FoldNote, ...]:
        """Of each fold, at the images of the best report; empty without folds."""
        report = self.best_report
        best = report.fold if report else None
        if best is None:
            return ()
        notes = [report.fold for report in self.reports if report.fold and report.fold.number <= best.number]
        return tuple(note for note in notes if note.images_seen == best.images_seen)

    @property
    def best_report(self) -> Report | None:
        """The judged report with the best finite objective, the earliest of equals; None without any."""
        best: Report | None = None
        for report in self.judged_reports:
            value = report.metrics.get(self.objective.metric)
            if value is None:
                continue
            if best is None or self.objective.better(value, best.metrics[self.objective.metric] or 0.0):
                best = report
        return best

    @property
    def value(self) -> float | None:
        """The objective of the best report, None without one."""
        best = self.best_report
        return best.metrics[self.objective.metric] if best else None

    @property
    def metrics(self) -> dict[str, float | None]:
        """All metrics of the best report; empty without one."""
        best = self.best_report
        return dict(best.metrics) if best else {}

    @property
    def measured(self) -> Iterator[tuple[int, ReportUsage]]:
        """The images of each report that says what it took, with that."""
        before = 0
        for report in self.reports:
            if report.usage:
                yield report.images_seen - before, report.usage
            before = report.images_seen

    @property
    def usage(self) -> Usage:
        """What all reports took."""
        return added(self.measured)


class Chance(Record):
    """How probable it is that a trial is the best, as drawn patients say."""

    trial: Count
    p_best: Share


class Chances(Record):
    """chances.json: what the ranking of a search knows, written when all its trials had ended.

    Attributes:
        completed: trials by then; where there are others now, nothing here is right.
        patients: who judged, of whom `positive` have a positive slice.
        trials: the best ones, whose logits were kept; the others are taken for worse.
    """

    completed: Count
    patients: Count
    positive: Count
    trials: tuple[Chance, ...]


class EndCheck(Record):
    """All trials of a search have ended; as seen by the driver that brought it there.

    Attributes:
        trials: in the ledger.
        asked: trials asked for by then.
        sampler: trials that the sampler was told as they stand in the ledger.
        tune: trials that Tune ran, with those that had ended before this driver.
        out_of_time: its budget of time was over, so that fewer than asked may be right.
    """

    trials: Count
    asked: Count
    sampler: Count
    tune: Count
    out_of_time: bool


class ControlRequest(Record):
    """What somebody asks of a running search, in one of these fields.

    Attributes:
        time: when it was asked.
        stop_trial: the number of a trial that is to end at its next report.
        add: parameters of a trial that is to run next; those that it leaves out are drawn.
        trials: in all.
        concurrent: trials at a time.
        pause: whether new trials wait, or no more.
    """

    time: Time
    stop_trial: Count | None = Field(default=None, exclude_if=lambda asked: asked is None)
    add: Annotated[dict[Line, Parameter], Field(max_length=200)] | None = Field(
        default=None, exclude_if=lambda asked: asked is None
    )
    trials: _Positive | None = Field(default=None, exclude_if=lambda asked: asked is None)
    concurrent: _Positive | None = Field(default=None, exclude_if=lambda asked: asked is None)
    pause: bool | None = Field(default=None, exclude_if=lambda asked: asked is None)

    @property
    def named(self) -> list[str]:
        """The fields that ask for something."""
        return [name for name, value in self if name != "time" and value is not None]

    def __str__(self) -> str:
        """As its flag was given."""
        flags = {"pause": "--pause" if self.pause else "--unpause", "add": f"--add {self.add}"}
        return " ".join(flags.get(name, f"--{name.replace('_', '-')} {getattr(self, name)}") for name in self.named)


class RequestNote(Record):
    """The answer of a search's driver to a request.

    Attributes:
        id: of the request: the name of its file.
        asked: None where the file was no request.
        done: whether it is carried out; if not, `answer` has the reason.
        trial: the number of the trial that was added.
    """

    id: RequestId
    asked: ControlRequest | None = None
    done: bool
    answer: Line
    trial: Count | None = Field(default=None, exclude_if=lambda number: number is None)


class _Amendment(Record):
    """A later change of what was asked; what is not named in it stays as it was.

    Attributes:
        time: when it was made.
        trials: in all, from now on.
        warm_start: other searches that the sampler learns from.
        dataset: where the dataset lies by now.
        ended: all trials had ended, as the driver saw it.
        quarantine: a machine, or accelerators of it, get no trials for a while.
        released: the machine that gets trials again, by Ray's id, or `released_devices` of it.
        request: what somebody asked of the running search, with the answer.
    """

    time: Time = 0.0
    trials: _Trials = 0
    warm_start: Address | tuple[Address, ...] | None = None
    dataset: Address = ""
    ended: EndCheck | None = None
    quarantine: QuarantineNote | None = None
    released: NodeId = ""
    released_devices: Devices = ()
    request: RequestNote | None = None
    unstarted: Annotated[tuple[LaunchNote, ...], Field(max_length=1000)] = ()


class SearchRecord(Record):
    """search.json: what was asked. It never changes, except by appended amendments.

    Attributes:
        space: the search space as written in its file.
        dataset: where the prepared dataset lay; `fingerprint` says which one it is.
        prevalence: of `any` among the validation slices.
        split: of the dataset; see `LEAK`.
        precision: of all its trials on accelerators; None in searches of version 0.1.0, and where no machine told: each
            accelerator then computes by its own capability.
        folds: what the dataset decided where the space says `folds: auto`, else None.
        ms_per_slice: of each network, measured where the space limits it; by what its time depends on.
        seconds_per_image: of training, measured where the budget's unit is cost; by what it depends on.
        amendments: later changes, such as more trials: `{"time": ..., "trials": 200}`.
    """

    format: Literal[1] = 1
    name: Line
    space: dict[Line, JsonValue]
    dataset: Address
    fingerprint: Fingerprint
    prevalence: Share
    split: Split = "patient"
    seed: Seed
    trials: _Trials
    precision: Precision | None = None
    folds: Annotated[int, Field(ge=0, le=MOST_FOLDS)] | None = None
    ms_per_slice: dict[Line, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, exclude_if=lambda measured: measured is None
    )
    seconds_per_image: dict[Line, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, exclude_if=lambda measured: measured is None
    )
    versions: dict[Line, Line]
    created: Time
    amendments: tuple[dict[Line, JsonValue], ...] = ()

    @field_validator("amendments")
    @classmethod
    def _known(cls, amendments: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        return tuple(
            _Amendment.model_validate(change).model_dump(mode="json", include={*change}) for change in amendments
        )

    @model_validator(mode="after")
    def _readable(self) -> SearchRecord:
        """What is kept as it was written and read on use is tried once, where the file's name is known."""
        try:
            _ = self.objective
        except ValidationError as error:
            raise ValueError(f"objective cannot be read: {first_problem(error)}") from None
        return self

    @property
    def leak(self) -> str:
        """Why no figure of this search holds for other patients; empty if nothing is wrong."""
        return LEAK if self.split == "slice" else ""

    @property
    def objective(self) -> Objective:
        written = Objective.model_validate(self.space.get("objective", {}))
        return written if self.folds is None else written.model_copy(update={"folds": self.folds})

    @property
    def wanted(self) -> int:
        """Trials asked for by now, amendments included."""
        return int(self._amended("trials", self.trials))

    @property
    def commanded(self) -> int:
        """Trials that a command has asked for last, whatever was asked of its driver since."""
        told = [change["trials"] for change in self.amendments if "trials" in change and "request" not in change]
        return int(told[-1] if told else self.trials)

    @property
    def dataset_folder(self) -> str:
        """Where the dataset lies by now."""
        return str(self._amended("dataset", self.dataset))

    @property
    def warm_starts(self) -> tuple[str, ...]:
        """Other searches that the sampler learns from; a single one stands in the file as a text."""
        found: str | list[str] | None = self._amended("warm_start", None)
        return (found,) if isinstance(found, str) else tuple(found or ())

    @property
    def ended(self) -> EndCheck | None:
        """The last time that all trials had ended, None before."""
        told = self._amended("ended", None)
        return None if told is None else EndCheck.model_validate(told)

    def has_begun_all(self, trials: int) -> bool:
        """Whether a search with so many trials begins no more.

        They are all that were asked for, or its time was over when they had ended.
        """
        ended = self.ended
        early = ended is not None and ended.out_of_time and (ended.asked, ended.trials) == (self.wanted, trials)
        return early or trials >= self.wanted

    def has_ended(self, trials: Iterable[TrialResult], damaged: int = 0) -> bool:
        """Whether all trials have ended, given those that can be read, and how many files cannot.

        A damaged file does not say whether its trial had ended; the note of the driver that ended them all does.
        """
        read = list(trials)
        known = len(read) + damaged
        told = self.ended is not None and self.ended.trials == known
        return self.has_begun_all(known) and (told or not damaged) and all(one.state != "running" for one in read)

    @property
    def quarantines(self) -> list[QuarantineNote]:
        """Of machines, in their order; also those that are over."""
        return [change.quarantine for change in self._changes() if change.quarantine]

    @property
    def quarantined(self) -> list[QuarantineNote]:
        """Machines and devices that have not been released; a search that goes on begins with them."""
        out: dict[tuple[str, tuple[str, ...]], QuarantineNote] = {}
        for change in self._changes():
            if note := change.quarantine:
                out[note.node, note.devices] = note
            if change.released:
                out.pop((change.released, change.released_devices), None)
        return list(out.values())

    @property
    def unstarted(self) -> list[LaunchNote]:
        """Machines that could not be started, as the search was told last."""
        return [LaunchNote.model_validate(note) for note in self._amended("unstarted", ())]

    @property
    def requests(self) -> list[RequestNote]:
        """Requests that were answered, in their order."""
        return [change.request for change in self._changes() if change.request]

    def asked_last(self, name: str) -> Any:
        """What the last request asked that named a field and was carried out; None without one."""
        carried_out = (note.asked for note in reversed(self.requests) if note.done and note.asked)
        return next((getattr(asked, name) for asked in carried_out if name in asked.named), None)

    @property
    def pauses(self) -> list[tuple[float, float]]:
        """When no new trial was started, by request: from and until; of one that lasts, until infinity."""
        found: list[tuple[float, float]] = []
        for note in self.requests:
            asked = note.asked if note.done else None
            lasts = bool(found) and math.isinf(found[-1][1])
            if asked and asked.pause and not lasts:
                found.append((asked.time, math.inf))
            elif asked and asked.pause is False and lasts:
                found[-1] = found[-1][0], asked.time
        return found

    def _changes(self) -> Iterator[_Amendment]:
        return map(_Amendment.model_validate, self.amendments)

    def _amended(self, key: str, first: Any) -> Any:
        return next((change[key] for change in reversed(self.amendments) if key in change), first)

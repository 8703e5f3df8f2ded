"""Records of a trial: what trials/00042.json holds, and how a trial is judged.

With what follows from one of them alone. Knows only JSON and the files' names: no Ray, no Optuna, no torch.
search/ledger.py writes these records, results.py reads them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

from pydantic import Field, field_validator

from ich_ray.storage import Count, Integer, Line, Record, RelativeFile, Seconds, Seed, Sha256, Text, Time
from ich_ray.usage import ReportUsage, Usage, added

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "OUT_OF_MEMORY",
    "CheckpointReference",
    "ExecutionInfo",
    "FoldNote",
    "GrowthNote",
    "LogitsReference",
    "LostAttempt",
    "Objective",
    "Report",
    "TrialResult",
    "TrialState",
    "WeightsNote",
    "finite",
    "judged",
]

TrialState = Literal["running", "completed", "pruned", "failed"]
MOST_FOLDS = 100
OUT_OF_MEMORY = "out_of_memory"
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


class FaultPlace(Record):
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


class LostAttempt(FaultPlace):
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

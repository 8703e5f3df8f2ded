"""Records of a search: what search.json and the files beside those of its trials hold.

With what follows from one of them alone. Knows only JSON and the files' names: no Ray, no Optuna, no torch.
search/ledger.py writes these records, results.py reads them; those of a trial are in trial_records.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ich_ray.storage import Address, Count, Fingerprint, JsonValue, Line, Record, Seed, Share, Time, first_problem
from ich_ray.trial_records import MOST_FOLDS, Devices, FaultPlace, NodeId, Objective, Parameter, TrialResult
from ich_ray.vocabulary import LEAK, Precision, Split

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = [
    "MOST_TRIALS",
    "STOPPED_BY_REQUEST",
    "Chance",
    "Chances",
    "ControlRequest",
    "EndCheck",
    "LaunchNote",
    "QuarantineNote",
    "RequestNote",
    "SearchRecord",
]

# A hundred thousand trials are more than anybody has searched with; what counts to here ends soon.
MOST_TRIALS = 10_000_000
_Trials = Annotated[int, Field(ge=0, le=MOST_TRIALS)]
_Positive = Annotated[int, Field(ge=1, le=MOST_TRIALS)]
# Milliseconds since 1970 and a random number: sorted by time, and no two alike.
RequestId = Annotated[str, Field(pattern=r"^[0-9]{13}-[0-9a-f]{8}$")]
# Why a trial was pruned that somebody has ended by hand.
STOPPED_BY_REQUEST = "stopped_by_request"


class QuarantineNote(FaultPlace):
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

"""The ledger of a search: the only state it has, one small file a trial.

The driver is the only writer and holds the search's lock while it writes; results.py reads the same files at any time.
A report rewrites its trial's file whole, with fsync: measured 1.3 ms. Knows nothing of Ray or Optuna: they are rebuilt
from what stands here.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from ich_ray.errors import ConfigError
from ich_ray.results import best_first, open_search
from ich_ray.statistics.metrics import at_chance
from ich_ray.storage import Location, SearchFiles, exists, locate, remove, write_bytes, write_json
from ich_ray.trial_records import (
    FoldNote,
    GrowthNote,
    LogitsReference,
    LostAttempt,
    Parameter,
    Report,
    TrialResult,
    TrialState,
)
from ich_ray.usage import ReportUsage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ich_ray.search_records import SearchRecord

__all__ = ["Ledger", "Verdict", "asked_otherwise", "differences", "trial_seed"]

_Light = TypeVar("_Light", Report, ReportUsage)
_NAMES = {kind: {*kind.model_fields} for kind in (Report, ReportUsage)}


# Trials without folds whose logits stay: of more than so many each is hardly ever the best.
MOST_LOGITS = 20
# What a worker could not write is asked of the driver with so much: a disk may have room for a record and no state.
_PROBE_BYTES = 1 << 20


class Verdict(NamedTuple):
    """How a trial ends, and why."""

    state: TrialState
    reason: str = ""
    detail: str = ""


class Ledger:
    """The records of a search in memory, each written before a method returns.

    Attributes:
        trials: by number, finished or not.
    """

    def __init__(self, files: SearchFiles, record: SearchRecord, trials: Mapping[int, TrialResult]) -> None:
        self.files = files
        self.record = record
        self.trials = dict(trials)
        self._objective = record.objective  # one for all trials
        self._full = 0  # all numbers below are taken

    @classmethod
    def create(cls, out: Location, record: SearchRecord) -> Ledger:
        """Start a search in a folder that holds none.

        Raises:
            ConfigError: it holds one, the same or another: the difference is named; or what is left of one.
            IntegrityError: a folder in it is a link.
        """
        files = SearchFiles(locate(out))
        if exists(files.search):
            raise ConfigError(cls.occupied(files, record))
        cls.check_unused(files)
        ledger = cls(files, record, {})
        ledger._write_record()
        return ledger

    @staticmethod
    def check_unused(files: SearchFiles) -> None:
        """Check that a folder without a search holds nothing of one, either.

        Raises:
            ConfigError: it does.
            IntegrityError: a folder in it is a link.
        """
        files.check_no_links()
        if left := [
            part.name
            for part in (files.trials, files.checkpoints, files.logits, files.logs)
            if part.exists() and any(part.iterdir())
        ]:
            raise ConfigError(
                f"{files.root}: a new search needs a folder without trials, got {' and '.join(left)} of one whose "
                "search.json is gone; put it back, or choose another --out"
            )

    @staticmethod
    def occupied(files: SearchFiles, asked: SearchRecord) -> str:
        """Why a search cannot be begun in a folder that holds one."""
        rule = f"{files.root}: a new search needs a folder without one"
        changed = differences(open_search(files.root).record, asked)
        if changed:
            return f"{rule}, got another search ({'; '.join(changed)}); choose another --out"
        return f"{rule}, got this very search; add --resume to go on with it, or choose another --out"

    @classmethod
    def open(cls, out: Location) -> Ledger:
        """Go on with the search in a folder; checkpoints and logits that no trial can use are removed."""
        found = open_search(out)
        ledger = cls(found.files, found.record, {trial.number: trial for trial in found.trials})
        files = found.files
        going = {files.checkpoint(trial.number).name for trial in ledger.unfinished}
        compared = {files.logits_of(trial.number).name for trial in found.trials if trial.keeps_logits}
        for home, used in ((files.checkpoints, going), (files.logits, compared)):
            for folder in home.iterdir() if home.exists() else ():
                if folder.name not in used:
                    remove(folder)
        return ledger

    @property
    def unfinished(self) -> list[TrialResult]:
        return [trial for _, trial in sorted(self.trials.items()) if trial.state == "running"]

    @property
    def next_number(self) -> int:
        """Of the next trial: the first one that is free, so that a file that was lost leaves no gap."""
        return next(number for number in itertools.count(self._full) if number not in self.trials)

    def amend(self, **change: Any) -> None:
        """Append a change of what was asked, such as ``trials=200``."""
        amendments = (*self.record.amendments, {"time": time.time(), **change})
        self.record = self.record.model_copy(update={"amendments": amendments})
        self._write_record()

    def add(
        self, parameters: Mapping[str, Parameter], *, repeats: int | None = None, fold: int | None = None
    ) -> TrialResult:
        """The next trial: numbered, seeded and on disk before anything trains."""
        number = self.next_number
        self._full = number
        return self._write(
            TrialResult(
                number=number,
                objective=self._objective,
                parameters=dict(parameters),
                seed=trial_seed(self.record.seed, number),
                started=time.time(),
                repeats=repeats,
                fold=fold,
            )
        )

    def start(self, number: int, **changes: Any) -> TrialResult:
        """One more attempt at a trial begins; the first one is counted when it is added."""
        return self._change(number, attempts=self.trials[number].attempts + 1, **changes)

    def charge(self, number: int, cost_gpu_s: float) -> TrialResult:
        """Note what a trial has cost by the end of an attempt: it may wait long for the next one."""
        return self._change(number, cost_gpu_s=cost_gpu_s)

    def lose(
        self, number: int, cause: str, detail: str, node: str, host: str, devices: Iterable[str] = (), **then: Any
    ) -> LostAttempt:
        """Note an attempt that a fault of its machine or process has ended; `then`, if it was not just now."""
        trial = self.trials[number]
        attempt = LostAttempt(
            node=node,
            host=host,
            devices=tuple(devices),
            cause=cause,
            detail=detail,
            **{"images_seen": trial.images_seen, "time": time.time(), **then},
        )
        self._change(number, lost=(*trial.lost, attempt))
        return attempt

    def grow(self, number: int, workers: int, **changes: Any) -> TrialResult:
        """Note that a running trial has slots for so many processes from now on: the same attempt, larger."""
        trial = self.trials[number]
        note = GrowthNote(workers=workers, images_seen=trial.images_seen, time=time.time())
        return self._change(number, grown=(*trial.grown, note), **changes)

    def check_writable(self, number: int) -> None:
        """Write as a worker does that trains a trial.

        Raises:
            OSError: it cannot be done here either.
        """
        probe = self.files.checkpoint(number) / ".writable"
        try:
            write_bytes(probe, bytes(_PROBE_BYTES))
            probe.unlink()
        except OSError as error:
            raise OSError(f"{probe.parent}: {error.strerror or error}") from error

    def report(
        self,
        number: int,
        images_seen: int,
        metrics: Mapping[str, float | None],
        elapsed_s: float,
        *,
        fold: FoldNote | None = None,
        usage: ReportUsage | None = None,
        end: Verdict | None = None,
        **changes: Any,
    ) -> TrialResult:
        """Append a report; with `end` the final state, reason and detail in the same write.

        A report that the trial has made before (it repeats those that a lost attempt may have kept to itself) changes
        nothing but its end and `changes`, such as where its newest state lies.
        """
        trial = self.trials[number]
        if images_seen > trial.images_seen:
            # Interned, because each result comes with names of its own: a third of what a report weighs in memory.
            named = {sys.intern(name): value for name, value in metrics.items()}
            report = Report(
                images_seen=images_seen,
                metrics=named,
                elapsed_s=elapsed_s,
                time=time.time(),
                fold=fold,
                usage=usage and _light(usage),
            )
            changes["reports"] = (*trial.reports, _light(report))
        if end:
            return self._end(trial.model_copy(update=changes), end)
        return self._change(number, **changes)

    def finish(self, number: int, end: Verdict, **changes: Any) -> TrialResult:
        """The end of a trial that comes without a report, such as the death of its process."""
        return self._end(self.trials[number].model_copy(update=changes), end)

    def _end(self, trial: TrialResult, end: Verdict) -> TrialResult:
        chance = trial.metrics.get("average_precision")
        kept = trial.logits if end.state == "completed" and trial.value is not None else None
        written = self._write(
            trial.model_copy(
                update={
                    "logits": kept,
                    "state": end.state,
                    "reason": end.reason,
                    "detail": end.detail or trial.detail,
                    "checkpoint": None,
                    "ended": time.time(),
                    "at_chance": end.state == "completed"
                    and chance is not None
                    and at_chance(chance, self.record.prevalence),
                }
            )
        )
        self._drop_checkpoint(trial.number)
        if not written.keeps_logits:
            remove(self.files.logits_of(trial.number))
        elif kept:
            self._drop_other_logits(trial.number, kept)
            self._keep_the_best_logits()
        return written

    def _drop_other_logits(self, number: int, kept: LogitsReference) -> None:
        """Those of reports that were best before, which an attempt keeps for the next one."""
        for path in self.files.logits_of(number).glob("*.f32"):
            if path.name != kept.file.rpartition("/")[2]:
                path.unlink(missing_ok=True)

    def _keep_the_best_logits(self) -> None:
        """Of the trials that are best; the record is written first, so that it names no file that is gone."""
        kept = [trial for trial in self.trials.values() if trial.state == "completed" and trial.logits]
        for trial in best_first(kept, self._objective)[MOST_LOGITS:]:
            self._change(trial.number, logits=None)
            remove(self.files.logits_of(trial.number))

    def _change(self, number: int, **changes: Any) -> TrialResult:
        return self._write(self.trials[number].model_copy(update=changes))

    def _write(self, trial: TrialResult) -> TrialResult:
        write_bytes(self.files.trial(trial.number), trial.model_dump_json(indent=1).encode())
        self.trials[trial.number] = trial
        return trial

    def _write_record(self) -> None:
        write_json(self.files.search, self.record.model_dump(mode="json"))

    def _drop_checkpoint(self, number: int) -> None:
        """A trial that has ended is never resumed: its state would only fill the disk."""
        remove(self.files.checkpoint(number))


def _light(record: _Light) -> _Light:
    """The same with one set of names for all reports, which nobody reads: 216 bytes of each."""
    return type(record).model_construct(_fields_set=_NAMES[type(record)], **dict(record))


def trial_seed(seed: int, number: int) -> int:
    """The seed of a trial's weights and batches: its own, and the same when it is run again."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def differences(there: SearchRecord, asked: SearchRecord) -> list[str]:
    """What makes two searches different: `budget.images: there 8000, asked 9000`."""
    return [f"{key}: there {one}, asked {other}" for key, (one, other) in asked_otherwise(there, asked).items()]


def asked_otherwise(one: SearchRecord, other: SearchRecord) -> dict[str, tuple[str, str]]:
    """What two searches were asked differently, by key (`budget.images`): each value, or `nothing`."""
    first, second = (
        {"dataset": record.fingerprint, "seed": record.seed, **_flat(record.space)} for record in (one, other)
    )
    return {
        key: (str(first.get(key, "nothing")), str(second.get(key, "nothing")))
        for key in first | second
        if key not in first or key not in second or first[key] != second[key]
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found

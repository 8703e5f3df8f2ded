"""Read the files of a search leniently: a damaged file is named and does not hide others.

Knows what a trial's file is called and that it can be read; what must hold of its content is in invariants.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search_records import SearchRecord
from ich_ray.storage import SearchFiles, is_held, read_record
from ich_ray.trial_records import TrialResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from upath import UPath

    from ich_ray.search.space.space import SearchSpace

__all__ = ["REMEDY", "LedgerFiles", "ended_with"]

REMEDY = "restore the file from a copy"


@dataclass(frozen=True)
class LedgerFiles:
    """The files of a search, read as far as they can be.

    Attributes:
        space: None if this version cannot read it.
        trials: by the number in the file's name.
        suggested: how many trials there should be, as far as the files' names tell.
        missing: what is wrong where a trial cannot be read.
        damaged: how many files of trials cannot be read.
        misplaced: what is wrong with files that no trial should have.
        at_work: a driver holds the search.
    """

    files: SearchFiles
    record: SearchRecord
    space: SearchSpace | None
    trials: dict[int, TrialResult]
    suggested: int
    missing: list[str]
    damaged: int
    misplaced: list[str]
    at_work: bool

    @classmethod
    def read(cls, files: SearchFiles) -> LedgerFiles:
        files.check_no_links()
        # In this order a search that goes on meanwhile has more trials than its record says, never fewer.
        at_work = is_held(files.lock)
        record = read_record(files.search, SearchRecord, REMEDY)
        numbers, misplaced = _numbers(files, files.records())
        # A number that was never asked for says nothing of those before it.
        asked = [number for number in numbers if number < max(record.wanted, ended_with(record))]
        suggested = max(max(asked, default=-1) + 1, ended_with(record))
        missing = list(_gaps(files, asked, suggested))
        trials = {}
        for number in numbers:
            try:
                trials[number] = read_record(files.trial(number), TrialResult, REMEDY)
            except (OSError, ConfigError, IntegrityError) as error:
                missing.append(f"trial {number}: its record must be readable, got {error}")
        damaged = len(numbers) - len(trials)
        return cls(files, record, _space(record), trials, suggested, missing, damaged, misplaced, at_work)

    @property
    def unfinished(self) -> list[int]:
        return [number for number, trial in self.trials.items() if trial.state == "running"]

    @property
    def state(self) -> Literal["at work", "ended", "interrupted"]:
        if self.at_work:
            return "at work"
        return "ended" if self.record.has_ended(self.trials.values(), self.damaged) else "interrupted"


def ended_with(record: SearchRecord) -> int:
    """How many trials there were when all had ended last."""
    return record.ended.trials if record.ended else 0


def _numbers(files: SearchFiles, names: Iterable[UPath]) -> tuple[list[int], list[str]]:
    """The trials that have a file of their own, in order, and what is wrong with all other files."""
    numbers, misplaced = [], []
    for path in names:
        if not (path.stem.isascii() and path.stem.isdecimal()):
            misplaced.append(f"trials: a trial's record is named by its number, as 00001.json is, got {path.name!r}")
        elif path.name != files.trial(number := int(path.stem)).name:
            misplaced.append(f"trials/{path.name}: a trial has one record, got a second one of trial {number}")
        else:
            numbers.append(number)
    return sorted(numbers), misplaced


def _gaps(files: SearchFiles, numbers: Sequence[int], end: int) -> Iterator[str]:
    """What is said of the numbers below `end` that have no file; a line for each run of them, however long it is."""
    expected = 0
    for number in (*numbers, end):
        if number == expected + 1:
            yield f"trial {expected}: it was suggested, but trials/{files.trial(expected).name} is missing"
        elif number > expected:
            yield f"trials {expected} to {number - 1}: they were suggested, but their files in trials/ are missing"
        expected = number + 1


def _space(record: SearchRecord) -> SearchSpace | None:
    try:
        return parse_space(record.space, "search.json").with_objective(record.objective)
    except ConfigError:
        return None

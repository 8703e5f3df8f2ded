"""A search, read once, and then only those of its files that have changed since.

Never writes and never takes the lock. A damaged file is named and hides no other; one that a storage does not give is
asked for again at the next look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ich_ray.errors import IntegrityError
from ich_ray.progress import bar
from ich_ray.results import SearchResult, find_search, read_search_record, read_trial
from ich_ray.storage import is_held, is_local, not_read, stamp, stamps

if TYPE_CHECKING:
    from ich_ray.storage import Location, Stamp
    from ich_ray.trial_records import TrialResult

__all__ = ["ASKED_AGAIN", "FollowedSearch", "State"]

State = Literal["running", "ended", "interrupted"]
ASKED_AGAIN = "it is asked for again"
# Where a lock says nothing, as on object storage: a search that has written so lately is at work.
_LATELY_S = 600.0
_DIGITS = frozenset("0123456789")


class FollowedSearch:
    """The records of a search as they were at the last `refresh`.

    Attributes:
        trials: by number.
        damaged: what is wrong with a file that could not be read, by its name.
        at_work: a driver holds the lock.

    Raises:
        ConfigError: there is no search.
        IntegrityError: its search.json is damaged, or a folder of it is a link.
    """

    def __init__(self, where: Location) -> None:
        self.files = find_search(where)
        self._of_record = stamp(self.files.search)
        self.record = read_search_record(self.files)
        self.trials: dict[int, TrialResult] = {}
        self.damaged: dict[str, str] = {}
        self.at_work = False
        self._seen: dict[str, Stamp] = {}

    def refresh(self) -> set[int]:
        """Read what has changed; the numbers of these trials, of those that are gone too.

        Raises:
            ConfigError: the folder is not to be read any more.
        """
        self.at_work = is_held(self.files.lock)
        self._refresh_record()
        now = {name: at for name, at in stamps(self.files.trials).items() if _is_record(name)}
        changed = sorted(name for name, at in now.items() if self._seen.get(name) != at)
        gone = self._seen.keys() - now.keys()
        if not self._seen and len(changed) > 1:
            numbers = self._read_first(changed, now)
        else:
            numbers = {self._read(name, now) for name in changed}
        for name in gone:
            self._seen.pop(name)
            self.damaged.pop(name, None)
            self.trials.pop(number := int(name.partition(".")[0]), None)
            numbers.add(number)
        return numbers

    def _read_first(self, names: list[str], now: dict[str, Stamp]) -> set[int]:
        numbers = set()
        with bar("reading", len(names), "trials") as advance:
            for done, name in enumerate(names, 1):
                numbers.add(self._read(name, now))
                advance(done)
        return numbers

    def _refresh_record(self) -> None:
        if (at := stamp(self.files.search)) == self._of_record:
            return
        try:
            self.record = read_search_record(self.files)
        except Exception as error:  # noqa: BLE001  (each storage has errors of its own)
            self.damaged[self.files.search.name] = str(not_read(self.files.search, error, ASKED_AGAIN))
            return
        self._of_record = at
        self.damaged.pop(self.files.search.name, None)

    def _read(self, name: str, now: dict[str, Stamp]) -> int:
        """Read a trial's file; what was known of it stays where it is damaged."""
        number, path = int(name.partition(".")[0]), self.files.trials / name
        self._seen[name] = now[name]
        try:
            self.trials[number] = read_trial(self.files, path)
        except Exception as error:  # noqa: BLE001
            self.damaged[name] = str(not_read(path, error, ASKED_AGAIN))
            if not isinstance(error, IntegrityError):
                self._seen[name] = ()
        else:
            self.damaged.pop(name, None)
        return number

    def as_result(self) -> SearchResult:
        """The same as one reading, for what the report computes."""
        trials = self.trials.copy()  # `refresh` may go on in another thread
        return SearchResult(self.files, self.record, tuple(trials[number] for number in sorted(trials)))

    def last_written(self) -> float:
        """When the newest report or end was written, seconds since 1970."""
        ends = (trial.ended or (trial.reports[-1].time if trial.reports else 0.0) for trial in self.trials.values())
        return max(ends, default=self.record.created)

    def state(self, now: float) -> State:
        """Whether the search is at work at `now`; without a lock that tells, by when it has last written."""
        if self.at_work:
            return "running"
        lost = {name for name in self.damaged if _is_record(name)} - {self.files.trial(one).name for one in self.trials}
        if self.record.has_ended(self.trials.values(), len(lost)):
            return "ended"
        told = is_local(self.files.root)
        return "running" if not told and now - self.last_written() < _LATELY_S else "interrupted"


def _is_record(name: str) -> bool:
    stem, _, suffix = name.partition(".")
    return suffix == "json" and 0 < len(stem) <= 8 and _DIGITS.issuperset(stem)

"""Write a search to trackers while it runs, and again after any break: each report once.

Reads the ledger and writes nothing near it. A tracker that cannot be written is said once and tried again after pauses;
what it has is asked of itself, so that nothing is doubled. So is a ledger that cannot be read: its search may be well.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Protocol

from ich_ray.errors import ConfigError, IchRayError, first_line
from ich_ray.progress import say
from ich_ray.results import find_search, read_search_record, read_trial
from ich_ray.search.export.trackers import parse_target
from ich_ray.storage import Location, SearchFiles, file_lock, is_held, locate, not_read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ich_ray.search.export.trackers import StreamTarget, Tracker
    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult

__all__ = ["TargetStream", "Wait", "has_ended", "stream"]

# A report is seen after this at the latest; a search that looks at its trials more often is none.
_EVERY_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
# Of a search that has ended: how often a tracker is tried that cannot be written, with pauses that double, and a
# ledger that cannot be read.
_LAST_TRIES = 4
_AGAIN = "run the same command again when it is"


class Wait(Protocol):
    """Waits for so many seconds; True if its reader is to end after one more pass."""

    def __call__(self, seconds: float) -> bool: ...


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def stream(
    search: Location,
    targets: Sequence[str],
    *,
    follow: bool = True,
    wait: Wait = _sleep,
    queue: bool = False,
    until_told: bool = False,
    flag: str = "--to",
) -> list[str]:
    """Write the trials of a search to trackers, as they come.

    Args:
        search: a search folder or URI, running or ended.
        targets: `NAME=PLACE` each, see `TRACKERS`.
        follow: until the search has ended; else what is there now.
        wait: between two looks at the ledger.
        queue: whether to wait for another process that writes a target, which is an error else.
        until_told: whether only `wait` ends it: a search that goes on may be over in its ledger until then.
        flag: that named the targets, for errors.

    Returns:
        How to open each of them, one line each.

    Raises:
        ConfigError: it cannot be done as asked.
        IchRayError: a tracker could not be written up to the end, or the ledger not be read; what could be is written.
    """
    ledger = _GrowingLedger(search)
    with ExitStack() as held:
        streams = [TargetStream(parse_target(one, flag)) for one in dict.fromkeys(targets)]
        for one in streams:
            lock = one.target.tracker.lock(one.target.place, ledger.record)
            held.enter_context(file_lock(locate(lock), f"the stream {one.target}", wait=queue))
            held.callback(one.close)
        told = not follow
        if not streams:
            raise ConfigError("--follow: a tracker to write must be given, got none; add --to tensorboard=FOLDER")
        while True:
            ledger.look()
            for one in streams:
                opened = bool(one.command)
                one.advance(ledger.record, ledger.trials)
                if follow and one.command and not opened:
                    say(f"{one.target}: {one.command}")
            is_over = has_ended(ledger.record, ledger.trials) and not _is_at_work(ledger.files)
            if told or (is_over and not until_told):
                break
            told = wait(_EVERY_S)
        tries = _LAST_TRIES if follow else 1
        ledger.look_again(tries - 1, wait)
        for one in streams:
            one.finish(ledger.record, ledger.trials, tries=tries, wait=wait)
        if ledger.problem:
            raise ledger.problem
        return [one.command for one in streams if one.command]


def has_ended(record: SearchRecord, trials: dict[int, TrialResult]) -> bool:
    """Whether all trials that are asked for have ended; one that was only interrupted has not."""
    check = record.ended
    return (
        check is not None
        and check.asked == record.wanted
        and len(trials) <= check.trials
        and all(trial.state != "running" for trial in trials.values())
    )


def _is_at_work(files: SearchFiles) -> bool:
    """Whether a driver is: one that resumes a search has not begun its first trial yet."""
    try:
        return is_held(files.lock)
    except (IchRayError, OSError):
        return False


class _GrowingLedger:
    """A ledger that is read again and again: a trial that has ended changes no more, and is read once.

    Attributes:
        problem: why it could not be read at the last look; what was known stays, and a damaged file hides no other.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, search: Location) -> None:
        self.files = find_search(search)
        self.record = read_search_record(self.files)
        self.trials: dict[int, TrialResult] = {}
        self.problem: IchRayError | None = None
        self._ended: set[str] = set()
        self._said = ""

    def look(self) -> None:
        """See what is new. The record comes first: trials that it counts as ended are there."""
        problem = self._read()
        told = str(problem or "")
        if problem and told != self._said:
            say(f"{told}; the ledger is read again, and what can be read is written")
        elif self.problem and not problem:
            say(f"{self.files.root}: the ledger can be read again")
        self.problem, self._said = problem, told

    def look_again(self, tries: int, wait: Wait) -> None:
        """Of a search that has ended: so often, while it cannot be read."""
        for attempt in range(tries):
            if not self.problem:
                return
            wait(2.0 ** (attempt + 1))
            self.look()

    def _read(self) -> IchRayError | None:
        """The first thing that is wrong, if anything is."""
        problem: IchRayError | None = None
        try:
            self.record = read_search_record(self.files)
            paths = [path for path in self.files.records() if path.name not in self._ended]
        except Exception as error:  # noqa: BLE001  (each storage has errors of its own)
            return not_read(self.files.root, error, _AGAIN)
        for path in paths:
            try:
                trial = read_trial(self.files, path)
            except Exception as error:  # noqa: BLE001
                problem = problem or not_read(path, error, _AGAIN)
                continue
            self.trials[trial.number] = trial
            if trial.state != "running":
                self._ended.add(path.name)
        return problem


class TargetStream:
    """One target, as far as it is written.

    Attributes:
        error: why it cannot be written now; empty if it can.
    """

    def __init__(self, target: StreamTarget, clock: Callable[[], float] = time.monotonic) -> None:
        self.target, self.error, self.command = target, "", ""
        self._clock = clock
        self._tracker: Tracker | None = None
        self._written: dict[int, tuple[int, str]] = {}
        self._pause, self._next = 0.0, 0.0
        self._stuck: set[int] = set()

    def advance(self, record: SearchRecord, trials: dict[int, TrialResult]) -> bool:
        """Write what is new, unless it is too early to try again.

        Returns:
            Whether all of it is written.

        Raises:
            IchRayError: of a kind that no second try mends.
        """
        if self._clock() < self._next:
            return False
        news = [trial for trial in trials.values() if self._written.get(trial.number) != _state(trial)]
        trial = None
        try:
            if self._tracker is None:
                self._tracker = self.target.tracker(self.target.place, record)
                self.command = self._tracker.command
            # One that the target would not take before waits, so that it does not keep others from it.
            for trial in sorted(news, key=lambda one: (one.number in self._stuck, one.number)):
                self._tracker.write(trial)
                self._written[trial.number] = _state(trial)
        except IchRayError:
            raise
        except Exception as error:  # noqa: BLE001  (libraries, servers and disks have errors of their own)
            if trial is not None:
                self._stuck.add(trial.number)
            self._fail(error)
            return False
        if self.error:
            say(f"{self.target}: can be written again")
        self.error, self._pause = "", 0.0
        self._stuck.clear()
        return True

    def _fail(self, error: Exception) -> None:
        self.close()
        self._pause = min(2 * self._pause or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        self._next = self._clock() + self._pause
        told = f"{type(error).__name__}: {first_line(error)}"
        if not self.error:
            say(f"{self.target}: cannot be written now ({told}); it is tried again with pauses")
        self.error = told

    def finish(self, record: SearchRecord, trials: dict[int, TrialResult], *, tries: int, wait: Wait) -> None:
        """Write what is left of a search of which nothing more comes.

        Raises:
            IchRayError: that cannot be done.
        """
        for attempt in range(tries):
            if attempt:
                wait(2.0**attempt)
            self._next = 0.0
            if self.advance(record, trials):
                return
        raise IchRayError(
            f"{self.target}: a tracker must take all trials, got {self.error}; run the same command again when it can "
            "be written, what it has is not repeated"
        )

    def close(self) -> None:
        """Let go of the target."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            with suppress(Exception):  # what it has is asked of it again
                tracker.close()


def _state(trial: TrialResult) -> tuple[int, str]:
    return trial.images_seen, trial.state

"""What happens in a search that is worth a message to people who are not there, and its words.

Counts and figures, the name of the search and numbers of trials: never a path, a machine's name, a parameter or the
text of an error. Sends nothing itself; told by the driver, and by a thread beside it that looks for a standstill.
"""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from ich_ray.notify.stage import ending_of
from ich_ray.search.progress_table import format_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from ich_ray.search.progress_table import SearchStatus
    from ich_ray.trial_records import TrialResult

__all__ = ["SearchMessages"]

# Between two messages of a kind. What happens meanwhile is in the next one.
_EVERY_S = {"gone": 600.0, "quarantine": 600.0, "standstill": 600.0, "better": 1800.0}
# While fewer have ended every other trial is a better one.
_FIRST_TRIALS = 5
# Longer between two looks, and it was this process that stood still: reports of that time are still to be read.
_STOOD_STILL_S = 30.0


class SearchMessages:
    """Decides and words the messages of one search; any thread may call it.

    Args:
        name: of the search.
        send: takes a message and returns at once.
        limit_s: how long there may be no report of any trial; asked by the driver alone.
        quarantines: that the search has had before.
        now: a clock that does not go back.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[str], None],
        limit_s: Callable[[], float],
        quarantines: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._send, self._limit_s, self._now = name, send, limit_s, now
        self._lock = threading.RLock()
        self._sent: dict[str, float] = {}
        self._held: dict[str, str] = {}
        self._gone: set[str] = set()
        self._moved, self._quarantines, self._shut = 0, quarantines, 0
        self._last_report = self._looked = now()
        self._limit, self._running = limit_s(), 0
        self._stands_still = False

    def reported(self) -> None:
        """A trial has reported."""
        with self._lock:
            quiet_s, self._last_report = self._now() - self._last_report, self._now()
            if self._stands_still:
                self._stands_still = False
                self._offer("standstill", f"reports come again, after {_minutes(quiet_s)} without any")

    def better(self, best: TrialResult, before: float | None, ended: int, wanted: int) -> None:
        """A trial has completed that is better than all before it."""
        if ended < _FIRST_TRIALS or before is None:
            return
        figures = f"{best.objective.metric} {best.value:.4f}, before {before:.4f}"
        self._offer("better", f"trial {best.number} is the best so far: {figures}; {ended} of {wanted} trials ended")

    def machine_gone(self, node: str) -> None:
        """An attempt was lost to a machine that is gone, or has left one that will be."""
        with self._lock:
            self._gone.add(node)
            self._moved += 1
            self._offer(
                "gone",
                f"{_machines(len(self._gone))} gone or to be taken away so far; {_attempts(self._moved)} went back to "
                "the queue and will go on from the newest state",
            )

    def step(self, running: int, quarantines: int) -> None:
        """What the driver knows every few seconds.

        Args:
            running: trials that run.
            quarantines: that the search has had.
        """
        with self._lock:
            self._limit, self._running = self._limit_s(), running
            if quarantines > self._quarantines:
                self._shut += quarantines - self._quarantines
                self._quarantines = quarantines
                times = "once" if self._shut == 1 else f"{self._shut} times"
                self._offer(
                    "quarantine",
                    f"a machine, or accelerators of one, went into quarantine {times} so far: attempts in a row were "
                    "lost there",
                )

    def look(self) -> None:
        """Say what was held back for long enough, and whether the search stands still."""
        with self._lock:
            gap_s, self._looked = self._now() - self._looked, self._now()
            if gap_s > _STOOD_STILL_S:
                self._last_report += gap_s
            quiet_s = self._now() - self._last_report
            if quiet_s > self._limit and not self._stands_still:
                self._stands_still = True
                trials = f"{self._running} trial{'s' * (self._running != 1)}"
                self._offer("standstill", f"no report of any trial for {_minutes(quiet_s)}, with {trials} running")
            self._release()

    def ended(self, status: SearchStatus) -> None:
        """All trials have ended, in this run."""
        if sum(status.ended.values()) > status.ended_before:
            self._say(f"has ended: {self._standing(status)}")

    def broken_off(self, status: SearchStatus, error: BaseException) -> None:
        """The search has ended before its end."""
        self._say(f"{ending_of(error)}: {self._standing(status)}; nothing is lost, and --resume goes on")

    def _standing(self, status: SearchStatus) -> str:
        ended = sum(status.ended.values())
        best = status.best
        told = [
            f"{ended} of {status.wanted} trials ended ({format_states(status.ended)})",
            f"{status.images:,} images in {timedelta(seconds=round(status.elapsed_s))}",
            f"{status.gpu_hours:,.1f} GPU hours" if status.gpu_hours is not None else "",
            f"best {status.metric} {best.value:.4f} (trial {best.number})" if best else "none completed",
            f"{_machines(len(self._gone))} gone" if self._gone else "",
            f"{self._shut} quarantine{'s' * (self._shut != 1)}" if self._shut else "",
        ]
        return ", ".join(filter(None, told))

    def _offer(self, kind: str, text: str) -> None:
        """Say it, or hold it back until enough time has gone by; a newer one takes its place."""
        with self._lock:
            self._held[kind] = text
            self._release()

    def _release(self) -> None:
        for kind, text in [*self._held.items()]:
            if self._now() - self._sent.get(kind, -math.inf) >= _EVERY_S[kind]:
                self._sent[kind] = self._now()
                del self._held[kind]
                self._say(text)

    def _say(self, text: str) -> None:
        self._send(f"search {self._name}: {text}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _machines(count: int) -> str:
    return f"{count} machine{'s' * (count != 1)}"


def _attempts(count: int) -> str:
    return f"{count} attempt{'s' * (count != 1)}"

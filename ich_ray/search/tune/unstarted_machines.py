"""Machines that the cluster tries to start and cannot, and why, noted in the ledger.

A Tune callback in the driver, for who asks why slots are empty. It asks the autoscaler once a minute while trials are
left to start, or were drawn and wait for a machine, and writes when what it is told has changed: a kind of machine
counts as not to be had until ten minutes have gone by without a failure, or no trial waits any more.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from ich_ray.progress import say
from ich_ray.search.cluster_resources import failed_launches
from ich_ray.search.tune.scheduler import in_queue
from ich_ray.search_records import LaunchNote

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.tune.experiment import Trial

    from ich_ray.search.cluster_resources import FailedLaunch
    from ich_ray.search.ledger import Ledger

__all__ = ["UnstartedMachines"]

_ASK_EVERY_S = 60.0
_GONE_AFTER_S = 600.0
# Of one driver: an autoscaler that says something else each time does not fill the record.
_MOST_WRITES = 100


class UnstartedMachines(Callback):
    """Keeps the ledger's word of machines that cannot be started.

    Args:
        ledger: of the search.
        waits: whether trials are left to be drawn that another machine could run.
        ask: the autoscaler.
        now: a clock that does not go back.
    """

    def __init__(
        self,
        ledger: Ledger,
        waits: Callable[[], bool],
        ask: Callable[[], list[FailedLaunch]] = failed_launches,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._waits, self._ask, self._now = ledger, waits, ask, now
        self._asked = now()
        self._writes = 0
        self._known = {_key(note): (note, now()) for note in ledger.record.unstarted}  # with when it was seen last

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002
        now = self._now()
        if now - self._asked < _ASK_EVERY_S:
            return
        self._asked = now
        if self._waits() or any(map(in_queue, trials)):
            self._hear(now)
        else:
            self._known = {}
        notes = [note for note, _ in self._known.values()]
        if notes != self._ledger.record.unstarted and self._writes < _MOST_WRITES:
            self._writes += 1
            self._ledger.amend(unstarted=[note.model_dump(mode="json") for note in notes])

    def _hear(self, now: float) -> None:
        for failed in self._ask():
            note = LaunchNote(kind=failed.kind, reason=failed.reason, time=failed.time)
            known = self._known.get(_key(note))
            if known is None:
                say(f"no machine of the kind {note.kind} can be started: {note.reason}; trials wait, or run elsewhere")
            self._known[_key(note)] = known[0] if known else note, now
        self._known = {key: known for key, known in self._known.items() if now - known[1] <= _GONE_AFTER_S}


def _key(note: LaunchNote) -> tuple[str, str]:
    """A kind of machine and a kind of reason: counts and ids in it differ each time."""
    return note.kind, re.sub(r"\d+", "#", note.reason.partition(":")[0])

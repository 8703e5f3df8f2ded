"""Which machines get no trials for a while, because what they are given fails there alone.

Told by the driver of every attempt that was lost to a fault of its machine or process, and of every report; decides
whose fault it was. Where a quarantine is over one trial goes first, and its report ends it. Starts nothing and knows
nothing of Ray: what a machine is asked stands in `is_admitted`, which the process of a trial calls on its own machine.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ich_ray.errors import IchRayError
from ich_ray.progress import say
from ich_ray.results import LostAttempt, QuarantineNote
from ich_ray.search.ledger import Verdict
from ich_ray.storage import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ich_ray.search.ledger import Ledger

__all__ = ["DECLINED", "DEVICE_ERROR", "Quarantine", "is_admitted"]

DEVICE_ERROR = "device_error"
# In the place of a fault's name: the process or machine was known to be sick, and nothing was lost.
DECLINED = "declined"
# Faults in a row on one machine, with no report from it between them, before it gets no more trials: one may be an
# accident, and a third costs a third attempt.
_IN_A_ROW = 2
# A trial that loses so many attempts to storage, with no report of its own between them, ends the search: nothing would
# come of more. Where the storage says that it is full, to all machines, one has lost less by then.
_UNWRITTEN, _UNWRITTEN_FULL = 5, 2
# On the only machine there is nothing to compare with: so many trials in a row must fail there, each of them twice.
_TRIALS_ALONE = 3


@dataclass
class _Machine:
    """Faults since its last good report: the trial of each."""

    host: str = ""
    faults: list[int] = field(default_factory=list)


class Quarantine:
    """Judges lost attempts, and writes into the ledger which machines are out.

    Args:
        ledger: of the search.
        machines: ids of the machines that are up.
        released_after_s: after which a machine is tried again.
    """

    def __init__(
        self,
        ledger: Ledger,
        machines: Callable[[], Iterable[str]],
        released_after_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger, self._machines, self._released_after_s, self._now = ledger, machines, released_after_s, now
        self._seen: dict[str, _Machine] = {}
        self._out = {note.node for note in ledger.record.quarantined}
        self._of_trial: dict[int, list[str]] = {}
        self._failed_alone: list[int] = []

    def lost(self, number: int, told: Mapping[str, Any]) -> Verdict | None:
        """Judge a lost attempt: None where the trial goes back to the queue, else how it ends.

        Args:
            number: of the trial.
            told: what its process said: `lost`, the fault's name, `detail`, `node` and `host`; `full` where a storage
                has no room.

        Raises:
            IchRayError: no machine is left that a trial could run on.
            OSError: the search's folder cannot be written from here either.
        """
        if told["lost"] == DECLINED:
            return None
        attempt = self._ledger.lose(number, told["lost"], told["detail"], told["node"], told["host"])
        say(f"trial {number}: {attempt.cause} fault on {attempt.host}, goes back to the queue ({attempt.detail[:160]})")
        if attempt.cause == "storage":
            self._check_storage(number, attempt.detail, _UNWRITTEN_FULL if told.get("full") else _UNWRITTEN)
        machine = self._seen.setdefault(attempt.node, _Machine())
        machine.host = attempt.host
        before = self._of_trial.setdefault(number, [])
        twice_here, elsewhere = attempt.node in before, {*before} - {attempt.node}
        well = twice_here and number not in machine.faults  # a report came from there between the two
        before.append(attempt.node)
        machine.faults.append(number)
        if (elsewhere or well) and attempt.cause != "storage":  # no parameters can be the fault of a folder
            self._clear_of(number)
            return self._failed(attempt, "on two machines" if elsewhere else "twice, where others run")
        if len(machine.faults) < _IN_A_ROW:
            return None
        if {*self._machines()} - {attempt.node} - self._out:
            self._shut(attempt, len(machine.faults))
            return None
        return None if attempt.cause == "storage" else self._alone(number, attempt, twice_here)

    def _check_storage(self, number: int, detail: str, most: int) -> None:
        """Ask the driver to write where a worker could not: a folder that takes nothing ends the search."""
        self._ledger.check_writable(number)
        trial = self._ledger.trials[number]
        since = [one for one in trial.lost if one.cause == "storage" and one.images_seen == trial.images_seen]
        if len(since) >= most:
            raise OSError(detail)

    def _alone(self, number: int, attempt: LostAttempt, twice_here: bool) -> Verdict | None:
        """On the last machine: a trial has two attempts, and a few such trials in a row end the search."""
        if not twice_here:
            return None
        self._failed_alone.append(number)
        if len(self._failed_alone) >= _TRIALS_ALONE:
            raise IchRayError(
                f"{self._ledger.files.root}: a trial needs a machine that it can run on, got {attempt.host}, where "
                f"the last {len(self._failed_alone)} trials failed twice each ({attempt.cause}: {attempt.detail}), "
                "and no other; mend or replace it and add --resume, nothing else is lost"
            )
        return self._failed(attempt, "twice in a row")

    def _failed(self, attempt: LostAttempt, where: str) -> Verdict:
        return Verdict("failed", DEVICE_ERROR, f"{attempt.cause} {where}: {attempt.detail}"[:500])

    def reported(self, node: str) -> None:
        """A report has come from a machine: what it is given runs there."""
        if not node:
            return
        self._failed_alone.clear()
        if machine := self._seen.get(node):
            machine.faults.clear()
        if node in self._out:
            self._release(node)

    def _shut(self, attempt: LostAttempt, count: int) -> None:
        before = [one for one in self._ledger.record.quarantines if one.node == attempt.node]
        for_s = self._released_after_s * 2 ** len(before)
        note = QuarantineNote(
            node=attempt.node, host=attempt.host, cause=attempt.cause, since=self._now(), until=self._now() + for_s
        )
        self._out.add(attempt.node)
        self._ledger.amend(quarantine=note.model_dump(mode="json"))
        say(
            f"machine {attempt.host} is in quarantine for {for_s:.0f} s: {count} attempts in a row were lost there "
            f"({attempt.cause}: {attempt.detail})"
        )

    def _release(self, node: str) -> None:
        self._out.discard(node)
        self._ledger.amend(released=node)
        say(f"machine {self._seen[node].host if node in self._seen else node} is out of quarantine: it works again")

    def _clear_of(self, number: int) -> None:
        """A trial was the only one to fail on a machine: so it was the trial."""
        for node in {*self._of_trial[number]}:
            machine = self._seen[node]
            if {*machine.faults} == {number}:
                machine.faults.clear()
                if node in self._out:
                    self._release(node)


def is_admitted(notes: Iterable[QuarantineNote], node: str, search: str, now: float) -> bool:
    """Whether a trial may start on this machine: outside of a quarantine, or as the first one after it.

    The first one keeps a lock of this machine for as long as its process lives.
    """
    note = next((note for note in notes if note.node == node), None)
    if note is None:
        return True
    return now >= note.until and _holds_lock(f"{search} {node} {note.since}")


@lru_cache
def _lock(name: str) -> FileLock:
    digest = sha256(name.encode())[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"ich-ray-first-{digest}.lock", mode=0o600)


def _holds_lock(name: str) -> bool:
    try:
        _lock(name).acquire(blocking=False)
    except (Timeout, OSError):
        return False
    return True

"""Which machines and devices get no trials for a while, as what they are given fails there alone.

Told by the driver of every attempt that was lost to a fault of its machine or process, and of every report; decides
whose fault it was. Counts by machine and device, as a report of one accelerator says nothing of the next; on CPUs by
machine. Where a quarantine is over one trial goes first, and its report ends it. Starts nothing and knows nothing of
Ray: what a machine is asked stands in `is_admitted`, which the process of a trial calls on its own machine.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from ich_ray.errors import IchRayError
from ich_ray.progress import say
from ich_ray.search.ledger import Verdict
from ich_ray.search_records import QuarantineNote
from ich_ray.storage import holds_machine_lock, sha256
from ich_ray.trial_records import PREEMPTED, LostAttempt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from ich_ray.search.ledger import Ledger
    from ich_ray.training.machine_faults import Fault

__all__ = ["DECLINED", "DEVICE_ERROR", "Quarantine", "is_admitted"]

DEVICE_ERROR = "device_error"
# In the place of a fault's name: the process or machine was known to be sick, and nothing was lost.
DECLINED = "declined"
# Faults that may be of what a trial holds of a machine; a full disk or a driver is of all of it.
_OF_DEVICES: tuple[Fault, ...] = ("device", "nccl")
# Faults that no parameters cause: two machines whose disks are full are two sick machines.
_OF_MACHINES: tuple[Fault, ...] = ("disk", "driver", "storage")
# Faults in a row on one device, with no report from it between them, before it gets no more trials: one may be an
# accident, and a third costs a third attempt.
_IN_A_ROW = 2
# A trial that loses so many attempts to storage, with no report of its own between them, ends the search: nothing would
# come of more. Where the storage says that it is full, to all machines, one has lost less by then.
_UNWRITTEN, _UNWRITTEN_FULL = 5, 2
# On the only machine there is nothing to compare with: so many trials in a row must fail there, each of them twice.
_TRIALS_ALONE = 3
# So long a quarantine lasts at most.
_LONGEST_S = 3600.0


class _Held(NamedTuple):
    """What an attempt held, by Ray's ids: a machine, and devices of it unless it computes on CPUs."""

    node: str
    devices: frozenset[str]

    @property
    def spots(self) -> frozenset[tuple[str, str]]:
        return frozenset((self.node, device) for device in self.devices or ("",))

    def is_apart(self, other: _Held) -> bool:
        """Whether two attempts had no device in common."""
        devices = bool(self.devices and other.devices) and self.devices.isdisjoint(other.devices)
        return self.node != other.node or devices


class Quarantine:
    """Judges lost attempts, and writes into the ledger which machines and devices are out.

    Args:
        ledger: of the search.
        machines: accelerators of the machines that are up, by id.
        released_after_s: after which a machine is tried again.
    """

    def __init__(
        self,
        ledger: Ledger,
        machines: Callable[[], Mapping[str, int]],
        released_after_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger, self._machines, self._released_after_s, self._now = ledger, machines, released_after_s, now
        self._out = [*ledger.record.quarantined]
        # Since the last report from there, the trials that were lost on a device, and on a machine with where.
        self._faults: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._in_a_row: defaultdict[str, list[tuple[int, _Held]]] = defaultdict(list)
        self._of_trial: defaultdict[int, list[tuple[int, _Held]]] = defaultdict(list)
        self._failed_alone: list[int] = []

    def lost(self, number: int, told: Mapping[str, Any]) -> Verdict | None:
        """Judge a lost attempt: None where the trial goes back to the queue, else how it ends.

        Args:
            number: of the trial.
            told: what its process said: `lost`, the fault's name, `detail`, `node`, `host` and `devices`; `full` where
                a storage has no room.

        Raises:
            IchRayError: no machine is left that a trial could run on.
            OSError: the search's folder cannot be written from here either.
        """
        if told["lost"] == DECLINED:
            return None
        devices = told.get("devices", ()) if told["lost"] in _OF_DEVICES else ()
        attempt = self._ledger.lose(number, told["lost"], told["detail"], told["node"], told["host"], devices)
        place, of_storage = attempt.place, attempt.cause == "storage"
        if attempt.cause == PREEMPTED:
            say(f"trial {number}: leaves {place} with its newest checkpoint, {attempt.detail}")
            return None
        say(f"trial {number}: {attempt.cause} fault on {place}, goes back to the queue ({attempt.detail[:160]})")
        if of_storage:
            self._check_storage(number, attempt, _UNWRITTEN_FULL if told.get("full") else _UNWRITTEN)
        held = _Held(attempt.node, frozenset(attempt.devices))
        # What was met before a report of its own says nothing against its parameters: they have got beyond it.
        before = [earlier for seen, earlier in self._of_trial[number] if seen == attempt.images_seen]
        here = {spot for earlier in before for spot in earlier.spots & held.spots}
        well = bool(here) and all(number not in self._faults[spot] for spot in here)  # a report came between the two
        self._of_trial[number].append((attempt.images_seen, held))
        self._in_a_row[held.node].append((number, held))
        for spot in held.spots:
            self._faults[spot].append(number)
        several = self._failed_on_two(held, before)
        if (well or several) and attempt.cause not in _OF_MACHINES:
            self._clear_of(number)
            return self._failed(attempt, "twice, where others run" if well else f"on two {several}")
        sick = self._sick(held)
        if sick is None:
            return None
        if self._is_room_beside(held, sick):
            self._shut(attempt, sick)
            return None
        twice_here = any(earlier.node == held.node for earlier in before)
        return None if of_storage else self._alone(number, attempt, twice_here)

    def _check_storage(self, number: int, attempt: LostAttempt, most: int) -> None:
        """Ask the driver to write where a worker could not: a folder that takes nothing ends the search.

        One machine that cannot write does not, as long as there are others.
        """
        self._ledger.check_writable(number)
        trial = self._ledger.trials[number]
        since = [one for one in trial.lost if one.cause == "storage" and one.images_seen == trial.images_seen]
        alone = not self._is_room_beside(_Held(attempt.node, frozenset()), frozenset())
        if len(since) >= most and (alone or len({one.node for one in since}) > 1):
            raise OSError(attempt.detail)

    def _failed_on_two(self, held: _Held, before: Iterable[_Held]) -> str:
        """Of what a trial has failed on two; of devices of one machine only while nothing says that all of it is sick.

        Empty where it has not.
        """
        apart = [earlier for earlier in before if held.is_apart(earlier)]
        if any(earlier.node != held.node for earlier in apart):
            return "machines"
        return "devices" if apart and not self._is_sick_as_a_whole(held.node) else ""

    def _is_sick_as_a_whole(self, node: str) -> bool:
        """Whether several trials failed in a row on a machine, on several of its devices."""
        row = self._in_a_row[node]
        return any(one != other and here.is_apart(there) for one, here in row for other, there in row)

    def _sick(self, held: _Held) -> frozenset[str] | None:
        """Devices where attempts have failed in a row, none for the whole machine; None where that is not so."""
        if self._is_sick_as_a_whole(held.node):
            return frozenset()
        devices = [device for node, device in held.spots if len(self._faults[node, device]) >= _IN_A_ROW]
        return frozenset(filter(None, devices)) if devices else None

    def _is_room_beside(self, held: _Held, sick: frozenset[str]) -> bool:
        """Whether trials can run on another machine, or on other devices of this one."""
        for node, devices in self._machines().items():
            out = [{*note.devices} for note in self._out if note.node == node] + [{*sick}] * (node == held.node)
            if all(out) and devices - len(set[str]().union(*out)) >= len(held.devices):
                return True
        return False

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

    def reported(self, node: str, devices: Iterable[str] = (), admitted: float = 0.0) -> None:
        """A report has come from devices of a machine: what they are given runs there.

        Args:
            node: the machine.
            devices: that the trial holds.
            admitted: when its attempt began; one of before says nothing about the end of a quarantine.
        """
        if not node:
            return
        held = _Held(node, frozenset(devices))
        self._failed_alone.clear()
        self._in_a_row.pop(node, None)
        for spot in {*held.spots, (node, "")}:
            self._faults[spot].clear()
        for note in [*self._out]:
            if admitted >= note.until and note.covers(node, held.devices):
                self._release(note)

    def _shut(self, attempt: LostAttempt, sick: frozenset[str]) -> None:
        devices, now = tuple(sorted(sick)), self._now()
        there = [note for note in self._out if note.node == attempt.node and note.devices in ((), devices)]
        if any(now < note.until for note in there):
            return  # it was out already: an attempt that had begun before
        self._out = [note for note in self._out if (note.node, note.devices) != (attempt.node, devices)]
        before = [one for one in self._ledger.record.quarantines if (one.node, one.devices) == (attempt.node, devices)]
        for_s = min(_LONGEST_S, self._released_after_s * 2 ** min(len(before), 60))
        note = QuarantineNote(
            node=attempt.node, host=attempt.host, devices=devices, cause=attempt.cause, since=now, until=now + for_s
        )
        self._out.append(note)
        self._ledger.amend(quarantine=note.model_dump(mode="json"))
        say(
            f"machine {note.place} is in quarantine for {for_s:.0f} s: attempts in a row were lost there "
            f"({attempt.cause}: {attempt.detail})"
        )

    def _release(self, note: QuarantineNote) -> None:
        self._out.remove(note)
        self._ledger.amend(released=note.node, **({"released_devices": note.devices} if note.devices else {}))
        say(f"machine {note.place} is out of quarantine: it works again")

    def _clear_of(self, number: int) -> None:
        """A trial was the only one to fail on a device: so it was the trial."""
        for note in [*self._out]:
            there = (failed for (node, device), failed in self._faults.items() if note.covers(node, [device]))
            if {one for failed in there for one in failed} == {number}:
                self._release(note)
        for failed in self._faults.values():
            if {*failed} == {number}:
                failed.clear()
        for node, row in self._in_a_row.items():
            self._in_a_row[node] = [one for one in row if one[0] != number]


def is_admitted(notes: Iterable[QuarantineNote], node: str, devices: Collection[str], search: str, now: float) -> bool:
    """Whether a trial may start on these devices: outside of a quarantine, or as the first one after it.

    The first one keeps a lock of this machine for as long as its process lives.
    """
    covering = [note for note in notes if note.covers(node, devices)]
    return all(now >= note.until for note in covering) and all(
        _holds_lock(" ".join([search, node, *note.devices, str(note.since)])) for note in covering
    )


def _holds_lock(name: str) -> bool:
    try:
        return holds_machine_lock(f"first-{sha256(name.encode())[:16]}")
    except OSError:
        return False

"""The end of an attempt at a trial by no fault of its own, told by the process that it ends with.

And its beginning: a process that has met a fault, whose machine or device is in quarantine, or whose machine will be
taken away, gives its trial back.
"""

from __future__ import annotations

import platform
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from ich_ray.errors import IchRayError
from ich_ray.search.tune.preemption import draining, format_deadline, is_draining, watch_notices
from ich_ray.search.tune.quarantine import DECLINED, is_admitted
from ich_ray.search.tune.train_workers import WorkersLost
from ich_ray.search_records import SearchRecord
from ich_ray.storage import SearchFiles, locate, read_record
from ich_ray.trial_records import PREEMPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ich_ray.search_records import QuarantineNote

__all__ = ["admitted", "borrow", "devices_held", "leave_if_draining", "lose", "node_id"]

# Set by a fault that later trials of this process would meet as well.
_faulty = threading.Event()
# By a trial that has grown, see grown_trial.py; until the next one is let in, so that `lose` tells them after its end.
_borrowed: list[str] = []


def admitted(search: str, declined_s: float) -> float:
    """When this attempt was let in; what was found to be sick gives its trial back.

    That is this process, its machine or a device that it holds; so does a machine that will be taken away. Nothing is
    counted then.

    Args:
        search: its folder, whose ledger says who is out.
        declined_s: how long the trial waits here before it goes back.

    Raises:
        WorkersLost: it was.
    """
    watch_notices()
    borrow(())
    if not _faulty.is_set() and not is_draining(node_id()):
        out, now = _quarantined(search), time.time()
        if not out or is_admitted(out, node_id(), devices_held(), search, now):
            return now
        time.sleep(declined_s)  # it comes back at once as long as no other machine is free
    lose(DECLINED, "")
    raise WorkersLost("this machine or process gets no trials")


def leave_if_draining(finish: Callable[[], object]) -> None:
    """Give the trial back where this machine will be taken away; call it after a report.

    Args:
        finish: returns when the state of that report is whole.

    Raises:
        WorkersLost: it will.
    """
    deadline_ms = draining().get(node_id())
    if deadline_ms is not None:
        finish()
        detail = f"the machine is taken away {format_deadline(deadline_ms)}"
        lose(PREEMPTED, detail)
        raise WorkersLost(detail)


def _quarantined(search: str) -> list[QuarantineNote]:
    """Machines that are out by the ledger; none where it cannot be read now."""
    try:
        return read_record(SearchFiles(locate(search)).search, SearchRecord, "restore the file").quarantined
    except (IchRayError, OSError):
        return []


def lose(cause: str, detail: str, *, full: bool = False) -> None:
    """Tell the driver that this attempt ends by no fault of its own, before it ends."""
    _faulty.set()
    told: dict[str, Any] = {"lost": cause, "detail": detail, "node": node_id(), "host": platform.node()}
    told |= {"full": True} if full else {}
    tune.report({**told, "devices": devices_held()} if devices_held() else told)


def node_id() -> str:
    """Ray's id of this machine; empty without Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def devices_held() -> list[str]:
    """Ray's ids of the accelerators that this trial holds, all of its workers together."""
    held = [*ray.get_gpu_ids(), *_borrowed] if ray.is_initialized() else []
    return sorted(str(device).replace("/", "-") for device in held)  # MIG-GPU-UUID/1/0 of older drivers


def borrow(devices: Iterable[str]) -> None:
    """The accelerators that this process's trial holds beside its own, from now on."""
    _borrowed[:] = devices

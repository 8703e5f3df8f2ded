"""Exit codes, why trials end early or fail, and why attempts at them are lost, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.errors import IchRayError, Rejection, TrialFailure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CAUSES", "CODES", "ENDS", "ends_of_trials", "errors", "exit_codes", "lost_attempts"]

# Codes that no error has, and those that say more than their errors do.
CODES = {
    0: "All good. What is excluded is no fault.",
    1: "The work failed, or `doctor` found an error, or every trial of a search failed.",
    2: "What was asked cannot be done as written: a flag, a path, a search space, a label table.",
    3: "Done, but some inputs were rejected, within `--limit-rejected` where there is one; or `predict` was given no "
    "slice at all, or could not write the report of a study with `--dicom-sr`.",
    4: "More inputs were rejected than `--limit-rejected` allows; what was accepted is kept.",
    5: "A file is not what its manifest says; `audit` found something.",
    130: "Interrupted, by Ctrl-C or SIGTERM. Nothing finished is lost: run it again, a search with `--resume`.",
}

# Of each state the reasons that a trial file has; N is a number.
ENDS: Mapping[str, Mapping[str, str]] = {
    "pruned": {
        "rung_N": "at N images it was not among the best share that goes on.",
        "folds_N": "after N folds it could not be the best any more.",
        "hours": "the search's `--hours` were over.",
        "gpu_hours": "the search's `--gpu-hours` were used up.",
        "target": "the search's `--target` was reached.",
        "patience": "the search's `--patience` was over.",
        "stopped_by_request": "`ich-ray control --stop-trial` ended it.",
    },
    "failed": {
        "diverged": "its loss, a logit or the objective was not finite.",
        "out_of_memory": "it did not fit into memory, also with a larger share where shares are planned.",
        "error": "training raised an error, which `detail` has.",
        "worker_died": "its process died again and again, with no progress between.",
        "device_error": "faults of a device or machine ended it twice where others run, on two, or on the last.",
    },
}

CAUSES: Mapping[str, str] = {
    "preempted": "the machine was taken away, with a notice.",
    "node_lost": "the machine was gone, without one.",
    "silent": "the process said nothing for too long, as in a deadlock, and was ended.",
    "out_of_memory": "memory ran out; the trial gets a larger share.",
    "device": "an error of the accelerator.",
    "nccl": "an error of the communication between accelerators.",
    "driver": "no driver, or one that is too old, or no accelerator where one was promised.",
    "disk": "the disk is full, or cannot be written.",
    "storage": "a shared folder or object store cannot be reached from this machine.",
    "import": "a package cannot be imported on this machine.",
}


def exit_codes() -> str:
    """A row a code with the errors that have it."""
    rows = []
    for code, meaning in CODES.items():
        names = ", ".join(f"`{kind.__name__}`" for kind in errors() if kind.exit_code == code)
        rows.append((str(code), meaning, names))
    return _table(("code", "meaning", "errors, from Python"), rows)


def errors() -> list[type[IchRayError]]:
    """Every error that ends a command; rejections and failures of trials become rows and records."""
    found, waiting = [], [IchRayError]
    while waiting:
        kind = waiting.pop(0)
        if kind not in {Rejection, TrialFailure} and kind.__module__ == IchRayError.__module__:
            found.append(kind)
        waiting += kind.__subclasses__()
    return found


def ends_of_trials() -> str:
    rows = [(state, f"`{reason}`", why) for state, reasons in ENDS.items() for reason, why in reasons.items()]
    return _table(("state", "reason", "the trial ended because"), rows)


def lost_attempts() -> str:
    return _table(("cause", "the attempt was lost because"), [(f"`{cause}`", why) for cause, why in CAUSES.items()])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

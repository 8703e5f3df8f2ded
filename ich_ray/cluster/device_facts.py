"""Accelerators of this machine: each computes in a process of its own; what their driver says.

A fault of one device leaves the others, and this process, as they were.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ich_ray.cluster import device_kernel
from ich_ray.cluster.time_limits import Question, answers
from ich_ray.errors import first_line
from ich_ray.storage import Count, Line, Record, Text, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["ASKED_WITHIN_S", "DeviceFacts", "Devices", "ask_devices"]

# PyTorch loads within a minute from a slow share, too. Then it loads for all devices at once, and each has some seconds
# for its kernel.
_SURVEY_WITHIN_S, _KERNEL_WITHIN_S = 60.0, 120.0
# With a sick device it may never answer.
_DRIVER_WITHIN_S = 15.0
# One after the other: what is there, what each computes; the driver is asked beside them.
ASKED_WITHIN_S = _SURVEY_WITHIN_S + _KERNEL_WITHIN_S + 10.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_XID = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")


class DeviceFacts(Record):
    """One accelerator.

    Attributes:
        number: by which processes choose it, an index or the UUID of a slice.
        tflops: of a float32 matmul; 0 if it did not come to that.
        is_full: that other processes hold its memory.
        problem: with its kernel, empty if none.
    """

    number: Line
    name: Line = ""
    memory_bytes: Count = 0
    tflops: Annotated[float, Field(ge=0)] = 0.0
    is_full: bool = False
    problem: Text = ""

    @property
    def kind(self) -> str:
        """Its name and memory, as slices of one accelerator have one name."""
        return f"{self.name or 'unknown'} ({self.memory_bytes / (1 << 30):.0f} GiB)"


class Devices(Record):
    """All accelerators of a machine.

    Attributes:
        seen: by PyTorch, or why it sees none at all.
        cuda: that PyTorch was built for, empty for CPUs alone.
        hints: of the driver and the kernel: ECC errors, Xid.
    """

    seen: Count | Text = 0
    cuda: Line = ""
    hints: tuple[Text, ...] = ()
    found: tuple[DeviceFacts, ...] = ()


def ask_devices(is_of_ray: bool = False, run: Callable[..., dict[str, Any]] | None = None) -> Devices:
    """What there is, what each computes, and what the driver says.

    Args:
        is_of_ray: whether this is a task of Ray's, which hides accelerators from those that asked for none.
        run: as `_run`, to plant devices.
    """
    run = run or _run
    seen = os.environ.get(_VISIBLE)
    if is_of_ray and not seen:
        seen = None
    told, missing = answers({
        "survey": Question(_SURVEY_WITHIN_S + 5, lambda: run((), seen)),
        "hints": Question(3 * _DRIVER_WITHIN_S + 5, _hints),
    })  # fmt: skip
    survey = told.get("survey") or {"problem": missing["survey"]}
    hints = told.get("hints", (f"no answer, {missing.get('hints')}",))
    if "problem" in survey:
        return Devices(seen=survey["problem"], hints=hints)
    numbers = [str(each) for each in range(survey["count"])] if seen is None else seen.split(",")[: survey["count"]]
    kernels = {number: Question(_KERNEL_WITHIN_S + 5, _kernel(run, number)) for number in numbers}
    computed, late = answers(kernels)
    found = tuple(_facts(number, computed.get(number) or {"problem": late[number]}) for number in numbers)
    return Devices(seen=survey["count"], cuda=survey["cuda"], hints=hints, found=found)


def _kernel(run: Callable[..., dict[str, Any]], number: str) -> Callable[[], dict[str, Any]]:
    return lambda: run(("cuda:0",), number)


def _facts(number: str, told: Mapping[str, Any]) -> DeviceFacts:
    return DeviceFacts(
        number=number,
        name=told.get("name", ""),
        memory_bytes=told.get("memory_bytes", 0),
        tflops=told.get("tflops", 0.0),
        is_full=told.get("full", False),
        problem=told.get("problem", ""),
    )


def _run(arguments: Sequence[str], visible: str | None) -> dict[str, Any]:
    """What the script says in a process that sees these devices; all of them with None."""
    environ = {name: value for name, value in os.environ.items() if name != _VISIBLE}
    if visible is not None:
        environ[_VISIBLE] = visible
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(device_kernel.__file__)), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=environ,
    )  # fmt: skip
    within_s = _KERNEL_WITHIN_S if arguments else _SURVEY_WITHIN_S
    try:
        out, complaint = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: one that hangs in a driver does not end
        return {"problem": f"nothing within {within_s:g} s"}
    try:
        told: dict[str, Any] = parse_json(out.strip().rpartition("\n")[2])
    except ValueError:
        last = complaint.strip().rpartition("\n")[2]
        return {"problem": f"a process that ended with {process.returncode}{': ' * bool(last)}{last}"}
    return told


def _hints() -> tuple[str, ...]:
    """What the driver has against devices; nothing where there is no `nvidia-smi`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        listed = _rows(program, "--query-gpu=index,ecc.errors.uncorrected.volatile.total")
    except (OSError, subprocess.SubprocessError) as error:
        return (f"no answer of nvidia-smi, {first_line(error)}",)
    errors = tuple(
        f"{row[1]} uncorrected ECC errors of GPU {row[0]}" for row in listed if row[1].strip("0").isdecimal()
    )
    return (*errors, *_xids())


def _rows(program: str, query: str) -> list[list[str]]:
    done = subprocess.run(
        [program, query, "--format=csv,noheader,nounits"],
        capture_output=True, text=True, errors="replace", check=True, timeout=_DRIVER_WITHIN_S,
    )  # fmt: skip
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [row for row in rows if len(row) == 2]


def _xids() -> tuple[str, ...]:
    """Xid errors since the machine was started, where this user may read the kernel's messages."""
    program = shutil.which("dmesg")
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program], capture_output=True, text=True, errors="replace", check=True, timeout=_DRIVER_WITHIN_S
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    counted: dict[tuple[str, str], int] = {}
    for place, number in _XID.findall(done.stdout):
        counted[place, number] = counted.get((place, number), 0) + 1
    return tuple(f"{times} x Xid {number} of {place}" for (place, number), times in counted.items())

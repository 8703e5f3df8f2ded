"""Errors that are of a machine or a process and not of what it computes.

Torch need not be there to tell them. After most of them every further call of the process fails, too, as after an
assertion or an ECC error of a device.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Literal, get_args

from ich_ray.storage import errors_behind, is_of_storage
from ich_ray.training.memory import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAULTS", "Fault", "machine_fault"]

# `storage` is a shared folder or an object store as this machine sees it.
Fault = Literal["device", "nccl", "driver", "disk", "storage", "import"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

# In the words of PyTorch 2.14, NCCL 2 and CUDA 13; what a device says is looked at last, as NCCL repeats it.
_WORDS: Mapping[Fault, re.Pattern[str]] = {
    "driver": re.compile(
        r"No CUDA GPUs are available|Found no NVIDIA driver|driver on your system is too old|CUDA driver initialization"
        r"|CUDA unknown error - this may be due to|Torch not compiled with CUDA|promised an accelerator"
    ),
    "nccl": re.compile(r"NCCL (?:[Ee]rror|communicator was aborted)|nccl(?:UnhandledCuda|System|Internal|Remote)Error"),
    "device": re.compile(
        r"CUDA (?:driver )?error|HIP error|device-side assert"
        r"|CU(?:BLAS|DNN)_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)"
    ),
}
_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def machine_fault(error: BaseException) -> Fault | None:
    """Which fault of a machine or process an error is of; None where it may be of the trial itself.

    Memory that ran out is none: a smaller trial has room in the same process.
    """
    if isinstance(error, Exception) and out_of_memory(error) is not None:
        return None
    if isinstance(error, ImportError):
        return "import"
    if any(isinstance(one, OSError) and one.errno in _DISK for one in errors_behind(error)):
        return "disk"
    if is_of_storage(error):
        return "storage"
    if not isinstance(error, RuntimeError | AssertionError):  # all that torch raises for a device is one of them
        return None
    return next((fault for fault, words in _WORDS.items() if words.search(str(error))), None)

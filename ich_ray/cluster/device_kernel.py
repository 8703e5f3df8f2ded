"""A small matmul and a sum on one device, compared with the CPU's: a script for a process of its own.

`python -P device_kernel.py` prints what PyTorch sees here, `python -P device_kernel.py DEVICE` what that device
computes, as a line of JSON. Imports nothing of this package, so that it runs wherever PyTorch does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

__all__ = ["compute", "survey"]

# Three matrices of 4 MB.
_SIDE = 1024
# Clocks of an idle accelerator rise within this time; then the best of some rounds counts.
_WARM_S, _ROUNDS, _CALLS = 0.3, 5, 20


def survey() -> dict[str, Any]:
    """How many devices there are; opens none of them."""
    import torch

    return {"count": torch.cuda.device_count(), "cuda": torch.version.cuda or torch.version.hip or ""}


def compute(device: str) -> dict[str, Any]:
    """What a device is, whether it computes as the CPU does, and how fast.

    The matrices hold small whole numbers, so that float32, and TensorFloat-32, is exact in any order of additions.
    """
    import torch

    found: dict[str, Any] = {}
    try:
        if device.startswith("cuda"):
            facts = torch.cuda.get_device_properties(device)
            found |= {"name": facts.name, "memory_bytes": facts.total_memory}
        numbers = torch.Generator().manual_seed(0)
        left, right = (torch.randint(-8, 8, (_SIDE, _SIDE), generator=numbers).float() for _ in range(2))
        there = left.to(device), right.to(device)
        product, total = (there[0] @ there[1]).cpu(), float(there[0].sum())
        if not torch.equal(product, left @ right):
            found["problem"] = f"another product in {int((product != left @ right).sum()):,} of {_SIDE**2:,} places"
        elif total != float(left.double().sum()):
            found["problem"] = f"another sum, {total:g}"
        else:
            found["tflops"] = _tflops(there, device)
    except torch.cuda.OutOfMemoryError:
        found["full"] = True
    except Exception as error:  # noqa: BLE001  (whatever a sick device raises is the answer)
        found["problem"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return found


def _tflops(matrices: tuple[Any, Any], device: str) -> float:
    import torch

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(_CALLS):
            matrices[0] @ matrices[1]
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    warm_until = time.perf_counter() + _WARM_S
    while time.perf_counter() < warm_until:
        seconds()
    return 2 * _SIDE**3 * _CALLS / min(seconds() for _ in range(_ROUNDS)) / 1e12


if __name__ == "__main__":
    try:
        told = compute(sys.argv[1]) if len(sys.argv) > 1 else survey()
    except Exception as error:  # noqa: BLE001  (a broken installation fails in any way; that is the answer)
        told = {"problem": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    os.write(1, json.dumps(told).encode())  # to the process that has asked, and to no terminal

from __future__ import annotations

import errno
import os

import pytest
import torch

from ich_ray.errors import ConfigError, TrialFailure
from ich_ray.training.machine_faults import Fault, machine_fault

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:2251, unhandled cuda error, NCCL version 2.26"


def translated(error: OSError) -> ConfigError:
    """As `storage.exists` tells it."""
    told = ConfigError("/x: must be a place where this user may look")
    told.__context__ = error
    return told


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.AcceleratorError(ASSERT), "device"),
        (RuntimeError("CUDA error: unspecified launch failure"), "device"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), "device"),
        (torch.distributed.DistBackendError(NCCL), "nccl"),
        (RuntimeError("No CUDA GPUs are available"), "driver"),
        (RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"), "driver"),
        (AssertionError("Torch not compiled with CUDA enabled"), "driver"),
        (RuntimeError("the trial was promised an accelerator and sees none"), "driver"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), "disk"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x"), "disk"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/x"), "storage"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/x"), "storage"),
        (OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "/x"), "storage"),
        (translated(OSError(errno.EROFS, os.strerror(errno.EROFS), "/x")), "disk"),
        (TimeoutError("a queue of the trial's own"), None),
        (ImportError("libcudnn.so.9: cannot open shared object file"), "import"),
        # What may be of the trial itself.
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), None),
        (torch.AcceleratorError("CUDA error: out of memory"), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("CUDA error is a word in a message"), None),
        (TrialFailure("diverged", "loss is nan"), None),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/x"), None),
    ],
)
def test_faults_of_machines_are_told_from_those_of_trials(error: Exception, fault: Fault | None) -> None:
    assert machine_fault(error) == fault


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an accelerator")
def test_what_torch_says_here_without_an_accelerator_is_a_fault_of_its_driver() -> None:
    with pytest.raises((RuntimeError, AssertionError)) as raised:
        torch.zeros(1).cuda()
    assert machine_fault(raised.value) == "driver"

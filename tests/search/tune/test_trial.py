from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ich_ray.errors import TrialFailure
from ich_ray.search.tune.trial import as_failure, checkpoints_of
from ich_ray.storage import SearchFiles, locate


def test_checkpoints_of_a_trial_lie_below_its_number(tmp_path: Path) -> None:
    files = SearchFiles(locate(tmp_path))
    assert str(checkpoints_of(files, 3).folder) == str(tmp_path / "checkpoints" / "00003")


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (TrialFailure("diverged", "loss is nan"), "diverged", "loss is nan"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        (MemoryError("host"), "out_of_memory", "MemoryError: host"),
        (ValueError("planted"), "error", "ValueError: planted"),
    ],
)
def test_every_error_becomes_a_reason(error: Exception, reason: str, detail: str) -> None:
    failure = as_failure(error)
    assert (failure.reason, failure.detail) == (reason, detail)

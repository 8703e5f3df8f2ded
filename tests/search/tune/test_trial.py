from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ich_ray.errors import TrialFailure
from ich_ray.search.tune.trial import as_failure, checkpoints_of
from ich_ray.storage import SearchFiles, locate
from tests.search.fakes import FakeProgress


def test_checkpoints_of_a_trial_lie_below_its_number(tmp_path: Path) -> None:
    files = SearchFiles(locate(tmp_path))
    assert str(checkpoints_of(files, 3).folder) == str(tmp_path / "checkpoints" / "00003")


@pytest.mark.parametrize(
    "report", [{}, [], {"images_seen": "x"}, {"elapsed_s": -1.0}, {"metrics": {"a\x1b[2J": 1.0}}, {"more": 1}]
)
def test_reports_that_no_ledger_would_take_are_damage(report: Any, tmp_path: Path) -> None:
    files, good = SearchFiles(locate(tmp_path)), {"images_seen": 200, "metrics": {}, "elapsed_s": 1.0}
    store = checkpoints_of(files, 3)
    for seen in (100, 200):
        newest = store.save(FakeProgress(seen, {}, 1.0), [{**good, "images_seen": seen}])
    index = Path(str(newest.file.with_suffix(".json")))
    reports = [good | report if isinstance(report, dict) and report else report]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"reports": reports}))
    kept = checkpoints_of(files, 3).newest()
    assert kept is not None
    assert kept.images_seen == 100


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (TrialFailure("diverged", "loss is nan"), "diverged", "loss is nan"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "OutOfMemoryError: CUDA out of memory"),
        (MemoryError("host"), "out_of_memory", "MemoryError: host"),
        (RuntimeError("STATUS_ALLOC_FAILED"), "out_of_memory", "RuntimeError: STATUS_ALLOC_FAILED"),
        (ValueError("planted"), "error", "ValueError: planted"),
    ],
)
def test_every_error_becomes_a_reason(error: Exception, reason: str, detail: str) -> None:
    failure = as_failure(error)
    assert (failure.reason, failure.detail) == (reason, detail)

"""Processes that say nothing any more, for real: a deadlock, a read that never returns, a stopped process."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ich_ray.search.audit.search_audit import audit
from ich_ray.search.run import run_search
from ich_ray.search.tune import driver
from tests.prepared import make_dataset
from tests.search.fakes import SPACE, FakeProgress, FakeTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

How = Literal["collective", "read", "stopped"]


@dataclass(frozen=True)
class Silent:
    """A trainer whose first process falls silent for good after two reports; `once` then holds its number."""

    how: How
    once: str
    log: str

    def __call__(self, *arguments: Any) -> Generator[FakeProgress, None, None]:
        for step in FakeTrainer(wait_s=0.05, log=self.log)(*arguments):
            if step.images_seen == 300 and not Path(self.once).exists():
                Path(self.once).write_text(str(os.getpid()))
                self.fall_silent()
            yield step

    def fall_silent(self) -> None:
        if self.how == "collective":  # the other one of two never comes
            store = torch.distributed.FileStore(f"{self.once}.group", 2)
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=2)
        elif self.how == "read":
            os.mkfifo(f"{self.once}.fifo")
            Path(f"{self.once}.fifo").read_bytes()
        else:
            os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize(
    ("how", "state"),
    [("collective", "there and "), ("read", "there and waiting"), ("stopped", "there and stopped")],
)
def test_a_silent_process_costs_an_attempt_and_no_trial(
    how: How, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SILENT_S", 4.0)
    said: list[str] = []
    for name in ("watchdog", "quarantine"):
        monkeypatch.setattr(f"ich_ray.search.tune.{name}.say", said.append)
    make_dataset(tmp_path / "data", patients=12, size=16)
    (tmp_path / "space.yaml").write_text(SPACE)
    trainer = Silent(how, str(tmp_path / "once"), str(tmp_path / "log"))
    found = run_search(
        tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s", trials=3, concurrent=1, cpus_per_trial=1,
        _trainer=trainer,
    )  # fmt: skip
    assert found.count("failed") == 0
    (attempt,) = [one for trial in found.trials for one in trial.lost]
    pid = (tmp_path / "once").read_text()
    assert (attempt.cause, attempt.images_seen) == ("silent", 200)
    assert f"process {pid}: {state}" in attempt.detail
    assert any("no report for " in line and "it is ended" in line for line in said)
    assert not Path(f"/proc/{pid}").exists()
    trained = (tmp_path / "log").read_text().splitlines()
    assert len(trained) == sum(len(trial.reports) for trial in found.trials) + 1, "it went on from its newest state"
    assert audit(tmp_path / "s").breached == ()

"""Processes and machines that fail whatever they are given, with errors as torch raises them; planted."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from ich_ray.results import SearchResult, open_search
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.run import run_search
from ich_ray.search.tune import driver
from tests.prepared import make_dataset
from tests.search.fakes import SPACE, FakeProgress, FakeTrainer
from tests.search.machines import running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Sick:
    """A trainer that fails at once in what a file names; the first process or machine to ask is written into it.

    Attributes:
        mark: the file; without it nothing is sick.
        whole_machine: whether every process of that machine is sick, or one process.
        quarantines: that must stand in the ledger before anything else goes on; with a device, beyond two reports.
        device: the accelerator that is sick, in place of what a file names.
    """

    mark: str = ""
    whole_machine: bool = False
    quarantines: int = 0
    device: str = ""

    def __call__(self, *arguments: Any) -> Generator[FakeProgress, None, None]:
        if self.device:
            if self.device in map(str, ray.get_gpu_ids()):
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
            for progress in FakeTrainer(wait_s=0.1)(*arguments):
                yield progress
                if progress.images_seen == 200:
                    self.wait(arguments[2].search)
            return
        me = ray.get_runtime_context().get_node_id() if self.whole_machine else str(os.getpid())
        try:
            with Path(self.mark).open("x") as file:
                file.write(me)
        except FileExistsError:
            time.sleep(0.05)  # until its writer has written
        if Path(self.mark).read_text() == me:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        self.wait(arguments[2].search)
        yield from FakeTrainer(wait_s=0.1)(*arguments)

    def wait(self, search: str) -> None:
        record = Path(search) / "search.json"
        while record.read_text().count('"quarantine"') < self.quarantines:
            time.sleep(0.1)


@pytest.fixture
def call(tmp_path: Path) -> tuple[Path, Path, Path]:
    make_dataset(tmp_path / "data", patients=12, size=16)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s"


def attempts_lost(found: SearchResult) -> int:
    return sum(len(trial.lost) for trial in found.trials)


def test_a_sick_process_costs_an_attempt_and_no_trial(call: tuple[Path, Path, Path], tmp_path: Path) -> None:
    found = run_search(
        *call, trials=12, concurrent=2, cpus_per_trial=1, _trainer=Sick(str(tmp_path / "mark"), whole_machine=False)
    )
    assert found.count("failed") == 0
    assert attempts_lost(found) == 1
    assert audit(call[2]).breached == ()


def test_a_sick_device_costs_two_attempts_and_no_trial(
    call: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray believes in two accelerators here, one a trial; the healthy one reports between the faults."""
    monkeypatch.setattr(driver, "DECLINED_S", 0.5)
    with running_cluster(num_cpus=2, num_gpus=2) as made:
        sick = Sick(device="1", quarantines=1)
        found = run_search(*call, trials=4, address=made.address, cpus_per_trial=1, gpus_per_trial=1, _trainer=sick)
    assert {trial.state for trial in found.trials} <= {"completed", "pruned"}
    assert [one.devices for trial in found.trials for one in trial.lost] == [("1",)] * 2
    assert [(note.devices, note.cause) for note in found.record.quarantined] == [(("1",), "device")]
    assert audit(call[2]).breached == ()


def test_a_sick_machine_gets_no_trials_and_is_tried_again_with_one(
    call: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "RELEASED_AFTER_S", 8.0)
    monkeypatch.setattr(driver, "DECLINED_S", 0.5)
    said: list[str] = []
    for name in ("driver", "quarantine", "ledger_callback"):
        monkeypatch.setattr(f"ich_ray.search.tune.{name}.say", said.append)
    with running_cluster() as made:
        made.add_node(num_cpus=1)
        sick = Sick(str(tmp_path / "mark"), whole_machine=True, quarantines=2)
        found = run_search(*call, trials=8, address=made.address, _trainer=sick)
    assert found.count("failed") == 0
    assert len(found.trials) == 8
    shut = found.record.quarantines
    assert len(shut) >= 2
    assert {note.node for note in shut} == {(tmp_path / "mark").read_text()}
    first = [one for trial in found.trials for one in trial.lost if one.time <= shut[0].since + 1]
    assert len(first) <= 3
    assert attempts_lost(found) == len(first) + len(shut) - 1, "one trial at the end of each quarantine"
    assert shut[1].until - shut[1].since == pytest.approx(2 * (shut[0].until - shut[0].since))
    assert f"in quarantine: {shut[0].host}" in said[-1]
    assert found.record.quarantined
    again = open_search(call[2])
    assert again.record.quarantined == found.record.quarantined
    assert audit(call[2]).breached == ()

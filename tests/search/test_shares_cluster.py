"""A search on machines with accelerators of two sizes, which Ray believes in; memory and its end are planted."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from ich_ray.search import accelerators
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.plan.plan_report import plan_search
from ich_ray.search.run import run_search
from tests.prepared import make_dataset
from tests.search.fakes import SPACE, FakeProgress, FakeTrainer
from tests.search.machines import running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

GIB = 2**30


@dataclass(frozen=True)
class Hungry:
    """A trainer that writes down where it runs with which share, and whose residual networks take 3 GiB.

    Attributes:
        log: gets a line `seed node share` for each attempt.
        memories: of an accelerator, by machine.
    """

    log: str
    memories: dict[str, int]

    def __call__(
        self, parameters: Any, dataset: Any, settings: Any, *others: Any
    ) -> Generator[FakeProgress, None, None]:
        node = ray.get_runtime_context().get_node_id()
        with Path(self.log).open("a") as log:
            log.write(f"{others[0]} {node} {settings.gpus}\n")
        if parameters.architecture == "resnet18" and settings.gpus * self.memories[node] < 3 * GIB:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        yield from FakeTrainer()(parameters, dataset, settings, *others)


def test_trials_take_what_they_need_of_devices_of_two_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "data", patients=12, size=16)
    (tmp_path / "space.yaml").write_text(SPACE)
    with running_cluster(num_cpus=2, num_gpus=1) as made:
        large = made.add_node(num_cpus=2, num_gpus=1).node_id
        memories: dict[str, int] = {}

        def planted(nodes: Sequence[str]) -> dict[str, int]:
            memories.update({node: 16 * GIB if node == large else 2 * GIB for node in nodes})
            return {node: memories[node] for node in nodes}

        monkeypatch.setattr(accelerators, "device_memories", planted)
        call = (tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s")
        asked: Any = {"trials": 4, "address": made.address, "gpus_per_trial": "auto"}
        outlook = plan_search(*call, **asked)
        trainer = Hungry(str(tmp_path / "log"), memories)
        found = run_search(*call, **asked, _trainer=trainer)
    assert outlook.plan.concurrent == 3, "one on the small device, two on the large one, by its CPUs"
    assert "1 x 2 GiB: 1 for " in str(outlook)
    assert {trial.state for trial in found.trials} <= {"completed", "pruned"}
    attempts: dict[int, list[tuple[str, float]]] = {trial.seed: [] for trial in found.trials}
    for line in (tmp_path / "log").read_text().splitlines():
        seed, node, share = line.split()
        attempts[int(seed)].append((node, float(share)))
    for trial in found.trials:
        *lost, last = attempts[trial.seed]
        assert all(share == (0.125 if node == large else 1) for node, share in attempts[trial.seed][:1])
        if trial.parameters["architecture"] == "resnet18":
            assert [one.cause for one in trial.lost] == ["out_of_memory"]
            assert (len(lost), last[0]) == (1, large)
            assert last[1] == 0.25
        else:
            assert (trial.lost, lost) == ((), [])
    assert {trial.parameters["architecture"] for trial in found.trials} == {"plain_cnn", "resnet18"}
    assert audit(tmp_path / "s").breached == ()

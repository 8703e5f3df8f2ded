"""Processes that train one network together, started by Ray Train, for a trial and for a retraining."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from ich_ray.errors import IchRayError
from ich_ray.registry import registered_here, repeat
from ich_ray.runtime import signals_given_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ich_ray.storage import Location

__all__ = ["FaultOfWorker", "WorkersLost", "nothing_left_behind", "run_workers"]

# How often Ray Train looks at its workers: the end of a group waits for it (2 s by default).
_LOOK_EVERY_S = "0.2"


class WorkersLost(IchRayError):
    """Processes that train together ended before their work was done; another attempt may well finish it."""


class FaultOfWorker(WorkersLost):
    """One of them met a fault of its machine or process, and said which.

    Attributes:
        fault: see `training.machine_faults`.
    """

    def __init__(self, fault: str, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault, self.detail = fault, detail

    def __str__(self) -> str:
        return f"a worker of a trial met a fault of its machine ({self.fault}): {self.detail}"


def run_workers(
    work: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    *,
    workers: int,
    resources: dict[str, float],
    nccl: bool,
    storage: Location,
    **scaling: Any,
) -> Any:
    """Run `work(config)` in processes that share a process group; what rank 0 returned.

    Args:
        work: the same in every process; it finds its rank in Ray Train's context.
        config: what it is given.
        workers: processes.
        resources: of each.
        nccl: whether the group speaks through accelerators.
        storage: a folder of Ray Train's own, on storage that every worker sees.
        scaling: more of Ray Train's ScalingConfig, such as the placement.

    Raises:
        WorkersLost: one of them has ended before its work was done. After a notice that its machine is taken away Ray
            Train starts the group again by itself.
        KeyboardInterrupt: Ctrl-C, or SIGTERM within `connected`.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _LOOK_EVERY_S)
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    environment = scaling.pop("environment", {})
    registered = registered_here()

    def worker(config: dict[str, Any]) -> Any:
        repeat(registered)
        return work(config)

    trainer = TorchTrainer(
        worker,  # a value may be returned: Result.return_value
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if nccl else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=resources.get("GPU", 0) > 0, resources_per_worker=resources, **scaling
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # Ray's type is that of its former version
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": environment} if environment else {},
        ),
    )
    try:
        with signals_given_back() as may_catch:
            try:
                result: Any = trainer.fit()
            except SystemExit:
                if not may_catch:
                    raise
                raise KeyboardInterrupt from None  # Ray Train's own answer to Ctrl-C
    except TrainingFailedError as error:
        raise WorkersLost(str(error).strip().splitlines()[-1]) from error
    return result.return_value


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Remove placement groups of processes of this driver that died in the block.

    Ray keeps those of an actor that was killed until its driver ends.
    """
    ours = ray.get_runtime_context().get_job_id()
    before = set(placement_group_table())
    try:
        yield
    finally:
        for name, entry in placement_group_table().items():
            if name not in before and name.endswith(ours) and entry["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))

"""A trial made of several processes that train one network.

The trial's own process holds the resources of all of them and stays the only one that Tune, the ledger and the
checkpoints know: the workers stand on its machine, hold nothing themselves, and wait after each report until it lets
them go on. So a trial of several devices is planned, stopped and lost exactly like a trial of one, and nothing of it
stays behind. Ray Train takes some twenty seconds to start workers, so they serve many trials, as that process does.
Knows nothing of networks or rungs.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import tempfile
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ich_ray.data.folds import HeldOut
from ich_ray.errors import TrialFailure
from ich_ray.search.trial_output import Output, kept_output
from ich_ray.search.tune.train_workers import FaultOfWorker, WorkersLost, run_workers
from ich_ray.search.tune.trial_log import own_output
from ich_ray.storage import Location, locate, sha256, write_bytes
from ich_ray.training.machine_faults import machine_fault

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.search.tune.trial import Trainer, TrialSettings
    from ich_ray.trial_records import ExecutionInfo
    from ich_ray.usage import ReportUsage

__all__ = ["MultiWorkerTrainer", "WorkerGroup", "own_devices"]

# Ray Train places its workers by a placement group, which may not be empty: a share of the machine's own name.
_SHARE_OF_NAME = 0.001
# Workers that have not gone by then are killed with the process that started them.
_FAREWELL_S = 10


@dataclass(frozen=True)
class _Step:
    """A report of the workers.

    Attributes:
        data: their state as a file's content, empty when none is needed.
        usage: of the first of them, with the images of all.
        logits: of the validation slices, where they are kept to compare trials by.
        output: what the first of them writes, besides.
    """

    images_seen: int
    metrics: dict[str, float]
    elapsed_s: float
    setup: ExecutionInfo | None
    data: bytes
    usage: ReportUsage | None = None
    logits: NDArray[np.float32] | None = None
    output: Output | None = None

    def state(self) -> _Step:
        return self

    def save(self, path: Location) -> str:
        write_bytes(locate(path), self.data)
        return sha256(self.data)


class _Mailbox:
    """An actor between workers and the process of their trials: reports one way, jobs and leave to go on the other.

    Jobs count from 1, and so do the reports of each.
    """

    def __init__(self) -> None:
        self._told: asyncio.Queue[_Step | Exception] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._jobs: list[dict[str, Any] | None] = []
        self._allowed, self._ended = (0, 0), 0

    async def post(self, job: dict[str, Any] | None) -> None:
        """The next job; None sends the workers home."""
        async with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    async def job(self, number: int) -> dict[str, Any] | None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._jobs) >= number)
        return self._jobs[number - 1]

    async def hand_in(self, job: int, report: int, step: _Step | None) -> bool:
        """Every worker makes a report, one of them with content; whether to go on, once that is known."""
        if step is not None:
            self._told.put_nowait(step)
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended >= job or self._allowed >= (job, report))
        return self._ended < job

    async def fail(self, reason: Exception) -> None:
        """What ended a worker, for the process of its trial to raise."""
        self._told.put_nowait(reason)

    async def next(self) -> _Step | Exception:
        return await self._told.get()

    async def answer(self, goes_on: bool) -> None:
        job = len(self._jobs)
        async with self._changed:
            self._allowed = (job, self._allowed[1] + 1) if self._allowed[0] == job else (job, 1)
            self._ended = self._ended if goes_on else job
            self._changed.notify_all()


@dataclass(frozen=True)
class MultiWorkerTrainer:
    """The trainer of a search whose trials span several workers.

    Attributes:
        trainer: what each of them runs.
        group: workers of this trial alone; None for those of its process, which serve many trials.
    """

    trainer: Trainer
    group: WorkerGroup | None = None

    def __call__(
        self,
        parameters: Hyperparameters,
        dataset: PreparedDataset,
        settings: TrialSettings,
        seed: int,
        resume: UPath | None,
    ) -> Generator[_Step, None, None]:
        group = self.group or _group(settings.workers)
        fold = dataset.fold if isinstance(dataset, HeldOut) else None  # each worker maps the dataset for itself
        told = {"parameters": parameters, "fold": fold, "settings": settings, "seed": seed, "resume": resume}
        try:
            group.start({"trainer": self.trainer, **told})
            while True:
                yield group.next()
                group.answer(True)
        except GeneratorExit:  # stopped at a report: the workers are ready for the next trial
            try:
                group.answer(False)
            except WorkersLost:  # which costs this trial nothing any more
                self._dismiss(group)
            raise
        except BaseException:
            self._dismiss(group)
            raise

    def _dismiss(self, group: WorkerGroup) -> None:
        group.end()
        if self.group is None:
            _group.cache_clear()


@lru_cache(maxsize=1)
def _group(workers: int) -> WorkerGroup:
    """The workers of this process, kept from trial to trial: starting them takes longer than many a trial."""
    group = WorkerGroup(workers, own_devices())
    atexit.register(group.end)
    return group


class WorkerGroup:
    """Workers, run by Ray Train in a thread beside the one that reports for them.

    Args:
        workers: how many.
        devices: accelerators of this machine, one for each worker, by Ray's ids; none on CPUs.
    """

    def __init__(self, workers: int, devices: list[str]) -> None:
        here = ray.get_runtime_context().get_node_id()  # any other machine may go without an effect on the trial
        strategy = NodeAffinitySchedulingStrategy(here, soft=False)
        self._desk: Any = ray.remote(num_cpus=0)(_Mailbox).options(scheduling_strategy=strategy).remote()
        self._lost: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(workers, devices), daemon=True)
        self._thread.start()

    def _run(self, workers: int, devices: list[str]) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                run_workers(
                    _work,
                    {"desk": self._desk},
                    workers=workers,
                    resources={f"node:{_own_address()}": _SHARE_OF_NAME},
                    nccl=bool(devices),
                    storage=folder,
                    environment=_visible(devices),
                    placement_strategy="STRICT_PACK",
                    label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
                )
        except BaseException as error:  # noqa: BLE001  (raised again by `next`, in the thread that asks)
            self._lost = error

    def start(self, job: dict[str, Any]) -> None:
        """Let the workers begin.

        Raises:
            WorkersLost: they cannot be reached.
        """
        _from_desk(self._desk.post.remote(job))

    def next(self) -> _Step:
        """The next report.

        Raises:
            TrialFailure: a worker has said why it cannot go on.
            FaultOfWorker: the same, where that is of its machine or process.
            WorkersLost: one is gone without a word, or none can be reached.
        """
        asked = self._desk.next.remote()
        told: _Step | Exception | None = None
        while told is None:
            alive = self._thread.is_alive()
            if ray.wait([asked], timeout=0.5 if alive else 1)[0]:
                told = _from_desk(asked)
            elif not alive:
                raise WorkersLost(f"the workers of a trial must end with it, got: {self._lost}")
        if isinstance(told, Exception):
            raise told
        return told

    def answer(self, goes_on: bool) -> None:
        """Let the workers go on after a report, or end this job.

        Raises:
            WorkersLost: they cannot be reached.
        """
        _from_desk(self._desk.answer.remote(goes_on))

    def end(self) -> None:
        """Send the workers home and wait for the end of Ray Train."""
        with suppress(RayError):
            ray.get([self._desk.post.remote(None), self._desk.answer.remote(False)], timeout=_FAREWELL_S)
        self._thread.join(_FAREWELL_S)
        ray.kill(self._desk)


def _from_desk(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        raise WorkersLost(f"the mailbox of a trial's workers must answer, got {type(error).__name__}") from error


def own_devices() -> list[str]:
    """Ray's ids of the accelerators that this process holds."""
    return [str(device) for device in ray.get_gpu_ids()]


def _own_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _visible(devices: list[str]) -> dict[str, str]:
    """The environment of workers that see their trial's accelerators though they hold none themselves."""
    if not devices:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


def _work(config: dict[str, Any]) -> None:
    """What each worker runs. It ends by an exception where the others may be waiting for it: Ray Train ends them."""
    from ich_ray.training.data_parallel import PeerLost

    desk, output = config["desk"], own_output()
    try:
        for number in itertools.count(1):
            job = ray.get(desk.job.remote(number))
            if job is None:
                return
            output = own_output()
            _train(desk, number, output, **job)
    except PeerLost:
        raise  # what ended the peer is the reason, and this is not
    except Exception as error:
        ray.get(desk.fail.remote(_reason(error, output)))
        raise


def _reason(error: Exception, output: Output) -> TrialFailure | FaultOfWorker:
    """What the process of a trial is told of an error: a failure of the trial, or a fault of its machine.

    With what this process has written, and where it came from.
    """
    from ich_ray.search.tune.trial import as_failure

    failure, fault = as_failure(error), machine_fault(error)
    told = FaultOfWorker(fault, failure.detail) if fault else failure
    traced = None if isinstance(error, TrialFailure) else error
    if kept := kept_output([output], traced):
        told.add_note(kept)
    return told


def _train(
    desk: Any,
    job: int,
    output: Output,
    *,
    trainer: Trainer,
    parameters: Hyperparameters,
    fold: int | None,
    settings: TrialSettings,
    seed: int,
    resume: UPath | None,
) -> None:
    from ray.train import get_context

    from ich_ray.search.tune.trial import opened
    from ich_ray.training.data_parallel import Shard

    shard = Shard(get_context().get_world_rank(), get_context().get_world_size())
    dataset = opened(settings, fold)
    with closing(trainer(parameters, dataset, settings, seed, resume, shard)) as steps:
        for report, progress in enumerate(steps, start=1):
            step = replace(_step(progress, settings, parameters), output=output) if shard.rank == 0 else None
            if not ray.get(desk.hand_in.remote(job, report, step)):
                return


def _step(progress: Any, settings: TrialSettings, parameters: Hyperparameters) -> _Step:
    """A report with its state, which the last one needs only where the weights of the best stay."""
    last = progress.images_seen >= settings.images_of(parameters)
    data = b"" if last and not settings.keep_weights else progress.state().packed()
    usage = getattr(progress, "usage", None)
    logits = getattr(progress, "logits", None) if settings.compares else None
    return _Step(progress.images_seen, progress.metrics, progress.elapsed_s, progress.setup, data, usage, logits)

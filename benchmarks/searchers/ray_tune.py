"""Stock Ray Tune, as its guides write it: a function that reports with a checkpoint, OptunaSearch, ASHAScheduler."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.searchers.task import METRIC, PARAMETERS, REDUCTION, Task, trained, write_found
from ich_ray.runtime import connected

DOMAINS = {
    "int": lambda low, high: tune.randint(low, high + 1),
    "choice": lambda *values: tune.choice(values),
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
}
STATE = "state.safetensors"


class Enough(tune.Stopper):
    """Ends the search when its images have been shown."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        return self._task.spent()


def trial(config: dict[str, Any], task: Task) -> None:
    with ExitStack() as stack:
        there = tune.get_checkpoint()
        resume = Path(stack.enter_context(there.as_directory())) / STATE if there else None
        for progress in trained(task, config, tune.get_context().get_trial_id(), resume):
            with tempfile.TemporaryDirectory() as folder:
                progress.state().save(Path(folder) / STATE)
                result = {METRIC: progress.metrics[METRIC], "images_seen": progress.images_seen}
                tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


def search(task: Task, random: bool = False) -> None:
    trainable = tune.with_resources(partial(trial, task=task), {"cpu": 1})
    with connected(cpus=task.slots):
        tuner = _tuner(task, trainable, random)
        results = tuner.fit()
    best = results.get_best_result(METRIC, "max")
    ended = [result.metrics["trial_id"] for result in results if result.metrics and not result.error]
    write_found(task, best.config, ended)


def _tuner(task: Task, trainable: Any, random: bool) -> tune.Tuner:
    begun = Path(task.folder) / "tune" / "search"
    if tune.Tuner.can_restore(str(begun)):
        return tune.Tuner.restore(str(begun), trainable)
    asha = ASHAScheduler(
        time_attr="images_seen",
        max_t=task.trial_images,
        grace_period=task.first_rung,
        reduction_factor=REDUCTION,
    )
    settings = tune.TuneConfig(
        metric=METRIC,
        mode="max",
        search_alg=None if random else OptunaSearch(seed=task.seed),
        scheduler=None if random else asha,
        num_samples=-1,
        max_concurrent_trials=task.slots,
    )
    space = {name: DOMAINS[kind](*values) for name, told in PARAMETERS.items() for kind, values in told.items()}
    where = tune.RunConfig(name="search", storage_path=str(begun.parent), stop=Enough(task), verbose=0)
    return tune.Tuner(trainable, param_space=space, tune_config=settings, run_config=where)

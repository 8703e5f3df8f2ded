"""Optuna as its tutorials write it: processes that share a study in a journal file, TPE, Hyperband as pruner."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna

from benchmarks.searchers.task import METRIC, PARAMETERS, REDUCTION, Task, trained, write_found


def drawn(trial: optuna.Trial) -> dict[str, Any]:
    draws = {
        "int": trial.suggest_int,
        "choice": lambda name, *values: trial.suggest_categorical(name, values),
        "uniform": trial.suggest_float,
        "loguniform": lambda name, low, high: trial.suggest_float(name, low, high, log=True),
    }
    return {name: draws[kind](name, *values) for name, told in PARAMETERS.items() for kind, values in told.items()}


def study(task: Task, slot: int = 0) -> optuna.Study:
    file = optuna.storages.journal.JournalFileBackend(str(Path(task.folder) / "journal.log"))
    first, last = task.first_rung // task.report_every, task.trial_images // task.report_every
    return optuna.create_study(
        study_name="field",
        storage=optuna.storages.JournalStorage(file),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=task.seed * 100 + slot),
        pruner=optuna.pruners.HyperbandPruner(min_resource=first, max_resource=last, reduction_factor=REDUCTION),
    )


def work(task: Task, slot: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        value = 0.0
        for progress in trained(task, drawn(trial), str(trial.number)):
            value = progress.metrics[METRIC]
            trial.report(value, progress.images_seen // task.report_every)
            if task.spent():
                trial.study.stop()
                raise optuna.TrialPruned
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study(task, slot).optimize(objective)


def search(task: Task) -> None:
    study(task)  # made once, before several ask for it
    spawn = get_context("spawn")
    workers = [spawn.Process(target=work, args=(task, slot)) for slot in range(task.slots)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = study(task)
    ended = [str(trial.number) for trial in found.trials if trial.state.is_finished()]
    whole = found.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    write_found(task, found.best_params if whole else None, ended)

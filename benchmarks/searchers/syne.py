"""Syne Tune as its tutorials write it: a script per trial, the local backend, ASHA."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.searchers.task import METRIC, PARAMETERS, REDUCTION, Task, named, write_found

NAME = "field"


@dataclass
class Enough:
    """Ends the search when its images have been shown."""

    task: Task

    def __call__(self, status: Any) -> bool:
        del status
        return self.task.spent()


def search(task: Task) -> None:
    os.environ["SYNETUNE_FOLDER"] = task.folder  # before it is imported
    from syne_tune import Tuner

    logging.getLogger().setLevel(logging.WARNING)
    begun = Path(task.folder) / NAME
    tuner, forgotten = _tuner(task), set()
    if (begun / "tuner.dill").exists():
        tuner = Tuner.load(str(begun))
        # Nobody trains these any more, though they are called stopped in the end.
        forgotten = _with_status(tuner, {"inprogress"})
    tuner.run()
    _, parameters = tuner.best_config()
    write_found(task, parameters, list(_with_status(tuner, {"completed", "stopped"}) - forgotten))


def _with_status(tuner: Any, statuses: set[str]) -> set[str]:
    seen = tuner.tuning_status.last_trial_status_seen if tuner.tuning_status else {}
    configs = {number: trial.config for number, trial in tuner.trial_backend._trial_dict.items()}
    chosen = (number for number, status in seen.items() if str(status).lower() in statuses)
    return {named(str(number), configs[number]) for number in chosen}


def _tuner(task: Task) -> Any:
    from syne_tune import Tuner, config_space
    from syne_tune.backend import LocalBackend
    from syne_tune.optimizer.baselines import ASHA

    domains = {
        "int": config_space.randint,
        "choice": lambda *values: config_space.choice(list(values)),
        "uniform": config_space.uniform,
        "loguniform": config_space.loguniform,
    }
    space = {name: domains[kind](*values) for name, told in PARAMETERS.items() for kind, values in told.items()}
    scheduler = ASHA(
        {**space, "task": task.folder},
        metric=METRIC,
        time_attr="reports",
        max_t=task.trial_images // task.report_every,
        grace_period=task.first_rung // task.report_every,
        reduction_factor=REDUCTION,
        do_minimize=False,
        random_seed=task.seed,
    )
    script = Path(__file__).parent / "syne_trial.py"
    return Tuner(
        LocalBackend(str(script)), scheduler, Enough(task), task.slots, tuner_name=NAME, suffix_tuner_name=False
    )

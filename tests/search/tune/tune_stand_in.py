"""Tune's loop in this process, without workers: the same calls in the same order, with the same fate for their errors.

From `ray.tune.execution.tune_controller`: what the sampler or a callback raises between results goes through; what any
of them raises over a result is wrapped as the text of a TuneError; over the end of a trial it fails the trial alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from ray.tune import TuneError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from ich_ray.model.hyperparameters import Hyperparameters
from tests.search.fakes import curve

IMAGES, REPORT_EVERY = 900, 100  # of SPACE


def run(function: Any, *, search_alg: Any, scheduler: Any, callbacks: list[Any], **_: Any) -> Any:
    """What `tune.run` does, two trials at a time; `function` is not called."""
    del function
    search_alg = search_alg.searcher
    ledger_callback = callbacks[0]
    trials: list[Any] = []
    live: dict[str, tuple[Any, Iterator[dict[str, Any]]]] = {}
    for step in range(1000):  # far more than a search takes: one that waits for ever fails
        config = search_alg.suggest(f"t{step}") if len(live) < 2 else None
        if isinstance(config, dict):
            held: dict[str, dict[str, Any]] = {
                name: {} for name in ("metric_analysis", "metric_n_steps", "last_result", "evaluated_params")
            }
            trial = SimpleNamespace(trial_id=f"t{step}", config=config, status="RUNNING", **held)
            trials.append(trial)
            live[trial.trial_id] = trial, _results(config)
            ledger_callback.on_trial_start(step, trials, trial)
        elif config == Searcher.FINISHED and not live:
            return SimpleNamespace(trials=trials)
        for trial, results in list(live.values()):
            result = next(results)
            try:
                decision = scheduler.on_trial_result(None, trial, result)
                search_alg.on_trial_result(trial.trial_id, result)
                ledger_callback.on_trial_result(step, trials, trial, result)
            except Exception:  # noqa: BLE001  (as Tune does)
                raise TuneError(traceback.format_exc()) from None
            if decision == TrialScheduler.STOP:
                del live[trial.trial_id]
                with suppress(Exception):
                    search_alg.on_trial_complete(trial.trial_id, result)
                    ledger_callback.on_trial_complete(step, trials, trial)
        ledger_callback.on_step_end(step, trials)
    raise AssertionError("the search waits for a trial that Tune has given up")


def _results(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parameters = Hyperparameters.model_validate(config["parameters"])
    for seen in range(REPORT_EVERY, IMAGES + 1, REPORT_EVERY):
        if seen > config["reported"]:
            metrics = {"average_precision": curve(parameters, seen)}
            flat = {f"metrics/{name}": value for name, value in metrics.items()}
            yield {"images_seen": seen, "metrics": metrics, "elapsed_s": seen / 1000, **flat}

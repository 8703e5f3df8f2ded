"""Ray Tune without its own files, tables and limits, for as long as it runs the trials of one search.

Everything that it keeps for itself goes into a temporary folder. Knows nothing of ledgers.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import SearchGenerator

from ich_ray.runtime import signals_given_back
from ich_ray.search.tune.train_workers import nothing_left_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ray.tune.schedulers import TrialScheduler

    from ich_ray.search.preflight import Slots
    from ich_ray.search.tune.sampler import LedgerSampler

__all__ = ["run_trials"]


def run_trials(
    function: Callable[..., Any],
    sampler: LedgerSampler,
    scheduler: TrialScheduler,
    callbacks: Sequence[tune.Callback],
    *,
    trials: int,
    slots: Slots,
    retries: int,
) -> set[int]:
    """Run until the sampler has no more, at most so many trials; the numbers of those that ran."""
    with tempfile.TemporaryDirectory() as folder, _quiet(slots.concurrent), signals_given_back(), nothing_left_behind():
        analysis = tune.run(
            function,
            name="search",
            num_samples=trials,
            search_alg=_OpenSearch(sampler),
            scheduler=scheduler,
            callbacks=[*callbacks, _NoLines()],
            resources_per_trial=_Resources([{"CPU": slots.cpus, "GPU": slots.gpus}]),
            reuse_actors=True,
            max_failures=retries,
            raise_on_failed_trial=False,
            storage_path=folder,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            verbose=0,
        )
    return {trial.config["number"] for trial in analysis.trials}


class _OpenSearch(SearchGenerator):
    """Asks a sampler for trials; unlike Ray's own it is not over for ever when it once has none."""

    def __init__(self, sampler: LedgerSampler) -> None:
        super().__init__(sampler)
        self._sampler = sampler

    def is_finished(self) -> bool:
        return self._sampler.is_done


class _NoLines(TrialProgressCallback):
    """Tune prints a line of a trial that ends without a result, whatever it is told of verbosity."""

    def _print(self, msg: str) -> None: ...


class _Resources(tune.PlacementGroupFactory):
    """One for all trials: it never changes, and Tune would copy it for each (2.2 KB and a look at a signature)."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Resources:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers get Tune's own kind, so that they need not import this module."""
        return tune.PlacementGroupFactory, (self.bundles,)


def _name(trial: Any) -> str:
    return f"trial-{trial.config['number']:05d}"


@contextmanager
def _quiet(slots: int) -> Iterator[None]:
    """Tune without its own files, tables and limits, for the block.

    One pending trial is Tune's default with a searcher of one's own; with reused actors it then never starts a second
    one. Its state is never restored, so it need not be saved.
    """
    settings = {
        "TUNE_MAX_PENDING_TRIALS_PG": str(slots + 1),
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_RESULT_BUFFER_LENGTH": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(settings)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

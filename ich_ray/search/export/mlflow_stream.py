"""A search as MLflow runs that grow while it runs, one a trial, on a server or in a file.

A run is found again by its tag `number`, and what it has is asked of it. Needs the extra `ich_ray[mlflow]`.
"""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ich_ray.errors import ConfigError
from ich_ray.search.export.mlflow import METRICS_A_CALL, STATUS, experiment_name, metrics_of, milliseconds
from ich_ray.search.export.trackers import Tracker, search_identity

if TYPE_CHECKING:
    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult

__all__ = ["RunStream"]

_PARAMETERS_A_CALL = 100  # the most that MLflow takes
_RUNS_A_CALL = 1000
_NUMBER = "number"
# A server that does not answer is asked again by us, with pauses; MLflow by itself would wait for many minutes. Its
# report of who uses it how is for whoever switches it on.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class _Run:
    """A run as it stands there; `written` are its metrics with their steps."""

    def __init__(self, run_id: str, ended: bool, written: set[tuple[str, int]] | None) -> None:
        self.run_id, self.ended, self.written = run_id, ended, written


class RunStream(Tracker):
    """One experiment, named by the search and the moment it was begun; see `experiment_name`."""

    def __init__(self, place: str, record: SearchRecord) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=place)
        self._experiment = self._experiment_of(record, place)
        self._runs: dict[int, _Run] = self._found()
        self.command = f"mlflow ui --backend-store-uri {place}" if not place.startswith("http") else place

    @classmethod
    def check(cls, place: str) -> None:
        del place
        if find_spec("mlflow") is None:
            raise ConfigError("mlflow: MLflow must be installed, got none; run pip install 'ich_ray[mlflow]'")

    def _experiment_of(self, record: SearchRecord, place: str) -> str:
        name = experiment_name(record)
        identity = {key: str(value) for key, value in search_identity(record).items()}
        there = self._client.get_experiment_by_name(name)
        if there is None:
            made: str = self._client.create_experiment(name, tags=identity)
            return made
        if there.lifecycle_stage != "active" or any(there.tags.get(key) != value for key, value in identity.items()):
            raise ConfigError(
                f"mlflow={place}: the experiment {name} must be new, or the stream of this search, got one that was "
                "deleted or is of another; choose another URI or remove it for good"
            )
        found: str = there.experiment_id
        return found

    def _found(self) -> dict[int, _Run]:
        runs: dict[int, _Run] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=_RUNS_A_CALL, page_token=token)
            for run in page:
                if (number := run.data.tags.get(_NUMBER, "")).isdigit():
                    runs[int(number)] = _Run(run.info.run_id, run.info.status != "RUNNING", None)
            token = page.token
            if not token:
                return runs

    def write(self, trial: TrialResult) -> None:
        run = self._runs.get(trial.number) or self._begun(trial)
        if run.ended:
            return
        self._log(run, trial)
        if trial.state != "running":
            tags = {"state": trial.state, "reason": trial.reason, "attempts": trial.attempts}
            for name, value in tags.items():
                self._client.set_tag(run.run_id, name, str(value))
            ended = milliseconds(trial.ended or trial.started)
            self._client.set_terminated(run.run_id, STATUS[trial.state], end_time=ended)
            run.ended = True

    def _begun(self, trial: TrialResult) -> _Run:
        """A new run. Its tags come with it in one call: a kill leaves no run that nobody finds."""
        tags = {_NUMBER: str(trial.number), "seed": str(trial.seed)}
        started = milliseconds(trial.started)
        made = self._client.create_run(
            self._experiment, start_time=started, tags=tags, run_name=f"trial {trial.number}"
        ).info
        self._runs[trial.number] = run = _Run(made.run_id, False, None)
        return run

    def _log(self, run: _Run, trial: TrialResult) -> None:
        if run.written is None:
            run.written = self._parameters_and_metrics(run, trial)
        metrics = metrics_of(trial, with_best=trial.state != "running")
        new = [metric for metric in metrics if (metric.key, metric.step) not in run.written]
        for start in range(0, len(new), METRICS_A_CALL):
            batch = new[start : start + METRICS_A_CALL]
            self._client.log_batch(run.run_id, metrics=batch)
            run.written |= {(metric.key, metric.step) for metric in batch}

    def _parameters_and_metrics(self, run: _Run, trial: TrialResult) -> set[tuple[str, int]]:
        """Write the parameters, which may be written again, and ask which metrics are there."""
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in trial.parameters.items()]
        for start in range(0, len(params), _PARAMETERS_A_CALL):
            self._client.log_batch(run.run_id, params=params[start : start + _PARAMETERS_A_CALL])
        names = self._client.get_run(run.run_id).data.metrics
        return {(name, metric.step) for name in names for metric in self._client.get_metric_history(run.run_id, name)}

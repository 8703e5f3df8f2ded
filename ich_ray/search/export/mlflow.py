"""A search as an MLflow experiment: one run per trial. Needs the extra `ich_ray[mlflow]`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError, first_line

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from ich_ray.results import SearchResult
    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult

__all__ = ["METRICS_A_CALL", "STATUS", "experiment_name", "metrics_of", "milliseconds", "write_experiment"]

STATUS = {"completed": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
METRICS_A_CALL = 1000  # the most that MLflow takes


def write_experiment(found: SearchResult, uri: str) -> None:
    """Write one experiment, named by the search and the moment it was begun.

    Steps are images_seen and times those of the ledger; the tag `state` tells pruned from failed.

    Raises:
        ConfigError: MLflow is not installed, does not take the URI, or has that experiment.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ConfigError("--mlflow: MLflow must be installed, got none; run pip install 'ich_ray[mlflow]'") from None
    name = experiment_name(found.record)
    tags = {key: str(value) for key, value in found.record.model_dump(mode="json").items() if key != "space"}
    try:
        client = MlflowClient(tracking_uri=uri)
        if client.get_experiment_by_name(name) is not None:
            raise ConfigError(
                f"--mlflow {uri}: the experiment {name} must be new, got one that is there; "
                "choose another URI or delete it"
            )
        experiment = client.create_experiment(name, tags=tags)
        for trial in found.trials:
            _write(client, experiment, trial)
    except MlflowException as error:
        raise ConfigError(
            f"--mlflow {uri}: MLflow must take it, got: {first_line(error)}; try sqlite:///FILE"
        ) from None


def experiment_name(record: SearchRecord) -> str:
    """Such as `default-20261122T224204Z`: the same search has the same name, another one another."""
    return f"{record.name}-{datetime.fromtimestamp(record.created, UTC):%Y%m%dT%H%M%SZ}"


def _write(client: Any, experiment: str, trial: TrialResult) -> None:
    from mlflow.entities import Param, RunTag

    started = milliseconds(trial.started)
    run = client.create_run(experiment, start_time=started, run_name=f"trial {trial.number}").info.run_id
    described = trial.model_dump(mode="json", exclude={"parameters", "reports", "objective", "checkpoint"})
    metrics = metrics_of(trial, with_best=True)
    client.log_batch(
        run,
        params=[Param(name, str(value)) for name, value in trial.parameters.items()],
        tags=[RunTag(name, str(value)) for name, value in described.items()],
    )
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(run, metrics=metrics[start : start + METRICS_A_CALL])
    if trial.state != "running":
        client.set_terminated(run, STATUS[trial.state], end_time=milliseconds(trial.ended or trial.started))


def metrics_of(trial: TrialResult, *, with_best: bool) -> list[Metric]:
    """Of all its reports; and the value that it is ranked by, where that is asked for and known."""
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, milliseconds(report.time), report.images_seen)
        for report in trial.reports
        for name, value in report.scalars.items()
    ]
    if with_best and trial.value is not None:
        metrics.append(Metric(f"best_{trial.objective.metric}", trial.value, metrics[-1].timestamp, trial.images_seen))
    return metrics


def milliseconds(seconds: float) -> int:
    """As MLflow counts."""
    return round(seconds * 1000)

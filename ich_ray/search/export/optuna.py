"""A search as an Optuna storage, for optuna-dashboard, plots and importances."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from ich_ray.search.optuna_adapter import drawn_again, outcome
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.storage import write_bytes

if TYPE_CHECKING:
    import sqlite3

    from optuna.study import Study
    from upath import UPath

    from ich_ray.results import SearchResult
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import Objective, TrialResult

__all__ = ["as_frozen", "direction_of", "name_metric", "write_study"]


def write_study(found: SearchResult, file: UPath) -> None:
    """Write one SQLite file, whole or not at all, with one study of the search's name.

    Optuna takes 12 ms a trial: two minutes for 10,000.
    """
    from sqlalchemy.pool import StaticPool

    space = parse_space(found.record.space, str(found.files.search)).with_objective(found.objective)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # In memory, so that the file appears whole: one connection, because each would be a database of its own.
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"poolclass": StaticPool})
    study = optuna.create_study(storage=storage, study_name=found.record.name, direction=direction_of(found.objective))
    name_metric(study, found.objective)
    for name, value in found.record.model_dump(mode="json", exclude={"space"}).items():
        study.set_user_attr(name, value)
    study.add_trials(as_frozen(space, trial) for trial in found.trials)
    connection = cast("sqlite3.Connection", storage.engine.raw_connection().driver_connection)
    write_bytes(file, connection.serialize())


def direction_of(objective: Objective) -> StudyDirection:
    """Which values are better."""
    return StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE


def name_metric(study: Study, objective: Objective) -> None:
    """Let optuna-dashboard call the values of a study by their metric."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.metric])


def as_frozen(space: SearchSpace, record: TrialResult) -> FrozenTrial:
    """A trial as Optuna knows it, with what it has no place for as user attributes."""
    drawn, recorder = drawn_again(space, record)
    state, value, intermediate = outcome(record)
    if state == OptunaState.PRUNED:
        value = intermediate[max(intermediate)]  # as Optuna's own pruned trials have it
    if record.state == "running":
        state = OptunaState.RUNNING
    kept = {"parameters", "objective", "reports", "checkpoint", "started", "ended"}
    fixed = {name: one for name, one in drawn.items() if name not in recorder.distributions}
    best = {f"best_{name}": one for name, one in record.metrics.items()}
    return FrozenTrial(
        number=record.number,
        trial_id=record.number + 1,
        state=state,
        value=value,
        datetime_start=_time(record.started),
        # Optuna wants one if and only if a trial has ended, whatever the file says.
        datetime_complete=_time(record.ended or record.started) if state.is_finished() else None,
        params={name: drawn[name] for name in recorder.distributions},
        distributions=recorder.distributions,
        user_attrs={**record.usage.figures(), **record.model_dump(mode="json", exclude=kept), **fixed, **best},
        system_attrs={},
        intermediate_values=intermediate,
    )


def _time(seconds: float) -> datetime:
    """Optuna's times are local and without a zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().replace(tzinfo=None)

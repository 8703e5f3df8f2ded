"""A search as an Optuna storage that grows while it runs, read by optuna-dashboard meanwhile.

What stands in the storage is asked of it: a trial by its number, a report by its step.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from ich_ray.errors import ConfigError
from ich_ray.search.export.optuna import as_frozen, direction_of, name_metric
from ich_ray.search.export.trackers import Tracker, local_path, search_identity
from ich_ray.search.space.yaml_file import parse_space

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult

__all__ = ["StudyStream"]

_JOURNALS = (".log", ".journal")
_BUSY_S = 30.0  # for which a reader may hold a SQLite file
# Texts of errors, names of machines and files stay in the ledger.
_LEFT_OUT = {"detail", "lost", "logits"}


@dataclass
class _Known:
    """A trial as it stands in the storage."""

    trial_id: int
    steps: set[int]
    attributes: dict[str, Any]
    finished: bool


class StudyStream(Tracker):
    """A SQLite file with one study, or Optuna's journal if it ends in .log or .journal."""

    is_path = True

    def __init__(self, place: str, record: SearchRecord) -> None:
        file, space = local_path(place), record.space
        self._space = parse_space(space, "search.json", space.get("searches", "network")).with_objective(
            record.objective
        )
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._storage = _opened(file)
        self._study = self._study_of(record, place)
        self._known = {trial.user_attrs["number"]: _known(trial) for trial in self._storage.get_all_trials(self._study)}
        self.command = f"optuna-dashboard {file if file.suffix in _JOURNALS else f'sqlite:///{file}'}"

    @classmethod
    def check(cls, place: str) -> None:
        if "://" in place or local_path(place).is_dir():
            raise ConfigError(
                f"optuna={place}: must be a file of this machine, such as trials.db or trials.journal, got another "
                "place; choose one"
            )

    def _study_of(self, record: SearchRecord, place: str) -> int:
        """The study of the search, made if the file has none."""
        identity = search_identity(record)
        for study in self._storage.get_all_studies():
            study_id: int = study._study_id
            begun = not study.user_attrs and not self._storage.get_all_trials(study_id)  # and then killed
            told = {name: study.user_attrs.get(name) for name in identity}
            if study.study_name == record.name and (begun or told == identity):
                break
            raise ConfigError(
                f"optuna={place}: must be new, or the stream of this search, got the study {study.study_name} of "
                "another one; choose another name"
            )
        else:
            study_id = self._storage.create_new_study([direction_of(record.objective)], record.name)
        name_metric(optuna.load_study(study_name=record.name, storage=self._storage), record.objective)
        for name, value in identity.items():
            self._storage.set_study_user_attr(study_id, name, value)
        return study_id

    def write(self, trial: TrialResult) -> None:
        known = self._known.get(trial.number)
        if known and known.finished:
            return
        frozen = as_frozen(self._space, trial)
        for name in _LEFT_OUT:
            frozen.user_attrs.pop(name, None)
        if known is None:
            trial_id = self._storage.create_new_trial(self._study, template_trial=frozen)
            self._known[trial.number] = _known(frozen, trial_id)
            return
        for step, value in frozen.intermediate_values.items():
            if step not in known.steps:
                self._storage.set_trial_intermediate_value(known.trial_id, step, value)
                known.steps.add(step)
        if frozen.state.is_finished():  # which closes it
            for name, value in frozen.user_attrs.items():
                if name not in known.attributes or known.attributes[name] != value:
                    self._storage.set_trial_user_attr(known.trial_id, name, value)
            values = None if frozen.value is None else [frozen.value]
            self._storage.set_trial_state_values(known.trial_id, frozen.state, values)
            known.finished = True

    def close(self) -> None:
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()


def _known(trial: FrozenTrial, trial_id: int | None = None) -> _Known:
    there = trial._trial_id if trial_id is None else trial_id
    return _Known(there, {*trial.intermediate_values}, dict(trial.user_attrs), trial.state.is_finished())


def _opened(file: Path) -> BaseStorage:
    if file.suffix not in _JOURNALS:
        return RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": _BUSY_S}})
    with suppress(FileNotFoundError):
        _cut_torn_line(file)
    return JournalStorage(JournalFileBackend(str(file)))


def _cut_torn_line(file: Path) -> None:
    """What a kill leaves at the end of a journal would run into the next line, and neither could be read."""
    data = file.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(file, data.rfind(b"\n") + 1)

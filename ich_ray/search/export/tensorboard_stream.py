"""A search as TensorBoard event files that grow while it runs: a folder a trial, an event a report.

What stands in the files is read from them, whole events alone, so a kill costs no report and doubles none.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, text

from ich_ray.errors import ConfigError
from ich_ray.search.export.event_files import EventFile, read_events
from ich_ray.search.export.trackers import Tracker, local_path, search_identity
from ich_ray.storage import locate, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult

__all__ = ["EventStream"]

# Which search a folder is of. TensorBoard reads event files alone.
_NOTE = "ich_ray_stream.json"
_BEGIN, _END = "_hparams_/session_start_info", "_hparams_/session_end_info"
_REPORT = "elapsed_s"  # every report has it


class _Written(NamedTuple):
    """How far the files of a trial have come."""

    begun: bool
    images_seen: int
    ended: bool


class EventStream(Tracker):
    """A folder of event files. Steps are images_seen and times those of the ledger."""

    is_path = True

    def __init__(self, place: str, record: SearchRecord) -> None:
        self.folder, identity = local_path(place), search_identity(record)
        note = self.folder / _NOTE
        if note.exists():
            if read_json(locate(note)) != identity:
                raise ConfigError(
                    f"tensorboard={self.folder}: must be new, or the stream of this search, got that of another one; "
                    "choose another name"
                )
        elif self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ConfigError(
                f"tensorboard={self.folder}: must be new, or the stream of this search, got a folder with other "
                "files; choose another name"
            )
        else:
            write_json(locate(note), identity)
        self.command = f"tensorboard --logdir {self.folder}"
        self._written: dict[int, _Written] = {}
        self._files: dict[int, EventFile] = {}

    @classmethod
    def check(cls, place: str) -> None:
        if "://" in place or local_path(place).is_file():
            raise ConfigError(f"tensorboard={place}: must be a folder of this machine, got another place; choose one")

    def write(self, trial: TrialResult) -> None:
        folder = self.folder / f"trial-{trial.number:05d}"
        written = self._written.get(trial.number) or _read(folder)
        if not written.begun:
            described = {**trial.parameters, "trial": trial.number, "seed": trial.seed}
            experiment, begin, _ = hparams(described, {f"best/{trial.objective.metric}": 0.0})
            self._append(trial, _joined(experiment, begin), 0, trial.started)
        for report in trial.reports:
            if report.images_seen > written.images_seen:
                self._append(trial, _scalars(report.scalars), report.images_seen, report.time)
        ended = trial.state != "running"
        if ended and not written.ended:
            self._append(trial, _end(trial), trial.images_seen, trial.ended or trial.started)
        self._written[trial.number] = _Written(True, trial.images_seen, ended)
        if ended:
            self._files.pop(trial.number, None)

    def _append(self, trial: TrialResult, summary: Summary, step: int, when: float) -> None:
        if trial.number not in self._files:
            folder = self.folder / f"trial-{trial.number:05d}"
            self._files[trial.number] = EventFile(folder, time.time())
        self._files[trial.number].append(summary, step, when)


def _read(folder: Path) -> _Written:
    begun, images_seen, ended = False, 0, False
    for event in read_events(folder):
        tags = {value.tag for value in event.summary.value}
        begun, ended = begun or _BEGIN in tags, ended or _END in tags
        if _REPORT in tags:
            images_seen = max(images_seen, event.step)
    return _Written(begun, images_seen, ended)


def _end(trial: TrialResult) -> Summary:
    """One event, so that a trial has ended in it or not."""
    failed = trial.state == "failed"
    end = HParamsPluginData()
    end.session_end_info.status = Status.Value("STATUS_FAILURE" if failed else "STATUS_SUCCESS")
    summary = Summary()
    told = summary.value.add(tag=_END)
    told.metadata.plugin_data.plugin_name = "hparams"
    told.metadata.plugin_data.content = end.SerializeToString()
    best = {} if trial.value is None else {f"best/{trial.objective.metric}": trial.value}
    return _joined(summary, _scalars(best), text("state", f"{trial.state} {trial.reason}".strip()))


def _scalars(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _joined(*summaries: Summary) -> Summary:
    return Summary(value=[value for summary in summaries for value in summary.value])

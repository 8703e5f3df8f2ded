"""A search as Weights & Biases runs that grow while it runs. Needs the extra `ich_ray[wandb]`.

A run keeps its id over restarts. Online, W&B says where it stands; offline, the files of its earlier parts do: W&B
keeps up to 32 KB of a run in memory, which a kill takes away and a restart writes again. Nothing of the machine, the
user or the code goes there.
"""

from __future__ import annotations

import hashlib
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError
from ich_ray.search.export.mlflow import experiment_name
from ich_ray.search.export.trackers import Tracker, search_identity
from ich_ray.storage import locate, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ich_ray.search_records import SearchRecord
    from ich_ray.trial_records import TrialResult

__all__ = ["WandbStream", "whole_records"]

_HEADER, _BLOCK = b":W&B", 32768
# By default W&B sends what it finds of the machine, the user, the command, the code and the installed packages.
_SETTINGS = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "",
    "program": "",
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
# Beyond them, where its errors are reported to. Read when it is imported.
_ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false"}
_TIMEOUT_S = 30.0


class WandbStream(Tracker):
    """A group of runs; `WANDB_MODE=offline` keeps them in `WANDB_DIR` until `wandb sync`."""

    def __init__(self, place: str, record: SearchRecord) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import wandb

        self._entity, _, self._project = place.rpartition("/")
        self._identity = search_identity(record)
        self._name = experiment_name(record)
        self._offline = os.environ.get("WANDB_MODE") in {"offline", "dryrun"}
        self._folder = Path(os.environ.get("WANDB_DIR") or ".").absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._settings = wandb.Settings(
            **_SETTINGS, init_timeout=_TIMEOUT_S, finish_timeout=_TIMEOUT_S, finish_timeout_raises=True
        )
        self._runs: dict[int, Any] = {}
        self._steps: dict[int, int] = {}
        self._place = place
        # Trials that are over, so that none of their runs is opened again only to be asked.
        self._note = self._folder / "wandb" / f"ich-ray-{self._id(-1, place)}.json"
        self._ended: set[int] = {*read_json(locate(self._note))["ended"]} if self._note.exists() else set()
        parts = f"{self._folder}/wandb/offline-run-*"
        self.command = f"wandb sync {parts}" if self._offline else f"https://wandb.ai/{place}"

    @classmethod
    def check(cls, place: str) -> None:
        if place.count("/") > 1 or ":" in place:
            raise ConfigError(f"wandb={place}: must be PROJECT or ENTITY/PROJECT, got another place; correct it")
        if find_spec("wandb") is None:
            raise ConfigError("wandb: W&B must be installed, got none; run pip install 'ich_ray[wandb]'")

    def _id(self, number: int, place: str) -> str:
        """Of a run: the same for the same trial wherever it is written, and for no other."""
        named = "\n".join([place, str(number), *map(str, self._identity.values())])
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    def write(self, trial: TrialResult) -> None:
        if trial.number in self._ended:
            return
        run = self._runs.get(trial.number) or self._begun(trial)
        for report in trial.reports:
            if report.images_seen > self._steps[trial.number]:
                run.log({**report.scalars, "_timestamp": report.time}, step=report.images_seen, commit=True)
                self._steps[trial.number] = report.images_seen
        if trial.state != "running":
            best = {} if trial.value is None else {f"best_{trial.objective.metric}": trial.value}
            run.summary.update({"state": trial.state, "reason": trial.reason, **best})
            self._finish(run, int(trial.state == "failed"))
            del self._runs[trial.number]
            self._ended.add(trial.number)
            write_json(locate(self._note), {"ended": sorted(self._ended)})

    def _begun(self, trial: TrialResult) -> Any:
        import wandb

        run_id = self._id(trial.number, self._place)
        there = max(_steps(self._folder, run_id), default=0) if self._offline else 0
        run = wandb.init(
            project=self._project,
            entity=self._entity or None,
            id=run_id,
            name=f"trial {trial.number}",
            group=self._name,
            config={**trial.parameters, "trial": trial.number, "trial_seed": trial.seed, "search": self._identity},
            dir=str(self._folder),
            resume=None if self._offline else "allow",
            reinit="create_new",
            settings=self._settings,
        )
        self._runs[trial.number] = run
        self._steps[trial.number] = max(there, run.step - 1)
        return run

    def close(self) -> None:
        """End the processes of W&B; a run that is not over is resumed by its id."""
        for run in self._runs.values():
            self._finish(run, 0)

    def _finish(self, run: Any, exit_code: int) -> None:
        """End a run, and wait until its file is whole: W&B's own process may still be at it then."""
        file = Path(run.settings.sync_file)
        run.finish(exit_code=exit_code)
        until = time.monotonic() + _TIMEOUT_S
        while self._offline and not _is_whole(file) and time.monotonic() < until:
            time.sleep(0.02)


def _steps(folder: Path, run_id: str) -> Iterator[int]:
    """Of all reports in the parts of a run that wait on this machine."""
    for file in folder.glob(f"wandb/offline-run-*-{run_id}*/run-{run_id}.wandb"):
        yield from (record.history.step.num for record in _records(file) if record.HasField("history"))


def _is_whole(file: Path) -> bool:
    return any(record.HasField("exit") for record in _records(file))


def _records(file: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    return map(Record.FromString, whole_records(file.read_bytes()))


def whole_records(data: bytes) -> Iterator[bytes]:
    """The records of a file of W&B, which is a log of LevelDB, up to the first that a kill has torn.

    In blocks of 32 KB, each of chunks: a checksum, a length, and whether it is a whole record, or the first, a middle
    or the last piece of one.
    """
    at, record = 7 if data.startswith(_HEADER) else len(data), b""
    while True:
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6 : at + 7]
        if kind not in {b"\1", b"\2", b"\3", b"\4"} or at + 7 + length > len(data):
            return
        record = (b"" if kind in {b"\1", b"\2"} else record) + data[at + 7 : at + 7 + length]
        if kind in {b"\1", b"\4"}:
            yield record
        at += 7 + length

"""A search to be streamed, and what its trackers hold, read back by their own libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ich_ray.search.ledger import Ledger
from ich_ray.search_records import EndCheck, SearchRecord
from tests.search.fakes import SPACE

DRAWN = {"architecture": "resnet18", "learning_rate": 0.001, "dropout": 0.3, "optimizer": "adam"}

# How far a tracker has come: of each trial its reports as (images_seen, average_precision), and its state there.
Held = dict[int, tuple[list[tuple[int, float]], str]]


def begin(folder: Path, trials: int = 3, **changes: Any) -> Ledger:
    """A search that was begun, with a trial running."""
    record = SearchRecord(
        name="tiny", space=yaml.safe_load(SPACE), dataset="/secret/place", fingerprint="f" * 32, prevalence=0.1,
        seed=4, trials=trials, versions={"ray": "2"}, created=1_600_000_000.0,
    ).model_copy(update=changes)  # fmt: skip
    ledger = Ledger.create(folder, record)
    ledger.add(DRAWN)
    return ledger


def report(ledger: Ledger, number: int, images: int, value: float) -> None:
    ledger.report(number, images, {"average_precision": value, "f2": 0.25}, images / 100)


def end(ledger: Ledger) -> None:
    """As the driver does it, once no trial runs."""
    known = len(ledger.trials)
    check = EndCheck(trials=known, asked=ledger.record.wanted, sampler=known, tune=known, out_of_time=False)
    ledger.amend(ended=check.model_dump())


def read_tensorboard(place: str) -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    held: Held = {}
    for folder in sorted(Path(place).glob("trial-*")):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        tags, metadata = events.Tags()["scalars"], events.summary_metadata
        scalars = events.Scalars("average_precision") if "average_precision" in tags else []
        state = "running"
        if (ended := metadata.get("_hparams_/session_end_info")) is not None:
            status = HParamsPluginData.FromString(ended.plugin_data.content).session_end_info.status
            said = events.Tensors("state/text_summary")[0].tensor_proto.string_val[0].decode()
            state = f"{said} {status}"
        held[int(folder.name[6:])] = ([(one.step, one.value) for one in scalars], state)
    return held


def read_optuna(place: str) -> Held:
    storage = f"sqlite:///{place}" if place.endswith(".db") else JournalStorage(JournalFileBackend(place))
    study = optuna.load_study(study_name="tiny", storage=storage)
    return {
        trial.user_attrs["number"]: ([*trial.intermediate_values.items()], trial.state.name) for trial in study.trials
    }


def read_mlflow(place: str) -> Held:
    from mlflow import MlflowClient

    client, held = MlflowClient(tracking_uri=place), {}
    experiment = client.get_experiment_by_name("tiny-20200913T122640Z")
    for run in client.search_runs([experiment.experiment_id]):
        history = client.get_metric_history(run.info.run_id, "average_precision")
        number = int(run.data.tags["number"])
        assert number not in held
        held[number] = (sorted((metric.step, metric.value) for metric in history), run.info.status)
    return held


def read_wandb(place: str) -> Held:
    """All parts of each run, as `wandb sync` sends them."""
    import json
    import os

    from wandb.proto.wandb_internal_pb2 import Record

    from ich_ray.search.export.wandb_stream import whole_records

    runs: dict[str, tuple[list[tuple[int, float]], str]] = {}
    for path in sorted(Path(os.environ["WANDB_DIR"]).glob("wandb/offline-run-*/run-*.wandb")):
        named, reports, state = "", [], "running"
        for data in whole_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("run"):
                named = record.run.display_name or named
            reports += [
                (record.history.step.num, json.loads(item.value_json))
                for item in record.history.item
                if "average_precision" in (item.key, *item.nested_key)
            ]
            for item in record.summary.update:
                if "state" in (item.key, *item.nested_key):
                    state = json.loads(item.value_json)
        before = runs.get(named, ([], "running"))
        runs[named] = (before[0] + reports, state if state != "running" else before[1])
    runs.pop("", None)  # a part that was killed before anything was on disk
    return {int(named.removeprefix("trial ")): held for named, held in runs.items()}


# By tracker: its place below a folder, what reads it, and what it calls running, completed, pruned and failed.
READERS: dict[str, tuple[str, Callable[[str], Held], dict[str, str]]] = {
    "tensorboard": (
        "tensorboard={}/events", read_tensorboard,
        {"completed": "completed 1", "pruned": "pruned rung_300 1", "failed": "failed diverged 2"},
    ),
    "sqlite": ("optuna={}/t.db", read_optuna, {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}),
    "journal": ("optuna={}/t.journal", read_optuna, {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}),
    "mlflow": (
        "mlflow=sqlite:///{}/runs.db", read_mlflow,
        {"completed": "FINISHED", "pruned": "KILLED", "failed": "FAILED"},
    ),
    "wandb": ("wandb=project", read_wandb, {}),
}  # fmt: skip


# For fast tests: MLflow and W&B take seconds.
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in {"mlflow", "wandb"} else name for name in READERS]


def usable(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The target of a tracker, unless its library is missing."""
    if name in {"mlflow", "wandb"}:
        pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.chdir(folder)
    return READERS[name][0].format(folder)


def held(name: str, target: str) -> Held:
    """What stands in a tracker, in the ledger's words."""
    _, read, words = READERS[name]
    back = {theirs: ours for ours, theirs in words.items()}
    found = read(target.partition("=")[2])
    return {number: (reports, back.get(state, state.lower())) for number, (reports, state) in found.items()}

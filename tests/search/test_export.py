from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ich_ray import cli
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.results import SearchResult, open_search
from ich_ray.search.export import export
from ich_ray.search.export.mlflow import experiment_name
from ich_ray.search.export.optuna import as_frozen
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search_records import SearchRecord
from ich_ray.usage import ReportUsage
from tests.search.fakes import SPACE

DRAWN = {"architecture": "resnet18", "learning_rate": 0.001, "dropout": 0.3, "optimizer": "adam"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Completed with 0.5 after 0.7, pruned, failed, completed with 0.6, running."""
    record = SearchRecord(
        name="tiny", space=yaml.safe_load(SPACE), dataset="/d", fingerprint="f" * 32, prevalence=0.1, seed=4, trials=5,
        versions={"ray": "2"}, created=1_600_000_000.0,
    )  # fmt: skip
    ledger = Ledger.create(tmp_path_factory.mktemp("export") / "s", record)
    curves: list[tuple[list[float], Verdict | None]] = [
        ([0.7, 0.5], Verdict("completed")),
        ([0.2, 0.1], Verdict("pruned", "rung_300")),
        ([0.2, math.nan], Verdict("failed", "diverged", "nan")),
        ([0.6], Verdict("completed")),
        ([0.4], None),
    ]
    usage = ReportUsage(images_per_s=50.0, validation_s=0.5, device_use=0.75)  # of the first trial alone
    for number, (values, end) in enumerate(curves):
        conditional: dict[str, Any] = {"architecture": "plain_cnn", "blocks": 2} if number == 1 else {}
        conditional |= {"optimizer": "sgd", "momentum": 0.9} if number == 3 else {}
        ledger.add({**DRAWN, **conditional})
        for index, value in enumerate(values):
            metrics = {"average_precision": value, "f2": 0.25}
            ledger.report(number, 100 * (index + 1), metrics, 1.5, usage=None if number else usage)
        if end:
            ledger.finish(number, end)
    return open_search(ledger.files.root)


def test_optuna_opens_the_search(found: SearchResult, tmp_path: Path) -> None:
    file = tmp_path / "new" / "trials.db"
    assert export(found.files.root, optuna=file) == [f"optuna-dashboard sqlite:///{file}"]
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{file}")
    assert study.direction.name == "MAXIMIZE"
    assert study.metric_names == ["average_precision"]
    assert (study.user_attrs["seed"], study.user_attrs["versions"]) == (4, {"ray": "2"})
    trials = study.trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "RUNNING"]
    assert [trial.value for trial in trials] == [0.7, 0.1, None, 0.6, None]
    assert [trial.intermediate_values for trial in trials] == [
        {100: 0.7, 200: 0.5}, {100: 0.2, 200: 0.1}, {100: 0.2}, {100: 0.6}, {100: 0.4},
    ]  # fmt: skip
    assert study.best_trial.number == 0
    assert trials[0].params == DRAWN
    assert trials[1].params == {**DRAWN, "architecture": "plain_cnn", "blocks": 2}
    assert trials[1].distributions == {
        "architecture": CategoricalDistribution(["plain_cnn", "resnet18"]),
        "blocks": IntDistribution(1, 4),
        "learning_rate": FloatDistribution(1e-5, 0.1, log=True),
        "dropout": FloatDistribution(0.0, 0.6),
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
    }
    assert trials[3].params == {**DRAWN, "optimizer": "sgd"}
    assert trials[3].user_attrs["momentum"] == 0.9
    assert (trials[2].user_attrs["reason"], trials[2].user_attrs["detail"]) == ("diverged", "nan")
    assert trials[0].datetime_start == datetime.fromtimestamp(found.trials[0].started)
    assert trials[4].datetime_complete is None
    took = ("images_per_s", "training_s", "validation_s", "device_use")
    assert [trials[0].user_attrs[name] for name in took] == [50.0, 4.0, 1.0, 0.75]
    assert "training_s" not in trials[1].user_attrs


def test_tensorboard_opens_the_search(found: SearchResult, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    folder = tmp_path / "events"
    assert export(found.files.root, tensorboard=folder) == [f"tensorboard --logdir {folder}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events"]
    assert sorted(path.name for path in folder.iterdir()) == [f"trial-{number:05d}" for number in range(5)]
    events = EventAccumulator(str(folder / "trial-00000")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "average_precision", "f2", "elapsed_s", "best/average_precision", "usage/images_per_s", "usage/validation_s",
        "usage/device_use",
    }  # fmt: skip
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("usage/device_use")] == [(100, 0.75), (200, 0.75)]
    scalars = events.Scalars("average_precision")
    assert [(scalar.step, round(scalar.value, 6)) for scalar in scalars] == [(100, 0.7), (200, 0.5)]
    assert scalars[0].wall_time == pytest.approx(found.trials[0].reports[0].time)
    assert [round(scalar.value, 6) for scalar in events.Scalars("best/average_precision")] == [0.7]
    failed = EventAccumulator(str(folder / "trial-00002")).Reload()
    assert [scalar.step for scalar in failed.Scalars("average_precision")] == [100]
    plugin = EventAccumulator(str(folder / "trial-00003")).Reload().summary_metadata["_hparams_/session_start_info"]
    drawn = HParamsPluginData.FromString(plugin.plugin_data.content).session_start_info.hparams
    assert drawn["learning_rate"].number_value == 0.001
    assert (drawn["optimizer"].string_value, drawn["state"].string_value) == ("sgd", "completed")


def test_mlflow_opens_the_search(found: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    assert export(found.files.root, mlflow=uri) == [f"mlflow ui --backend-store-uri {uri}"]
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny-20200913T122640Z")
    assert experiment.tags["fingerprint"] == "f" * 32
    runs = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.run_name)
    assert [run.info.run_name for run in runs] == [f"trial {number}" for number in range(5)]
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED", "FAILED", "FINISHED", "RUNNING"]
    assert runs[3].data.params == {name: str(value) for name, value in found.trials[3].parameters.items()}
    assert runs[2].data.tags["reason"] == "diverged"
    assert runs[0].data.metrics["best_average_precision"] == 0.7
    history = client.get_metric_history(runs[0].info.run_id, "average_precision")
    assert sorted((metric.step, metric.value) for metric in history) == [(100, 0.7), (200, 0.5)]
    assert runs[0].data.metrics["usage/images_per_s"] == 50.0
    with pytest.raises(ConfigError, match="the experiment tiny-20200913T122640Z must be new, got one that is there"):
        export(found.files.root, mlflow=uri)


def test_mlflow_is_asked_for_where_it_is_missing(found: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"MLflow must be installed, got none; run pip install 'ich_ray\[mlflow\]'"):
        export(found.files.root, mlflow="sqlite:///x.db")


def test_a_trial_that_the_space_cannot_draw_is_named(found: SearchResult) -> None:
    odd = found.trials[2].model_copy(update={"parameters": {**DRAWN, "dropout": 0.9}})
    with pytest.raises(
        IntegrityError, match=r"trials/00002\.json: its parameters must be drawn from .*, got dropout=0.9"
    ):
        as_frozen(parse_space(found.record.space, "x"), odd)


@pytest.mark.parametrize(("number", "ended"), [(0, None), (4, 1.0)])
def test_optuna_takes_a_trial_whose_end_contradicts_its_state(
    number: int, ended: float | None, found: SearchResult
) -> None:
    odd = found.trials[number].model_copy(update={"ended": ended})
    frozen = as_frozen(parse_space(found.record.space, "x"), odd)
    study = optuna.create_study(direction="maximize")
    study.add_trial(frozen)
    assert study.trials[0].state.is_finished() == (number == 0)


def test_a_search_begun_at_another_moment_is_another_experiment(found: SearchResult) -> None:
    assert experiment_name(found.record) == "tiny-20200913T122640Z"
    assert experiment_name(found.record.model_copy(update={"created": 1_600_000_001.0})) == "tiny-20200913T122641Z"


@pytest.mark.parametrize("flag", ["--tensorboard", "--optuna", "--candidates"])
def test_nothing_is_written_over(
    found: SearchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    (tmp_path / "there").write_text("mine")
    assert cli.call(["export", str(found.files.root), flag, str(tmp_path / "there")]) == 2
    assert f"{flag} {tmp_path / 'there'}: must be new, got one that is there" in capsys.readouterr().err
    assert (tmp_path / "there").read_text() == "mine"
    assert cli.call(["export", str(found.files.root), flag, "memory://there"]) == 2
    assert "must be a local path, got a URI" in capsys.readouterr().err
    assert cli.call(["export", str(found.files.root), flag, ""]) == 2
    assert capsys.readouterr().err == f"ich-ray: {flag}: must be a path, got an empty text; name one that is new\n"


def test_all_targets_are_checked_before_any_is_written(found: SearchResult, tmp_path: Path) -> None:
    (tmp_path / "there.db").write_text("mine")
    with pytest.raises(ConfigError, match="must be new"):
        export(found.files.root, tensorboard=tmp_path / "events", optuna=tmp_path / "there.db")
    assert [path.name for path in tmp_path.iterdir()] == ["there.db"]


@pytest.mark.parametrize("flag", ["tensorboard", "optuna", "candidates"])
def test_a_place_that_cannot_be_written_is_told(found: SearchResult, tmp_path: Path, flag: str) -> None:
    (tmp_path / "there").write_text("mine")
    for place in ("there/x", "there/y/x"):
        with pytest.raises(
            ConfigError, match=f"--{flag} .*{place}: must be a place that can be written, got (not|file)"
        ):
            export(found.files.root, **{flag: tmp_path / place})  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_two_exports_have_two_places(found: SearchResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tensorboard, --optuna: must be two places, got .*/x for both"):
        export(found.files.root, tensorboard=tmp_path / "x", optuna=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_export_needs_a_target(found: SearchResult) -> None:
    asked = "at least one of --tensorboard, --optuna, --mlflow and --candidates must be given"
    with pytest.raises(ConfigError, match=asked):
        export(found.files.root)

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from upath import UPath

from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.checked_request import validate_request
from ich_ray.search.cluster_resources import Machine
from ich_ray.search.ledger import Ledger
from ich_ray.search.plan import plan_report
from ich_ray.search.plan.plan_report import plan_search
from ich_ray.search.request import SearchRequest
from ich_ray.search.tune.precompute_features import check_trunks
from ich_ray.search_records import RequestNote
from ich_ray.storage import write_bytes
from tests.search.fakes import SPACE


class OneMachine:
    """A cluster of this machine alone, without Ray."""

    def machines(self) -> list[Machine]:
        return [Machine("here", 2.0, 0.0, 1)]


def asked_here(question: Callable[..., str], *told: Any) -> None:
    if wrong := question(*told):
        raise ConfigError(wrong)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path / "space.yaml"


def test_a_new_search_has_twenty_trials_and_the_seed_0(dataset: PreparedDataset, space: Path, tmp_path: Path) -> None:
    checked = validate_request(SearchRequest(dataset.files.root, space, tmp_path / "s"))
    assert (checked.wanted, checked.record.trials, checked.record.seed) == (20, 20, 0)
    assert (checked.begun, checked.teachers, checked.warm) == (None, (), {})
    assert (checked.limits.hours, checked.limits.gpu_hours) == (None, None)
    assert checked.record.name == checked.space.name == "tiny"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("changed", [2, 4], ids=["fewer", "more"])
def test_the_same_command_again_keeps_what_was_asked_of_its_driver(
    dataset: PreparedDataset, space: Path, tmp_path: Path, changed: int
) -> None:
    """As `submit --restarts` gives it."""
    asked = SearchRequest(dataset.files.root, space, tmp_path / "s", trials=3, resume=True)
    ledger = Ledger.create(tmp_path / "s", validate_request(asked).record)
    note = RequestNote(id="1700000000000-00000000", done=True, answer="yes")
    ledger.amend(request=note.model_dump(mode="json"), trials=changed)
    assert validate_request(asked).wanted == changed
    assert validate_request(replace(asked, trials=5)).wanted == 5


def test_what_is_asked_is_what_is_recorded(dataset: PreparedDataset, space: Path, tmp_path: Path) -> None:
    asked = SearchRequest(dataset.files.root, space, tmp_path / "s", trials=3, seed=5, hours=2.0, gpu_hours=4.0)
    checked = validate_request(asked)
    assert (checked.wanted, checked.record.trials, checked.record.seed) == (3, 3, 5)
    assert (checked.limits.hours, checked.limits.gpu_hours) == (2.0, 4.0)
    assert checked.record.fingerprint == dataset.manifest.fingerprint


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hours": 0.0}, "--hours: must be above 0, got 0.0"),
        ({"gpu_hours": -1.0}, "--gpu-hours: must be above 0, got -1.0"),
        ({"trials": 0}, "--trials: must be at least 1, got 0"),
        ({"trials": 10_000_001}, "--trials: must be at most 10,000,000, got 10,000,001"),
        ({"seed": -1}, "--seed: must be at least 0, got -1"),
    ],
)
def test_numbers_are_refused_before_any_file_is_read_by_a_plan_too(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_search("nowhere", "nowhere", "nowhere", **keys)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{resolution: {choice: [32, 48]}}", "resolution: must be at most the 32 px that the "),
        ("{blocks: {int: [1, 6]}}", "blocks: each block halves the image, 6 are too many for 32 px"),
        ("{training_slices: {choice: [100000]}}", "training_slices: at most the 132 training slices of "),
        ("{weights: {fixed: nowhere.safetensors}}", "nowhere.safetensors"),
    ],
)
def test_a_plan_refuses_in_one_line_what_its_search_would_refuse(
    dataset: PreparedDataset,
    space: Path,
    tmp_path: Path,
    parameters: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = "{images: 900, report_every: 100, first_rung: 100}"
    space.write_text(f"name: tiny\nbudget: {budget}\nparameters: {parameters}\n")
    typed = ["search", str(dataset.files.root), "--space", str(space), "--out", str(tmp_path / "s")]
    said = []
    for plan in ([], ["--plan"]):
        assert call([*typed, *plan]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert message in said[0]
    assert said[0].count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_plan_refuses_the_folder_of_a_search_whose_record_is_gone(
    dataset: PreparedDataset, space: Path, tmp_path: Path
) -> None:
    (tmp_path / "s" / "trials").mkdir(parents=True)
    (tmp_path / "s" / "trials" / "00000.json").write_text("{}")
    with pytest.raises(ConfigError, match="a new search needs a folder without trials, got trials of one whose search"):
        plan_search(dataset.files.root, space, tmp_path / "s")


def test_a_plan_refuses_a_remote_dataset_without_room_for_its_copies(
    dataset: PreparedDataset, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = UPath("memory://planned")
    for path in dataset.files.root.rglob("*"):
        if path.is_file():
            write_bytes(remote / str(path.relative_to(dataset.files.root)), path.read_bytes())
    monkeypatch.setenv("ICH_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ICH_RAY_CACHE_GB", "0.000001")
    monkeypatch.setattr(plan_report, "connected", lambda _: nullcontext())
    monkeypatch.setattr("ich_ray.search.cluster_resources.ClusterResources", OneMachine)
    monkeypatch.setattr("ich_ray.search.preflight.ask_machines", asked_here)
    with pytest.raises(ConfigError, match="ICH_RAY_CACHE_GB: must be at least 1 for copies of memory://planned"):
        plan_search(remote, space, tmp_path / "s")
    assert not (tmp_path / "cache").exists()


def test_a_plan_asks_for_room_for_shared_features_without_their_weights(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = {"architecture": "mobilenet_v3_small", "weights": "imagenet", "unfreeze_from": "features10"}
    parameters = "".join(f"  {name}: {{fixed: {value}}}\n" for name, value in frozen.items())
    budget = "budget: {images: 96, report_every: 48, first_rung: 48}"
    (tmp_path / "frozen.yaml").write_text(f"name: frozen\n{budget}\nparameters:\n{parameters}")
    monkeypatch.setattr(plan_report, "connected", lambda _: nullcontext())
    monkeypatch.setattr("ich_ray.search.cluster_resources.ClusterResources", OneMachine)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    check_trunks(dataset, [Hyperparameters.model_validate(frozen)])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        ConfigError, match=r"0\.0 GB must be free for features 96x1x1 of 168 slices, got 0\.0; freeze more"
    ):
        plan_search(dataset.files.root, tmp_path / "frozen.yaml", tmp_path / "s", share_trunks=True)

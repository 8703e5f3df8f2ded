from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.search.checked_request import validate_request
from ich_ray.search.plan.plan_report import plan_search
from ich_ray.search.request import SearchRequest
from tests.search.fakes import SPACE


@pytest.fixture
def space(tmp_path: Path) -> Path:
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path / "space.yaml"


def test_a_new_search_has_twenty_trials_and_the_seed_0(dataset: PreparedDataset, space: Path, tmp_path: Path) -> None:
    checked = validate_request(SearchRequest(dataset.files.root, space, tmp_path / "s"))
    assert (checked.wanted, checked.record.trials, checked.record.seed) == (20, 20, 0)
    assert (checked.begun, checked.teacher, checked.warm) == (None, None, [])
    assert (checked.limits.hours, checked.limits.gpu_hours) == (None, None)
    assert checked.record.name == checked.space.name == "tiny"
    assert not (tmp_path / "s").exists()


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

from __future__ import annotations

from pathlib import Path

import pytest

from ich_ray.cli import call
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.published.sampled_retraining import sampled_course
from ich_ray.refit import retrain
from ich_ray.refit.retrain_record import RetrainCourse
from ich_ray.storage import SearchFiles
from tests.searched import PARAMETERS, make_search


@pytest.fixture(scope="module")
def search(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    return make_search(tmp_path_factory.mktemp("sampled") / "search", dataset)


def test_a_sample_in_epochs(search: SearchFiles) -> None:
    sized = PARAMETERS.model_copy(update={"training_slices": 40, "epochs": 20})
    assert sampled_course(search.root, slices=40, epochs=20) == RetrainCourse(
        sized, images=800, report_every=40, budget="20 passes over 40 slices, ended by patience"
    )


def test_a_cosine_on_a_sample_is_not_ended_by_patience(dataset: PreparedDataset, tmp_path: Path) -> None:
    annealing = PARAMETERS.model_copy(update={"schedule": "cosine"})
    course = sampled_course(make_search(tmp_path / "search", dataset, annealing).root, slices=40, epochs=20)
    assert course.budget == "20 passes over 40 slices"


@pytest.mark.parametrize(
    ("slices", "epochs", "says"),
    [
        (40, None, "--slices, --epochs: both must be given, at least 1 each, got 40 and None"),
        (None, 20, "--slices, --epochs: both must be given, at least 1 each, got None and 20"),
        (100_000, 1, r"--slices: at most the \d+ training slices can be drawn, got 100,000; lower it"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused(
    search: SearchFiles, slices: int | None, epochs: int | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        sampled_course(search.root, slices=slices, epochs=epochs)


def test_the_command_line_retrains_on_it(
    search: SearchFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, object] = {}

    def refuse(_: object, **keys: object) -> None:
        asked.update(keys)
        raise ConfigError("not here")

    monkeypatch.setattr(retrain, "retrain", refuse)
    command = ["retrain", str(search.root), "--slices", "40"]
    assert call([*command, "--epochs", "20", "--workers", "2", "--tta", "hflip"]) == 2
    assert asked == {
        "course": sampled_course(search.root, slices=40, epochs=20),
        "workers": 2,
        "seeds": 1,
        "tta": ["hflip"],
        "placement": "auto",
        "address": None,
    }
    assert call(command) == 2
    assert "--slices, --epochs: both must be given" in capsys.readouterr().err
    assert (
        call(["retrain", str(search.root), "--slices", "40", "--epochs", "20", "--patients", "train+validation"]) == 2
    )
    assert "--slices: a sample needs validation patients to stop by, got --patients train+validation" in (
        capsys.readouterr().err
    )
    asked.clear()
    assert call(["retrain", str(search.root), "--seeds", "3"]) == 2
    assert "course" not in asked

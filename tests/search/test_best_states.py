from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ich_ray.errors import IchRayError
from ich_ray.search.best_states import BestStates, best_state, keep_only
from ich_ray.storage import locate
from ich_ray.training.state import TrainingState
from ich_ray.trial_records import Objective, Report, TrialResult


@dataclass(frozen=True)
class Step:
    images_seen: int
    value: float

    @property
    def metrics(self) -> dict[str, float]:
        return {"average_precision": self.value}

    def state(self) -> TrainingState:
        numbers = {"images_seen": self.images_seen, "elapsed_s": 0.0, "plan": {}}
        return TrainingState({"weights.x": torch.tensor([self.value])}, numbers)


def offered(folder: Path, values: list[float], after: int = 0) -> BestStates:
    best = BestStates(locate(folder), Objective(), after)
    for index, value in enumerate(values, start=after // 100 + 1):
        step = Step(100 * index, value)
        best.offer(step, step.state)
    return best


def trial(values: list[float]) -> TrialResult:
    reports = [
        Report(images_seen=100 * index, metrics={"average_precision": value}, elapsed_s=0, time=0)
        for index, value in enumerate(values, start=1)
    ]
    return TrialResult(number=7, parameters={}, reports=tuple(reports), seed=3)


def test_the_state_of_the_best_report_is_found_by_its_images(tmp_path: Path) -> None:
    values = [0.2, 0.5, 0.4, 0.5, math.nan]
    offered(tmp_path, values)
    file = best_state(locate(tmp_path), trial(values[:4]))
    state = TrainingState.load(file)
    assert (state.images_seen, state.part("weights")["x"].item()) == (200, 0.5)


def test_of_a_trial_the_best_two_are_kept(tmp_path: Path) -> None:
    offered(tmp_path, [0.1, 0.2, 0.3, 0.25])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000000200=0.2.safetensors",
        "000000000300=0.3.safetensors",
    ]


def test_a_trial_that_goes_on_remembers_the_best_and_forgets_what_came_after(tmp_path: Path) -> None:
    offered(tmp_path, [0.1, 0.6, 0.7])  # died before the checkpoint of the third report
    assert offered(tmp_path, [0.5, 0.55], after=200).kept == [(200, 0.6)]
    assert best_state(locate(tmp_path), trial([0.1, 0.6, 0.5, 0.55])).name == "000000000200=0.6.safetensors"


@pytest.mark.parametrize("name", ["x.safetensors", "000000000100=inf.safetensors", "000000000100=0.5.pkl", "1=2"])
def test_files_of_other_names_are_not_looked_at(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert offered(tmp_path, []).kept == []
    with pytest.raises(IchRayError, match="got none"):
        best_state(locate(tmp_path), trial([0.5]))


@pytest.mark.parametrize(("repeated", "taken"), [([0.5, 0.6], 300), ([0.65, 0.6], 200), ([0.1, 0.3, 0.55], 400)])
def test_after_a_trial_fell_back_the_best_that_is_there_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: list[float], taken: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.search.best_states.say", said.append)
    offered(tmp_path, [0.2, 0.7])
    offered(tmp_path, repeated, after=100)
    file = best_state(locate(tmp_path), trial([0.2, 0.7, 0.6, 0.55]))
    assert TrainingState.load(file).images_seen == taken
    (line,) = said
    assert f"those after {taken} are taken (average_precision {max(repeated)}" in line


@pytest.mark.parametrize("again", [0.69999, 0.7, 0.7002])
def test_the_state_of_a_report_that_was_made_again_is_that_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: float
) -> None:
    """Its attempt was killed before the state was whole, and an accelerator gave other last digits."""
    said: list[str] = []
    monkeypatch.setattr("ich_ray.search.best_states.say", said.append)
    offered(tmp_path, [0.2, 0.7])
    offered(tmp_path, [again, 0.69995], after=100)
    file = best_state(locate(tmp_path), trial([0.2, 0.7, 0.69995]))
    assert (TrainingState.load(file).images_seen, said) == (200, [])


def test_of_two_states_of_a_report_the_nearer_one_is_taken(tmp_path: Path) -> None:
    offered(tmp_path, [0.2, 0.7])
    step = Step(200, 0.7001)
    step.state().save(locate(tmp_path / "000000000200=0.7001.safetensors"))
    for value in (0.7, 0.7001):
        assert best_state(locate(tmp_path), trial([0.2, value])).name == f"000000000200={value}.safetensors"


def test_a_very_small_loss_is_read_as_it_was_written(tmp_path: Path) -> None:
    offered(tmp_path, [1.5e-17])
    assert offered(tmp_path, [], after=100).kept == [(100, 1.5e-17)]


def test_weights_that_are_gone_are_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(IchRayError, match=r"the weights of trial 7 must be there, got none; search again"):
        best_state(locate(tmp_path / "3"), trial([0.5]))


def test_states_of_other_trials_are_removed(tmp_path: Path) -> None:
    for seed in ("3", "4"):
        offered(tmp_path / seed, [0.5])
    keep_only(locate(tmp_path), [3])
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    keep_only(locate(tmp_path / "none"), [3])

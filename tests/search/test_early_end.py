from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import yaml

from ich_ray.cli import call
from ich_ray.errors import ConfigError
from ich_ray.search import early_end
from ich_ray.search.early_end import EarlyEnd, EndWatch, Patience, end_of, parse_patience
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.trial_records import Objective, Report, TrialResult
from tests.search.fakes import SPACE

SOURCE = {**yaml.safe_load(SPACE), "parameters": {"dropout": {"uniform": [0.0, 0.6]}}}
SPACE_OF_ONE = parse_space(SOURCE, "x.yaml")


def trial(number: int, value: float, state: str = "completed", dropout: float | None = None) -> TrialResult:
    """One that ended `number` seconds after the search began, after nine reports near its value."""
    wiggle = (-0.02, 0.01, 0.0) * 3
    reports = tuple(
        Report(images_seen=100 * (index + 1), metrics={"average_precision": value + off}, elapsed_s=1.0, time=1.0)
        for index, off in enumerate(wiggle)
    )
    parameters = {"dropout": number * 0.01 if dropout is None else dropout}
    return TrialResult(
        number=number, parameters=parameters, state=state, reports=reports, ended=float(number),  # type: ignore[arg-type]
        cost_gpu_s=360.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "patience"),
    [
        ("20", Patience(20, "trials")),
        (20, Patience(20, "trials")),
        ("1 trial", Patience(1, "trials")),
        ("500000 images", Patience(500_000, "images")),
        ("500000images", Patience(500_000, "images")),
        ("1.5 hours", Patience(1.5, "hours")),
        ("10 gpu-hours", Patience(10, "gpu-hours")),
        (None, None),
    ],
)
def test_patience_is_read(text: str | int | None, patience: Patience | None) -> None:
    assert parse_patience(text) == patience


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5 trials", "20 minutes", "nan", "1e9", "twenty", "9" * 400, "5 s"])
def test_patience_of_nothing_known_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--patience: must be like 20"):
        parse_patience(text)
    assert call(["search", "d", "--space", "x.yaml", "--out", "s", f"--patience={text}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, math.nan, math.inf])
def test_a_target_must_be_one_that_can_be_reached(target: float) -> None:
    EarlyEnd(target=0.9).check(Objective())
    EarlyEnd(target=1.9).check(Objective(metric="log_loss", mode="min"))
    with pytest.raises(ConfigError, match="--target: must be a value of average_precision above 0 and below 1, got"):
        EarlyEnd(target=target).check(Objective())


def test_gpu_hours_of_patience_need_gpus() -> None:
    EarlyEnd(patience=Patience(1, "gpu-hours")).check_devices(0.5)
    with pytest.raises(ConfigError, match="--patience: GPU hours need trials that hold GPUs, got 0"):
        EarlyEnd(patience=Patience(1, "gpu-hours")).check_devices(0)


def test_a_target_is_reached_by_what_a_trial_is_surely_worth() -> None:
    alike = [trial(number, 0.6 + 0.0005 * number) for number in range(20)]
    end = end_of(SPACE_OF_ONE, EarlyEnd(target=0.55), alike)
    assert end
    assert (end.state, end.reason) == ("pruned", "target")
    assert "the search's --target was reached: trial " in end.detail
    assert end_of(SPACE_OF_ONE, EarlyEnd(target=0.7), alike) is None, "no report reaches it"
    assert end_of(SPACE_OF_ONE, EarlyEnd(target=0.55), alike[:9]) is None, "too few to know the noise"


def test_one_lucky_training_reaches_no_target() -> None:
    values = [0.5, 0.56, 0.47, 0.53, 0.44, 0.55, 0.48, 0.52, 0.46, 0.54, 0.5, 0.49]
    trials = [trial(number, value, dropout=0.3) for number, value in enumerate(values)]
    lucky = trial(12, 0.7, dropout=0.3)
    assert lucky.value == 0.71
    assert end_of(SPACE_OF_ONE, EarlyEnd(target=0.69), [*trials, lucky]) is None
    pruned = [*trials, trial(12, 0.99, "pruned")]
    assert end_of(SPACE_OF_ONE, EarlyEnd(target=0.69), pruned) is None, "it cannot be chosen"


def test_patience_ends_when_the_last_trials_bring_less_than_the_noise() -> None:
    random = np.random.default_rng(0)
    flat = [trial(number, 0.6 + random.normal(0, 0.02), dropout=0.3) for number in range(30)]
    early = EarlyEnd(patience=Patience(10, "trials"))
    end = end_of(SPACE_OF_ONE, early, flat)
    assert end
    assert (end.state, end.reason) == ("pruned", "patience")
    assert end.detail.startswith("the search's --patience was over: the last 10 trials brought 0.0")
    better = [*flat[:-1], *(trial(30 + number, 0.9, dropout=0.5 + 0.01 * number) for number in range(5))]
    assert end_of(SPACE_OF_ONE, early, better) is None
    assert end_of(SPACE_OF_ONE, early, flat[:9]) is None
    late = [trial(number, 0.6, "pruned") for number in range(15)] + [trial(number, 0.6) for number in range(15, 20)]
    assert end_of(SPACE_OF_ONE, early, late) is None, "none had completed before the last ten"


@pytest.mark.parametrize(
    ("patience", "before"),
    [
        (Patience(3, "trials"), {0, 1, 2, 3, 4, 5, 6}),
        (Patience(10, "trials"), set()),
        (Patience(11, "trials"), None),
        (Patience(2_000, "images"), {0, 1, 2, 3, 4, 5, 6}),  # 900 each
        (Patience(9_001, "images"), None),
        (Patience(0.25, "gpu-hours"), {0, 1, 2, 3, 4, 5, 6}),  # 0.1 each
        (Patience(5 / 3600, "hours"), {0, 1, 2, 3, 4, 5}),  # ten seconds after the first
        (Patience(11 / 3600, "hours"), None),
    ],
)
def test_patience_counts_what_was_spent_since(patience: Patience, before: set[int] | None) -> None:
    ended = [trial(number, 0.5) for number in range(10)]
    assert early_end._before(ended, patience, began=0.0, now=10.0) == before


def test_a_search_that_goes_on_has_its_hours_anew() -> None:
    ended = [trial(number, 0.5) for number in range(10)]
    assert early_end._before(ended, Patience(1, "hours"), began=1e6, now=1e6 + 3599) is None
    assert early_end._before(ended, Patience(1, "hours"), began=1e6, now=1e6 + 3600) == {*range(10)}


class Clock:
    """A clock on which a look takes as long as it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_looks_take_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), list[int]()

    def look(_: Any, __: Any, trials: Sequence[TrialResult], ___: float) -> None:
        looks.append(len(trials))
        clock.now += 2.0

    monkeypatch.setattr(early_end, "end_of", look)
    trials: dict[int, TrialResult] = {}
    watch = EndWatch(SPACE_OF_ONE, EarlyEnd(target=0.5), lambda: trials, 0.0, clock)
    for ended in range(1, 100):
        trials[ended] = trial(ended, 0.5)
        assert watch.verdict(ended) is None
        assert watch.verdict(ended) is None, "nothing is new"
        clock.now += 1.0
    assert looks == [1, 41, 81]


def test_an_end_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([None, early_end.Verdict("pruned", "target", "x"), None])
    monkeypatch.setattr(early_end, "end_of", lambda *_: next(ends))
    watch = EndWatch(SPACE_OF_ONE, EarlyEnd(target=0.5), dict, 0.0, Clock())
    assert watch.verdict(1) is None
    assert watch.verdict(2) == watch.verdict(3) == ("pruned", "target", "x")


def test_without_a_rule_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_end, "end_of", lambda *_: pytest.fail("looked"))
    assert EndWatch(SPACE_OF_ONE, EarlyEnd(), dict, 0.0).verdict(3) is None

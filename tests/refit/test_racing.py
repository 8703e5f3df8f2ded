"""Whom a race trains next and whom it chooses, by a model in which no trial tells of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_ray.refit.confirm_race import dropped, standing_trainings, trainings_allowed, unusable
from ich_ray.refit.race_record import Dropped
from ich_ray.refit.racing import Race
from ich_ray.search.value_model import ValueModel
from ich_ray.trial_records import Report, TrialResult, TrialState

NOISE = 0.01**2


class Seen(NamedTuple):
    repeats: int
    value: float
    block: int


@dataclass
class Independent:
    """Each trial has a mean and a variance of its own; a training adds to it as normal noise does."""

    means: dict[int, float]
    deviations: dict[int, float]
    noise: float = NOISE
    blocks: list[int] = field(default_factory=list)

    def again(self, training: TrialResult, block: int) -> Seen:
        self.blocks.append(block)
        assert training.repeats is not None
        return Seen(training.repeats, training.value or 0.0, block)

    def ends(
        self, trials: Sequence[TrialResult], more: Sequence[Seen]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        means, variances = [], []
        for trial in trials:
            weight = 1 / self.deviations[trial.number] ** 2
            total, told = weight * self.means[trial.number], [one.value for one in more if one.repeats == trial.number]
            means.append((total + sum(told) / self.noise) / (weight + len(told) / self.noise))
            variances.append(1 / (weight + len(told) / self.noise))
        return np.array(means), np.diag(variances)


def race(means: Sequence[float], deviations: Sequence[float], stopped: Sequence[int] = (), **keys: Any) -> Race:
    trials = [
        TrialResult(number=number, parameters={}, state="pruned" if number in stopped else "completed", reason="x")
        for number in range(len(means))
    ]
    model = Independent(dict(enumerate(means)), dict(enumerate(deviations)))
    return Race(cast("ValueModel", model), trials, **{"by_fold": False, **keys})


def training(repeats: int, value: float | None, number: int = 0, reason: str = "diverged", **keys: Any) -> TrialResult:
    state: TrialState = "failed" if value is None else "completed"
    report = Report(images_seen=100, metrics={"average_precision": value}, elapsed_s=0, time=0)
    return TrialResult(
        number=number, parameters={}, repeats=repeats, state=state, reason=reason if value is None else "",
        reports=(report,), **keys,
    )  # fmt: skip


def numbers(trials: Sequence[TrialResult]) -> list[int]:
    return [trial.number for trial in trials]


def test_a_training_goes_where_it_can_change_the_choice() -> None:
    """The challenger that nobody is sure of, not the leader that is known, nor the one that is far behind."""
    assert numbers(race([0.80, 0.79, 0.60], [0.001, 0.02, 0.02]).next([], 1)) == [1]


def test_trainings_beside_each_other_count_as_made() -> None:
    assert numbers(race([0.80, 0.795, 0.793], [0.001, 0.02, 0.0199]).next([], 2)) == [1, 2]


def test_what_was_stopped_may_be_trained_and_is_chosen_only_after_that() -> None:
    running = race([0.80, 0.82], [0.005, 0.03], stopped=[1])
    assert numbers(running.next([], 1)) == [1]
    assert running.chosen([]) == running.trials[0]
    assert running.chosen([training(1, 0.83)]) == running.trials[1]
    assert running.chosen([training(1, 0.70)]) == running.trials[0]
    worse = running.standing([training(1, 0.70)])
    assert running.chosen([training(1, 0.83)], standing=worse) == running.trials[0], "what is known is not asked again"


def test_the_last_training_is_of_the_leader_unless_it_had_one() -> None:
    running = race([0.80, 0.79], [0.001, 0.02])
    assert numbers(running.next([], 1, last=True)) == [0]
    assert numbers(running.next([training(0, 0.80)], 1, last=True)) == [1]


def test_a_race_that_is_decided_needs_no_more() -> None:
    running = race([0.90, 0.60], [0.01, 0.01])
    assert numbers(running.next([], 1)) == [0]
    assert running.next([training(0, 0.9)], 1) == []


def test_nobody_trains_more_often_than_there_are_folds_nor_after_a_failure() -> None:
    running = race([0.80, 0.80, 0.80], [0.01, 0.03, 0.02])
    assert numbers(running.next([training(1, 0.8)], 1, at_most=1)) == [2]
    assert numbers(running.next([], 1, out={1})) == [2]
    assert running.next([], 1, out={0, 1, 2}) == []
    assert running.chosen([], out={0, 1, 2}) is None


def test_the_chance_of_being_the_best_is_that_of_the_draws() -> None:
    standing = race([0.80, 0.80, 0.50], [0.01, 0.01, 0.01]).standing([])
    assert standing.best.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.03)
    assert standing.chance.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


@pytest.mark.parametrize(("by_fold", "block"), [(False, 0), (True, 3)])
def test_a_fold_is_a_block_of_its_own(by_fold: bool, block: int) -> None:
    running = race([0.8], [0.1], by_fold=by_fold)
    running.standing([training(0, 0.8, fold=2)])
    assert cast("Independent", running._model).blocks == [block]


def test_who_was_out_since_when_is_told_by_the_trainings_in_their_order() -> None:
    running = race([0.80, 0.79, 0.60], [0.02, 0.02, 0.02])
    trained = [training(0, 0.82), training(1, 0.70), training(0, 0.82)]
    standings, out = dropped(running, trained)
    assert len(standings) == 4
    assert {number: (one.trainings, one.leader, one.reason) for number, one in out.items()} == {
        1: (2, 0, ""),
        2: (0, 0, ""),
    }
    assert out[1].chance < 0.05
    assert dropped(running, trained)[1] == out


def test_a_failed_training_puts_its_trial_out() -> None:
    running = race([0.80, 0.79], [0.02, 0.02])
    _, out = dropped(running, [training(1, 0.8), training(0, None)])
    assert out[0] == Dropped(trainings=2, chance=out[0].chance, leader=out[0].leader, reason="diverged")


def test_what_failed_and_was_made_good_is_forgiven_unless_it_diverged() -> None:
    lost = training(0, None, reason="out_of_memory")
    assert unusable([lost]) == {0: "out_of_memory"}
    assert unusable([lost, training(0, 0.8)]) == {}
    assert unusable([training(0, None), training(0, 0.8)]) == {0: "diverged"}


@pytest.mark.parametrize(
    ("folds", "standing"),
    [
        (((0, None), (0, 0.8)), [1]),
        (((0, 0.8), (1, None)), [0, 1]),  # the other fold never came through
        (((1, None), (0, 0.8)), [0, 1]),
        (((1, None), (1, None), (0, 0.7), (1, 0.8)), [2, 3]),
        (((None, None), (None, 0.8)), [1]),  # with seeds each that completed makes one good
        (((None, 0.8), (None, None)), [0]),
        (((None, None), (None, 0.8), (None, None)), [1, 2]),
    ],
)
def test_a_failure_is_made_good_by_the_same_fold_in_any_order(
    folds: Sequence[tuple[int | None, float | None]], standing: list[int]
) -> None:
    trained = [
        training(0, value, number, reason="out_of_memory", fold=fold) for number, (fold, value) in enumerate(folds)
    ]
    assert [one.number for one in standing_trainings(trained)] == standing
    failed = any(trained[number].state == "failed" for number in standing)
    assert unusable(trained) == ({0: "out_of_memory"} if failed else {})
    assert unusable(trained[::-1]) == unusable(trained)


@pytest.mark.parametrize(("images", "allowed"), [(0, 2), (10_000, 2), (20_000, 3), (400_000, 60)])
def test_a_share_of_the_images_pays_for_trainings_two_at_least(images: int, allowed: int) -> None:
    assert trainings_allowed(0.15, images, 1000) == allowed

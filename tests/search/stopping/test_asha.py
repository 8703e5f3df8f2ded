from __future__ import annotations

import itertools
import math
import random

import pytest

from ich_ray.search.space.space import Budget
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.trial_records import Objective, Report, TrialResult

BUDGET = Budget(images=900, report_every=100, first_rung=100, reduction=3, min_peers=2)
MAX, MIN = Objective(), Objective(metric="log_loss", mode="min")


def test_rungs_lie_a_factor_apart_below_the_budget() -> None:
    assert BUDGET.rungs() == [100, 300]
    assert Budget(images=1000, report_every=100, first_rung=100, reduction=3).rungs() == [100, 300, 900]
    assert Budget(images=900, report_every=100, first_rung=900).rungs() == []


def test_a_hand_worked_search() -> None:
    rungs = AshaRungs(BUDGET, MAX)
    assert rungs.offer(0, 100, 0.5) is None  # nobody there
    assert rungs.offer(1, 100, 0.2) is None  # one peer is less than two
    assert rungs.offer(2, 100, 0.4) == "rung_100"  # the best 3 // 3 = 1 of 0.5, 0.4, 0.2
    assert rungs.offer(3, 100, 0.6) is None
    assert rungs.offer(4, 100, 0.55) == "rung_100"  # the best 5 // 3 = 1
    assert rungs.offer(5, 100, 0.58) is None  # the best 6 // 3 = 2 of 0.6, 0.58
    assert rungs.offer(3, 300, 0.3) is None
    assert rungs.reached[300] == {3: 0.6}  # its best so far
    assert rungs.offer(5, 300, 0.59) is None  # one peer is less than two
    assert rungs.offer(6, 100, 0.57) == "rung_100"
    assert rungs.offer(6, 320, 0.58) == "rung_300"  # had it gone on
    assert rungs.reached[300] == {3: 0.6, 5: 0.59, 6: 0.58}
    assert sorted(rungs.reached[100].values()) == [0.2, 0.4, 0.5, 0.55, 0.57, 0.58, 0.6]


def test_the_first_at_a_rung_is_judged_again_when_others_have_been_there() -> None:
    rungs = AshaRungs(BUDGET, MAX)
    assert rungs.offer(0, 100, 0.5) is None  # nobody there
    assert rungs.offer(1, 100, 0.6) is None
    assert rungs.offer(2, 100, 0.7) is None
    assert rungs.offer(2, 200, 0.1) is None  # still the best there
    assert rungs.offer(0, 200, 0.9) == "rung_100"  # by what it had at the rung
    assert rungs.offer(1, 300, 0.6) is None  # a new rung, where nobody has been


HEDGED = BUDGET.model_copy(update={"hedge": 0.25})


@pytest.mark.parametrize(
    ("hedge", "spared"), [(0.0, []), (0.125, [7]), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (0.3, [3, 6])]
)
def test_the_share_of_trials_that_the_first_rung_spares_lies_evenly_among_their_numbers(
    hedge: float, spared: list[int]
) -> None:
    budget = BUDGET.model_copy(update={"hedge": hedge})
    assert [number for number in range(8) if budget.hedged(number)] == spared


@pytest.mark.parametrize("hedge", [0.1, 0.3, 1 / 3, math.nextafter(0.5, 0), 1e-3])
def test_of_any_number_of_trials_the_whole_share_is_spared(hedge: float) -> None:
    budget = BUDGET.model_copy(update={"hedge": hedge})
    spared = itertools.accumulate(map(budget.hedged, range(3000)))
    assert [*spared] == [math.floor(trials * hedge) for trials in range(1, 3001)]


def test_a_trial_that_the_first_rung_spares_is_judged_at_the_second() -> None:
    rungs = AshaRungs(HEDGED, MAX)
    told = [rungs.offer(number, 100, value) for number, value in enumerate([0.9, 0.8, 0.7, 0.1, 0.2])]
    assert told == [None, None, "rung_100", None, "rung_100"]
    assert rungs.offer(3, 200, 0.2) is None  # nor when it is judged again
    assert sorted(rungs.reached[100].values()) == [0.1, 0.2, 0.7, 0.8, 0.9]  # others are compared with it
    assert [rungs.offer(number, 300, 0.95) for number in (0, 1)] == [None, None]
    assert rungs.offer(3, 300, 0.3) == "rung_300"


def test_what_learns_late_wins_where_the_first_rung_spares_it() -> None:
    late = {100: 0.1, 200: 0.2, 300: 0.99, 400: 0.99}
    for budget, ended in ((BUDGET, "rung_100"), (HEDGED, None)):
        rungs = AshaRungs(budget, MAX)
        for number, value in enumerate([0.9, 0.8, 0.7]):
            rungs.offer(number, 100, value)
        told = (rungs.offer(3, images, value) for images, value in late.items())
        assert next((reason for reason in told if reason), None) == ended


def test_the_plan_counts_those_that_the_first_rung_spares() -> None:
    assert AshaRungs.expected(BUDGET, 36).reaching == (36, 12, 4)
    assert AshaRungs.expected(HEDGED, 36).reaching == (36, 18, 6)  # 9 of 36, and a third of the others
    assert AshaRungs.expected(HEDGED, 36).images == 36 * 100 + 18 * 200 + 6 * 600


def test_smaller_can_be_better() -> None:
    rungs = AshaRungs(BUDGET, MIN)
    assert [rungs.offer(number, 100, value) for number, value in enumerate([0.3, 0.4, 0.2, 0.35])] == [
        None,
        None,
        None,
        "rung_100",
    ]


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_none_neither_stops_nor_counts(nothing: float | None) -> None:
    rungs = AshaRungs(BUDGET, MAX)
    for number in range(5):
        assert rungs.offer(number, 100, nothing) is None
    assert rungs.reached[100] == {}
    assert rungs.offer(5, 100, 0.1) is None


def test_a_report_told_twice_changes_nothing() -> None:
    rungs = AshaRungs(BUDGET, MAX)
    for number, value in enumerate([0.5, 0.4, 0.6]):
        rungs.offer(number, 100, value)
    before = dict(rungs.reached[100])
    assert rungs.offer(2, 100, 0.9) is None
    assert rungs.offer(1, 100, 0.9) is None
    assert rungs.reached[100] == before
    assert rungs.offer(1, 200, 0.9) == "rung_100"  # 0.4 is not the best of three


def test_a_trial_put_back_to_an_older_checkpoint_is_not_judged_where_it_has_been() -> None:
    rungs = AshaRungs(BUDGET, MAX)
    for images_seen, value in ((100, 0.5), (200, 0.9), (300, 0.9), (400, 0.9)):
        assert rungs.offer(0, images_seen, value) is None
    for number in (1, 2, 3, 4):  # better than 0.5 at the first rung, which is behind it
        rungs.offer(number, 100, 0.6)
    again = [rungs.offer(0, images_seen, value) for images_seen, value in ((100, 0.5), (200, 0.9), (300, 0.9))]
    assert again == [None, None, None]
    assert rungs.offer(0, 500, 0.9) is None


def test_a_late_first_report_is_judged_at_the_rungs_it_passed() -> None:
    rungs = AshaRungs(BUDGET, MAX)
    for number, value in enumerate([0.5, 0.6]):
        rungs.offer(number, 100, value)
    assert rungs.offer(2, 320, 0.4) == "rung_100"
    assert rungs.reached[300] == {2: 0.4}


def test_rebuilt_rungs_equal_the_undisturbed_ones() -> None:
    source = random.Random(3)
    undisturbed, reports = AshaRungs(BUDGET, MAX), {number: [] for number in range(30)}
    for number, told in reports.items():
        for images in range(100, 1000, 100):
            value = source.random() if source.random() > 0.05 else None
            time = float(len(reports) * images)
            told.append(Report(images_seen=images, metrics={"average_precision": value}, elapsed_s=1.0, time=time))
            if undisturbed.offer(number, images, value) is not None:
                break
    trials = [TrialResult(number=n, parameters={}, reports=tuple(told)) for n, told in reversed(reports.items())]
    rebuilt = AshaRungs.rebuilt(BUDGET, MAX, trials)
    assert rebuilt.reached == undisturbed.reached
    assert len(rebuilt.reached[100]) > 20
    assert [rebuilt.offer(99, 100, value) for value in (0.01,)] == [undisturbed.offer(99, 100, 0.01)]

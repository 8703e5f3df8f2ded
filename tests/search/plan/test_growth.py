from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ich_ray.search.plan.expected import WorkPlan
from ich_ray.search.plan.growth import RunningTrial, efficiency_of, growing, most_slots, workers_at_most
from ich_ray.search.preflight import Slots
from ich_ray.search.space.yaml_file import parse_space

SPACE = {
    "name": "tiny",
    "budget": {"images": 900, "report_every": 100, "first_rung": 100, "min_peers": 1},
    "parameters": {"dropout": {"uniform": [0.0, 0.6]}},
}


def trial(number: int, left: int = 1_000_000, node: str = "a", **keys: Any) -> RunningTrial:
    """One that takes a thousand seconds for a million images."""
    return RunningTrial(number, node, left, **{"seconds": {1: 0.001}, "most": 8, **keys})


def test_all_free_slots_of_its_machine_go_to_the_last_trial() -> None:
    assert growing([trial(7)], {"a": 5, "b": 8}, efficiency=1.0) == {7: 6}


def test_the_trial_that_would_end_last_grows_until_it_is_no_longer_the_last() -> None:
    """1,000 and 400 s left: the first has three slots before the second gets one."""
    assert growing([trial(0), trial(1, 400_000)], {"a": 1}, efficiency=1.0) == {0: 2}
    assert growing([trial(0), trial(1, 400_000)], {"a": 3}, efficiency=1.0) == {0: 3, 1: 2}


def test_a_machine_that_is_full_leaves_its_trials_as_they_are() -> None:
    assert growing([trial(0), trial(1, 500_000, "b")], {"a": 0, "b": 3}, efficiency=1.0) == {1: 4}
    assert growing([trial(0)], {"b": 8}, efficiency=1.0) == {}


def test_a_batch_and_its_last_rest_limit_the_slots() -> None:
    assert [most_slots(batch, 1) for batch in (4, 16, 21, 32, 256)] == [1, 4, 5, 8, 8]
    assert [most_slots(64, workers) for workers in (2, 3, 8, 16)] == [4, 2, 1, 1]
    assert growing([trial(0, most=3)], {"a": 7}, efficiency=1.0) == {0: 3}


@pytest.mark.parametrize(
    ("slots", "a_machine", "workers"),
    [
        (Slots(1, 1, 64), 8, 8),
        (Slots(1, 1, 64), 16, 8),
        (Slots(1, 1, 64), 1, 1),
        (Slots(1, 1, 1), 8, 1),  # --concurrent 1
        (Slots(2, 2, 8, workers=2), 4, 8),
        (Slots(3, 3, 8, workers=3), 4, 6),
        (Slots(12, 12, 2, workers=12), 2, 12),
        (Slots(1, 0, 4), 4, 4),
        (Slots(1, 0.5, 16), 16, 1),
    ],
)
def test_workers_of_a_grown_trial_are_those_of_whole_slots_on_one_machine(
    slots: Slots, a_machine: int, workers: int
) -> None:
    space = parse_space(SPACE, "x.yaml")
    assert workers_at_most(space, slots, a_machine) == workers
    folds = parse_space(SPACE | {"objective": {"folds": 3}}, "x.yaml")
    assert workers_at_most(folds, slots, a_machine) == slots.workers


def test_a_trial_at_most_doubles_until_the_efficiency_is_known() -> None:
    assert growing([trial(0)], {"a": 7}) == {0: 2}
    assert growing([trial(0, slots=2)], {"a": 6}) == {0: 4}
    assert growing([trial(0)], {"a": 7}, efficiency=0.4) == {0: 8}


@pytest.mark.parametrize(("left", "grows"), [(79_000, {}), (81_000, {0: 2})])
def test_what_is_saved_must_be_twice_what_the_change_costs(left: int, grows: dict[int, int]) -> None:
    assert growing([trial(0, left)], {"a": 1}, efficiency=1.0, switch_s=20) == grows


def test_a_ninth_slot_is_not_worth_a_change() -> None:
    """From 8 to 9 slots saves a ninth, from 12 to 13 a thirteenth; less than a tenth is left alone."""
    many = {"seconds": {1: 0.01}, "most": 16}
    assert growing([trial(0, slots=8, **many)], {"a": 1}, efficiency=1.0, switch_s=1) == {0: 9}
    assert growing([trial(0, slots=12, **many)], {"a": 1}, efficiency=1.0, switch_s=1) == {}


def test_slots_that_are_worth_nothing_are_left_free() -> None:
    assert growing([trial(0)], {"a": 7}, efficiency=0.0) == {}


def test_a_trial_that_became_slower_goes_back_and_stays() -> None:
    slower = {1: 0.001, 2: 0.0012}
    assert growing([trial(0, slots=2, seconds=slower)], {"a": 6}, efficiency=0.5, switch_s=20) == {0: 1}
    assert growing([trial(0, seconds=slower)], {"a": 7}, efficiency=0.5) == {}
    few = trial(0, 50_000, slots=2, seconds=slower)  # 10 s would be saved, and the change costs 20
    assert growing([few], {"a": 6}, efficiency=0.5, switch_s=20) == {}


def test_measured_seconds_count_more_than_the_efficiency() -> None:
    known = trial(0, slots=2, seconds={1: 0.001, 2: 0.0005, 4: 0.00049})
    assert growing([known], {"a": 2}, efficiency=1.0) == {}, "four slots were tried and saved nothing"


def test_the_efficiency_is_the_median_of_what_grown_trials_showed() -> None:
    assert efficiency_of([]) is None
    assert efficiency_of([{1: 1.0}, {2: 0.5}]) is None
    assert efficiency_of([{1: 1.0, 2: 0.5}, {1: 1.0, 4: 0.4}, {1: 1.0, 2: 2.0}]) == pytest.approx(0.5)
    assert efficiency_of([{1: 1.0, 2: 2.0}]) == 0.0
    assert efficiency_of([{1: 1.0, 2: 0.4}]) == 1.0


def test_the_plan_says_how_far_trials_grow() -> None:
    keys: dict[str, Any] = {"rungs": None, "reaching": (9,), "images": 9, "images_at_most": 9, "mapped_bytes": 0}
    plan = WorkPlan("tiny", trials=9, concurrent=4, cpus=1, gpus=1, workers=1, **keys)
    assert "at the end" not in str(plan)
    grown = str(replace(plan, grown_workers=4))
    assert "slots of their machine that stand free, up to 4 workers each (--no-grow: none does)" in grown

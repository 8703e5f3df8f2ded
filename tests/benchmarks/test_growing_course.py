from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.growing_course import Costs, course_s
from ich_ray.search.space.space import Budget

BUDGET = Budget(images=1000, report_every=100, first_rung=100, reduction=3, min_peers=3)
# A report takes 100 s, and nothing is read.
COSTS = Costs(
    image_s=0.9, validation_s=10, train=400, validation=50, image_bytes=0, held=1, storage_bytes_s=1e6, start_s=5,
    switch_s=20,
)  # fmt: skip


def course(costs: Costs = COSTS, **keys: object) -> float:
    asked = {"trials": 1, "slots": 1, "slots_a_node": 8, "efficiency": None, "seed": 0}
    return course_s(BUDGET, costs, **{**asked, **keys})  # type: ignore[arg-type]


def test_a_trial_alone_by_hand() -> None:
    assert course() == pytest.approx(5 + 10 * 100)


def test_a_trial_that_grows_by_hand() -> None:
    """Three reports alone, as the second one tells what it takes; two on two slots, the others on eight."""
    assert course(slots=8, efficiency=1.0) == pytest.approx(5 + 3 * 100 + 20 + 2 * 50 + 20 + 5 * 12.5)


def test_further_slots_that_are_worth_a_half_by_hand() -> None:
    """1.5 times as fast with two, 4.5 times with eight."""
    assert course(slots=8, efficiency=0.5) == pytest.approx(5 + 300 + 20 + 2 * 100 / 1.5 + 20 + 5 * 100 / 4.5)


def test_a_machine_of_one_slot_and_an_efficiency_of_nothing() -> None:
    assert course(slots=8, slots_a_node=1, efficiency=1.0) == pytest.approx(1005)
    back = course(slots=8, efficiency=0.0)  # it tries two slots once
    assert back == pytest.approx(1005 + 20)


def test_images_are_read_once_a_machine_while_it_trains() -> None:
    """50 of 400 and 50 for validation at once: 100 bytes a second give a report of 150 images in 150 s.

    The next three reports read 100 images each, in the 100 s that they compute, and the epochs after read nothing.
    """
    reading = replace(COSTS, image_bytes=100, storage_bytes_s=100)
    assert course(reading) == pytest.approx(150 + 9 * 100)
    shared = course(reading, trials=2, slots=2, slots_a_node=1)
    assert shared == pytest.approx(300 + 3 * 200 + 6 * 100)


@pytest.mark.parametrize(("slots", "a_node"), [(8, 8), (16, 4), (40, 8)])
@pytest.mark.parametrize("efficiency", [1.0, 0.5, 0.0])
def test_no_search_takes_longer_by_more_than_what_it_tries(slots: int, a_node: int, efficiency: float) -> None:
    keys = {"trials": 20, "slots": slots, "slots_a_node": a_node, "seed": 3}
    without, with_growth = course(**keys), course(**keys, efficiency=efficiency)
    assert with_growth <= without + (2 * COSTS.switch_s if efficiency == 0 else 0)

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.growing_course import Confirming, Costs, course_s
from benchmarks.sizing import Rates, over_network
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


# The search of one trial on eight slots by hand, as above, and its trainings again.
SEARCHED = 5 + 3 * 100 + 20 + 2 * 50 + 20 + 5 * 12.5


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ({"slots": 1, "confirming": Confirming(top=1)}, 3 * 1005),
        ({"slots": 2, "confirming": Confirming(top=1)}, 2 * 1005),
        ({"slots": 8, "efficiency": 1.0, "confirming": Confirming(1, 1, grows=False)}, SEARCHED + 1005),
        ({"slots": 8, "efficiency": 1.0, "confirming": Confirming(1, 1)}, 2 * SEARCHED),
        # The better one is known to be the better half-way, and there is a slot beside both.
        ({"trials": 2, "slots": 3, "confirming": Confirming(1, 1, after=0.5)}, 505 + 1005),
        ({"trials": 2, "slots": 3, "confirming": Confirming(1, 1, after=1.0)}, 2 * 1005),
        ({"trials": 2, "slots": 2, "confirming": Confirming(1, 1, after=0.5)}, 2 * 1005),
    ],
)
def test_a_confirmation_by_hand(keys: dict[str, object], seconds: float) -> None:
    assert course(**keys) == pytest.approx(seconds)


def test_growth_onto_other_machines_by_hand() -> None:
    """As on one machine, by an efficiency or by how fast so many are."""
    assert course(slots=8, slots_a_node=1, efficiency=1.0, across=True) == pytest.approx(SEARCHED)
    half = course(slots=8, slots_a_node=1, efficiency=lambda slots: 1 + 0.5 * (slots - 1), across=True)
    assert half == pytest.approx(course(slots=8, efficiency=0.5))
    assert course(slots=8, slots_a_node=4, efficiency=1.0, across=True) == pytest.approx(SEARCHED)


@pytest.mark.parametrize(
    ("gbit", "gradients_mb", "machines", "times"),
    [
        # 42.7 ms alone, 21.3 ms on two, in two thirds of which 80 ms begin to be sent.
        (10, 100, 2, 42.667 / (21.333 + 80 - 14.222)),
        (100, 25, 2, 2.0),  # 2 ms are hidden
        (25, 100, 8, 42.667 / (5.333 + 56 - 3.556)),
        (10, 100, 1, 1.0),
    ],
)
def test_what_a_network_leaves_of_further_machines(
    gbit: float, gradients_mb: float, machines: int, times: float
) -> None:
    assert over_network(Rates(), gbit, gradients_mb, 64)(machines) == pytest.approx(times, rel=1e-3)

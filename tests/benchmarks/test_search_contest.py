from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from benchmarks.efficiency.computed import IMAGES, PACES, Kind, Landscape
from benchmarks.efficiency.contest import Key, Needed, keys, print_contest
from benchmarks.efficiency.course import Parameters, course
from benchmarks.efficiency.paired import chance_of_more, holm, ratio_of_sums
from benchmarks.efficiency.replay import Table
from benchmarks.efficiency.rivals import BEST, ONE_PASS, ROUND, OnePass, fitted

DRAW: Parameters = {
    "architecture": "resnet18", "batch_size": 64, "learning_rate": 1e-3, "decay": 0.01, "dropout": 0.3,
    "optimizer": "adam",
}  # fmt: skip


def test_holm_corrects_the_smallest_chance_by_all_and_never_reverses_an_order() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


@pytest.mark.parametrize(
    ("ours", "theirs", "chance"),
    [
        ([2, 2, 2], [1, 1, 1], 1 / 8),  # all signs as they are, of eight
        ([1, 1, 1], [2, 2, 2], 1.0),
        ([2, 1], [1, 2], 3 / 4),  # the sum of log ratios is 0
    ],
)
def test_the_paired_test_counts_changes_of_signs(ours: list[float], theirs: list[float], chance: float) -> None:
    assert chance_of_more(ours, theirs) == chance


def test_a_ratio_of_sums_weighs_problems_by_what_they_need() -> None:
    assert ratio_of_sums([[1], [27]], [[1], [9]]) == (2.8, 1.0, 3.0)  # a bootstrap may draw either of them twice
    assert ratio_of_sums([[2], [4]], [[1], [2]]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("slots", [1, 4])
def test_after_one_pass_for_everybody_the_best_of_a_round_go_to_the_end(slots: int, tmp_path: Path) -> None:
    on = Landscape(0, 0.0)
    steps = course(OnePass(on.space, 0, tmp_path, slots), on, 0)
    one_round = ROUND * ONE_PASS + BEST * (IMAGES - ONE_PASS)
    for so_far, _ in steps:
        if so_far.images >= one_round + slots * ONE_PASS:
            break
    first = so_far.trainings[:ROUND]
    assert all(training.images >= ONE_PASS for training in first)
    best = sorted(range(ROUND), key=lambda number: -first[number].values[ONE_PASS // 1000 - 1])[:BEST]
    longest = sorted(range(ROUND), key=lambda number: -first[number].images)[:BEST]
    assert set(longest) == set(best)


def test_networks_of_another_pace_take_another_time_and_cost(tmp_path: Path) -> None:
    on = Landscape(0, 0.0, "paced")
    (_, training), (so_far, _) = islice(course(OnePass(on.space, 0, tmp_path, 1), on, 0), 2)
    took = 2000 * PACES[str(training.parameters["architecture"])]
    assert (so_far.images, so_far.seconds, so_far.cost) == (2000, took, took)


def rank_at(kind: Kind, images: int) -> list[float]:
    """What three rates are worth, the middle one the best at the end."""
    on = Landscape(3, 0.0, kind)
    best = on._rate["adam"]
    return [on.value(DRAW | {"learning_rate": 10 ** (best + off)}, images) for off in (-0.8, 0.0, 0.8)]


def test_what_is_slow_at_the_first_rung_is_the_best_from_the_second_on() -> None:
    plain, slow = rank_at("plain", 1000), rank_at("slow", 1000)
    assert plain.index(max(plain)) == 1
    assert slow.index(max(slow)) == 2
    assert rank_at("slow", IMAGES) == pytest.approx(rank_at("plain", IMAGES))
    later = rank_at("slow", 3000)
    assert later.index(max(later)) == 1


@pytest.mark.parametrize("kind", ["plain", "slow", "paced"])
def test_nothing_is_better_than_the_best_there_is(kind: Kind) -> None:
    on = Landscape(5, 0.0, kind)
    for name in on.space.parameters[0].values:
        worth = on.value(DRAW | {"architecture": name, "blocks": 3, "learning_rate": 10 ** on._rate["adam"]}, IMAGES)
        assert worth <= on.best + 1e-3


def test_a_flat_draw_is_left_what_the_space_rules_out() -> None:
    on = Landscape(0, 0.0)
    assert fitted(on.space, DRAW | {"blocks": 2}) == DRAW
    assert fitted(on.space, DRAW | {"architecture": "plain_cnn", "blocks": 2})["blocks"] == 2


def test_a_contest_runs_one_search_of_everything_before_the_next() -> None:
    asked = keys("plain", 2, range(2), [4], ["ours", "stock"])
    assert [(one.search, one.problem) for one in asked] == [
        (0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0), (1, 1), (1, 1)
    ]  # fmt: skip


def test_a_contest_prints_ratios_limits_and_who_never_came(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Needed(Key("plain", problem, 4, name, search), images, images, images, reached=images < 50)
        for problem in range(4)
        for search in range(2)
        for name, images in (("ours", 10.0), ("stock", 20.0), ("random", 70.0))
    ]
    print_contest(found, 60, "images")
    told = capsys.readouterr().out.splitlines()
    assert "stock | 4, 8 | 20.0 | 0 | 2.00 (2.00 to 2.00) | 0.50 | 1.000" in told
    assert "random | 4, 8 | 60.0 | 8 | 6.00 (6.00 to 6.00) | 0.17 | 1.000" in told
    assert told[-1].endswith("4 tests, smallest p 1.0000; needs more after Holm, 5 % in all: 0")


def test_a_draw_of_the_table_replays_its_own_curve_and_a_neighbor_that_of_its_next_seed() -> None:
    table = Table()
    parameters = table._curves.parameters[7]
    first, again = (
        table.begin(parameters | moved, (0, 0)) for moved in ({}, {"dropout": parameters["dropout"] + 1e-4})
    )
    told = [training.report() for training in (first, again)]
    assert told == [table._curves.values[7, seed, 0] for seed in (0, 1)]
    assert [first.report() for _ in range(26)][-1] == table._curves.values[7, 0, 26]
    assert table.best == max(table.worth) == pytest.approx(0.936, abs=5e-4)

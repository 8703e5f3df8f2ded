from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from ich_ray.search.tune.growing import Growing, SearchState


class Keeper:
    def __init__(self, node: str, slots: int) -> None:
        self.node, self.slots, self.holds, self.said = node, slots, True, ""
        self.lost = False

    def is_there(self) -> bool:
        if self.lost:
            raise ActorDiedError
        return self.holds

    def take_back(self) -> None:
        self.said += "take back "

    def end(self) -> None:
        self.said += "end "


class Search:
    """Trials of 1,000 images on one machine of four slots, a report every 100, of 100 s on one slot."""

    def __init__(self, trials: int = 1, workers: int = 1, most: int = 8, slots: int = 4) -> None:
        self.clock, self.state = 0.0, SearchState(slots, {"a": 4}, ())
        self.over = True
        self.keepers: list[Keeper] = []
        self.told: list[tuple[int, int]] = []
        self.growing = Growing(
            "search",
            state=lambda: self.state if self.over else None,
            images=lambda _: 1000,
            most=lambda _: most,
            grew=lambda number, slots: self.told.append((number, slots)),
            workers=workers,
            cpus=workers,
            gpus=0.0,
            lend=self.lend,
            now=lambda: self.clock,
        )
        self.workers = workers
        self.trials: list[Any] = [
            SimpleNamespace(config={"number": number, "seed": 40 + number, "parameters": {}}, status="RUNNING")
            for number in range(trials)
        ]
        self.elapsed = [0.0] * trials
        for trial in self.trials:
            self.growing.on_trial_start(0, self.trials, trial)

    def lend(self, search: str, seed: int, node: str, slots: int, *, cpus: float, gpus: float) -> Keeper:
        assert (search, seed, cpus, gpus) == ("search", 40, self.workers, 0.0)
        self.keepers.append(Keeper(node, slots))
        return self.keepers[-1]

    def report(self, images: int, slots: int = 1, number: int = 0, takes: float = 100.0) -> None:
        self.elapsed[number] += takes
        self.clock += takes
        result = {
            "images_seen": images,
            "elapsed_s": self.elapsed[number],
            "node": "a",
            "setup": {"workers": slots * self.workers},
        }
        self.growing.on_trial_result(0, self.trials, self.trials[number], result)

    def look(self) -> None:
        self.clock += 2
        self.growing.on_step_end(0, self.trials)

    @property
    def lent(self) -> list[int]:
        return [keeper.slots for keeper in self.keepers]


def test_a_lone_trial_doubles_and_then_takes_what_it_is_worth() -> None:
    search = Search()
    search.report(100)
    search.look()
    assert not search.keepers, "a first report alone does not tell what an image takes"
    search.report(200)
    search.look()
    assert (search.lent, search.told) == ([1], [])
    search.look()
    assert search.told == [(0, 2)], "counted from when the slots are held"
    search.report(300)  # it began before they were
    search.look()
    assert search.lent == [1], "one change after the other"
    search.report(400, slots=2, takes=50)
    search.look()
    search.look()
    assert (search.lent, search.told) == ([1, 2], [(0, 2), (0, 4)])
    search.growing.on_trial_complete(0, search.trials, search.trials[0])
    assert [keeper.said for keeper in search.keepers] == ["end ", "end "]
    assert search.told[-1] == (0, 1)


def test_nothing_grows_while_trials_are_left_to_start_or_one_has_not_reported() -> None:
    search = Search(trials=2)
    search.over = False
    for images in (100, 200):
        search.report(images)
    search.look()
    search.over = True
    search.look()
    assert not search.keepers, "nobody knows where the other one stands"
    search.report(100, number=1)
    search.look()
    assert search.lent == [1]


def test_slots_of_other_trials_and_of_the_search_are_counted() -> None:
    search = Search(slots=1)
    for images in (100, 200):
        search.report(images)
    search.look()
    assert not search.keepers, "--concurrent 1 is one slot"
    full = Search(trials=4)
    for number in (1, 2, 3):
        full.report(100, number=number)
    for images in (100, 200):
        full.report(images)
    full.look()
    assert not full.keepers, "four trials on four slots"
    out = Search()
    out.state = SearchState(4, {"a": 4}, {"a"})
    for images in (100, 200):
        out.report(images)
    out.look()
    assert not out.keepers, "a machine in quarantine gives nothing"


def test_a_trial_in_the_queue_gets_its_slot_first() -> None:
    search = Search(trials=2)
    search.report(100, number=1)
    for images in (100, 200):
        search.report(images)
    search.look()
    search.look()
    search.report(300, slots=2, takes=50)
    search.growing.on_trial_recover(0, search.trials, search.trials[1])
    search.trials[1].status = "PENDING"
    search.look()
    search.look()
    assert search.keepers[0].said == "take back "
    search.report(400, slots=2, takes=50)
    assert search.keepers[0].said == "take back ", "it is still at work on them"
    search.report(500)
    assert search.keepers[0].said == "take back end "
    assert search.told == [(0, 2), (0, 1)]


def test_a_trial_that_is_slower_with_more_goes_back() -> None:
    search = Search()
    for images in (100, 200):
        search.report(images)
    search.look()
    search.look()
    search.report(300, slots=2, takes=200)
    search.look()
    assert search.keepers[0].said == "take back "
    search.report(400)
    search.look()
    assert (search.lent, search.keepers[0].said) == ([1], "take back end "), "and stays as it is"


@pytest.mark.parametrize("lost", [True, False])
def test_slots_that_nobody_gets_hold_are_given_up(lost: bool) -> None:
    search = Search()
    for images in (100, 200):
        search.report(images)
    search.look()
    search.keepers[0].holds, search.keepers[0].lost = False, lost
    search.clock += 0 if lost else 61
    search.look()
    search.report(300)
    search.look()
    assert (search.lent, search.keepers[0].said, search.told) == ([1], "end ", [])


def test_a_trial_that_does_not_take_its_slots_loses_them() -> None:
    search = Search()
    for images in (100, 200):
        search.report(images)
    search.look()
    search.look()
    for images in (300, 400, 500):
        search.report(images)
    assert search.keepers[0].said == ""
    search.report(600)
    search.look()
    assert (search.lent, search.keepers[0].said, search.told) == ([1], "end ", [(0, 2), (0, 1)])


def test_reports_before_its_slots_are_held_count_for_nothing() -> None:
    search = Search()
    for images in (100, 200):
        search.report(images)
    search.look()
    search.keepers[0].holds = False
    for images in range(300, 701, 100):
        search.report(images, takes=2.0)
        search.look()
    assert search.keepers[0].said == "", "a machine that is slow to start a process"
    search.keepers[0].holds = True
    search.look()
    for images in (720, 740, 760):
        search.report(images, takes=2.0)
    assert (search.keepers[0].said, search.told) == ("", [(0, 2)])
    search.report(780, takes=2.0)
    assert search.keepers[0].said == "end "


def test_a_trial_that_was_lost_while_it_was_larger_stays_as_it_is() -> None:
    search = Search()
    for images in (100, 200):
        search.report(images)
    search.look()
    search.growing.on_trial_recover(0, search.trials, search.trials[0])
    assert search.keepers[0].said == "end "
    search.growing.on_trial_start(0, search.trials, search.trials[0])
    for images in (300, 400):
        search.report(images)
    search.look()
    assert search.lent == [1]


def test_slots_of_several_workers_are_slots() -> None:
    search = Search(workers=2)
    for images in (100, 200):
        search.report(images)
    search.look()
    assert search.lent == [1]
    search.look()
    search.report(300, slots=2, takes=50)
    search.look()
    assert search.lent == [1, 2]


def test_what_is_no_report_of_a_training_is_left_alone() -> None:
    search = Search()
    for told in ({"lost": "device"}, {"failure": "error"}):
        search.growing.on_trial_result(0, search.trials, search.trials[0], told)
    search.growing.on_trial_error(0, search.trials, search.trials[0])
    search.report(100)
    search.look()
    assert (search.keepers, search.told) == ([], [])

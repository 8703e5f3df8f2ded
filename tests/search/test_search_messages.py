from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray.errors import IntegrityError, Interrupted
from ich_ray.search.progress_table import SearchStatus
from ich_ray.search.search_messages import SearchMessages


class Watched:
    """Messages of a search whose clock stands until a test moves it."""

    def __init__(self) -> None:
        self.clock, self.limit_s = 1000.0, 300.0
        self.told: list[str] = []
        self.messages = SearchMessages(
            "tiny", self.told.append, lambda: self.limit_s, quarantines=1, now=lambda: self.clock
        )

    def pass_time(self, seconds: float) -> None:
        """In steps in which the thread that sends looks, too."""
        for _ in range(int(seconds / 5)):
            self.clock += 5
            self.messages.look()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def trial(number: int, value: float) -> Any:
    return SimpleNamespace(number=number, value=value, objective=SimpleNamespace(metric="roc_auc"))


def status(**changes: Any) -> SearchStatus:
    values: dict[str, Any] = {
        "name": "tiny", "metric": "roc_auc", "wanted": 20, "budget": 900,
        "ended": {"completed": 4, "pruned": 7, "failed": 1}, "waiting": 0, "running": [], "best": trial(3, 0.91234),
        "rungs": [], "images": 123456, "images_per_s": 10.0, "elapsed_s": 3723.4, "left_s": None,
        "searched": ["dropout"], "gpu_hours": 3.21,
    }  # fmt: skip
    return SearchStatus(**values | changes)


def test_a_search_that_ended_says_what_it_did_and_found(watched: Watched) -> None:
    watched.messages.ended(status())
    assert watched.told == [
        "search tiny: has ended: 12 of 20 trials ended (4 completed, 7 pruned, 1 failed), 123,456 images in 1:02:03, "
        "3.2 GPU hours, best roc_auc 0.9123 (trial 3)"
    ]


def test_a_search_that_had_ended_before_says_nothing(watched: Watched) -> None:
    watched.messages.ended(status(ended_before=12))
    assert watched.told == []


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (IntegrityError("/home/somebody: a secret"), "failed (IntegrityError, its output says why)"),
        (Interrupted("/home/somebody"), "was interrupted"),
    ],
)
def test_a_search_that_broke_off_says_how_far_it_was_and_not_why(
    watched: Watched, error: BaseException, how: str
) -> None:
    watched.messages.broken_off(status(best=None, gpu_hours=None), error)
    assert watched.told == [
        f"search tiny: {how}: 12 of 20 trials ended (4 completed, 7 pruned, 1 failed), 123,456 images in 1:02:03, "
        "none completed; nothing is lost, and --resume goes on"
    ]


def test_a_standstill_is_said_once_and_so_is_its_end(watched: Watched) -> None:
    watched.messages.step(running=2, quarantines=1)
    watched.pass_time(295)
    watched.messages.reported()
    watched.pass_time(300)
    assert watched.told == []
    watched.pass_time(10)
    assert watched.told == ["search tiny: no report of any trial for 5 minutes, with 2 trials running"]
    watched.pass_time(300)
    watched.messages.reported()
    assert len(watched.told) == 1, "at most one of a kind in ten minutes"
    watched.pass_time(295)
    assert watched.told[1:] == ["search tiny: reports come again, after 10 minutes without any"]


def test_what_counts_as_a_standstill_follows_the_watchdog(watched: Watched) -> None:
    watched.limit_s = 900.0
    watched.messages.step(running=1, quarantines=1)
    watched.pass_time(900)
    assert watched.told == []
    watched.pass_time(5)
    assert watched.told == ["search tiny: no report of any trial for 15 minutes, with 1 trial running"]


def test_a_process_that_stood_still_itself_is_no_standstill(watched: Watched) -> None:
    watched.pass_time(100)
    watched.clock += 10_000
    watched.messages.look()
    assert watched.told == []


def test_lost_machines_are_counted_and_said_at_most_every_ten_minutes(watched: Watched) -> None:
    watched.limit_s = 1e9
    watched.messages.step(running=2, quarantines=1)
    gone = watched.messages.machine_gone
    gone("node-a")
    gone("node-a")
    gone("node-b")
    watched.messages.step(running=2, quarantines=2)
    watched.messages.step(running=2, quarantines=4)
    assert [line.partition(";")[0] for line in watched.told] == [
        "search tiny: 1 machine gone or to be taken away so far",
        "search tiny: a machine, or accelerators of one, went into quarantine once so far: attempts in a row were lost "
        "there",
    ]
    watched.pass_time(595)
    assert len(watched.told) == 2
    watched.pass_time(5)
    assert watched.told[2:] == [
        "search tiny: 2 machines gone or to be taken away so far; 3 attempts went back to the queue and will go on "
        "from the newest state",
        "search tiny: a machine, or accelerators of one, went into quarantine 3 times so far: attempts in a row were "
        "lost there",
    ]
    watched.messages.ended(status())
    assert watched.told[-1].endswith("best roc_auc 0.9123 (trial 3), 2 machines gone, 3 quarantines")
    assert "node" not in str(watched.told)


def test_a_better_trial_is_said_after_the_first_ones_and_every_half_hour(watched: Watched) -> None:
    watched.limit_s = 1e9
    watched.messages.step(running=2, quarantines=1)
    better = watched.messages.better
    better(trial(0, 0.6), None, ended=1, wanted=20)
    better(trial(2, 0.7), 0.6, ended=4, wanted=20)
    assert watched.told == []
    better(trial(5, 0.8), 0.7, ended=5, wanted=20)
    better(trial(6, 0.82), 0.8, ended=6, wanted=20)
    better(trial(7, 0.84), 0.82, ended=7, wanted=20)
    assert watched.told == [
        "search tiny: trial 5 is the best so far: roc_auc 0.8000, before 0.7000; 5 of 20 trials ended"
    ]
    watched.pass_time(1800)
    assert watched.told[1:] == [
        "search tiny: trial 7 is the best so far: roc_auc 0.8400, before 0.8200; 7 of 20 trials ended"
    ]

"""Whose death the end of a process was: Tune's count of retries, with a cluster that is told by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray.search.tune.node_losses import NodeLosses


class Watched:
    """A trial with three retries, on nodes that go when told."""

    def __init__(self) -> None:
        self.gone, self.now = set[str](), 0.0
        self.losses = NodeLosses(self.gone.__contains__, lambda: self.now)
        self.trial: Any = SimpleNamespace(config={"number": 7}, max_failures=3, num_failures=0)

    def dies_on(self, node: str, *, gone: bool = False, counts: bool = True) -> str:
        """Start an attempt and end it as Tune would, which has no retries left where it fails."""
        self.losses.start(self.trial, node)
        self.trial.num_failures += counts
        if self.trial.num_failures > self.trial.max_failures:
            raise StopIteration
        if gone:
            self.gone.add(node)
        return self.losses.died(self.trial)

    @property
    def retries_left(self) -> int:
        return int(self.trial.max_failures - self.trial.num_failures)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_process_that_dies_again_and_again_has_its_retries_and_no_more(watched: Watched) -> None:
    for _ in range(3):
        assert watched.dies_on("a") == ""
    with pytest.raises(StopIteration):
        watched.dies_on("a")
    assert watched.trial.num_failures == 4


def test_a_node_that_goes_after_the_last_retry_ends_the_trial(watched: Watched) -> None:
    """Tune asks nobody: docs/reliability.md says so."""
    for _ in range(3):
        watched.dies_on("a")
        watched.now += 121.0
        assert list(watched.losses.settle()) == []
    assert watched.retries_left == 0
    with pytest.raises(StopIteration):
        watched.dies_on("a", gone=True)


def test_a_node_that_is_gone_costs_no_retry_however_many_go(watched: Watched) -> None:
    for node in "abcdefgh":
        assert watched.dies_on(node, gone=True) == node
    assert watched.retries_left == 3


def test_a_node_that_is_missed_later_costs_no_retry(watched: Watched) -> None:
    """Five nodes of a zone lose their power at once, and Ray hears of their processes first."""
    for node in "abcde":
        assert watched.dies_on(node) == ""
    watched.now = 30.0
    assert list(watched.losses.settle()) == []
    watched.gone.update("abcde")
    assert [(death.number, death.node) for death in watched.losses.settle()] == [(7, node) for node in "abcde"]
    assert watched.retries_left == 3
    assert list(watched.losses.settle()) == []


def test_a_process_that_dies_where_the_node_lives_is_a_retry_after_a_time(watched: Watched) -> None:
    watched.dies_on("a")
    assert watched.retries_left == 3
    watched.now = 121.0
    assert list(watched.losses.settle()) == []
    assert watched.retries_left == 2
    watched.gone.add("a")
    assert list(watched.losses.settle()) == []
    assert watched.retries_left == 2, "it went for reasons of its own"


def test_a_node_that_took_the_trial_again_before_it_went_costs_no_retry(watched: Watched) -> None:
    watched.dies_on("a")
    watched.losses.start(watched.trial, "a")
    assert watched.retries_left == 2
    watched.gone.add("a")
    assert len(list(watched.losses.settle())) == 1
    assert watched.retries_left == 3


def test_what_tune_does_not_count_after_a_notice_is_not_given_twice(watched: Watched) -> None:
    assert watched.dies_on("a", gone=True, counts=False) == "a"
    assert (watched.trial.max_failures, watched.trial.num_failures) == (3, 0)


def test_the_node_of_an_attempt_before_says_nothing_of_the_next(watched: Watched) -> None:
    watched.dies_on("a", gone=True)
    watched.losses.start(watched.trial, "")  # Ray did not say where
    watched.trial.num_failures += 1
    assert watched.losses.died(watched.trial) == ""
    assert watched.retries_left == 2


def test_an_attempt_that_said_why_it_ends_is_no_death(watched: Watched) -> None:
    watched.losses.start(watched.trial, "a")
    watched.losses.forget(watched.trial)
    watched.gone.add("a")
    assert watched.losses.died(watched.trial) == ""

"""What becomes of a training when its workers are lost, with workers that are told by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from upath import UPath

from ich_ray.errors import IchRayError
from ich_ray.refit import ray_train
from ich_ray.refit.ray_train import RetrainPlan
from ich_ray.search import cluster_resources
from ich_ray.search.tune import train_workers
from ich_ray.search.tune.train_workers import WorkersLost

PLAN = RetrainPlan("", "", "", {}, {}, images=900, report_every=100, seed=0)


class Attempts:
    """Attempts in order: images that are seen at the end of each, and whether a machine goes with it."""

    def __init__(self, *attempts: tuple[int, bool]) -> None:
        self.left, self.seen, self.gone = iter(attempts), 0, set[str]()
        self.run = 0

    def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.run += 1
        try:
            self.seen, goes = next(self.left)
        except StopIteration:
            return {"device": "cpu", "setup": None}
        if goes:
            self.gone.add(f"node-{len(self.gone)}")
        raise WorkersLost("planted")

    def alive(self, *_: float) -> dict[str, int]:
        return {f"node-{number}": 0 for number in range(100) if f"node-{number}" not in self.gone}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    lines: list[str] = []
    monkeypatch.setattr(ray_train, "say", lines.append)
    return lines


def run(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(train_workers, "run_workers", attempts)
    monkeypatch.setattr(cluster_resources, "nodes_that_hold", attempts.alive)
    monkeypatch.setattr(ray_train, "is_gone", attempts.gone.__contains__)
    monkeypatch.setattr(ray_train, "_images_seen", lambda _: attempts.seen)
    return ray_train._run_to_the_end(PLAN, 2, {"CPU": 1, "GPU": 0}, UPath("/nowhere"))


def test_machines_that_go_are_no_failures_however_many(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(*[(100, True)] * 20)
    assert run(attempts, monkeypatch) == {"device": "cpu", "setup": None}
    assert attempts.run == 21
    assert (
        said
        == ["  retrain: 1 of its machines went, going on from 100 images where there are machines for 2 worker(s)"] * 20
    )


def test_workers_that_die_while_there_is_progress_are_started_again(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(*[(100 * number, False) for number in range(1, 9)])
    assert run(attempts, monkeypatch)["device"] == "cpu"
    assert (attempts.run, len(said)) == (9, 8)
    assert said[0].startswith("  retrain: its workers were lost (")


@pytest.mark.parametrize(
    ("attempts", "run_in_all"),
    [([(0, False)] * 3, 3), ([(100, False), (100, False), (100, False), (100, False)], 4),
     ([(0, False), (0, True), (0, False), (0, False), (0, False)], 4)],
)  # fmt: skip
def test_failures_without_a_new_state_end_it(
    attempts: list[tuple[int, bool]], run_in_all: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Attempts(*attempts, (0, False))
    with pytest.raises(IchRayError, match="the workers must finish within 2 failures without a new state, got: "):
        run(planted, monkeypatch)
    assert planted.run == run_in_all


def test_machines_that_go_without_end_and_no_state_between_them_end_it(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where other machines of a large cluster go all the time, a training that fails by itself ends as well."""
    planted = Attempts(*[(0, True)] * 90)
    with pytest.raises(IchRayError, match="the workers must finish within 50 restarts without a new state, got: "):
        run(planted, monkeypatch)
    assert (planted.run, len(said)) == (51, 50)


def test_only_machines_that_hold_a_worker_are_looked_at(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, ...]] = []
    planted = Attempts((100, False))
    alive = planted.alive
    monkeypatch.setattr(planted, "alive", lambda *held: [asked.append(held), alive()][1])
    run(planted, monkeypatch)
    assert asked == [(1, 0)] * 2
    assert len(said) == 1

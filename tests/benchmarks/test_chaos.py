"""Faults of every kind, one after the other, under a search; and that the benchmark would see what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.__main__ import order, run
from benchmarks.chaos.attempts import attempts_of
from benchmarks.chaos.faults import KINDS, Fault
from benchmarks.chaos.judging import judge
from benchmarks.chaos.survival import table, upper_bound
from benchmarks.chaos.training import begun, undisturbed
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search_records import SearchRecord
from tests.search.fakes import SPACE

BUDGET = {"images": 300, "report_every": 100}


def test_a_lost_or_doubled_step_is_in_every_later_value() -> None:
    parameters = Hyperparameters(learning_rate=0.001)
    values = undisturbed(parameters, 7, 300, 100)
    assert list(values) == [100, 200, 300]
    state = begun(parameters, 7)
    for _ in range(10):
        state = state.stepped()
    assert state.value(parameters) == values[100]
    twice = type(state)(90, digest=state.digest).stepped()
    assert twice.images_seen == 100
    assert twice.value(parameters) != values[100]
    assert undisturbed(parameters, 8, 300, 100)[300] != values[300]


@pytest.mark.parametrize(
    ("lost", "planted", "below"), [(0, 300, 0.00994), (0, 30, 0.0951), (1, 300, 0.01573), (3, 3, 1.0)]
)
def test_the_bound_is_exact(lost: int, planted: int, below: float) -> None:
    assert upper_bound(lost, planted) == pytest.approx(below, abs=1e-4)


def test_all_kinds_come_equally_often_and_a_run_that_goes_on_has_the_same_order() -> None:
    kinds = order(0, 0)
    first = [next(kinds) for _ in range(24)]
    assert {first.count(kind) for kind in KINDS} == {3}
    again = order(0, 10)
    assert [next(again) for _ in range(14)] == first[10:]


class Searched:
    """A search of one trial as it ended, and files of two attempts at it."""

    def __init__(self, folder: Path) -> None:
        import yaml

        space = yaml.safe_load(SPACE.replace("images: 900", "images: 300"))
        record = SearchRecord(
            name="tiny", space=space, dataset="/d", fingerprint="f" * 32, prevalence=0.2, seed=0, trials=1, versions={},
            created=0.0,
        )  # fmt: skip
        self.out, self.attempts = folder / "s0000", folder / "attempts"
        self.attempts.mkdir()
        self.ledger = Ledger.create(self.out, record)
        given = {"architecture": "resnet18", "learning_rate": 0.001, "dropout": 0.1, "optimizer": "adam"}
        trial = self.ledger.add(given)
        self.seed = trial.seed
        self.values = undisturbed(Hyperparameters.model_validate(given), trial.seed, 300, 100)

    def end(self, **other: float) -> None:
        for images, value in self.values.items():
            verdict = Verdict("completed") if images == 300 else None
            told = {"average_precision": other.get(f"at_{images}", value)}
            self.ledger.report(0, images, told, 1.0, end=verdict)
        self.ledger.amend(ended={"trials": 1, "asked": 1, "sampler": 1, "tune": 1, "out_of_time": False})

    def attempt(self, node: str, pid: int, resumed: int, computed: int, started: float) -> None:
        path = self.attempts / f"s0000-{self.seed}-{int(started)}.txt"
        path.write_text(f"{node} {pid} {resumed} {started}\n{computed} {started + 5}\n90")

    def judged(self, said: str) -> Any:
        fault = Fault(0, "s0000", "worker killed", "", 105.5, 105.5, "", 11, 0)
        return judge(self.out, self.attempts, [fault], said, BUDGET)


def test_what_a_fault_has_cost_is_counted(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.end()
    searched.attempt("a", 11, 0, 170, 100.0)
    searched.attempt("b", 12, 100, 300, 110.0)
    found = searched.judged("trial 0: its process died, starting it again")
    assert [(one.trials, one.images, one.named, one.problems) for one in found.costs.values()] == [
        ([0], [70], True, [])
    ]
    assert (found.problems, found.unexplained) == ([], 0)
    assert [one.computed for one in attempts_of(searched.attempts, "s0000")[searched.seed]] == [170, 300]


def test_what_must_not_be_is_found(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    searched.end(at_200=0.5)
    searched.attempt("a", 11, 0, 270, 100.0)
    searched.attempt("b", 12, 0, 370, 110.0)
    searched.attempt("b", 13, 100, 300, 120.0)
    found = searched.judged("nothing")
    assert found.costs[0].problems == [
        "trial 0: 270 images were lost",
        "trial 0: the output does not say that its attempt was lost",
        "trial 0: another value at 200 images than without faults",
    ]
    assert found.unexplained == 1
    assert found.problems == [
        "trial 0: 270 images were lost",
        "trial 0: the output does not say that its attempt was lost",
    ]


def test_the_table_has_every_kind_and_its_bounds() -> None:
    lines = [
        {"kind": "worker killed", "trials": [1], "images": [70], "again_s": 4.0, "survived": True},
        {"kind": "driver killed", "trials": [], "images": [], "again_s": 9.0, "survived": False},
    ]
    rows = {line[:15].strip(): line[15:].split() for line in table(lines).splitlines()}
    assert rows["worker killed"] == ["1", "1", "1", "70", "/", "70", "4", "/", "4"]
    assert rows["driver killed"] == ["1", "0", "0", "-", "9", "/", "9"]
    assert {*KINDS, "all"} <= rows.keys()
    assert table(lines).endswith(
        "0 of 1 faults that ended an attempt lost something: with 95 % confidence below 95.0 %"
    )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_fault_of_each_kind_costs_two_reports_at_most(tmp_path: Path) -> None:
    """The long run is `python -m benchmarks.chaos`; its table stands in docs/reliability.md."""
    lines = run(tmp_path, faults=8, every_s=5, seed=0, trials=9, step_s=0.05)
    assert sorted(line["kind"] for line in lines) == sorted(KINDS)
    assert [line["problems"] for line in lines] == [[]] * 8
    assert all(line["survived"] for line in lines)

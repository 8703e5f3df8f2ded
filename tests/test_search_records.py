from __future__ import annotations

import math
from typing import Any

import pytest

from ich_ray.search_records import (
    ControlRequest,
    EndCheck,
    FoldNote,
    LogitsReference,
    Objective,
    Report,
    RequestNote,
    TrialResult,
    TrialState,
)
from tests.records import make_record


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.1, 0.3, 0.3, 0.2], 200), ([None, 0.2], 200), ([math.nan, 0.1, math.inf], 200), ([None], None), ([], None)],
)
def test_the_earliest_best_report_counts_and_only_finite_ones(values: list[float | None], best: int | None) -> None:
    reports = tuple(
        Report(images_seen=100 * (index + 1), metrics={"average_precision": value}, elapsed_s=1.0, time=0.0)
        for index, value in enumerate(values)
    )
    trial = TrialResult(number=0, parameters={}, reports=reports)
    assert (trial.best_report.images_seen if trial.best_report else None) == best
    assert trial.metrics == ({"average_precision": values[best // 100 - 1]} if best else {})


def test_what_is_not_finite_is_none_in_a_report() -> None:
    report = Report(images_seen=1, metrics={"a": math.nan, "b": -math.inf, "c": None, "d": 0.5}, elapsed_s=1, time=0)
    assert report.metrics == {"a": None, "b": None, "c": None, "d": 0.5}


def test_an_objective_says_which_is_better() -> None:
    assert Objective().better(0.2, 0.1)
    assert not Objective(metric="log_loss", mode="min").better(0.2, 0.1)
    assert (Objective().sign, Objective(mode="min").sign) == (1, -1)


@pytest.mark.parametrize(
    ("value", "best", "improves"),
    [
        (0.2, 0.1, True),
        (0.1, 0.1, False),
        (0.1, None, True),
        (None, None, False),
        (math.nan, None, False),
        (math.inf, 0.1, False),
    ],
)
def test_a_value_improves_on_the_best_if_it_is_finite_and_better(
    value: float | None, best: float | None, improves: bool
) -> None:
    assert Objective().improves(value, best) is improves


def test_amendments_change_what_is_wanted() -> None:
    amended = make_record().model_copy(
        update={"amendments": ({"time": 1.0, "trials": 20}, {"time": 2.0, "warm_start": "/a"}, {"trials": 30})}
    )
    assert (make_record().wanted, amended.wanted) == (9, 30)
    assert (make_record().warm_starts, amended.warm_starts) == ((), ("/a",))


@pytest.mark.parametrize(
    ("there", "ended_with", "asked", "out_of_time", "all_begun"),
    [
        (9, None, 9, False, True),
        (8, None, 9, False, False),
        (5, 5, 9, True, True),
        (5, 5, 9, False, False),
        (6, 5, 9, True, False),  # it went on since
        (5, 5, 7, True, False),  # more were asked for since
        (9, 5, 9, True, True),
    ],
)
def test_a_search_begins_no_more_trials_with_all_or_when_its_time_was_over(
    there: int, ended_with: int | None, asked: int, out_of_time: bool, all_begun: bool
) -> None:
    ends = [] if ended_with is None else [
        EndCheck(trials=ended_with, asked=asked, sampler=5, tune=5, out_of_time=out_of_time).model_dump()
    ]  # fmt: skip
    record = make_record(trials=9, amendments=tuple({"ended": end} for end in ends))
    assert record.has_begun_all(there) is all_begun


@pytest.mark.parametrize(
    ("where", "machine"), [("node-1:4711", "node-1"), ("fe80::1:4711", "fe80::1"), ("node-1", "node-1"), ("", "")]
)
def test_the_machine_of_a_trial_is_where_its_process_ran(where: str, machine: str) -> None:
    assert TrialResult(number=0, parameters={}, where=where).machine == machine


def test_a_trial_with_folds_is_judged_by_its_last_whole_fold() -> None:
    def report(fold: int, images: int, value: float | None, own: float) -> Report:
        logits = LogitsReference(file=f"logits/00000/{fold}", sha256="0" * 64)
        note = FoldNote(number=fold, images_seen=images, whole=images == 200, value=own, logits=logits)
        metrics = {"average_precision": value}
        return Report(images_seen=200 * fold + images, metrics=metrics, elapsed_s=1.0, time=1.0, fold=note)

    reports = (
        report(0, 100, 0.9, 0.9),
        report(0, 200, 0.7, 0.7),
        report(1, 100, 0.6, 0.3),
        report(1, 200, 0.5, 0.2),
        report(2, 100, 0.95, 0.99),
    )

    def judged(count: int, state: TrialState = "running") -> tuple[float | None, int, tuple[float | None, ...], bool]:
        trial = TrialResult(number=0, parameters={}, reports=reports[:count], state=state)
        return trial.value, trial.folds_done, trial.fold_values, trial.keeps_logits

    assert judged(0) == (None, 0, (), True)
    assert judged(1) == (0.9, 0, (0.9,), True)
    assert judged(1, "pruned") == (0.9, 0, (0.9,), False)
    assert judged(2, "pruned") == (0.9, 1, (0.9,), True)
    assert judged(3) == (0.9, 1, (0.9,), True)  # the second one has just begun
    assert judged(5, "pruned") == (0.6, 2, (0.9, 0.3), True)
    assert judged(5, "failed") == (0.6, 2, (0.9, 0.3), False)


def test_pauses_are_what_was_carried_out() -> None:
    def asked(at: float, **what: Any) -> dict[str, Any]:
        done = what.pop("done", True)
        note = RequestNote(id=f"{int(at):013d}-00000000", asked=ControlRequest(time=at, **what), done=done, answer="so")
        return {"time": at, "request": note.model_dump(mode="json")}

    record = make_record(name="x", trials=10)
    assert record.pauses == []
    told = (
        *(asked(5.0, pause=False), asked(10.0, pause=True), asked(20.0, trials=30), asked(30.0, pause=True)),
        *(asked(35.0, pause=False, done=False), asked(40.0, pause=False), asked(50.0, pause=True)),
    )
    assert record.model_copy(update={"amendments": told}).pauses == [(10.0, 40.0), (50.0, math.inf)]

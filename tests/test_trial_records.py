from __future__ import annotations

import math

import pytest

from ich_ray.trial_records import FoldNote, LogitsReference, Objective, Report, TrialResult, TrialState


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

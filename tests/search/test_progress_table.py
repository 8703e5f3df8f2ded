from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from ich_ray.search.progress_table import RungCount, SearchStatus, format_failure, format_parameters
from ich_ray.trial_records import Report, TrialResult

SEARCHED = ("dropout", "optimizer", "decay", "learning_rate", "batch_size", "architecture", "filters")


def trial(number: int, *values: float | None, **parameters: Any) -> TrialResult:
    reports = tuple(
        Report(images_seen=1000 * (index + 1), metrics={"average_precision": value}, elapsed_s=1.0, time=0.0)
        for index, value in enumerate(values)
    )
    drawn = {"dropout": 0.25, "momentum": 0.9, "learning_rate": 0.00123, "batch_size": 64, "architecture": "plain_cnn"}
    return TrialResult(number=number, parameters=drawn | parameters, reports=reports)


def standing(running: int = 3) -> SearchStatus:
    values = [(0.3, 0.7621), (), (0.5, None)]
    return SearchStatus(
        name="demo",
        metric="average_precision",
        wanted=20,
        budget=9000,
        ended={"pruned": 8, "completed": 3, "failed": 1},
        waiting=0,
        running=[trial(12 + index, *values[index % 3], optimizer="adamw", decay=0.05) for index in range(running)],
        best=trial(7, 0.5, 0.84214, filters=16, optimizer="sgd"),
        rungs=[RungCount(1000, 12, 7), RungCount(3000, 5, 1)],
        images=48_000,
        images_per_s=1234.4,
        elapsed_s=252,
        left_s=3790.2,
        searched=SEARCHED,
    )


def drawn(what: SearchStatus, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as captured:
        console.print(what)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_table_fits_eighty_columns() -> None:
    assert drawn(standing()) == [
        "search demo: 12 of 20 trials ended, 3 running",
        "ended     3 completed, 8 pruned, 1 failed (171 an hour)",
        "images    48,000 (1,234/s) in 0:04:12, about 1:03:10 left",
        "best      average_precision 0.8421, trial 7",
        "          plain_cnn learning_rate=0.00123 batch_size=64 optimizer=sgd dropout=0…",
        "rung     1,000  3,000",
        "reached     12      5",
        "stopped      7      1",
        "",
        "trial         images  average_precision  parameters",
        "   12  2,000 / 9,000             0.7621  plain_cnn learning_rate=0.00123 batch_…",
        "   13      0 / 9,000                  -  plain_cnn learning_rate=0.00123 batch_…",
        "   14  2,000 / 9,000                  -  plain_cnn learning_rate=0.00123 batch_…",
    ]


@pytest.mark.parametrize(("width", "height", "rows"), [(80, 24, 12), (120, 50, 38), (40, 10, 1)])
def test_what_does_not_fit_is_counted(width: int, height: int, rows: int) -> None:
    lines = drawn(standing(running=300), width, height)
    assert len(lines) <= max(height - 1, 12)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[10:-1]] == [str(12 + row) for row in range(rows)]
    assert lines[-1] == f"and {300 - rows} more"


def test_rungs_that_are_too_many_for_the_width_are_left_out() -> None:
    many = [RungCount(1000 * 2**step, 100 - step, 1) for step in range(12)]
    lines = drawn(replace(standing(), rungs=many), width=40)
    assert lines[5:8] == [
        "rung     1,000  2,000  4,000  8,000",
        "reached    100     99     98     97",
        "stopped      1      1      1      1",
    ]


def test_a_search_that_has_just_begun_says_what_it_does_not_know() -> None:
    begun = replace(standing(0), ended={}, best=None, rungs=[], images=0, images_per_s=0.0, left_s=None, waiting=4)
    assert drawn(begun)[:4] == [
        "search demo: 0 of 20 trials ended, 0 running, 4 waiting for a free slot",
        "ended     0 completed, 0 pruned, 0 failed",
        "images    0 (0/s) in 0:04:12, time left unknown",
        "best      none completed yet",
    ]
    assert begun.line() == (
        "  0/20 trials ended, 0 running, 4 waiting for a free slot, 0 images (0/s), time left unknown; "
        "none completed yet"
    )


def test_a_line_says_it_all() -> None:
    assert standing().line() == (
        "  12/20 trials ended (171 an hour), 3 running, 48,000 images (1,234/s), about 1:03:10 left; best 0.8421 "
        "(trial 7)"
    )
    ahead = replace(standing(), leading=trial(12, 0.3, 0.9), gpu_hours=0.2, gpus=3.0, ended_before=11)
    assert ahead.line() == (
        "  12/20 trials ended (14 an hour), 3 running, 48,000 images (1,234/s), 0.2 GPU hours, about 3.4 in all, about "
        "1:03:10 left; best 0.8421 (trial 7), so far 0.9000 (trial 12, running at 2,000 images)"
    )


def test_the_table_tells_what_accelerators_have_cost_and_who_leads() -> None:
    ahead = replace(standing(), leading=trial(12, 0.3, 0.9), gpu_hours=141.7, gpus=3.0, ended_before=12)
    assert drawn(ahead)[1:7] == [
        "ended     3 completed, 8 pruned, 1 failed",
        "images    48,000 (1,234/s) in 0:04:12, about 1:03:10 left",
        "cost      142 GPU hours, about 145 in all",
        "best      average_precision 0.8421, trial 7",
        "          plain_cnn learning_rate=0.00123 batch_size=64 optimizer=sgd dropout=0…",
        "so far    average_precision 0.9000 (trial 12, running at 2,000 images)",
    ]
    unknown = replace(ahead, best=None, left_s=None, ended_before=11, elapsed_s=7200.0)
    assert drawn(unknown)[1:6] == [
        "ended     3 completed, 8 pruned, 1 failed (0.5 an hour)",
        "images    48,000 (1,234/s) in 2:00:00, time left unknown",
        "cost      142 GPU hours",
        "best      none completed yet",
        "so far    average_precision 0.9000 (trial 12, running at 2,000 images)",
    ]


def test_parameters_that_are_looked_for_come_first() -> None:
    parameters = trial(0, decay=0.1, weights="none").parameters
    assert format_parameters(parameters, SEARCHED) == (
        "plain_cnn learning_rate=0.00123 batch_size=64 dropout=0.25 decay=0.1"
    )
    assert format_parameters({"filters": 8, "architecture": "resnet18"}) == "resnet18 filters=8"
    assert format_parameters({"optimizer": "adam", "momentum": 0.9}) == "optimizer=adam"
    assert format_parameters({"optimizer": "sgd", "momentum": 0.9}) == "optimizer=sgd momentum=0.9"
    assert format_parameters({"momentum": 0.9}) == "momentum=0.9"


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        ("", "error"),
        ("ValueError: planted", "error: ValueError: planted"),
        ("RuntimeError: one\n  two\tthree\x1b[2J\x00\u202e", r"error: RuntimeError: one two three\x1b[2J\x00\u202e"),
        ("x" * 161, f"error: {'x' * 159}…"),
    ],
)
def test_why_a_trial_failed_is_one_printable_line(detail: str, said: str) -> None:
    assert format_failure(trial(0).model_copy(update={"reason": "error", "detail": detail})) == said

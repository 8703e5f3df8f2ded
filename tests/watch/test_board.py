from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from ich_ray.html_report.best_so_far import course, work
from ich_ray.search.space.builtin_spaces import builtin_space
from ich_ray.search_records import QuarantineNote
from ich_ray.storage import SearchFiles, write_json
from ich_ray.trial_records import LostAttempt, Objective, Report, TrialResult
from ich_ray.watch.board import Board
from ich_ray.watch.followed import FollowedSearch
from ich_ray.watch.standing import expected_of_trial, failures, images_left, machines
from tests.records import make_record
from tests.watch.planted import plant_search, write_trial


def trial(number: int, values: list[float | None], began: float = 0.0, **changes: Any) -> TrialResult:
    """Reports every 100 images and 10 seconds."""
    reports = tuple(
        Report(images_seen=100 * at, metrics={"average_precision": value}, elapsed_s=10.0 * at, time=began + 10 * at)
        for at, value in enumerate(values, 1)
    )
    return TrialResult(number=number, parameters={}, reports=reports, started=began, **changes)


def courses(*trials: TrialResult) -> dict[int, Any]:
    return {one.number: course(one) for one in trials}


def test_the_best_so_far_is_over_what_all_trials_spent() -> None:
    one = trial(0, [0.2, 0.5, 0.4], cost_gpu_s=30.0, state="completed")
    other = trial(1, [0.3, None, 0.9], began=5.0, cost_gpu_s=60.0, state="running")
    done = work(courses(one, other), Objective())
    assert [(step.images, step.value, step.trial) for step in done.steps] == [
        (100, 0.2, 0), (200, 0.3, 1), (300, 0.5, 0), (600, 0.9, 1), (600, 0.9, 1),
    ]  # fmt: skip
    assert done.steps[-1].hours * 3600 == pytest.approx(35.0)
    assert done.steps[-1].gpu_hours * 3600 == pytest.approx(90.0)
    # 500 images in the 25 seconds after the first report.
    assert done.images_per_s == pytest.approx(20.0)
    assert done.gpus == pytest.approx(80 / 25)


def test_a_pause_in_which_nothing_runs_is_no_part_of_the_pace() -> None:
    """Asked for at 25, the last trial ended at 30; new ones went on at 530."""
    found = courses(trial(0, [0.1] * 3), trial(1, [0.1] * 3, began=530.0))
    assert work(found, Objective(), [(25.0, 530.0)]).images_per_s == pytest.approx(500 / 50)
    assert work(found, Objective()).images_per_s == pytest.approx(500 / 550)
    # While trials went on, a pause is work like any other.
    assert work(found, Objective(), [(15.0, 18.0)]).images_per_s == pytest.approx(500 / 550)
    assert work(found, Objective(), [(540.0, math.inf)]).images_per_s == pytest.approx(500 / 550)
    assert work(found, Objective(), [(570.0, 580.0)]).images_per_s == pytest.approx(500 / 550)


@pytest.mark.parametrize("name", ["sequence", "sequence_small", "default"])
def test_every_kind_of_search_has_an_expectation_before_a_trial_has_ended(name: str) -> None:
    space = yaml.safe_load(builtin_space(name).read_text())
    record = make_record(name="x", trials=20).model_copy(update={"space": space})
    assert space["budget"]["first_rung"] < expected_of_trial(record) < space["budget"]["images"]


def test_lower_is_better_where_the_objective_says_so() -> None:
    done = work(courses(trial(0, [0.5, 0.2, 0.3])), Objective(mode="min"))
    assert [step.value for step in done.steps] == [0.5, 0.2, 0.2]


def test_a_trial_that_failed_is_never_the_best() -> None:
    done = work(courses(trial(0, [0.9], state="failed"), trial(1, [0.1], began=1.0)), Objective())
    assert [step.trial for step in done.steps] == [1, 1]


def test_with_folds_a_trial_counts_when_it_has_completed() -> None:
    folded = Objective(folds=5)
    running = trial(0, [0.9, 0.95], objective=folded)
    completed = trial(1, [0.4, 0.5], began=1.0, objective=folded, state="completed")
    done = work(courses(running, completed), folded)
    assert [(step.images, step.value) for step in done.steps] == [(400, 0.5), (400, 0.5)]


def test_a_search_without_reports_has_no_best() -> None:
    assert work({}, Objective()).steps == ()
    assert work(courses(trial(0, []), trial(1, [None])), Objective()).steps == ()


def test_what_is_left_is_what_trials_took_so_far() -> None:
    record = make_record(name="x", trials=10)
    ended = [course(trial(number, [0.1] * 4, state="pruned")) for number in range(4)]
    running = [course(trial(4, [0.1] * 3))]
    # Six trials of 400 images are not over, of which 300 are shown.
    assert images_left(record, [*ended, *running], expected=0.0, budget=1000) == 6 * 400 - 300
    # The plan's 100 images weigh as much as three trials.
    each = (4 * 400 + 3 * 100) / 7
    assert images_left(record, [*ended, *running], expected=100.0, budget=1000) == pytest.approx(6 * each - 300)
    assert images_left(record, [], expected=0.0, budget=1000) == 0.0


def lost(host: str, cause: str, time: float) -> LostAttempt:
    return LostAttempt(node="", host=host, cause=cause, images_seen=0, time=time)


def test_slots_are_the_most_trials_at_once_and_empty_ones_have_a_reason() -> None:
    there = [
        course(trial(0, [0.1] * 3, where="a:1", state="completed", ended=30.0)),
        course(trial(1, [0.1] * 3, where="a:2", began=5.0, state="completed", ended=35.0)),
        course(trial(2, [0.1] * 3, where="a:1", began=30.0)),
        course(trial(3, [0.1] * 3, where="b:1")),
        course(trial(4, [0.1] * 3, where="c:1", state="completed", ended=30.0)),
        course(trial(5, [])),
    ]
    note = QuarantineNote(node="", host="c", cause="xid", since=0, until=500.0).model_dump(mode="json")
    record = make_record(name="x", trials=20).model_copy(update={"amendments": ({"time": 1.0, "quarantine": note},)})
    gone = [lost("d", "preempted", 60.0), lost("b", "node_lost", 5.0)]
    found = {one.name: one for one in machines(record, there, gone, "running", 100.0)}
    assert {name: (one.busy, one.slots) for name, one in found.items()} == {
        "a": (1, 2), "b": (1, 1), "c": (0, 1), "d": (0, 0),
    }  # fmt: skip
    assert found["a"].why == "between two trials, or waiting for a machine"
    assert found["c"].why == "in quarantine until 1970-01-01 00:08 UTC (xid on c)"
    assert found["d"].why == "the machine went at 1970-01-01 00:01 UTC (preempted)"
    pause = {"id": f"{0:013d}-00000000", "done": True, "answer": "yes", "asked": {"time": 1.0, "pause": True}}
    paused = make_record(name="x", trials=20, amendments=({"time": 1.0, "request": pause},))
    assert "paused" in {one.name: one.why for one in machines(paused, there, [], "running", 100.0)}["a"]
    whole = machines(make_record(name="x", trials=6), there, gone, "running", 100.0)
    assert {one.name: one.why for one in whole}["a"] == "nothing is left to start"
    assert {one.busy for one in machines(record, there, gone, "interrupted", 100.0)} == {0}


def test_a_machine_that_cannot_be_started_is_a_reason() -> None:
    note = {"kind": "gpu_worker", "reason": "VcpuLimitExceeded: 0 allowed", "time": 3600.0}
    record = make_record(name="x", trials=10).model_copy(update={"amendments": ({"unstarted": [note]},)})
    one = course(trial(0, [0.1], where="a:1", state="running"))
    lost = LostAttempt(node="cd", host="b", cause="node_lost", images_seen=0, time=60.0)
    *known, to_come = machines(record, [one], [lost], "running", 4000.0)
    assert (to_come.name, to_come.slots, to_come.trials) == ("gpu_worker (to come)", 0, 0)
    assert to_come.why == "cannot be started since 1970-01-01 01:00 UTC: VcpuLimitExceeded: 0 allowed"
    assert [(machine.name, machine.why) for machine in known] == [
        ("a", ""),
        ("b", "the machine went at 1970-01-01 00:01 UTC (node_lost); no other one can be started"),
    ]
    assert [machine.name for machine in machines(record, [one], [], "ended", 4000.0)] == ["a"]
    drawn = record.model_copy(update={"trials": 1})
    assert machines(drawn, [one], [], "running", 4000.0)[-1].name == "gpu_worker (to come)", (
        "trials wait that were drawn"
    )
    over = record.model_copy(update={"amendments": (*record.amendments, {"unstarted": []})})
    assert [machine.name for machine in machines(over, [one], [], "running", 4000.0)] == ["a"]


def test_failures_are_counted_by_kind_and_machine() -> None:
    sick = trial(0, [0.1], where="a:1", lost=(lost("a", "cuda", 1.0), lost("a", "cuda", 2.0)))
    broken = trial(1, [0.1], where="b:1", state="failed", reason="diverged")
    found = [(one.kind, one.machine, one.count, one.of_trials) for one in failures([sick, broken])]
    assert found == [("cuda", "a", 2, False), ("diverged", "b", 1, True)]


@pytest.fixture
def files(tmp_path: Path) -> SearchFiles:
    return plant_search(tmp_path / "search")


def shown(files: SearchFiles) -> tuple[FollowedSearch, Board]:
    followed = FollowedSearch(files.root)
    board = Board(followed, price=2.0)
    assert board.update(followed.refresh())
    return followed, board


def test_a_new_page_gets_all_and_an_old_one_only_what_has_changed(files: SearchFiles) -> None:
    followed, board = shown(files)
    told = json.loads(board.message(None))
    assert (told["whole"], told["version"], len(told["trials"])) == (True, 1, 12)
    row = dict(zip(told["columns"], told["trials"][0], strict=True))
    assert (row["number"], row["state"], row["images"], row["machine"]) == (0, "completed", 9000, "gpu-0")
    assert row["value"] == followed.trials[0].value
    assert row["optimizer"] == followed.trials[0].parameters["optimizer"]
    write_trial(files, followed.trials[11].model_copy(update={"attempts": 5}))
    assert board.update(followed.refresh())
    told = json.loads(board.message(1))
    assert (told["whole"], told["version"], [row[0] for row in told["trials"]]) == (False, 2, [11])
    assert json.loads(board.message(2))["trials"] == []
    assert json.loads(board.message(99))["whole"]  # of another server


def test_nothing_new_is_no_new_version(files: SearchFiles) -> None:
    followed, board = shown(files)
    assert not board.update(followed.refresh())
    assert board.version == 1
    assert board.update(set(), "the folder is gone")
    assert json.loads(board.message(1))["problem"] == "the folder is gone"


def test_a_page_is_told_all_anew_when_a_trial_is_gone_or_has_a_new_parameter(files: SearchFiles) -> None:
    followed, board = shown(files)
    files.trial(3).unlink()
    board.update(followed.refresh())
    told = json.loads(board.message(1))
    assert (told["whole"], len(told["trials"])) == (True, 11)
    changed = followed.trials[4].parameters | {"depth": 3}
    write_trial(files, followed.trials[4].model_copy(update={"parameters": changed}))
    board.update(followed.refresh())
    told = json.loads(board.message(2))
    assert (told["whole"], told["columns"][-1]) == (True, "depth")
    assert all(len(row) == len(told["columns"]) for row in told["trials"])


def test_a_space_of_another_version_has_no_rungs_and_the_rest_is_shown(files: SearchFiles) -> None:
    record = FollowedSearch(files.root).record
    strange = {**record.space, "budget": {"pages": 3}, "parameters": ["x"]}
    write_json(files.search, record.model_copy(update={"space": strange}).model_dump(mode="json"))
    _, board = shown(files)
    told = json.loads(board.message(None))
    assert (told["rungs"], told["budget"], len(told["trials"])) == ([], 0, 12)


def test_a_trial_is_shown_with_its_error_and_its_reports(files: SearchFiles) -> None:
    _, board = shown(files)
    failed = board.trial(2)
    assert failed is not None
    assert (failed["state"], failed["detail"]) == ("failed", "loss is NaN after 12 batches")
    completed = board.trial(0)
    assert completed is not None
    assert (len(completed["reports"]), completed["reports"][-1]["images"]) == (18, 9000)
    assert completed["usage"]["device_use"] == pytest.approx(0.8)
    assert board.trial(99) is None


def test_parameters_are_judged_as_in_the_report(tmp_path: Path) -> None:
    _, board = shown(plant_search(tmp_path / "search", trials=40))
    found = board.parameters(board.as_result())
    assert {name for name, _ in found["importances"]} >= {"learning_rate", "dropout"}
    assert "learning_rate" in [axis["title"] for axis in found["axes"]]
    assert all(len(line["places"]) == len(found["axes"]) for line in found["lines"])

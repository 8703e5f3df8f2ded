from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from ich_ray.results import open_search
from ich_ray.search import ledger as ledger_module
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.progress_table import RungCount
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.tune import ledger_callback, node_losses
from ich_ray.search.tune.ledger_callback import LedgerCallback
from ich_ray.search.tune.node_losses import NodeLosses
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.search_records import SearchRecord
from ich_ray.usage import ReportUsage
from tests.search.test_time_budget import callback_of, start

SPACE = {
    "name": "tiny",
    "budget": {"images": 900, "report_every": 100, "first_rung": 100, "min_peers": 1},
    "parameters": {"dropout": {"uniform": [0.0, 0.6]}, "momentum": 0.9},
}


class Driver:
    """Tune's part: starts trials and hands on their reports."""

    def __init__(self, folder: Path, hours: float = 1e9, folds: int = 0) -> None:
        space = parse_space(SPACE | {"objective": {"folds": folds}}, "x.yaml")
        record = SearchRecord(
            name="tiny", space=SPACE, dataset="", fingerprint="f" * 32, prevalence=0.1, seed=0, trials=10, versions={},
            created=0.0,
        )  # fmt: skip
        self.ledger = Ledger.create(folder / "s", record)
        self.asha = StoppingScheduler(
            space.budget, space.objective, AshaRungs(space.budget, space.objective), lambda: False
        )
        sampler: Any = None
        self.ledger_callback = LedgerCallback(
            space, self.ledger, self.asha, sampler, wanted=10, gpus=0, deadline=time.time() + 3600 * hours
        )

    def start(self) -> Any:
        trial: Any = SimpleNamespace(config={"number": self.ledger.add({"dropout": 0.1}).number, "again": False})
        self.ledger_callback.on_trial_start(0, [], trial)
        return trial

    def report(self, trial: Any, images_seen: int, value: float) -> None:
        result = {"images_seen": images_seen, "metrics": {"average_precision": value}, "elapsed_s": 1.0}
        result["metrics/average_precision"] = value
        self.asha.on_trial_result(None, trial, result)
        self.ledger_callback.on_trial_result(0, [], trial, result)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(ledger_callback, "say", lambda _: None)
    return Driver(tmp_path)


def test_the_standing_counts_what_happened(driver: Driver) -> None:
    whole, stopped, running = driver.start(), driver.start(), driver.start()
    for images_seen in range(100, 1000, 100):
        driver.report(whole, images_seen, 0.5 + images_seen / 10_000)
    driver.report(stopped, 100, 0.2)
    driver.report(running, 100, 0.9)
    assert driver.ledger_callback._started is not None
    seen = driver.ledger_callback.standing(driver.ledger_callback._started + 10)
    assert seen.ended == {"completed": 1, "pruned": 1}
    assert [trial.number for trial in seen.running] == [2]
    assert seen.best is not None
    assert (seen.best.number, seen.best.value) == (0, pytest.approx(0.59))
    assert seen.rungs == [RungCount(100, 3, 1), RungCount(300, 1, 0)]
    assert (seen.images, seen.images_per_s, seen.elapsed_s) == (1100, 110.0, 10.0)
    assert seen.searched == ["dropout"]
    assert (seen.ended_before, seen.gpu_hours) == (0, None)
    # The plan expects 100 images of 10 trials, 200 of 4 and 600 of 2: 300 each. With two ended after 1,000 in all each
    # is (1,000 + 3 x 300) / 5 = 380, so 8 more take 3,040, of which 100 are done, at 110 a second.
    assert seen.left_s == pytest.approx(2940 / 110)


def test_a_rest_is_no_part_of_the_pace(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(ledger_callback, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    driver.ledger_callback.rests()
    now[0] = 2000.0
    one = driver.start()
    for images_seen in range(100, 1000, 100):
        driver.report(one, images_seen, 0.5)
    now[0] = 2010.0
    driver.ledger_callback.rests()
    driver.ledger_callback.rests()
    assert driver.ledger_callback.standing(2100.0).images_per_s == pytest.approx(90.0)
    now[0] = 6000.0
    driver.report(driver.start(), 100, 0.5)
    seen = driver.ledger_callback.standing(6010.0)
    assert (seen.images_per_s, seen.elapsed_s) == (pytest.approx(50.0), pytest.approx(4010.0))
    assert "1/10 trials ended (180 an hour)" in seen.line()


def test_trials_that_still_train_are_counted_when_none_is_left_to_start(driver: Driver) -> None:
    """All ran to their end, which was not expected: by the mean, 50 images would be left."""
    for number in range(10):
        trial = driver.start()
        for images_seen in range(100, 1000 if number < 9 else 800, 100):
            driver.report(trial, images_seen, 0.1 + number / 20)
    assert driver.ledger_callback._started is not None
    seen = driver.ledger_callback.standing(driver.ledger_callback._started + 10)
    assert (seen.ended, [trial.images_seen for trial in seen.running]) == ({"completed": 9}, [700])
    assert seen.left_s == pytest.approx(200 / 880)


def test_the_best_report_so_far_leads_until_its_trial_fails(driver: Driver) -> None:
    leads = driver.ledger_callback._counts.leads
    first, second, third = driver.start(), driver.start(), driver.start()
    assert leads() is None
    driver.report(first, 100, 0.5)
    driver.report(second, 100, 0.9)
    driver.report(third, 100, 0.7)
    assert [trial.number for trial in (leads(),) if trial] == [1]
    driver.ledger_callback.fell_silent(second, Verdict("failed", "device_error"))
    driver.ledger_callback._say_ended(1)
    assert [trial.number for trial in (leads(),) if trial] == [2]
    whole = driver.start()
    for images_seen in range(100, 1000, 100):
        driver.report(whole, images_seen, 0.95)
    assert driver.ledger.trials[3].state == "completed"
    assert leads() is None, "the best is the best so far"


def test_a_report_keeps_what_its_training_and_its_saving_took(driver: Driver) -> None:
    trial = driver.start()
    report: dict[str, Any] = {"images_seen": 100, "metrics": {"average_precision": 0.5}, "elapsed_s": 1.0}
    for images_seen, more in (
        (100, {}),
        (200, {"usage": {"images_per_s": 50.0, "validation_s": 0.5, "saving_s": None}}),
        (300, {"usage": {"images_per_s": 60.0}, "saving_s": 0.25, "bytes_written": 1200}),
        (400, {"saving_s": 0.0, "bytes_written": None}),
    ):
        driver.ledger_callback.on_trial_result(0, [], trial, {**report, "images_seen": images_seen, **more})
    assert [kept.usage for kept in driver.ledger.trials[0].reports] == [
        None,
        ReportUsage(images_per_s=50.0, validation_s=0.5),
        ReportUsage(images_per_s=60.0, saving_s=0.25, bytes_written=1200),
        ReportUsage(saving_s=0.0),
    ]
    assert open_search(driver.ledger.files.root).trials == (driver.ledger.trials[0],)


def test_the_time_left_counts_the_networks_of_trials_past_their_first_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_callback, "say", lambda _: None)
    driver = Driver(tmp_path, folds=3)
    trial = driver.start()
    for images_seen in range(100, 1100, 100):
        driver.report(trial, images_seen, 0.5)
    assert driver.ledger_callback._started is not None
    seen = driver.ledger_callback.standing(driver.ledger_callback._started + 10)
    # The plan expects 300 each as above, and 1,800 more of 2 of 10: 660. 9 are to come, and this one has 2,700 in all.
    assert seen.left_s == pytest.approx((9 * 660 + 1700) / 100)


def test_a_trial_that_is_started_again_knows_what_it_has_reported(driver: Driver) -> None:
    trial = driver.start()
    trial.config["reported"] = 0
    driver.report(trial, 100, 0.5)
    driver.ledger_callback.on_trial_recover(0, [], trial)
    assert trial.config["reported"] == 100


@pytest.mark.parametrize(
    ("verdict", "failures", "state"),
    [(None, 4, "running"), (Verdict("failed", "device_error", "silent on two machines"), 0, "failed")],
)
def test_a_silent_attempt_is_no_retry_and_with_a_verdict_the_last_one(
    driver: Driver, verdict: Verdict | None, failures: int, state: str
) -> None:
    trial = driver.start()
    trial.max_failures = 3
    driver.report(trial, 100, 0.5)
    driver.ledger_callback.fell_silent(trial, verdict)
    assert trial.max_failures == failures, "Tune ends what has failed more often"
    assert driver.ledger.trials[0].state == state


def test_a_trial_that_has_grown_costs_what_it_holds(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(ledger_callback, "time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic))
    driver.ledger_callback._gpus, driver.ledger_callback._workers = 2.0, 2
    trial = driver.start()
    clock[0] += 10
    driver.report(trial, 100, 0.5)
    clock[0] += 5
    driver.ledger_callback.grew(0, 3)
    clock[0] += 4
    assert driver.ledger_callback.gpu_seconds() == 2 * 15 + 6 * 4
    driver.start()
    assert driver.ledger_callback.standing(0.0).gpus == 8.0
    driver.ledger_callback._running.discard(1)
    driver.report(trial, 200, 0.5)
    driver.ledger_callback.grew(0, 1)
    clock[0] += 7
    driver.report(trial, 300, 0.5)
    record = driver.ledger.trials[0]
    assert record.cost_gpu_s == 2 * 15 + 6 * 4 + 2 * 7
    assert [(note.workers, note.images_seen) for note in record.grown] == [(6, 100), (2, 200)]
    assert record.attempts == 1


def test_time_in_the_queue_costs_nothing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(ledger_callback, "time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic))
    driver.ledger_callback._gpus = 2.0
    trial = driver.start()
    trial.max_failures = 3
    clock[0] += 60
    driver.report(trial, 100, 0.5)
    clock[0] += 5
    driver.ledger_callback.on_trial_result(0, [], trial, {"lost": "preempted", "detail": "", "node": "n"})
    driver.ledger_callback.on_trial_recover(0, [], trial)
    assert driver.ledger_callback.gpu_seconds() == driver.ledger.trials[0].cost_gpu_s == 130.0
    clock[0] += 7200
    driver.ledger_callback.on_trial_start(0, [], trial)
    assert driver.ledger_callback.gpu_seconds() == driver.ledger.trials[0].cost_gpu_s == 130.0
    clock[0] += 10
    driver.report(trial, 200, 0.5)
    assert (driver.ledger.trials[0].cost_gpu_s, driver.ledger.trials[0].attempts) == (150.0, 2)


def test_a_trial_that_has_ended_is_written_no_more(driver: Driver) -> None:
    trial = driver.start()
    driver.report(trial, 100, 0.5)
    driver.ledger_callback.grew(0, 2)
    for images_seen in range(200, 1000, 100):
        driver.report(trial, images_seen, 0.5)
    driver.ledger_callback.grew(0, 1)
    assert driver.ledger.trials[0].state == "completed"
    assert [note.workers for note in driver.ledger.trials[0].grown] == [2]


def test_logits_that_an_attempt_has_lost_are_not_kept_by_name(driver: Driver) -> None:
    trial = driver.start()
    for images_seen, logits in ((100, {"file": "logits/00000/1-0.f32", "sha256": "0" * 64}), (200, None)):
        result = {"images_seen": images_seen, "metrics": {"average_precision": 0.5}, "elapsed_s": 1.0, "logits": logits}
        driver.ledger_callback.on_trial_result(0, [], trial, result)
        assert bool(driver.ledger.trials[0].logits) == bool(logits)


def test_a_report_that_is_made_again_changes_no_value(driver: Driver) -> None:
    """Its attempt went on from the state of the report before, as that of this one was not whole."""
    trial = driver.start()
    state = {"file": "checkpoints/00000/a-00000000.safetensors", "sha256": "0" * 64, "images_seen": 100}
    for images_seen, value, checkpoint, size in (
        (100, 0.5, None, 0),
        (200, 0.6, state, 1000),
        (200, 0.7, state, 10),
        (300, 0.8, state | {"images_seen": 200}, 1000),
    ):
        result = {"images_seen": images_seen, "metrics": {"average_precision": value}, "elapsed_s": 1.0}
        told = {"checkpoint": checkpoint, "bytes_written": size, "saving_s": 0.0}
        driver.ledger_callback.on_trial_result(0, [], trial, result | told)
    record = driver.ledger.trials[0]
    assert [report.metrics["average_precision"] for report in record.reports] == [0.5, 0.6, 0.8]
    assert record.checkpoint is not None
    assert (record.checkpoint.images_seen, record.usage.bytes_written) == (200, 2000)
    assert driver.ledger_callback.summary().endswith("; 2 kB written")


def test_a_trial_that_had_to_begin_anew_names_no_state_until_it_has_one(driver: Driver) -> None:
    trial = driver.start()
    state = {"file": "checkpoints/00000/a-00000000.safetensors", "sha256": "0" * 64, "images_seen": 100}
    for checkpoint in (state, None):
        result = {"images_seen": 200, "metrics": {"average_precision": 0.5}, "elapsed_s": 1.0, "checkpoint": checkpoint}
        driver.ledger_callback.on_trial_result(0, [], trial, result)
        assert bool(driver.ledger.trials[0].checkpoint) == bool(checkpoint)


def test_nothing_is_known_before_the_first_report(driver: Driver) -> None:
    driver.start()
    driver.ledger_callback._counts._deadline = float("inf")
    assert driver.ledger_callback.standing(time.monotonic() + 5).left_s is None


def test_hours_end_what_is_left(tmp_path: Path) -> None:
    driver = Driver(tmp_path, hours=0.001)
    driver.report(driver.start(), 100, 0.5)
    left_s = driver.ledger_callback.standing(time.monotonic() + 1000).left_s
    assert left_s is not None
    assert 0 < left_s <= 3.6


def test_trials_that_wait_for_a_machine_end_with_the_time_of_the_search(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = Verdict("pruned", "hours", "the search's --hours were over")
    stopped: list[int] = []

    def look(trials: list[Any]) -> None:
        driver.ledger_callback._last_line = -100.0
        driver.ledger_callback.on_step_end(0, trials)
        controller = SimpleNamespace(
            get_live_trials=lambda: set(trials), stop_trial=lambda trial: stopped.append(trial.config["number"])
        )
        driver.asha.choose_trial_to_run(controller)

    class Trial(SimpleNamespace):
        __hash__ = object.__hash__

    waits, starts, runs = (
        Trial(config=driver.start().config, status=status, temporary_state=SimpleNamespace(ray_actor=actor))
        for status, actor in (("PENDING", None), ("PENDING", "an actor"), ("RUNNING", "an actor"))
    )
    look([waits, starts, runs])
    assert not stopped
    asked = Trial(config=driver.start().config, status="PENDING", temporary_state=SimpleNamespace(ray_actor=None))
    driver.asha.stopping[3] = Verdict("pruned", "stopped_by_request")
    look([asked, starts, runs])
    assert (stopped.pop(), driver.ledger.trials.pop(3).reason) == (3, "stopped_by_request")
    driver.ledger_callback._counts.ended.clear()
    monkeypatch.setattr(driver.asha, "_limit", lambda: hours)
    for _ in range(2):
        look([waits, starts, runs])
    assert [trial.state for trial in driver.ledger.trials.values()] == ["pruned", "running", "running"]
    assert driver.ledger.trials[0].reason == "hours"
    assert stopped == [0, 0], "Tune asks for it no more after the first"
    assert driver.ledger_callback._counts.ended == {"pruned": 1}


def test_a_table_is_drawn_at_most_twice_a_second_and_lines_are_said_without_one(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, said, drawn = [time.monotonic()], [], []
    monkeypatch.setattr(ledger_callback.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ledger_callback, "say", said.append)
    for draw in (None, drawn.append):
        driver.ledger_callback.draw = draw
        for _ in range(100):  # ten seconds
            now[0] += 0.1
            driver.ledger_callback.on_step_end(0, [])
    assert len(said) in {1, 2}
    assert said[0].startswith("  0/10 trials ended, 0 running, 0 images (0/s)")
    assert 15 <= len(drawn) <= 20


def test_the_line_of_a_trial_that_failed_says_why(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ledger_callback, "say", said.append)
    failed, pruned = driver.start(), driver.start()
    driver.ledger.finish(0, Verdict("failed", "error", "ValueError: a\nb"))
    driver.ledger.finish(1, Verdict("pruned", "hours", "the search's --hours were over"))
    for trial in (failed, pruned):
        driver.ledger_callback._say_ended(trial.config["number"])
    assert said == [
        "trial 0 failed (error: ValueError: a b): no average_precision after 0 images; none completed yet",
        "trial 1 pruned (hours): no average_precision after 0 images; none completed yet",
    ]


def test_tune_keeps_nothing_of_a_trial_that_has_ended(tmp_path: Path) -> None:
    ledger, _, keeper = callback_of(tmp_path)
    for number, ended in enumerate((keeper.on_trial_complete, keeper.on_trial_error)):
        ledger.add({})
        trial = start(keeper, number)
        kept = Trial("unknown", config=trial.config, evaluated_params={"a": 1}, stub=True)  # type: ignore[no-untyped-call]
        kept.update_last_result({"a": 1})  # type: ignore[no-untyped-call]
        kept._default_result_or_future = "a reference"
        assert kept.metric_analysis
        ended(0, [], kept)
        assert (kept.metric_analysis, kept.metric_n_steps, kept.evaluated_params) == ({}, {}, {})
        assert kept.last_result == {"trial_id": kept.trial_id}
        assert kept._default_result_or_future is None


def test_a_tune_that_names_its_reference_otherwise_gets_no_attribute(tmp_path: Path) -> None:
    ledger, _, keeper = callback_of(tmp_path)
    ledger.add({})
    trial = start(keeper, 0)
    kept: Any = SimpleNamespace(
        config=trial.config, metric_analysis={}, metric_n_steps={}, last_result={}, evaluated_params={}
    )
    keeper.on_trial_complete(0, [], kept)
    assert not hasattr(kept, "_default_result_or_future")


def test_the_race_is_told_of_trials_that_failed_without_a_report(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[int] = []
    driver.asha.race = SimpleNamespace(failed=failed.append)  # type: ignore[assignment]
    monkeypatch.setattr(ledger_callback, "forget", lambda _: None)
    died, pruned, dropped = driver.start(), driver.start(), driver.start()
    driver.ledger.finish(0, Verdict("failed", "worker_died", "its process was lost 4 times"))
    driver.ledger.finish(1, Verdict("pruned", "folds_1"))
    for trial in (died, pruned):
        driver.ledger_callback.on_trial_error(0, [], trial)
    assert failed == [0]  # the other had ended before its process did, and keeps its logits
    dropped.status, dropped.trial_id = "ERROR", "unknown"

    def complete(*_: Any, **__: Any) -> None:
        driver.ledger.finish(2, Verdict("failed", "worker_died", ""))

    driver.ledger_callback._sampler = SimpleNamespace(on_trial_complete=complete)  # type: ignore[assignment]
    driver.ledger_callback._fail_lost([dropped])
    assert failed == [0, 2]


@pytest.fixture
def gone(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Nodes that Ray has given up; all trials run on the node `abab...`."""
    nodes: set[str] = set()
    monkeypatch.setattr(ledger_callback, "process_of", lambda _: ("ab" * 28, 1))
    monkeypatch.setattr(ledger_callback, "keep_output_of", lambda *_: None)
    monkeypatch.setattr(ledger_callback, "host_of", lambda node: f"host-{node[:4]}")
    driver.ledger_callback._losses = NodeLosses(nodes.__contains__)
    return nodes


def test_a_lost_machine_stands_in_the_record_of_its_trial_and_costs_no_retry(
    driver: Driver, gone: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ledger_callback, "say", said.append)
    asked: list[Any] = []
    monkeypatch.setattr(ledger_callback, "keep_output_of", lambda *of: asked.append(of))
    early, late = driver.start(), driver.start()
    for trial in (early, late):
        trial.max_failures = 3
        driver.report(trial, 100, 0.5)
    driver.ledger_callback.on_trial_recover(0, [], late)  # Ray tells of its process first
    gone.add("ab" * 28)
    driver.ledger_callback.on_trial_recover(0, [], early)
    driver.ledger_callback._last_line = -100.0
    driver.ledger_callback.on_step_end(0, [])
    for number, trial in enumerate((early, late)):
        assert trial.max_failures == 4
        (lost,) = driver.ledger.trials[number].lost
        assert (lost.cause, lost.host, lost.images_seen) == ("node_lost", "host-abab", 100)
    assert said[:3] == [
        "trial 1: its process died, starting it again from its newest checkpoint",
        "trial 0: its machine is gone, it goes back to the queue with its newest checkpoint",
        "trial 1: it was its machine that was lost, which is none of its retries",
    ]
    assert asked == [(str(driver.ledger.files.root), 1, "ab" * 28, 1)], "one that is gone cannot say what was written"


class Heard:
    """In place of messages: what the callback has said."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def reported(self) -> None:
        self.said.append("report")

    def better(self, best: Any, before: float | None, ended: int, wanted: int) -> None:
        self.said.append((best.number, before, ended, wanted))

    def machine_gone(self, node: str) -> None:
        self.said.append(node)

    def step(self, running: int, quarantines: int) -> None:
        self.said.append({"running": running, "quarantines": quarantines})


def test_who_writes_messages_hears_of_reports_machines_and_better_trials(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: Any = Heard()
    driver.ledger_callback.messages = heard
    for value, reports in ((0.5, 9), (0.4, 1), (0.6, 9)):
        trial = driver.start()
        for report in range(reports):
            driver.report(trial, 100 * (report + 1), value)
    assert [said for said in heard.said if said != "report"] == [(0, None, 1, 10), (2, 0.5, 3, 10)]
    assert heard.said.count("report") == 19, "9 of two trials, and one of the one that was stopped at its first rung"
    heard.said.clear()
    lost: dict[str, Any] = {"lost": "preempted", "detail": "", "node": "a1", "host": "h", "devices": []}
    moved = driver.start()
    moved.max_failures = 3
    driver.ledger_callback.on_trial_result(0, [], moved, lost)
    driver.ledger_callback.on_trial_result(0, [], moved, lost | {"lost": "device"})
    monkeypatch.setattr(ledger_callback, "host_of", lambda _: "h")
    driver.ledger_callback._note_loss(3, "b2")
    driver.ledger_callback._last_line = -1e9
    driver.ledger_callback.on_step_end(0, [])
    assert heard.said == ["a1", "b2", {"running": 1, "quarantines": 0}]


def test_a_machine_that_is_missed_late_stands_as_it_was_at_the_death_and_not_in_a_trial_that_has_ended(
    driver: Driver, gone: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    for module in (ledger_module, node_losses):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic))
    goes_on, ends = driver.start(), driver.start()
    for trial in (goes_on, ends):
        trial.max_failures = 3
        driver.report(trial, 100, 0.5)
        driver.ledger_callback.on_trial_recover(0, [], trial)
        driver.ledger_callback.on_trial_start(0, [], trial)
    clock[0] += 60
    driver.report(goes_on, 200, 0.5)
    for images_seen in range(200, 1000, 100):
        driver.report(ends, images_seen, 0.9)
    gone.add("ab" * 28)
    driver.ledger_callback._last_line = -100.0
    driver.ledger_callback.on_step_end(0, [])
    (lost,) = driver.ledger.trials[0].lost
    assert (lost.cause, lost.images_seen, lost.time) == ("node_lost", 100, 1000.0)
    assert (driver.ledger.trials[1].state, driver.ledger.trials[1].lost) == ("completed", ())


def test_a_trial_that_has_ended_and_that_tune_recovers_is_stopped_there(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune counts no death on a machine that is drained, so that none is one too many."""
    said: list[str] = []
    monkeypatch.setattr(ledger_callback, "say", said.append)
    verdict = Verdict("failed", "device_error", "silent on two machines")
    recovers, starts = driver.start(), driver.start()
    for trial in (recovers, starts):
        trial.max_failures = 3
        driver.report(trial, 100, 0.5)
        driver.ledger_callback.fell_silent(trial, verdict)
    ended = dict(driver.ledger.trials)
    assert driver.asha.verdicts == {0: verdict, 1: verdict}
    driver.ledger_callback.on_trial_recover(0, [], recovers)
    driver.ledger_callback.on_trial_recover(0, [], starts)
    driver.ledger_callback.on_trial_start(0, [], starts)
    driver.report(starts, 200, 0.9)
    assert driver.ledger.trials == ended
    assert driver.ledger_callback._counts.ended == {"failed": 2}
    assert driver.ledger_callback.standing(time.monotonic()).running == []
    assert [line.partition(" (")[0] for line in said] == ["trial 0 failed", "trial 1 failed"]


def test_a_report_of_a_trial_that_was_to_be_killed_changes_nothing(driver: Driver) -> None:
    trial = driver.start()
    driver.report(trial, 100, 0.5)
    driver.ledger_callback.fell_silent(trial, Verdict("failed", "device_error", "silent on two machines"))
    ended = driver.ledger.trials[0]
    driver.report(trial, 200, 0.9)
    assert driver.ledger.trials[0] is ended
    assert driver.ledger_callback._counts.ended == {"failed": 1}

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.results import open_search
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.request_files import post_request
from ich_ray.search.space.constraints import Refusal
from ich_ray.search.space.space import Listed
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.stopping.asha import AshaRungs
from ich_ray.search.tune import steering
from ich_ray.search.tune.ledger_callback import LedgerCallback
from ich_ray.search.tune.sampler import LedgerSampler
from ich_ray.search.tune.scheduler import StoppingScheduler
from ich_ray.search.tune.steering import Steering
from ich_ray.search_records import ControlRequest, RequestNote
from tests.records import make_record
from tests.search.fakes import SPACE
from tests.search.test_time_budget import start

SOURCE = yaml.safe_load(SPACE)
GRID = {**SOURCE, "sampler": "grid", "parameters": {"dropout": {"choice": [0.1, 0.2, 0.3]}}}
ADDED = {"architecture": "resnet18", "learning_rate": 0.002, "dropout": 0.3, "optimizer": "adam"}
AT = "1700000000000-0000000"


class Run:
    """A driver without Tune: what it is asked is read at once, whatever the clock says."""

    def __init__(
        self, folder: Path, wanted: int = 5, source: dict[str, Any] = SOURCE, over: Verdict | None = None, **keys: Any
    ) -> None:
        there = (folder / "s" / "search.json").exists()
        self.ledger = (
            Ledger.open(folder / "s")
            if there
            else Ledger.create(folder / "s", make_record(space=source, trials=wanted, name="tiny"))
        )
        space, wanted = parse_space(source, "x.yaml"), self.ledger.record.wanted
        self.over = over
        rule = AshaRungs(space.budget, space.objective)
        self.scheduler = StoppingScheduler(space.budget, space.objective, rule, lambda: self.over)
        listed = None if space.listed is None else [Listed(one) for one in space.listed[:wanted]]
        self.sampler = LedgerSampler(
            space, self.ledger, wanted=wanted, concurrent=lambda: 2, out_of_time=lambda: bool(self.over), listed=listed
        )
        self.counts = LedgerCallback(
            space, self.ledger, self.scheduler, self.sampler, wanted=wanted, gpus=0, deadline=1e12
        )
        self.clock = 0.0
        self.steering = Steering(
            space, self.ledger, self.scheduler, self.sampler, self.counts, lambda: self.over, now=lambda: self.clock,
            **keys,
        )  # fmt: skip
        self.steering.begin()

    def ask(self, **asked: Any) -> RequestNote:
        """The answer to a request that is read at the next step two seconds later."""
        post_request(self.ledger.files, ControlRequest(time=1.0, **asked))
        self.clock += 2.0
        self.steering.on_step_end(0, [])
        return open_search(self.ledger.files.root).record.requests[-1]

    def begin(self, name: str) -> tuple[Any, dict[str, Any]]:
        config = self.sampler.suggest(name)
        trial = start(self.counts, config["number"], config["again"])
        trial.trial_id = name
        return trial, config

    def report(self, trial: Any, images_seen: int, value: float = 0.5) -> str:
        result = {"images_seen": images_seen, "metrics": {"average_precision": value}, "elapsed_s": 1.0}
        flat = {**result, "metrics/average_precision": value}
        decision = self.scheduler.on_trial_result(None, trial, flat)
        self.sampler.on_trial_result(trial.trial_id, flat)
        self.counts.on_trial_result(0, [], trial, result)
        if decision == "STOP":
            self.sampler.on_trial_complete(trial.trial_id, flat)
        return decision


def state(run: Run, number: int) -> tuple[str, str]:
    trial = run.ledger.trials[number]
    return trial.state, trial.reason


def test_a_trial_is_stopped_at_its_next_report(tmp_path: Path) -> None:
    run = Run(tmp_path)
    trial, _ = run.begin("a")
    other, _ = run.begin("b")
    assert run.report(trial, 100) == "CONTINUE"
    assert run.ask(stop_trial=0).answer == "trial 0 ends at its next report"
    assert state(run, 0) == ("running", "")
    assert (run.report(trial, 200), run.report(other, 100)) == ("STOP", "CONTINUE")
    assert state(run, 0) == ("pruned", "stopped_by_request")
    assert state(run, 1) == ("running", "")
    assert run.ask(stop_trial=0).answer == "--stop-trial: must be a trial that runs, got 0, which is pruned"
    assert run.ask(stop_trial=7).answer == "--stop-trial: must be a trial of the search, got 7 where there are 0 to 1"
    assert [note.done for note in run.ledger.record.requests] == [True, False, False]


def test_a_trial_that_was_stopped_before_the_first_rung_teaches_nothing(tmp_path: Path) -> None:
    source = {**SOURCE, "budget": {**SOURCE["budget"], "first_rung": 300}}
    run = Run(tmp_path, source=source)
    trial, _ = run.begin("a")
    run.ask(stop_trial=0)
    run.report(trial, 100, 0.9)
    (known,) = run.sampler.known()
    assert (known.state.name, known.intermediate_values) == ("FAIL", {})
    assert run.sampler.told() == 1
    assert Run(tmp_path, source=source).sampler.told() == 1, "nor after a resume"


def test_a_stop_that_was_not_carried_out_is_by_the_next_driver(tmp_path: Path) -> None:
    run = Run(tmp_path)
    trial, _ = run.begin("a")
    run.begin("b")
    run.report(trial, 100)
    run.ask(stop_trial=0)
    again = Run(tmp_path)  # the first one was killed before the trial's next report
    assert state(again, 0) == ("pruned", "stopped_by_request")
    assert again.sampler.waiting == [1]
    assert again.sampler.withdrawn == {0}
    assert again.sampler.told() == 2
    assert again.ask(stop_trial=1).answer == "trial 1 ends now"
    assert state(again, 1) == ("pruned", "stopped_by_request")
    assert again.sampler.suggest("c")["number"] == 2


def test_a_trial_is_added_and_runs_next(tmp_path: Path) -> None:
    run = Run(tmp_path, wanted=1)
    run.begin("a")
    assert run.sampler.is_exhausted
    note = run.ask(add=ADDED)
    assert (note.answer, note.trial) == ("trial 1 runs next; the search has 2 trials now", 1)
    partly = run.ask(add={"dropout": 0.25})
    assert (partly.trial, open_search(tmp_path / "s").record.wanted) == (2, 3)
    assert run.counts.wanted == 3
    _, config = run.begin("b")
    assert (config["number"], config["parameters"], config["again"]) == (1, ADDED, False)
    assert run.ledger.trials[1].attempts == 1
    drawn = run.ledger.trials[2].parameters
    assert drawn["dropout"] == 0.25
    assert {"architecture", "learning_rate", "optimizer"} < drawn.keys()
    again = Run(tmp_path)
    assert again.sampler.waiting == [0, 1, 2], "it is not added twice"


def test_a_trial_that_is_added_takes_the_place_of_no_point(tmp_path: Path) -> None:
    source = {**SOURCE, "points": [{"dropout": 0.1}, {"dropout": 0.2}, {"dropout": 0.3}]}
    run = Run(tmp_path, source=source)
    run.begin("a")
    run.ask(add={"dropout": 0.5})
    run.begin("b")
    again = Run(tmp_path, source=source)
    for name in ("a", "b"):
        trial, _ = again.begin(name)
        for images in range(100, 1000, 100):
            again.report(trial, images)
    for name in ("c", "d"):
        again.begin(name)
    assert [trial.parameters["dropout"] for trial in again.ledger.trials.values()] == [0.1, 0.5, 0.2, 0.3]


def test_a_driver_that_is_killed_between_answer_and_deed_leaves_the_deed_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, wanted=2)
    run.begin("a")
    with monkeypatch.context() as patch:
        patch.setattr(Steering, "_carry_out", lambda *_: None)
        run.ask(add=ADDED)
    assert len(run.ledger.trials) == 1
    again = Run(tmp_path)
    assert again.ledger.trials[1].parameters == ADDED
    assert len(Run(tmp_path).ledger.trials) == 2


def test_an_added_trial_is_drawn_once_and_the_same_by_a_driver_that_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def refuses(drawn: Hyperparameters) -> Refusal | None:
        tried.append(drawn.dropout)
        return Refusal("max_parameters", 1.0) if drawn.dropout > 0.1 else None

    parameters: list[dict[str, Any]] = []
    for name in ("carried out", "by the next"):
        run = Run(tmp_path / name, refuses=refuses)
        tried.clear()
        with monkeypatch.context() as patch:
            if name == "by the next":
                patch.setattr(Steering, "_carry_out", lambda *_: None)  # killed between answer and deed
            assert run.ask(add={"learning_rate": 0.002}).done
        assert len(tried) > 1, "so tight that the first draw is refused"
        assert [dropout <= 0.1 for dropout in tried].count(True) == 1
        ledger = Run(tmp_path / name, refuses=refuses).ledger
        parameters.append(dict(ledger.trials[0].parameters))
    assert parameters[0] == parameters[1]
    assert parameters[0]["learning_rate"] == 0.002


def test_what_is_asked_while_no_driver_is_there_is_done_by_the_next(tmp_path: Path) -> None:
    run = Run(tmp_path, wanted=2)
    name = post_request(run.ledger.files, ControlRequest(time=1.0, trials=4))
    again = Run(tmp_path)
    again.steering.wait()
    assert (again.sampler.wanted, again.ledger.record.wanted) == (4, 4)
    assert not run.ledger.files.request(name).exists()
    assert len(again.ledger.record.requests) == 1


@pytest.mark.parametrize(
    ("point", "answer"),
    [
        ({"dropout": 0.9}, "--add: dropout must lie in the space (uniform [0.0, 0.6]), got 0.9"),
        ({"dropuot": 0.3}, "--add: must use parameters of this space, got 'dropuot' (did you mean 'dropout'?)"),
        (
            {"architecture": "resnet18", "blocks": 2},
            "--add: blocks exists only when architecture=plain_cnn, got another value or none; add or remove it",
        ),
    ],
)
def test_an_added_trial_must_be_in_the_space(point: dict[str, Any], answer: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    note = run.ask(add=point)
    assert (note.done, note.answer, note.trial) == (False, answer, None)
    assert run.ledger.trials == {}
    assert run.ledger.record.wanted == 5


def test_trials_in_all_are_raised_and_lowered(tmp_path: Path) -> None:
    run = Run(tmp_path, wanted=2)
    run.begin("a")
    run.begin("b")
    assert run.sampler.is_done
    assert run.ask(trials=3).answer == "the search has 3 trials now"
    assert not run.sampler.is_done
    assert run.ask(trials=1).answer == "--trials: must be at least the 2 trials that have begun, got 1"
    run.ask(trials=2)
    assert run.sampler.is_done
    assert Run(tmp_path).sampler.wanted == 2


def test_listed_trials_can_be_fewer_and_more_again(tmp_path: Path) -> None:
    run = Run(tmp_path, wanted=1, source=GRID)
    run.ask(trials=3)
    assert run.ask(trials=4).answer == "--trials: the space tiny lists 3 trials and no more, got 4"
    assert run.ask(add={"dropout": 0.1}).answer.startswith("--add: the trials of the space tiny are listed and none")
    run.ask(trials=2)
    listed = parse_space(GRID, "x.yaml").listed or ()
    assert [run.sampler.suggest(name)["parameters"] for name in "ab"] == [*listed[:2]]
    assert run.sampler.is_done


def test_so_many_run_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.ask(concurrent=1)
    run.begin("a")
    assert run.sampler.suggest("b") is None
    run.ask(concurrent=8)
    run.begin("b")
    assert run.sampler.suggest("c") is None, "there is room for two"


def test_nothing_starts_in_a_pause_and_a_resume_stays_in_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    trial, _ = run.begin("a")
    assert run.ask(pause=True).answer == "no new trial starts, and running ones go on"
    assert run.sampler.suggest("b") is None
    assert run.report(trial, 100) == "CONTINUE"
    assert not run.sampler.is_done, "while one runs"
    for images in range(200, 1000, 100):
        run.report(trial, images)
    assert run.sampler.suggest("b") == "FINISHED", "so that its slots are free"
    again = Run(tmp_path)
    assert again.sampler.is_done
    again.ask(pause=False)
    assert again.sampler.suggest("b")["number"] == 1


def test_a_pause_is_waited_for_where_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.ask(pause=True)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            post_request(run.ledger.files, ControlRequest(time=1.0, pause=False))

    monkeypatch.setattr(steering.time, "sleep", sleep)
    run.steering.wait()
    assert len(slept) == 3
    assert not run.sampler.is_paused


def test_a_search_whose_time_is_over_takes_no_request_for_more(tmp_path: Path) -> None:
    run = Run(tmp_path, over=Verdict("pruned", "hours", "the search's --hours were over"))
    assert run.ask(trials=9).answer == (
        "--trials 9: a search must have time left, got one that ends (the search's --hours were over)"
    )


def test_the_folder_is_read_every_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, looks = Run(tmp_path), list[int]()
    monkeypatch.setattr(steering, "waiting_requests", lambda *_: looks.append(1) or [])
    for run.clock in (0.5, 1.9, 2.0, 2.1, 3.9, 4.0):
        run.steering.on_step_end(0, [])
    assert len(looks) == 2


def _link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere.json"
    elsewhere.write_text(json.dumps({"time": 1, "trials": 99}))
    path.symlink_to(elsewhere)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "huge": (lambda path: path.write_bytes(b" " * (1 << 20)), "a request must have at most 64 KiB, got more"),
    "nan": (lambda path: path.write_text('{"time": 1, "add": {"dropout": NaN}}'), "got NaN, which is no number"),
    "deep": (lambda path: path.write_text("[" * 20_000), "a request must be JSON, got"),
    "link": (_link, "a request must be a file, got a link"),
    "pipe": (os.mkfifo, "must be a file, got something else"),
    "folder": (Path.mkdir, "must be a file, got something else"),
    "two": (lambda path: path.write_text('{"time": 1, "trials": 3, "pause": true}'), "one thing, got trials, pause"),
    "none": (lambda path: path.write_text('{"time": 1}'), "a request must ask for one thing, got none"),
    "many": (lambda path: path.write_text('{"time": 1, "trials": 1e12}'), "a request must match its format"),
    "key": (lambda path: path.write_text('{"time": 1, "\\u001b[2J": 3}'), "a request must match its format"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_and_named_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(steering, "say", said.append)
    run = Run(tmp_path)
    path = Path(str(run.ledger.files.request(f"{AT}1")))
    path.parent.mkdir()
    write, reason = HOSTILE[kind]
    write(path)
    for _ in range(3):
        run.steering.read()
    again = Run(tmp_path)
    again.steering.read()
    (note,) = again.ledger.record.requests
    assert (note.id, note.asked, note.done) == (f"{AT}1", None, False)
    assert reason in note.answer
    assert note.answer.isprintable()
    assert len(said) == 1
    assert again.sampler.wanted == 5
    assert path.exists() == (kind == "folder")
    assert (tmp_path / "s" / "elsewhere.json").exists() == (kind == "link")


def test_files_of_other_names_are_no_requests(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = Path(str(run.ledger.files.requests))
    folder.mkdir()
    for name in ("x.json", f"{AT}1.json.tmp", f".{AT}1.json", "1-2.json"):
        (folder / name).write_text('{"time": 1, "trials": 9}')
    run.steering.read()
    assert run.ledger.record.requests == []
    assert len([*folder.iterdir()]) == 4


def test_an_added_trial_may_repeat_another_for_the_audit(tmp_path: Path) -> None:
    run = Run(tmp_path, wanted=1)
    trial, _ = run.begin("a")
    for images in range(100, 1000, 100):
        run.report(trial, images)
    run.ask(add=run.ledger.trials[0].parameters)
    again, _ = run.begin("b")
    for images in range(100, 1000, 100):
        run.report(again, images)
    assert audit(tmp_path / "s").breached == ()

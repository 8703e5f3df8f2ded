from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from ich_ray.cli import call
from ich_ray.errors import ConfigError
from ich_ray.results import SearchResult, open_search
from ich_ray.runtime import connected
from ich_ray.search import control
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.control import control_search
from ich_ray.search.ledger import Ledger
from ich_ray.search.request_files import read_request, waiting_requests
from ich_ray.search.run import run_search
from ich_ray.search_records import RequestNote
from ich_ray.storage import file_lock
from tests.prepared import make_dataset
from tests.records import make_record
from tests.search.fakes import SPACE, FakeTrainer

ADDED = {"architecture": "resnet18", "learning_rate": 0.002, "dropout": 0.3, "optimizer": "adam"}


@contextmanager
def at_work(out: Path, *, done: bool = True, answer: str = "well") -> Iterator[Ledger]:
    """A search whose driver answers everything alike."""
    ledger = Ledger.create(out, make_record())
    over = threading.Event()

    def drive() -> None:
        while not over.is_set():
            for name in waiting_requests(ledger.files):
                note = RequestNote(id=name, asked=read_request(ledger.files.request(name)), done=done, answer=answer)
                ledger.amend(request=note.model_dump(mode="json"))
                ledger.files.request(name).unlink()
            time.sleep(0.01)

    driver = threading.Thread(target=drive)
    with file_lock(ledger.files.lock, "a search"):
        driver.start()
        try:
            yield ledger
        finally:
            over.set()
            driver.join()


def test_an_answer_is_awaited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with at_work(tmp_path / "s"):
        reply = control_search(tmp_path / "s", add={"dropout": 0.1}, wait_s=60)
        assert reply.note
        assert (reply.note.asked, str(reply)) == (reply.request, "well")
        assert call(["control", str(tmp_path / "s"), "--pause"]) == 0
        assert call(["control", str(tmp_path / "s"), "--add", '{"dropout": 0.1}', "--json"]) == 0
    line, told = capsys.readouterr().out.split("\n", 1)
    assert line == "well"
    assert json.loads(told)["answer"]["asked"]["add"] == {"dropout": 0.1}
    assert call(["control", str(tmp_path / "s")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [one.split("UTC  ")[1] for one in lines] == [
        "--add {'dropout': 0.1}: well", "--pause: well", "--add {'dropout': 0.1}: well",
    ]  # fmt: skip


def test_a_refusal_is_a_mistake_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with at_work(tmp_path / "s", done=False, answer="--stop-trial: must be a trial of the search"):
        assert call(["control", str(tmp_path / "s"), "--stop-trial", "3"]) == 2
    assert "s: --stop-trial: must be a trial of the search" in capsys.readouterr().err


def test_a_request_without_an_answer_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record())
    with file_lock(ledger.files.lock, "a search"):
        reply = control_search(tmp_path / "s", trials=20, wait_s=0)
    assert reply.note is None
    assert str(reply).startswith("--trials 20: no answer yet, the driver reads it as soon as it can")
    assert control.waiting(tmp_path / "s") == [reply.id]
    assert call(["control", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out == f"{reply.id}  waits\n"


def test_a_search_that_does_not_run_is_not_controlled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record())
    assert call(["control", str(tmp_path / "s"), "--trials", "20"]) == 2
    assert "a search must be at work to be controlled, got one that has ended or was stopped" in capsys.readouterr().err
    assert not ledger.files.requests.exists()
    assert call(["control", str(tmp_path), "--pause"]) == 2
    assert "a search holds search.json, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "control: one thing is asked at a time, got nothing"),
        ({"trials": 3, "pause": True}, "control: one thing is asked at a time, got --trials, --pause"),
        ({"trials": 0}, "--trials: Input should be greater than or equal to 1"),
        ({"add": {"dropout": float("nan")}}, "--add: "),
        ({"add": {"x": "\x1b[2J"}}, "--add: "),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        control_search(tmp_path / "s", **asked)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["{", "[1]", '{"dropout": NaN}'])
def test_parameters_are_a_json_object(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["control", str(tmp_path), "--add", text]) == 2
    assert "--add: must be " in capsys.readouterr().err


def test_requests_lie_in_object_storage_too() -> None:
    ledger = Ledger.create("memory://control/s", make_record())
    reply = control_search("memory://control/s", concurrent=2, wait_s=0)
    assert waiting_requests(ledger.files) == [reply.id]
    assert read_request(ledger.files.request(reply.id)).concurrent == 2
    UPath("memory://control").rmdir(recursive=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_running_search_does_what_it_is_asked(tmp_path: Path) -> None:
    """Real Ray and Tune: paused until nothing runs, more trials and others at the end, one ended by hand."""
    data, space, out, hold = tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s", tmp_path / "hold"
    make_dataset(data, patients=20)
    space.write_text(SPACE.replace("first_rung: 100", "first_rung: 900"))
    hold.touch()
    failed: list[BaseException] = []

    def until(holds: Any) -> SearchResult:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if (out / "search.json").exists() and holds(found := open_search(out)):
                return found
            time.sleep(0.05)
        raise AssertionError("not there in 300 s")

    def ask(**asked: Any) -> None:
        reply = control_search(out, **asked, wait_s=300)
        assert reply.note
        assert reply.note.done

    def hands() -> None:
        try:
            until(lambda found: sum(trial.images_seen == 300 for trial in found.trials) == 2)
            ask(pause=True)
            ask(stop_trial=0)
            hold.unlink()
            until(lambda found: len(found.trials) == 2 and not found.count("running"))
            ask(add=ADDED)  # while no trial runs
            ask(trials=5)
            ask(pause=False)
        except BaseException as error:  # noqa: BLE001  (of another thread)
            failed.append(error)
            hold.unlink(missing_ok=True)
            with suppress(ConfigError):
                control_search(out, pause=False, wait_s=0)  # or the search would wait for ever

    thread = threading.Thread(target=hands)
    thread.start()
    with connected(cpus=2):
        found = run_search(data, space, out, trials=3, _trainer=FakeTrainer(hold=str(hold)))
    thread.join()
    assert failed == []
    assert audit(out).breached == ()
    assert [trial.reason for trial in found.trials] == ["stopped_by_request", "", "", "", ""]
    assert found.trials[0].images_seen < 900
    assert found.trials[2].parameters == ADDED
    assert [str(note.asked).split()[0] for note in found.record.requests] == [
        "--pause", "--stop-trial", "--add", "--trials", "--unpause",
    ]  # fmt: skip

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from documentation.reasons import CODES
from ich_ray import cli, progress, terminal
from ich_ray.errors import ConfigError, IntegrityError, RejectionLimitError
from ich_ray.results import SearchResult
from ich_ray.search.request import SearchRequest
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from ich_ray.trial_records import Objective, Report, TrialResult
from ich_ray.verbs import search
from ich_ray.verbs.options import share
from tests.hostile_text import HOSTILE, steers
from tests.records import make_record


def verbs() -> list[str]:
    return [
        command.name or command.callback.__name__.replace("_", "-")
        for command in cli.app.registered_commands
        if command.callback
    ]


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call([verb, "--help"]) == 0
    assert "Usage: ich-ray" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serch"], "No such command 'serch'. Did you mean 'search'?"),
        (["prepare", "x"], "Missing option '--labels'"),
        (["prepare", "x", "--labels", "y", "--out", "z", "--size", "3"], "greater than or equal to 16"),
        (["prepare", "x", "--labels", "y", "--out", "z", "--limit-rejected", "lots"], "a share from 0 to 1"),
        (
            ["search", "d", "--space", "s", "--out", "o", "--gpus-per-trial", "x"],
            "--gpus-per-trial: must be a number or",
        ),
        (["results", "nowhere"], "a search holds search.json, got none"),
        (["retrain", "nowhere"], "a search holds search.json, got none"),
        (["predict", "nowhere", "x", "--out", "y.csv"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.call(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (RejectionLimitError("b"), 4),
        (IntegrityError("c"), 5),
        (ZeroDivisionError("d"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(search, "open_search", fail)
    assert cli.call(["results", "x"]) == code
    said = capsys.readouterr().err
    assert (said.count("\n"), said.startswith("ich-ray: ")) == (1, True)
    assert (said == "ich-ray: interrupted; nothing finished is lost, run the same command again to go on\n") == (
        code == 130
    )
    assert str(code) in cli.__doc__
    assert code in CODES
    if code in {1, 2}:
        with pytest.raises(type(error)):
            cli.call(["results", "x"], debug=True)


@pytest.mark.parametrize(("text", "expected"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0), ("100%", 1.0)])
def test_shares(text: str, expected: float) -> None:
    assert share(text) == pytest.approx(expected)


def make_search(folder: Path) -> None:
    files = SearchFiles(locate(folder))
    record = make_record(name="tiny", trials=3)
    write_json(files.search, record.model_dump(mode="json"))
    for number, (state, value) in enumerate([("completed", 0.5), ("completed", 0.7), ("running", 0.9)]):
        report = Report(
            images_seen=100, metrics={"average_precision": value, "log_loss": None}, elapsed_s=1.0, time=0.0
        )
        trial = TrialResult(
            number=number, parameters={"learning_rate": 0.001, "optimizer": "adam"}, state=state,  # type: ignore[arg-type]
            reports=(report,), objective=Objective(),
        )  # fmt: skip
        write_json(files.trial(number), trial.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("given", "asked"), [([], None), (["--gpus-per-trial", "0.25"], 0.25), (["--gpus-per-trial", "auto"], "auto")]
)
def test_gpus_of_a_trial_are_a_number_or_follow_from_its_memory(
    given: list[str], asked: float | str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def note(request: SearchRequest) -> None:
        raise ConfigError(f"asked for {request.gpus_per_trial!r}")

    monkeypatch.setattr("ich_ray.search.run.run_request", note)
    assert cli.call(["search", "d", "--space", "s", "--out", "o", *given]) == 2
    assert f"asked for {asked!r}" in capsys.readouterr().err


@pytest.mark.parametrize(("ends", "code"), [(["failed", "failed"], 1), (["failed", "pruned"], 0), ([], 0)])
def test_a_search_of_which_nothing_is_left_has_failed(
    ends: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make_record(name="tiny", trials=2)
    trials = tuple(TrialResult(number=number, parameters={}, state=state) for number, state in enumerate(ends))  # type: ignore[arg-type]
    found = SearchResult(SearchFiles(locate(tmp_path)), record, trials)
    monkeypatch.setattr("ich_ray.search.run.run_request", lambda _: found)
    assert cli.call(["search", "data", "--space", "space", "--out", "s", "--json"]) == code
    assert len(json.loads(capsys.readouterr().out)["trials"]) == len(ends)


def test_results_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_search(tmp_path)
    assert cli.call(["results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 3 of 3 trials: 2 completed, 0 pruned, 0 failed, 1 running"
    assert [line.split()[0] for line in lines if line.strip() and line.split()[0].isdigit()] == ["1", "0", "2"]
    assert "learning_rate=0.001 optimizer=adam" in lines[-1]
    assert cli.call(["results", str(tmp_path), "--json", "--top", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["search"]["name"] == "tiny"
    assert [(trial["number"], trial["value"]) for trial in printed["trials"]] == [(1, 0.7)]


def test_results_say_what_trials_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_search(tmp_path)
    assert cli.call(["results", str(tmp_path)]) == 0
    assert "images/s" not in capsys.readouterr().out  # nobody measured
    path = locate(tmp_path) / "trials" / "00001.json"
    record = read_json(path)
    seen = record["reports"][0]["images_seen"]
    record["reports"][0]["usage"] = {
        "images_per_s": seen / 6, "data_wait_s": 2.0, "validation_s": 3.0, "saving_s": 1.0, "device_use": 0.75,
        "peak_memory_bytes": 3_210_000_000, "bytes_written": 120_000,
    }  # fmt: skip
    write_json(path, record)
    assert cli.call(["results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rate = f"{seen / 6:.0f}" if seen >= 60 else f"{seen / 6:.1f}"
    assert lines[1].split()[:6] == ["trial", "state", "average_precision", "images", "seconds", "images/s"]
    assert [line.split()[5] for line in lines[2:5]] == [rate, "-", "-"]
    assert (
        "time of trials: 40% training, 20% waiting for data, 30% validation, 10% saving; devices 75% in use while "
        "training; up to 3.21 GB of memory a trial; 120 kB written"
    ) in lines
    assert cli.call(["results", str(tmp_path), "--json"]) == 0
    first, *others = json.loads(capsys.readouterr().out)["trials"]
    assert (first["usage"]["training_s"], first["usage"]["saving_s"]) == (6.0, 1.0)
    assert not any("usage" in trial for trial in others)


def test_results_say_why_trials_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_search(tmp_path)
    details = ["ValueError: no\nsuch layer", "ValueError: no\nsuch layer", "out of\x1b memory", ""]
    for number, detail in enumerate(details, 3):
        failed = TrialResult(number=number, parameters={}, state="failed", reason="error", detail=detail)
        write_json(SearchFiles(locate(tmp_path)).trial(number), failed.model_dump(mode="json"))
    assert cli.call(["results", str(tmp_path), "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "trial 3 and 1 more failed: error: ValueError: no such layer",
        "trial 5 failed: error: out of\\x1b memory",
        "trial 6 failed: error",
    ]
    for number in range(7, 20):
        failed = TrialResult(number=number, parameters={}, state="failed", reason="error", detail=f"way {number}")
        write_json(SearchFiles(locate(tmp_path)).trial(number), failed.model_dump(mode="json"))
    assert cli.call(["results", str(tmp_path), "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "6 more ways to fail; --json has all"


def test_results_as_json_is_the_whole_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_search(tmp_path)
    record = read_json(locate(tmp_path) / "search.json")
    record["amendments"] = [{"time": 1.0, "trials": 12}]
    write_json(locate(tmp_path) / "search.json", record)
    first = read_json(locate(tmp_path) / "trials" / "00000.json")
    for number in range(3, 12):
        write_json(locate(tmp_path) / "trials" / f"{number:05d}.json", {**first, "number": number})
    assert cli.call(["results", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["search"] == record
    assert len(printed["trials"]) == 12
    for trial in printed["trials"]:
        value = trial.pop("value")
        assert trial == read_json(locate(tmp_path) / "trials" / f"{trial['number']:05d}.json")
        assert value == trial["reports"][0]["metrics"]["average_precision"]
        # Fields that say nothing of a trial are left out, as in its file.
        assert trial.keys() | {"lost", "grown", "logits"} == TrialResult.model_fields.keys()
    assert cli.call(["results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 12 of 12 trials: 11 completed, 0 pruned, 0 failed, 1 running"
    assert sum(line.split()[0].isdigit() for line in lines if line.strip()) == 10


def test_without_a_verb_the_help_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Usage: ich-ray [OPTIONS] COMMAND [ARGS]..."
    assert len(lines) > len(verbs())


def test_an_error_that_nobody_expected_repeats_no_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("no answer of https://user:hunter2@host/x")

    monkeypatch.setattr("ich_ray.verbs.search.open_search", fail)
    assert cli.call(["results", "s"]) == 1
    told = "ich-ray: unexpected RuntimeError: no answer of https://host/x; add --debug for the traceback\n"
    assert capsys.readouterr().err == told


def test_debug_shows_where_an_error_came_from_and_nothing_that_steers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ich-ray", "--debug", "results", HOSTILE.replace("\0", "")])
    monkeypatch.setattr(terminal, "guard_libraries", lambda: None)  # of the whole process
    with pytest.raises(SystemExit) as ended:
        cli.main()
    progress.show(False)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n")
    assert r"got none" in said
    assert not steers(said)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["--version"]) == 0
    assert capsys.readouterr().out == "ich-ray 0.1.0\n"

"""Somebody else's text, planted wherever a verb may print it: records, spaces, tables, file names, machines, jobs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ich_ray import cli, progress, runtime
from ich_ray.cluster import doctor, jobs
from ich_ray.cluster.findings import Finding
from ich_ray.cluster.jobs import Job
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.progress_table import format_failure
from ich_ray.storage import SearchFiles, locate, write_json
from ich_ray.terminal import printable
from ich_ray.trial_records import TrialResult
from tests.hostile_text import HOSTILE, PLANTED, steers
from tests.prepared import make_dataset
from tests.records import make_record
from tests.search.fakes import SPACE
from tests.searched import make_bundle, make_search

Said = Callable[..., tuple[int, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """Run a verb; its exit code and all that it printed, none of which steers."""

    def checked(*arguments: object) -> tuple[int, str]:
        code = cli.call([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert not steers(out + err)
        assert not [line for line in (out + err).split("\n") if line in {"ich-ray: done", "ich-ray: fine"}]
        return code, out + err

    progress.show()
    yield checked
    progress.show(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, a prepared dataset; `s`, a search of it with a bundle."""
    root = tmp_path_factory.mktemp("made")
    dataset = make_dataset(root / "data", patients=20)
    make_bundle(make_search(root / "s", dataset), dataset)
    return root


def plant(file: Path, *keys: str, value: object = HOSTILE) -> None:
    """Put hostile text at a place of a JSON file."""
    whole = here = json.loads(file.read_text())
    for key in keys[:-1]:
        here = here[key]
    here[keys[-1]] = value
    file.write_text(json.dumps(whole))


@pytest.mark.parametrize("keys", [(HOSTILE,), ("fingerprint",), ("versions", HOSTILE), ("roles", HOSTILE)])
@pytest.mark.parametrize(
    ("file", "verb"),
    [
        ("data/dataset.json", ("audit", "data")),
        ("data/dataset.json", ("audit", "data", "--json")),
        ("s/search.json", ("results", "s")),
        ("s/search.json", ("results", "s", "--json")),
        ("s/search.json", ("audit", "s")),
        ("s/search.json", ("report", "s")),
        ("s/final/bundle/card.json", ("predict", "s/final/bundle", "data", "--out", "out.csv")),
        ("s/final/bundle/card.json", ("evaluate", "s")),
        ("s/final/bundle/card.json", ("calibrate", "s")),
    ],
)
def test_a_record(
    file: str,
    verb: Sequence[str],
    keys: tuple[str, ...],
    made: Path,
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "s"):
        shutil.copytree(made / name, name)
    whole = json.loads(Path(file).read_text())
    if len(keys) > 1 and keys[0] not in whole:
        whole[keys[0]] = {}
        Path(file).write_text(json.dumps(whole))
    plant(Path(file), *keys)
    code, text = said(*verb)
    if keys == (HOSTILE,):
        assert code == 5
        assert f"Extra inputs are not permitted at {PLANTED}" in (_shown(text) if text.startswith("{") else text)


def _shown(text: str) -> str:
    """What JSON says, as a person would be shown it."""
    return "".join(printable(line) for check in json.loads(text)["checks"] for line in check["breaches"])


@pytest.mark.parametrize(
    "planted",
    [
        {"parameters": {HOSTILE: 0.5}},
        {"parameters": {"architecture": HOSTILE}},
        {"reason": HOSTILE},
        {"where": HOSTILE},
        {"setup": {"device": HOSTILE, "workers": 1, "images": "host", "mode": "float32"}},
        {"setup": {"device": "cpu", "workers": 1, "images": "host", "mode": HOSTILE}},
        {"reports": [{"images_seen": 1, "metrics": {HOSTILE: 0.1}, "elapsed_s": 1.0, "time": 0.0}]},
    ],
)
def test_a_trial_of_a_search(planted: dict[str, Any], tmp_path: Path, said: Said) -> None:
    files = SearchFiles(locate(tmp_path / "s"))
    write_json(files.search, make_record().model_dump(mode="json"))
    trial = TrialResult(number=0, parameters={"dropout": 0.5}, state="failed", reason="error").model_dump(mode="json")
    write_json(files.trial(0), {**trial, **planted})
    code, text = said("results", tmp_path / "s")
    assert code == 5
    assert text.count("\n") == 1
    said("audit", tmp_path / "s")


def test_the_error_of_a_trial(tmp_path: Path, said: Said) -> None:
    files = SearchFiles(locate(tmp_path / "s"))
    write_json(files.search, make_record().model_dump(mode="json"))
    trial = TrialResult(number=0, parameters={"dropout": 0.5}, state="failed", reason="error").model_dump(mode="json")
    write_json(files.trial(0), {**trial, "detail": HOSTILE})
    code, text = said("results", tmp_path / "s")
    assert code == 0
    assert r"trial 0 failed: error: a\x1b]0;owned\x07" in text
    code, text = said("results", tmp_path / "s", "--json")
    assert code == 0
    said("export", tmp_path / "s", "--tensorboard", tmp_path / f"events{HOSTILE.replace('/', '')}")


@pytest.mark.parametrize(
    "space",
    [
        f"{json.dumps(HOSTILE)}: 1\n{SPACE}",
        SPACE.replace("dropout:", f"{json.dumps(HOSTILE)}:"),
        SPACE.replace("sgd", json.dumps(HOSTILE)),
        SPACE.replace("name: tiny", f"name: {json.dumps(HOSTILE)}"),
        SPACE + f"points: [{{{json.dumps(HOSTILE)}: 1}}]\n",
        f"a: &{HOSTILE}",
        "\x1b]0;x\x07: [",
    ],
)
def test_a_space(space: str, made: Path, tmp_path: Path, said: Said) -> None:
    (tmp_path / "space.yaml").write_text(space)
    code, text = said("search", made / "data", "--space", tmp_path / "space.yaml", "--out", tmp_path / "new", "--plan")
    assert code == 2
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "header", [HOSTILE.replace("\n", ""), f"ID,Label,{HOSTILE!r}", '"\x1b]0;x\x07","any"', "\x9bID,any"]
)
def test_a_label_table(header: str, tmp_path: Path, said: Said) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text(f"{header}\n1,0\n")
    code, text = said("prepare", tmp_path / "images", "--labels", tmp_path / "labels.csv", "--out", tmp_path / "data")
    assert code == 2
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "verb",
    [
        (HOSTILE,),
        ("results", HOSTILE),
        ("results", "s", HOSTILE),
        ("results", "s", f"--{HOSTILE}"),
        ("results", "s", "--top", HOSTILE),
        ("audit", HOSTILE),
        ("report", HOSTILE),
        ("retrain", "s", "--patients", HOSTILE),
        ("predict", "s/final/bundle", HOSTILE, "--out", "out.csv"),
        ("predict", "s/final/bundle", "data", "--out", HOSTILE),
        ("predict", HOSTILE, "data", "--out", "out.csv"),
        ("prepare", "data", "--labels", HOSTILE, "--out", "new"),
        ("prepare", "data", "--labels", "x.csv", "--out", "new", "--windows", HOSTILE),
        ("doctor", "--cluster-file", HOSTILE),
        ("jobs", "--address", HOSTILE),
        ("submit", "--", HOSTILE),
    ],
)
def test_what_is_typed(verb: Sequence[str], made: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    typed = [word.replace("\0", "") for word in verb]  # no argument of a process holds one
    code, text = said(*typed)
    assert code == 2
    assert text.count("\n") == 1


def test_the_jobs_of_a_cluster(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(HOSTILE, HOSTILE, f"ich-ray {HOSTILE}", 0.0, 60.0, 1, HOSTILE)
    monkeypatch.setattr(jobs, "jobs", lambda _: [job])
    monkeypatch.setattr(jobs, "stop", lambda *_: True)
    for verb in (("jobs",), ("jobs", "--json"), ("stop", HOSTILE)):
        code, text = said(*verb)
        assert code == 0
        assert PLANTED in text or json.loads(text)[0]["id"] == HOSTILE


def test_the_log_of_a_job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "logs", lambda *_, **__: iter(["\x1b[1mstarted\x1b[0m\n", *HOSTILE]))
    assert cli.call(["logs", "job"]) == 0
    out = capsys.readouterr().out
    assert not steers(out)
    assert out.split("\n") == [
        "started",
        r"a\x1b]0;owned\x07",
        r"ich-ray: fine\x1b]52;c;eA==\x07\u202etxt\u2066",
        r"ich-ray: done\x9b2J\x00\u200b\u2028z",
    ]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_machines_of_a_cluster(options: Sequence[str], said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "doctor", lambda **_: [Finding("error", "clock", HOSTILE, HOSTILE)])
    code, text = said("doctor", *options)
    assert code == 1
    assert json.loads(text)[0]["found"] == HOSTILE if options else f"{PLANTED}; {PLANTED}" in text


def test_what_ray_says_of_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    progress.show()
    try:
        runtime._say_first_line({"lines": [HOSTILE]})
    finally:
        progress.show(False)
    err = capsys.readouterr().err
    assert not steers(err)
    assert err.startswith(r"Ray: a\x1b]0;owned\x07\rich-ray: fine")
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError, KeyError])
def test_an_error_that_nobody_expected(error: type[Exception], said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise error(HOSTILE)

    monkeypatch.setattr("ich_ray.verbs.search.open_search", fail)
    code, text = said("results", "s")
    assert (code, text.count("\n")) == (1, 1)


def test_why_the_process_of_a_trial_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record())
    ended = ledger.finish(ledger.add({"dropout": 0.5}).number, Verdict("failed", "error", f"ValueError: {HOSTILE}"))
    progress.show()
    try:
        progress.say(f"trial 0 failed ({format_failure(ended)})")
    finally:
        progress.show(False)
    err = capsys.readouterr().err
    assert not steers(err)
    assert r"ValueError: a\x1b]0;owned\x07" in err

"""Breaches planted in folders that are otherwise good: each must be found, by its invariant and its name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ich_ray
from ich_ray import cli
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.results import SearchResult
from ich_ray.search.audit.search_audit import audit
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search_records import EndCheck, SearchRecord
from ich_ray.storage import file_lock, is_held, locate, sha256, write_json
from ich_ray.trial_records import CheckpointReference
from tests.prepared import make_dataset

SPACE = {
    "name": "audited",
    "budget": {"images": 300, "report_every": 100, "first_rung": 100},
    "parameters": {"learning_rate": {"loguniform": [1e-5, 1e-1]}, "dropout": {"uniform": [0.0, 0.6]}},
}
# State, reason and values of five trials.
TRIALS = [
    ("completed", "", (0.3, 0.4, 0.2)),
    ("pruned", "rung_100", (0.9,)),
    ("completed", "", (0.1, 0.5, 0.5)),
    ("failed", "error", ()),
    ("completed", "", (0.2, 0.2, 0.5)),
]
RULES = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that has ended, its bundle and its dataset."""
    folder = tmp_path_factory.mktemp("audit")
    dataset = make_dataset(folder / "data", patients=12, size=16)
    refuse(folder / "data")
    record = SearchRecord(
        name="audited", space=SPACE, dataset=str(folder / "data"), fingerprint=dataset.manifest.fingerprint,
        prevalence=0.2, seed=0, trials=3, versions={}, created=0.0,
    )  # fmt: skip
    ledger = Ledger.create(folder / "s", record)
    ledger.amend(trials=5)
    for number, (state, reason, values) in enumerate(TRIALS):
        ledger.add({"learning_rate": 10.0 ** -(number + 1), "dropout": 0.1})
        for index, value in enumerate(values):
            ledger.report(number, 100 * (index + 1), {"average_precision": value}, 1.0)
        ledger.finish(number, Verdict(state, reason))  # type: ignore[arg-type]
    ledger.amend(ended=EndCheck(trials=5, asked=5, sampler=5, tune=5, out_of_time=False).model_dump())
    bundle = folder / "s" / "final" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "model.safetensors").write_bytes(b"weights")
    (bundle / "model-1.safetensors").write_bytes(b"of another")
    member = {"weights": {"file": "model-1.safetensors", "sha256": sha256(b"of another")}}
    told = {"weights": {"file": "model.safetensors", "sha256": sha256(b"weights")}, "members": [member]}
    write_json(locate(bundle / "card.json"), told)
    return folder


def refuse(data: Path) -> None:
    """Two files of the dataset were rejected, one is a duplicate, one excluded, and one label has no file."""
    reasons = {"not_dicom": 2, "duplicate": 1, "not_ct": 1, "file_missing": 1}
    names = [reason for reason, count in reasons.items() for _ in range(count)]
    columns = {"file": [f"bad{row}" for row in range(5)], "reason": names, "detail": [""] * 5}
    pq.write_table(pa.table(columns), data / "rejected.parquet")
    edit(data / "dataset.json", listed=52, rejected=2, duplicate=1, excluded=1, reasons=reasons)


def edit(path: Path, **changes: Any) -> None:
    write_json(locate(path), json.loads(path.read_text()) | changes)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """The good folder in a place of the test's own."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "s" / "search.json", dataset=str(tmp_path / "data"))
    return tmp_path


def trial(folder: Path, number: int, /, **changes: Any) -> None:
    edit(folder / "s" / "trials" / f"{number:05d}.json", **changes)


def reports(*seen: int) -> list[dict[str, Any]]:
    return [{"images_seen": at, "metrics": {"average_precision": 0.2}, "elapsed_s": 1.0, "time": 0.0} for at in seen]


def grown(*seen: int) -> list[dict[str, Any]]:
    return [{"workers": 2, "images_seen": at, "time": 0.0} for at in seen]


def told(value: object) -> list[dict[str, Any]]:
    return [report | {"metrics": {"average_precision": value}} for report in reports(100, 200, 300)]


def amend(folder: Path, **ended: Any) -> None:
    path = folder / "s" / "search.json"
    record = json.loads(path.read_text())
    record["amendments"][-1]["ended"] |= ended
    edit(path, amendments=record["amendments"])


def table(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path)


def test_nothing_is_found_where_nothing_is_wrong(folder: Path) -> None:
    found = audit(folder / "s")
    assert [(check.invariant, check.state, check.breaches) for check in found.checks] == [(n, "ok", ()) for n in RULES]
    assert found.state == "ended"
    assert [check.found for check in found.checks] == [
        "5 suggested = 3 completed + 1 pruned + 1 failed + 0 unfinished",
        "5 trials have ended, each once",
        "10 reports of 5 trials",
        "5 in the ledger can be told to the sampler; sampler and Tune: compared at the last end with 5",
        "5 of 5 asked for",
        "trial 2",
        "1 files of weights",
        "52 files: 48 accepted, 2 rejected, 1 duplicate, 1 excluded; 2 blocks; 12 series have fewer than 10 slices; "
        "slice ids and file names stand in the "
        "clear",
    ]
    assert audit(folder / "data").checks == (found.checks[-1],)


def lose_the_last(folder: Path) -> None:
    (folder / "s" / "trials" / "00004.json").unlink()


def copy_a_trial(folder: Path) -> None:
    shutil.copy(folder / "s" / "trials" / "00001.json", folder / "s" / "trials" / "0000001.json")


def put_a_folder_for_a_block(folder: Path) -> None:
    lose_a_block(folder)
    (folder / "data" / "blocks" / "00001.arrow").mkdir()


def lose_a_block(folder: Path) -> None:
    (folder / "data" / "blocks" / "00001.arrow").unlink()


def flip_a_byte(folder: Path) -> None:
    path = folder / "data" / "blocks" / "00001.arrow"
    data = bytearray(path.read_bytes())
    data[-500] ^= 1
    path.write_bytes(data)


def reference(folder: Path, digest: str) -> dict[str, Any]:
    (folder / "s" / "checkpoints" / "00003").mkdir(parents=True)
    (folder / "s" / "checkpoints" / "00003" / "a.safetensors").write_bytes(b"state")
    return {"file": "checkpoints/00003/a.safetensors", "sha256": digest, "images_seen": 100}


def unmix(columns: dict[str, list[Any]]) -> None:
    columns["role"][-1] = "train"


def last_goes_first(columns: dict[str, list[Any]]) -> None:
    columns["row"][1], columns["block"][1] = columns["row"][0], columns["block"][0]


def is_refused_too(columns: dict[str, list[Any]]) -> None:
    columns["file"][0] = "ID_000007.dcm"


def forget_a_row(columns: dict[str, list[Any]]) -> None:
    for column in columns.values():
        del column[0]


def name_badly(folder: Path) -> None:
    shutil.copy(folder / "s" / "trials" / "00001.json", folder / "s" / "trials" / "00001 (copy).json")


def name_in_other_digits(folder: Path) -> None:
    (folder / "s" / "trials" / "0²3.json").write_text("{}")


def go_far_beyond(folder: Path) -> None:
    shutil.copy(folder / "s" / "trials" / "00001.json", folder / "s" / "trials" / "9000000000000.json")


def lose_many(folder: Path) -> None:
    edit(folder / "s" / "search.json", trials=10**7, amendments=[])
    shutil.copy(folder / "s" / "trials" / "00001.json", folder / "s" / "trials" / "9000000.json")


def rename_the_file_of_a_checkpoint(folder: Path) -> None:
    trial(folder, 3, number=77, checkpoint={"file": "x\0", "sha256": "0" * 64, "images_seen": 1})


def parameters(**drawn: Any) -> dict[str, Any]:
    return {"parameters": {"learning_rate": 0.1, "dropout": 0.1, **drawn}}


BREACHES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("I1", lambda f: trial(f, 1, state="running", ended=None, reason=""), "trial 1: it is unfinished, though the sea"),
    ("I1", lose_the_last, "trial 4: it was suggested, but trials/00004.json is missing"),
    ("I1", lambda f: (f / "s" / "trials" / "00002.json").write_text("{"), "trial 2: its record must be readable, got"),
    ("I1", lose_many, "trials 5 to 8999999: they were suggested, but their files in trials/ are missing"),
    ("I2", name_badly, "named by its number, as 00001.json is, got '00001 (copy).json'"),
    ("I2", name_in_other_digits, "named by its number, as 00001.json is, got '0²3.json'"),
    ("I2", lambda f: trial(f, 0, **parameters(foo=1)), "trial 0: its parameters must make a network, got Extra inputs"),
    ("I2", copy_a_trial, "trials/0000001.json: a trial has one record, got a second one of trial 1"),
    ("I2", lambda f: trial(f, 1, number=3), "trials/00001.json: it must hold trial 1, got trial 3"),
    ("I2", lambda f: trial(f, 0, ended=None), "trial 0: it is completed, got no time at which it ended"),
    ("I2", lambda f: trial(f, 3, reason=""), "trial 3: it is failed, got no reason"),
    ("I2", lambda f: trial(f, 0, reports=reports(100, 200)), "trial 0: it is completed, got 200 of 300 images"),
    ("I3", lambda f: trial(f, 0, reports=reports(100, 300)), "trial 0: report 2 must be at 200 images, got 300"),
    ("I3", lambda f: trial(f, 1, reports=reports(100, 100)), "trial 1: report 2 must be at 200 images, got 100"),
    (
        "I3",
        lambda f: trial(f, 1, grown=grown(50)),
        "trial 1: it must grow at a report of its own, one after the",
    ),
    ("I3", lambda f: trial(f, 0, grown=grown(200, 100)), "trial 0: it must grow at a report of its own, one after the"),
    ("I3", lambda f: trial(f, 1, reports=reports(200, 100)), "trial 1: report 1 must be at 100 images, got 200"),
    ("I4", lambda f: amend(f, sampler=4), "search.json: 5 trials had ended, got 4 with the sampler and 5 with Tune"),
    ("I4", lambda f: amend(f, tune=6), "search.json: 5 trials had ended, got 5 with the sampler and 6 with Tune"),
    ("I4", lambda f: trial(f, 3, parameters={"dropout": 0.9}), "trial 3: its parameters cannot be drawn from the sp"),
    ("I5", lambda f: edit(f / "s" / "search.json", amendments=[]), "search.json: 3 trials were asked for, got 5"),
    ("I5", lambda f: amend(f, asked=9), "search.json: 9 trials were asked for, got an end after 5"),
    ("I5", go_far_beyond, "trials/9000000000000.json: 5 trials were asked for, got number 9000000000000"),
    ("I6", lambda f: trial(f, 2, reports=told("0.4")), "trials/00002.json: its values must be readable, got average_p"),
    ("I6", lambda f: trial(f, 2, objective={"metric": "f2", "mode": "max"}), "best(): it must be trial 2, got trial 4"),
    (
        "I7",
        lambda f: trial(f, 3, checkpoint=reference(f, "0" * 64)),
        "trial 3: checkpoints/00003/a.safetensors must have",
    ),
    (
        "I7",
        lambda f: trial(f, 3, checkpoint={"file": "x", "sha256": "0" * 64, "images_seen": 1}),
        "trial 3: x must be read",
    ),
    ("I1", rename_the_file_of_a_checkpoint, "trial 3: its record must be readable, got"),
    ("I7", lambda f: (f / "s/final/bundle/model.safetensors").write_bytes(b"w"), "final/bundle/model.safetensors: SHA"),
    (
        "I7",
        lambda f: (f / "s/final/bundle/model-1.safetensors").unlink(),
        "final/bundle: card and weights must be read",
    ),
    ("I7", lambda f: (f / "s/final/bundle/model-1.safetensors").write_bytes(b"w"), "final/bundle/model-1.safetensors:"),
    ("I8", lambda f: edit(f / "data" / "dataset.json", size=8), "24 images of (3, 8, 8) must be there, got (24, 3, 16"),
    ("I8", lambda f: edit(f / "data" / "dataset.json", roles={}), "0 validation slices must be there, got"),
    ("I8", lambda f: edit(f / "data" / "dataset.json", listed=53), "53 files were listed, got 52 counted"),
    ("I8", flip_a_byte, "blocks/00001.arrow: SHA-256 must equal the manifest's, got another one"),
    ("I8", lose_a_block, "blocks/00001.arrow: the block must be there, got none"),
    ("I8", put_a_folder_for_a_block, "blocks/00001.arrow: must be a file, got something else"),
    ("I8", lambda f: table(f / "data/slices.parquet", forget_a_row), "48 accepted slices must be there, got 47"),
    ("I8", lambda f: table(f / "data/slices.parquet", last_goes_first), "48 images must have one row each, got 47"),
    ("I8", lambda f: table(f / "data/slices.parquet", unmix), "a patient must be in one role, got p00011 in 2"),
    ("I8", lambda f: table(f / "data/rejected.parquet", forget_a_row), "4 files that were not accepted must be there"),
    ("I8", lambda f: table(f / "data/rejected.parquet", is_refused_too), "must be one row, got ID_000007.dcm in sev"),
    ("I8", lambda f: (f / "data/slices.parquet").write_bytes(b"PAR1"), "slices.parquet: must be a Parquet file, got"),
    ("I8", lambda f: (f / "data/dataset.json").write_text("{}"), "dataset.json: must match its format, got"),
    ("I8", lambda f: edit(f / "s/search.json", fingerprint="beef" * 8), "fingerprint must be the search's beefbeef"),
]


@pytest.mark.parametrize(("invariant", "plant", "named"), BREACHES, ids=[f"{b[0]}-{b[2][:40]}" for b in BREACHES])
def test_a_planted_breach_is_found(
    folder: Path, invariant: str, plant: Callable[[Path], Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(folder)
    found = next(check for check in audit(folder / "s").checks if check.invariant == invariant)
    assert found.state == "breach"
    assert any(named in breach for breach in found.breaches), found.breaches
    assert cli.call(["audit", str(folder / "s")]) == 5
    assert f"{invariant}  breach" in capsys.readouterr().out


def test_one_draw_is_one_trial(folder: Path) -> None:
    twin = json.loads((folder / "s" / "trials" / "00001.json").read_text())
    trial(folder, 3, parameters=twin["parameters"], seed=7)
    found = audit(folder / "s").breached
    assert [check.breaches for check in found] == [("trials 1 and 3: they must differ, got one draw twice",)]
    # Of a few choices one may well come twice, with seeds of their own.
    few = SPACE | {"parameters": {"blocks": {"int": [1, 3]}}}
    edit(folder / "s" / "search.json", space=few)
    for number in range(5):
        trial(folder, number, parameters={"blocks": 1 + number % 3})
    assert audit(folder / "s").breached == ()
    trial(folder, 3, parameters={"blocks": 1}, seed=json.loads((folder / "s/trials/00000.json").read_text())["seed"])
    assert "trials 0 and 3: they must differ, got one draw twice" in audit(folder / "s").breached[0].breaches


def test_best_is_compared_with_what_the_files_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SearchResult, "best", lambda self: self.trials[1])  # the pruned one with 0.9
    assert [check.breaches for check in audit(folder / "s").breached] == [("best(): it must be trial 2, got trial 1",)]


def test_a_search_at_work_may_have_unfinished_trials(folder: Path) -> None:
    ledger = Ledger.open(folder / "s")
    ledger.amend(trials=7)
    ledger.add({"learning_rate": 1e-3, "dropout": 0.2})
    ledger.report(5, 100, {"average_precision": 0.3}, 1.0, checkpoint=kept(folder, "a", 100))
    lock = ledger.files.lock
    assert not is_held(lock)
    with file_lock(lock, "a search"):
        assert is_held(lock)
        found = audit(folder / "s")
    assert (found.state, found.breached) == ("at work", ())
    assert found.checks[0].found == "6 suggested = 3 completed + 1 pruned + 1 failed + 1 unfinished"
    assert audit(folder / "s").state == "interrupted"
    # A state that was saved but not yet told is merged; one whose history has a gap would leave it there for ever.
    kept(folder, "b", 200)
    assert audit(folder / "s").breached == ()
    kept(folder, "b", 300, gap=True)
    gap = audit(folder / "s").breached
    assert [check.breaches for check in gap] == [("trial 5: report 2 must be at 200 images, got 300",)]


def kept(folder: Path, name: str, seen: int, gap: bool = False) -> CheckpointReference:
    at = folder / "s" / "checkpoints" / "00005"
    at.mkdir(parents=True, exist_ok=True)
    (at / f"{name}.safetensors").write_bytes(name.encode())
    history = reports(seen) if gap else reports(*range(100, seen + 1, 100))
    entry = {"file": f"{name}.safetensors", "sha256": sha256(name.encode()), "images_seen": seen, "reports": history}
    write_json(locate(at / f"{name}.json"), entry)
    return CheckpointReference(file=f"checkpoints/00005/{name}.safetensors", sha256=entry["sha256"], images_seen=seen)


def test_a_checkpoint_that_moves_on_while_it_is_read_is_none_of_a_breach(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.open(folder / "s")
    ledger.amend(trials=6)
    ledger.add({"learning_rate": 1e-3, "dropout": 0.2})
    ledger.report(5, 100, {"average_precision": 0.3}, 1.0, checkpoint=kept(folder, "a", 100))
    from ich_ray.search.audit import invariants

    def read_late(path: Any) -> str:
        """The driver writes a report between the audit's two looks."""
        if path.parent.name == "00005" and ledger.trials[5].images_seen == 100:
            path.write_bytes(b"a newer state")
            ledger.report(5, 200, {"average_precision": 0.3}, 2.0, checkpoint=kept(folder, "b", 200))
        return sha256(path)

    monkeypatch.setattr(invariants, "sha256", read_late)
    monkeypatch.setattr(invariants, "_kept_reports", lambda *_: [])
    assert audit(folder / "s").breached == ()
    assert ledger.trials[5].images_seen == 200


def test_an_end_by_time_has_fewer_trials(folder: Path) -> None:
    path = folder / "s" / "search.json"
    amendments = json.loads(path.read_text())["amendments"]
    edit(path, amendments=[{"trials": 9}, *amendments[1:]])
    amend(folder, asked=9, out_of_time=True)
    found = audit(folder / "s")
    assert (found.state, found.breached) == ("ended", ())
    assert found.checks[4].found == "5 of 9 asked for"


def test_a_damaged_file_of_a_search_that_has_ended_does_not_make_it_an_interrupted_one(folder: Path) -> None:
    (folder / "s" / "trials" / "00001.json").write_text("{")
    assert audit(folder / "s").state == "ended"
    (folder / "s" / "trials" / "00001.json").unlink()  # which `--resume` runs anew
    assert audit(folder / "s").state == "interrupted"


def test_a_damaged_file_of_a_trial_that_may_have_run_is_of_an_interrupted_search(folder: Path) -> None:
    edit(folder / "s" / "search.json", amendments=[{"trials": 5}])  # no driver has seen its end
    (folder / "s" / "trials" / "00001.json").write_text("{")
    assert audit(folder / "s").state == "interrupted"


def test_a_dataset_that_cannot_be_reached_is_said_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "s" / "search.json", dataset="nosuch://bucket/data")
    assert cli.call(["audit", str(folder / "s")]) == 0
    told = "not looked at nosuch://bucket/data, which only search.json names; add --dataset to check it"
    assert told in capsys.readouterr().out.splitlines()[-1]
    assert cli.call(["audit", str(folder / "s"), "--dataset", "nosuch://bucket/data"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("I8  unchecked  files listed = accepted")
    assert "no dataset can be read at nosuch://bucket/data" in last
    assert audit(folder / "s", folder / "data").checks[-1].state == "ok"
    with pytest.raises(ConfigError, match="--dataset says where that of a search lies, got no search; leave it out"):
        audit(folder / "data", folder / "data")
    shutil.rmtree(folder / "data")
    edit(folder / "s" / "search.json", dataset=str(folder / "data"))
    assert audit(folder / "s").checks[-1].state == "unchecked"


def test_it_prints_a_line_an_invariant_or_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["audit", str(folder / "s")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder / 's'}: ended"
    assert [line[:6] for line in lines[1:]] == [f"{name}  ok" for name in RULES]
    assert cli.call(["audit", str(folder / "data"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["state"] == "prepared"
    assert [(check["invariant"], check["state"]) for check in printed["checks"]] == [("I8", "ok")]


def test_what_is_neither_search_nor_dataset_is_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"an audit needs search\.json or dataset\.json, got neither"):
        audit(folder)
    (folder / "s" / "search.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"search\.json: must be JSON"):
        audit(folder / "s")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"space": SPACE | {"objective": {"metric": "f2", "zz": 1}}},
            "Value error, objective cannot be read: Extra inputs are not",
        ),
        (
            {"amendments": [{"trials": "many"}]},
            "Input should be a valid integer, unable to parse string as an integer at amend",
        ),
        ({"amendments": [{"ended": {"trials": 5}}]}, "Field required at amendments.ended.asked"),
    ],
)
def test_a_search_that_cannot_be_read_is_named(
    folder: Path, changes: dict[str, Any], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "s" / "search.json", **changes)
    for verb in ("audit", "results"):
        assert cli.call([verb, str(folder / "s")]) == 5
        told = capsys.readouterr().err
        assert f"{folder / 's' / 'search.json'}: must match its format, got {problem}" in told
        assert told.count("\n") == 1


def test_it_needs_neither_ray_nor_torch(folder: Path) -> None:
    code = "import sys, ich_ray; print(ich_ray.audit(sys.argv[1]).state, {'ray', 'torch', 'optuna'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code, str(folder / "s")], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "ended set()"
    assert ich_ray.audit is audit


def test_the_tests_own_dataset_is_whole(tmp_path: Path) -> None:
    assert audit(PreparedDataset.open(make_dataset(tmp_path / "d", patients=12).files.root).files.root).breached == ()

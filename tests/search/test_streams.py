from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ich_ray import cli, progress
from ich_ray.errors import ConfigError, IchRayError, IntegrityError
from ich_ray.search.export import export, follow, search_streams
from ich_ray.search.export.event_files import EventFile
from ich_ray.search.export.follow import TargetStream, has_ended, stream
from ich_ray.search.export.search_streams import streaming
from ich_ray.search.export.trackers import TRACKERS, Tracker, parse_target
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search_records import SearchRecord
from ich_ray.storage import file_lock, locate
from ich_ray.trial_records import TrialResult
from tests.search.streams import DRAWN, EACH, begin, end, held, report, usable


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(follow, "say", lines.append)
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


@pytest.mark.parametrize("name", EACH)
def test_a_tracker_holds_each_report_once_however_often_it_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, ledger = usable(name, tmp_path, monkeypatch), begin(tmp_path / "s")
    assert len(stream(tmp_path / "s", [target], follow=False)) == 1
    assert held(name, target) == {0: ([], "running")}
    report(ledger, 0, 100, 0.5)
    report(ledger, 0, 200, 0.75)
    ledger.add(DRAWN)
    report(ledger, 1, 100, 0.25)
    ledger.finish(1, Verdict("pruned", "rung_300"))
    for _ in range(2):
        stream(tmp_path / "s", [target], follow=False)
        assert held(name, target) == {0: ([(100, 0.5), (200, 0.75)], "running"), 1: ([(100, 0.25)], "pruned")}
    report(ledger, 0, 300, 0.625)
    ledger.finish(0, Verdict("completed"))
    ledger.add(DRAWN)
    ledger.finish(2, Verdict("failed", "diverged", "on host-7"))
    end(Ledger.open(tmp_path / "s"))
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    for _ in range(2):
        stream(tmp_path / "s", [target])  # ends by itself
        assert held(name, target) == {
            0: ([(100, 0.5), (200, 0.75), (300, 0.625)], "completed"),
            1: ([(100, 0.25)], "pruned"),
            2: ([], "failed"),
        }
    assert before == {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    written = b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "s" not in path.parents
    )
    assert b"host-7" not in written
    assert b"/secret/place" not in written


def test_the_table_of_parameters_is_there_while_a_trial_runs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    ledger = begin(tmp_path / "s")
    stream(tmp_path / "s", [f"tensorboard={tmp_path / 'events'}"], follow=False)
    plugins = EventAccumulator(str(tmp_path / "events/trial-00000")).Reload().summary_metadata
    content = plugins["_hparams_/session_start_info"].plugin_data.content
    drawn = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (drawn["learning_rate"].number_value, drawn["optimizer"].string_value) == (0.001, "adam")
    report(ledger, 0, 100, 0.5)
    report(ledger, 0, 200, 0.25)
    ledger.finish(0, Verdict("completed"))
    stream(tmp_path / "s", [f"tensorboard={tmp_path / 'events'}"], follow=False)
    events = EventAccumulator(str(tmp_path / "events/trial-00000")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("best/average_precision")] == [(200, 0.5)]
    assert set(events.Tags()["scalars"]) == {"average_precision", "f2", "elapsed_s", "best/average_precision"}


def test_a_study_has_what_a_snapshot_has(tmp_path: Path) -> None:
    import optuna

    ledger = begin(tmp_path / "s")
    stream(tmp_path / "s", [f"optuna={tmp_path / 't.db'}"], follow=False)
    report(ledger, 0, 100, 0.5)
    ledger.finish(0, Verdict("completed"))
    stream(tmp_path / "s", [f"optuna={tmp_path / 't.db'}"], follow=False)
    export(tmp_path / "s", optuna=tmp_path / "snapshot.db")
    one, other = (
        optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / file}") for file in ("t.db", "snapshot.db")
    )
    assert (one.direction, one.metric_names) == (other.direction, other.metric_names)
    (streamed,), (snapshot,) = one.trials, other.trials
    assert (streamed.params, streamed.distributions, streamed.value) == (DRAWN, snapshot.distributions, 0.5)
    left_out = {key: value for key, value in snapshot.user_attrs.items() if key not in {"detail", "lost", "logits"}}
    assert streamed.user_attrs == left_out
    assert streamed.datetime_start == snapshot.datetime_start


def test_a_disk_that_was_full_costs_no_report_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Planted: half of a record is written, and then there is no room."""
    ledger, target, whole = begin(tmp_path / "s"), f"tensorboard={tmp_path / 'events'}", EventFile.append
    for images in (100, 200, 300):
        report(ledger, 0, images, images / 400)
    failures = iter([False, False, True, False, True])

    def append(self: EventFile, *arguments: Any) -> None:
        before = self.path.stat().st_size
        whole(self, *arguments)
        if next(failures, False):
            os.truncate(self.path, (before + self.path.stat().st_size) // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventFile, "append", append)
    looks: list[float] = []

    def wait(seconds: float) -> bool:
        looks.append(seconds)
        if len(looks) == 1:
            ledger.finish(0, Verdict("completed"))
            end(ledger)
        return False

    stream(tmp_path / "s", [target], wait=wait)
    assert held("tensorboard", target) == {0: ([(100, 0.25), (200, 0.5), (300, 0.75)], "completed")}
    assert said == [
        f"{target}: cannot be written now (OSError: [Errno 28] No space left on device); it is tried again with pauses",
        f"{target}: tensorboard --logdir {tmp_path / 'events'}",
        f"{target}: can be written again",
    ]


def test_a_journal_with_a_torn_line_goes_on(tmp_path: Path) -> None:
    ledger, target = begin(tmp_path / "s"), f"optuna={tmp_path / 't.journal'}"
    stream(tmp_path / "s", [target], follow=False)
    with (tmp_path / "t.journal").open("ab") as journal:
        journal.write(b'{"op_code": 8, "worker_id": "a-kill-came')
    report(ledger, 0, 100, 0.5)
    stream(tmp_path / "s", [target], follow=False)
    assert held("journal", target) == {0: ([(100, 0.5)], "running")}


class Down(Tracker):
    """A tracker that takes a trial only when it is up."""

    up = False
    opened: list[str]
    taken: list[tuple[int, int]]

    def __init__(self, place: str, record: SearchRecord) -> None:
        Down.opened.append(place)

    def write(self, trial: TrialResult) -> None:
        if not Down.up:
            raise ConnectionError("no answer\nfrom there")
        Down.taken.append((trial.number, trial.images_seen))


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> type[Down]:
    monkeypatch.setattr(TRACKERS, "registered", {})
    TRACKERS.register("down", Down)
    Down.up, Down.opened, Down.taken = False, [], []
    return Down


def test_a_tracker_that_is_down_is_said_once_and_tried_with_longer_pauses(
    tmp_path: Path, down: type[Down], said: list[str]
) -> None:
    ledger, now = begin(tmp_path / "s"), [0.0]
    one = TargetStream(parse_target("down=there", "--to"), clock=lambda: now[0])
    tried = []
    for second in range(1300):
        now[0] = float(second)
        before = len(down.opened)
        assert not one.advance(ledger.record, ledger.trials)
        tried += [second] * (len(down.opened) - before)
    assert tried == [0, 5, 15, 35, 75, 155, 315, 615, 915, 1215]
    assert said == ["down=there: cannot be written now (ConnectionError: no answer); it is tried again with pauses"]
    down.up, now[0] = True, 2000.0
    assert one.advance(ledger.record, ledger.trials)
    assert said[1:] == ["down=there: can be written again"]
    assert one.advance(ledger.record, ledger.trials)
    assert down.taken == [(0, 0)]
    report(ledger, 0, 100, 0.5)
    one.advance(ledger.record, ledger.trials)
    assert down.taken == [(0, 0), (0, 100)]


def test_a_search_that_ended_is_not_waited_with_for_ever(tmp_path: Path, down: type[Down], said: list[str]) -> None:
    ledger, pauses = begin(tmp_path / "s", trials=1), []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    ledger.finish(0, Verdict("completed"))
    end(ledger)
    with pytest.raises(
        IchRayError, match=r"down=x: a tracker must take all trials, got ConnectionError: no answer; run"
    ):
        stream(tmp_path / "s", ["down=x"], wait=wait)
    assert pauses == [2.0, 4.0, 8.0]
    with pytest.raises(IchRayError, match="a tracker must take all trials"):
        stream(tmp_path / "s", ["down=x"], follow=False, wait=wait)


def test_one_that_cannot_take_a_trial_does_not_keep_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down: type[Down], said: list[str]
) -> None:
    ledger, now = begin(tmp_path / "s"), [0.0]
    ledger.add(DRAWN)

    def write(self: Down, trial: TrialResult) -> None:
        if trial.number == 0:
            raise ValueError("a name that it does not take")
        Down.taken.append((trial.number, trial.images_seen))

    monkeypatch.setattr(Down, "write", write)
    one = TargetStream(parse_target("down=x", "--to"), clock=lambda: now[0])
    for now[0] in (0.0, 1000.0, 2000.0):
        one.advance(ledger.record, ledger.trials)
    assert down.taken == [(1, 0)]


@pytest.mark.parametrize("broken", ["search.json", "trials/00001.json", "trials"])
def test_a_ledger_that_cannot_be_read_is_said_once_and_read_again(
    broken: str, tmp_path: Path, down: type[Down], said: list[str]
) -> None:
    down.up, folder = True, tmp_path / "s"
    ledger = begin(folder, trials=2)
    ledger.add(DRAWN)
    looks: list[float] = []

    def wait(seconds: float) -> bool:
        looks.append(seconds)
        if len(looks) == 1:
            (folder / broken).rename(tmp_path / "aside")
            (folder / broken).write_text("{")
        if len(looks) == 3:
            (folder / broken).unlink()
            (tmp_path / "aside").rename(folder / broken)
            for number in (0, 1):
                report(ledger, number, 100, 0.5)
                ledger.finish(number, Verdict("completed"))
            end(ledger)
        return False

    stream(folder, ["down=x"], wait=wait)
    assert down.taken == [(0, 0), (1, 0), (0, 100), (1, 100)]
    assert looks == [5.0, 5.0, 5.0]
    told = [line for line in said if line.startswith(str(folder))]
    assert len(told) == 2
    assert told[0].startswith(str(folder / broken))
    assert told[0].endswith("; the ledger is read again, and what can be read is written")
    assert told[1] == f"{folder}: the ledger can be read again"


def test_a_damaged_trial_keeps_no_other_from_a_tracker_and_ends_the_stream_with_its_error(
    tmp_path: Path, down: type[Down], said: list[str]
) -> None:
    down.up, ledger, pauses = True, begin(tmp_path / "s", trials=2), []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    ledger.add(DRAWN)
    for number in (0, 1):
        ledger.finish(number, Verdict("completed"))
    end(ledger)
    (tmp_path / "s/trials/00000.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"00000\.json: must "):
        stream(tmp_path / "s", ["down=x"], wait=wait)
    assert (down.taken, pauses) == ([(1, 0)], [2.0, 4.0, 8.0])
    with pytest.raises(IntegrityError, match=r"00000\.json: must "):
        stream(tmp_path / "s", ["down=x"], follow=False, wait=wait)
    assert pauses == [2.0, 4.0, 8.0]


def test_a_search_has_ended_when_nothing_more_is_asked_for(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "s", trials=1)
    assert not has_ended(ledger.record, ledger.trials)
    ledger.finish(0, Verdict("completed"))
    assert not has_ended(ledger.record, ledger.trials)  # interrupted, for all that is known
    end(ledger)
    assert has_ended(ledger.record, ledger.trials)
    ledger.amend(trials=2)  # by a resume
    assert not has_ended(ledger.record, ledger.trials)
    ledger.add(DRAWN)
    ledger.amend(trials=1)
    assert not has_ended(ledger.record, ledger.trials)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--to", "tensorbord=x"],
            "trackers: must be one of tensorboard, mlflow, wandb, optuna, got 'tensorbord' (did",
        ),
        (["--to", "tensorboard"], "--to tensorboard: must be NAME=PLACE, got no place; try tensorboard=PLACE"),
        (["--to", "mlflow=https://me:hunter2@host"], "--to mlflow: an address must hold no password, got one; set it"),
        (["--to", "optuna=s3://bucket/t.db"], "optuna=s3://bucket/t.db: must be a file of this machine"),
        (["--to", "tensorboard=s3://bucket/t"], "tensorboard=s3://bucket/t: must be a folder of this machine"),
        (["--to", "wandb=a/b/c"], "wandb=a/b/c: must be PROJECT or ENTITY/PROJECT"),
        (["--follow"], "--follow: a tracker to write must be given, got none; add --to tensorboard=FOLDER"),
        (["--follow", "--candidates", "c.yaml"], "--candidates: a list of trials is written once, got --follow"),
        (["--to", "tensorboard=x", "--optuna", "t.db"], "--optuna: writes what is new, got --to, which adds"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_a_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "s")
    assert cli.call(["export", "s", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "hunter2" not in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_library_that_is_missing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "s")
    monkeypatch.setattr(f"ich_ray.search.export.{name}_stream.find_spec", lambda module: None)
    assert cli.call(["export", str(tmp_path / "s"), "--follow", "--to", f"{name}=x"]) == 2
    assert f"run pip install 'ich_ray[{name}]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*EACH][:4])  # projects of W&B hold many searches
def test_the_stream_of_another_search_is_left_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = usable(name, tmp_path, monkeypatch)
    begin(tmp_path / "s")
    begin(tmp_path / "other", seed=5)
    stream(tmp_path / "s", [target], follow=False)
    before = held(name, target)
    assert cli.call(["export", str(tmp_path / "other"), "--to", target, "--follow"]) == 2
    assert "must be new, or the stream of this search" in capsys.readouterr().err
    assert held(name, target) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    begin(tmp_path / "s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    with pytest.raises(ConfigError, match="got a folder with other files; choose another name"):
        stream(tmp_path / "s", [f"tensorboard={tmp_path / 'mine'}"], follow=False)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["tensorboard", "optuna", "down"])
def test_two_processes_do_not_write_one_target(name: str, tmp_path: Path, down: type[Down]) -> None:
    ledger, place = begin(tmp_path / "s"), str(tmp_path / "x.db")
    lock = TRACKERS[name].lock(place, ledger.record)
    with (
        file_lock(locate(lock), "it"),
        pytest.raises(
            ConfigError, match=f"one process at a time may write the stream {name}=.*x.db, another one is at"
        ),
    ):
        stream(tmp_path / "s", [f"{name}={place}"], follow=False)
    assert not Path(place).exists()


def test_flags_of_what_is_new_stand_for_trackers_where_a_search_is_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = begin(tmp_path / "s", trials=1)
    ledger.finish(0, Verdict("completed"))
    end(ledger)
    for _ in range(2):
        asked = ["--tensorboard", str(tmp_path / "t"), "--optuna", str(tmp_path / "o.db"), "--follow"]
        assert cli.call(["export", str(tmp_path / "s"), *asked]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"tensorboard --logdir {tmp_path / 't'}",
            f"optuna-dashboard sqlite:///{tmp_path / 'o.db'}",
        ]


def test_a_process_beside_a_search_writes_it_to_its_end(tmp_path: Path, said: list[str]) -> None:
    ledger, target = begin(tmp_path / "s"), f"tensorboard={tmp_path / 'events'}"
    with streaming(str(tmp_path / "s"), [target, target]):
        report(ledger, 0, 100, 0.5)
    assert held("tensorboard", target) == {0: ([(100, 0.5)], "running")}
    assert said == [f"{target}: tensorboard --logdir {tmp_path / 'events'}"]


def test_a_process_beside_a_search_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    (hang := tmp_path / "python").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(1000)\n")
    hang.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hang))
    monkeypatch.setattr(search_streams, "_LAST_PASS_S", 0.1)
    with streaming("s", ["down=x"]):
        pass
    assert said == [
        "down=x: did not take the last trials within 0 s; `ich-ray export SEARCH --to down=x` writes what it lacks"
    ]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with streaming("s", ["down=x"]):
        pass
    assert said[1:] == ["down=x: cannot be written (No such file or directory); the search goes on without it"]

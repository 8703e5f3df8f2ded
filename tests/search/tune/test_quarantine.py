from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ich_ray.errors import IchRayError
from ich_ray.results import open_search
from ich_ray.search.ledger import Ledger
from ich_ray.search.tune.quarantine import DECLINED, Quarantine, is_admitted
from ich_ray.search_records import QuarantineNote, SearchRecord
from ich_ray.trial_records import LostAttempt

LOST = LostAttempt(node="a", host="host-a", cause="storage", images_seen=0, time=1.0)


class Told:
    """A ledger of ten trials, a quarantine over it, and the clock of both."""

    def __init__(self, folder: Path, *machines: str, gpus: int = 0) -> None:
        record = SearchRecord(
            name="x", space={}, dataset="/d", fingerprint="f" * 32, prevalence=0.2, seed=0, trials=10, versions={},
            created=0.0,
        )  # fmt: skip
        self.ledger = Ledger.create(folder, record)
        for _ in range(10):
            self.ledger.add({})
        self.now = 1000.0
        self.quarantine = Quarantine(self.ledger, lambda: dict.fromkeys(machines, gpus), 600, lambda: self.now)

    def lost(self, number: int, node: str, *devices: str, cause: str = "device", full: bool = False) -> str | None:
        """How the trial ends, None if it goes back to the queue."""
        told = {"lost": cause, "detail": "CUDA error: planted", "node": node, "host": f"host-{node}", "full": full}
        verdict = self.quarantine.lost(number, told | {"devices": devices})
        assert verdict is None or (verdict.state, verdict.reason) == ("failed", "device_error")
        return verdict.detail if verdict else None

    def out(self) -> list[tuple[str, float]]:
        """Machines that are out by the files, and until when."""
        return [(note.place, note.until) for note in open_search(self.ledger.files.root).record.quarantined]


def test_one_fault_is_an_accident_and_stands_in_the_ledger(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    assert told.lost(3, "a") is None
    assert told.out() == []
    (attempt,) = open_search(tmp_path).trials[3].lost
    assert (attempt.host, attempt.cause, attempt.detail) == ("host-a", "device", "CUDA error: planted")


@pytest.mark.parametrize("second", [3, 4])
def test_two_in_a_row_on_a_machine_put_it_out_and_its_report_brings_it_back(tmp_path: Path, second: int) -> None:
    told = Told(tmp_path, "a", "b")
    assert told.lost(3, "a") is None
    told.quarantine.reported("b")
    assert told.lost(second, "a") is None
    assert told.out() == [("host-a", 1600.0)]
    told.quarantine.reported("a", admitted=1599.0)
    assert told.out() == [("host-a", 1600.0)], "an attempt that was there before"
    assert told.lost(7, "a") is None
    assert told.lost(8, "a") is None
    assert told.out() == [("host-a", 1600.0)], "no second quarantine within the first"
    told.quarantine.reported("a", admitted=1600.0)
    assert told.out() == []
    told.now = 2000.0
    for number in (5, 6):
        assert told.lost(number, "a") is None
    assert told.out() == [("host-a", 2000.0 + 1200.0)], "twice as long"
    assert len(open_search(tmp_path).record.quarantines) == 2


def test_a_report_between_two_faults_says_that_the_machine_works(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    for number in (3, 4, 5):
        assert told.lost(number, "a") is None
        told.quarantine.reported("a")
    assert told.out() == []


def test_parameters_that_fail_on_two_machines_are_the_fault(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    assert told.lost(3, "a") is None
    assert told.lost(3, "a") is None
    assert [host for host, _ in told.out()] == ["host-a"]
    assert told.lost(3, "b") == "device on two machines: CUDA error: planted"
    assert told.out() == [], "nothing else had failed there"


def test_parameters_that_fail_twice_where_others_run_are_the_fault(tmp_path: Path) -> None:
    told = Told(tmp_path, "a")
    assert told.lost(3, "a") is None
    told.quarantine.reported("a")
    assert told.lost(3, "a") == "device twice, where others run: CUDA error: planted"


@pytest.mark.parametrize("second", ["a", "b"])
def test_a_trial_that_got_beyond_its_first_fault_is_no_fault_of_its_parameters(tmp_path: Path, second: str) -> None:
    told = Told(tmp_path, "a", "b")
    assert told.lost(3, "a") is None
    told.ledger.report(3, 100, {}, 1.0)
    told.quarantine.reported("a")
    assert told.lost(3, second) is None
    assert told.lost(3, "b" if second == "a" else "a") == "device on two machines: CUDA error: planted"


def test_the_only_machine_ends_the_search_after_three_trials(tmp_path: Path) -> None:
    told = Told(tmp_path, "a")
    for number in (3, 4):
        assert told.lost(number, "a") is None
        assert told.lost(number, "a") == "device twice in a row: CUDA error: planted"
    assert told.lost(5, "a") is None
    with pytest.raises(IchRayError, match=r"host-a, where the last 3 trials failed twice each \(dev.*--resume"):
        told.lost(5, "a")
    assert told.out() == []


def test_a_folder_that_one_machine_cannot_write_is_no_fault_of_parameters(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    assert told.lost(3, "a", cause="storage") is None
    assert told.lost(3, "a", cause="storage") is None
    assert [host for host, _ in told.out()] == ["host-a"]
    assert told.lost(3, "b", cause="storage") is None
    assert not (tmp_path / "checkpoints" / "00003" / ".writable").exists()


@pytest.mark.parametrize(("full", "attempts"), [(True, 2), (False, 5)])
def test_a_trial_that_no_attempt_can_write_ends_the_search(tmp_path: Path, full: bool, attempts: int) -> None:
    told = Told(tmp_path, "a", "b")
    for _ in range(attempts - 1):
        assert told.lost(3, "a", cause="storage", full=full) is None
    told.lost(4, "a", cause="storage", full=full)
    with pytest.raises(OSError, match="planted"):
        told.lost(3, "b", cause="storage", full=full)


def test_one_of_two_machines_that_has_no_room_does_not_end_the_search(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    for _ in range(3):
        assert told.lost(3, "a", cause="storage", full=True) is None
    assert [host for host, _ in told.out()] == ["host-a"]


def test_where_the_driver_cannot_write_either_the_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(tmp_path, "a", "b")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ich_ray.search.ledger.Ledger.lose", lambda *_: LOST)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="checkpoints/00003: No space left on device"):
        told.lost(3, "a", cause="storage")
    assert list((tmp_path / "checkpoints" / "00003").iterdir()) == []


@pytest.mark.parametrize("machines", ["a", "ab"])
def test_a_sick_device_is_shut_alone_and_costs_no_trial(tmp_path: Path, machines: str) -> None:
    told = Told(tmp_path, *machines, gpus=8)
    for number in (3, 4):
        assert told.lost(number, "a", "3") is None
        told.quarantine.reported("a", ["5"])
    assert told.out() == [("host-a (GPU 3)", 1600.0)]
    told.quarantine.reported("a", ["5"], admitted=1700.0)
    assert told.out() == [("host-a (GPU 3)", 1600.0)], "of another device"
    told.now = 1700.0
    assert told.lost(6, "a", "3") is None
    assert told.out() == [("host-a (GPU 3)", 1700.0 + 1200.0)]
    assert [one.devices for one in open_search(tmp_path).trials[6].lost] == [("3",)]
    told.quarantine.reported("a", ["3"], admitted=3000.0)
    assert told.out() == []


def test_a_trial_that_a_sick_device_gets_again_has_not_failed(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", gpus=2)
    for _ in range(2):
        assert told.lost(3, "a", "1") is None
        told.quarantine.reported("a", ["0"])
    assert told.out() == [("host-a (GPU 1)", 1600.0)]


def test_a_full_disk_is_of_the_whole_machine(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b", gpus=2)
    for device in ("0", "1"):
        assert told.lost(3, "a", device, cause="disk") is None
    assert told.out() == [("host-a", 1600.0)]


@pytest.mark.parametrize("cause", ["disk", "driver", "storage"])
def test_two_sick_machines_in_a_row_are_no_fault_of_parameters(tmp_path: Path, cause: str) -> None:
    told = Told(tmp_path, "a", "b", "c")
    for node in ("a", "a", "b", "b"):
        assert told.lost(3, node, cause=cause) is None
    assert [host for host, _ in told.out()] == ["host-a", "host-b"]


def test_parameters_that_fail_on_two_devices_are_the_fault(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", gpus=2)
    for _ in range(2):
        assert told.lost(3, "a", "0") is None
    assert told.out() == [("host-a (GPU 0)", 1600.0)]
    assert told.lost(3, "a", "1") == "device on two devices: CUDA error: planted"
    assert told.out() == []


def test_a_machine_whose_devices_all_fail_is_out_as_a_whole(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b", gpus=4)
    for number, device in ((3, "0"), (4, "1"), (5, "2"), (6, "3"), (3, "1"), (4, "0")):
        assert told.lost(number, "a", device) is None
    assert told.out() == [("host-a", 1600.0)]
    told.quarantine.reported("a", ["2"], admitted=1600.0)
    assert told.out() == []


def test_trials_that_need_all_devices_of_the_only_machine_have_nowhere_to_go(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", gpus=2)
    assert told.lost(3, "a", "0", "1") is None
    assert told.lost(3, "a", "0", "1") == "device twice in a row: CUDA error: planted"
    assert told.out() == []


def test_a_quarantine_lasts_an_hour_at_most(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    told.lost(3, "a")
    for _ in range(6):
        told.lost(4, "a")
        ((_, told.now),) = told.out()
    assert [note.until - note.since for note in open_search(tmp_path).record.quarantines] == [
        600.0, 1200.0, 2400.0, 3600.0, 3600.0, 3600.0,
    ]  # fmt: skip


def test_a_note_of_a_device_lets_trials_on_the_others_start() -> None:
    note = QuarantineNote(node="a", host="host-a", devices=("3",), cause="device", since=1000.0, until=1600.0)
    assert is_admitted([note], "a", ["2"], "s", 1100.0)
    assert not is_admitted([note], "a", ["2", "3"], "s", 1100.0)


def test_what_a_sick_machine_declines_is_not_lost(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    for _ in range(5):
        assert told.lost(3, "a", cause=DECLINED) is None
    assert told.out() == []
    assert open_search(tmp_path).trials[3].lost == ()


def test_a_search_that_goes_on_remembers_who_is_out(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    for number in (3, 4):
        told.lost(number, "a")
    again = Quarantine(Ledger.open(tmp_path), lambda: {"a": 0, "b": 0}, 600)
    again.reported("a", admitted=2000.0)
    assert told.out() == []


def test_after_a_quarantine_one_trial_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    note = QuarantineNote(node="a", host="host-a", cause="device", since=1000.0, until=1600.0)
    assert is_admitted([note], "b", [], "s", 1100.0)
    assert not is_admitted([note], "a", [], "s", 1100.0)
    ask = (
        "import sys; from ich_ray.search_records import QuarantineNote;"
        "from ich_ray.search.tune.quarantine import is_admitted;"
        "note = QuarantineNote(node='a', host='host-a', cause='device', since=1000.0, until=1600.0);"
        "sys.exit(0 if is_admitted([note], 'a', [], 's', 1700.0) else 7)"
    )
    assert subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0, "and leaves with its process"
    assert is_admitted([note], "a", [], "s", 1700.0)
    assert is_admitted([note], "a", [], "s", 1700.0), "the same process again"
    assert subprocess.run([sys.executable, "-c", ask], check=False).returncode == 7


def test_a_machine_that_is_taken_away_is_no_sick_one(tmp_path: Path) -> None:
    told = Told(tmp_path, "a", "b")
    for number in (3, 4, 3, 5, 3):
        assert told.lost(number, "a", cause="preempted") is None
    assert told.out() == []
    found = open_search(tmp_path)
    assert [one.cause for one in found.trials[3].lost] == ["preempted"] * 3
    assert found.faults == "5 attempts moved from 1 machine that went"
    assert told.lost(4, "b", cause="device") is None
    assert told.lost(6, "c", cause="node_lost") is None
    assert open_search(tmp_path).faults == (
        "1 attempts lost to faults of machines (1 device on host-b), 6 attempts moved from 2 machines that went"
    )

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ich_ray import cli
from ich_ray.cluster import machine_facts
from ich_ray.cluster.checks import check, skew_s
from ich_ray.cluster.device_facts import Devices
from ich_ray.cluster.doctor import _look_there, doctor
from ich_ray.cluster.findings import Finding
from ich_ray.cluster.machine_facts import Facts, look, open_ports
from ich_ray.errors import ConfigError
from ich_ray.storage import private

GIB = 1 << 30
GOOD: dict[str, Any] = {
    "machine": "a",
    "versions": {"ich_ray": "0.1.0", "ray": "2.60.0", "torch": "2.14.0", "python": "3.11.7"},
    "gpus": 1.0, "devices": {"seen": 1}, "storage": "", "sent": 10.0, "began": 11.0, "answered": 12.0, "received": 13.0,
    "disk_free_bytes": 50 * GIB, "shm_free_bytes": 8 * GIB, "open_ports": (22,), "token_mode": 0o600,
    "token_file": "/h/.ray/auth_token", "auth_mode": "token",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch takes seconds to be loaded in another process; test_device_facts.py asks it."""
    monkeypatch.setattr(machine_facts, "ask_devices", lambda _: Devices())


def facts(**changes: Any) -> Facts:
    return Facts(**{**GOOD, **changes})


def test_a_fit_cluster_has_one_line_each() -> None:
    findings = check([facts(is_head=True), facts(machine="b")], "127.0.0.1:8265", is_cluster=True)
    assert [(finding.state, finding.check, finding.found) for finding in findings] == [
        ("ok", "versions", "2 machines: ich_ray 0.1.0, ray 2.60.0, torch 2.14.0, python 3.11.7"),
        ("ok", "gpus", "torch sees 2"),
        ("ok", "storage", "read and written from 2 of 2"),
        ("ok", "clock", "all within 2 s"),
        ("ok", "disk", "at least 50 GiB free"),
        ("ok", "token", "demanded by every machine"),
        ("ok", "dashboard", "port 8265 is closed to other machines"),
    ]


def test_a_package_that_is_nowhere_is_an_error_on_one_machine_too() -> None:
    found = check([facts(versions=GOOD["versions"] | {"pydicom": "missing"})], None, is_cluster=False)
    assert [str(each) for each in found if each.check == "versions"] == [
        "error   versions  pydicom must be installed, got none; install this package with its dependencies"
    ]


def test_of_a_cloud_it_is_told_that_its_service_answers() -> None:
    machines = [facts(), facts(machine="b", cloud="AWS"), facts(machine="c", cloud="AWS", cache="")]
    told = {finding.check: str(finding) for finding in check(machines, None, is_cluster=True)}
    assert told["metadata"] == "ok      metadata  answers on 2 of 3"
    assert "cache" not in told


def test_of_a_machine_that_has_another_package_its_versions_are_judged_all_the_same() -> None:
    old = {**GOOD["versions"], "ich_ray": "0.0.9"}
    silent = Facts(machine="b", versions=old, silent="must be able to look at its files, got AttributeError")
    found = check([facts(), silent, facts(machine="c")], None, is_cluster=True)
    assert [(each.check, each.found) for each in found if each.state == "error"] == [
        ("machine", "b: must tell what it has, got must be able to look at its files, got AttributeError"),
        ("versions", "ich_ray must be the same on all machines, got 0.1.0 but on b 0.0.9"),
    ]
    nothing = check([Facts(machine="b", versions={}, silent="nothing")], None, is_cluster=True)
    assert [each.state for each in nothing if each.check == "machine"] == ["error"]


@pytest.mark.parametrize(
    ("changes", "state", "name", "found"),
    [
        ({"versions": GOOD["versions"] | {"torch": "2.13.0"}}, "error", "versions",
         "torch must be the same on all machines, got 2.14.0 but on b 2.13.0"),
        ({"versions": GOOD["versions"] | {"torch": "2.14.1"}}, "warning", "versions",
         "torch must be the same on all machines, got 2.14.0 but on b 2.14.1"),
        ({"versions": GOOD["versions"] | {"ray": "missing"}}, "error", "versions",
         "ray must be the same on all machines, got 2.60.0 but on b missing"),
        ({"devices": {"seen": 0}}, "error", "gpus", "b: torch must see the 1 that Ray promises, got 0"),
        ({"devices": {"seen": "OSError: libcudart"}}, "error", "gpus", "b: torch must load, got OSError: libcudart"),
        ({"storage": "FileNotFoundError: x"}, "error", "storage",
         "b: must read and write it, got FileNotFoundError: x"),
        ({"ray_folder": "/tmp/ich7: must be a folder of user 7 alone, got a link; let its owner, or root, remove it"},
         "error", "folder", "/tmp/ich7: must be a folder of user 7 alone, got a link"),
        ({"home": "/proc/x"}, "warning", "home",
         "b: the home of its user must be writable for keys and copies, got /proc/x"),
        ({"began": 17.0, "answered": 18.0}, "warning", "clock", "b: must agree within 2 s, got +5.0 s"),
        ({"began": -990.0, "answered": -989.0}, "error", "clock", "b: must agree within 2 s, got -1000.0 s"),
        ({"disk_free_bytes": GIB}, "error", "disk", "b: 20 GiB free for Ray's files are good, got 1.0"),
        ({"disk_free_bytes": 9 * GIB}, "warning", "disk", "b: 20 GiB free for Ray's files are good, got 9.0"),
        ({"disk": "/t: [Errno 30] Read-only file system"}, "error", "disk",
         "b: Ray's files must be written, got /t: [Errno 30] Read-only file system"),
        ({"disk_total_bytes": 2000 * GIB}, "warning", "disk",
         "b: Ray spills nothing to a disk that is over 95% full, got 97.5%"),
        ({"cache": "/c: [Errno 13] Permission denied"}, "error", "cache",
         "b: copies of remote datasets must be written, got /c: [Errno 13] Permission denied"),
        ({"cache": "", "cache_folder": "/c", "cache_free_bytes": GIB}, "warning", "cache",
         "b: 20 GiB free in /c are good for copies of remote datasets, got 1.0"),
        ({"cloud": "AWS", "metadata": "timed out"}, "warning", "metadata",
         "b: the metadata service of AWS should answer, got timed out: no notice that the machine will be taken away "
         "would be heard"),
        ({"silent": "nothing within 180 s", "storage": None}, "error", "machine",
         "b: must tell what it has, got nothing within 180 s"),
        ({"unanswered": {"home": "nothing within 20 s"}}, "error", "home",
         "b: this check must come to its end, got nothing within 20 s"),
        ({"shm_free_bytes": GIB // 16}, "warning", "shm", "b: 2 GiB free in /dev/shm are good, got 0.1"),
        ({"token_mode": 0o644}, "error", "token", "b: only its user may read /h/.ray/auth_token, got mode 0644"),
        ({"auth_mode": ""}, "error", "token", "every machine must demand it, got RAY_AUTH_MODE unset on b"),
        ({"is_head": True, "open_ports": (22, 8265)}, "error", "dashboard",
         "must listen on 127.0.0.1 only, got port 8265 of b open to other machines"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_machine(changes: dict[str, Any], state: str, name: str, found: str) -> None:
    machines = [facts(), facts(machine="c"), facts(**{"machine": "b", **changes})]
    findings = check(machines, "127.0.0.1:8265", is_cluster=True)
    bad = [finding for finding in findings if finding.state != "ok"]
    assert [(finding.state, finding.check, finding.found) for finding in bad] == [(state, name, found)]
    assert bad[0].remedy
    assert bad[0].machines == ("b",)
    assert state == "warning" or name not in {finding.check for finding in findings if finding.state == "ok"}
    assert "\n" not in str(bad[0])


@pytest.mark.parametrize(
    ("sent", "began", "answered", "received", "skew"),
    [
        (10, 11, 12, 13, 0.0),
        (10, 10, 13, 13, 0.0),
        (10, 20, 21, 13, 8.0),  # it answered 8 s after we had its answer
        (10, 3, 12, 13, -7.0),  # it began 7 s before we asked
        (10, 10, 12.9, 13, 0.0),
    ],
)
def test_the_least_skew_that_the_order_of_events_allows(
    sent: float, began: float, answered: float, received: float, skew: float
) -> None:
    assert skew_s(facts(sent=sent, began=began, answered=answered, received=received)) == skew


def test_one_machine_needs_no_token_but_a_closed_dashboard() -> None:
    alone = facts(auth_mode="", gpus=None, devices={}, token_mode=0o644, open_ports=(8265,), storage=None)
    assert [(f.state, f.check) for f in check([alone], None, is_cluster=False)] == [
        ("ok", "versions"), ("ok", "gpus"), ("ok", "disk"), ("warning", "token"), ("error", "dashboard"),
    ]  # fmt: skip


def test_open_ports_are_those_that_listen_beyond_loopback(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st\n"
    (tmp_path / "tcp").write_text(
        head
        + "   0: 0100007F:2049 00000000:0000 0A\n"  # 127.0.0.1:8265
        + "   1: 00000000:2050 00000000:0000 0A\n"  # 0.0.0.0:8272
        + "   2: 0500000A:0016 00000000:0000 0A\n"  # 10.0.0.5:22
        + "   3: 0500000A:0017 00000000:0000 01\n"  # connected, not listening
    )
    (tmp_path / "tcp6").write_text(
        head
        + f"   0: {'0' * 24}01000000:0050 0:0 0A\n"  # ::1
        + f"   1: {'0' * 32}:01BB 0:0 0A\n"  # ::
        + f"   2: {'0' * 16}FFFF00000100007F:0051 0:0 0A\n"  # 127.0.0.1 in IPv6
    )
    tables = (str(tmp_path / "tcp"), str(tmp_path / "tcp6"))
    assert open_ports(tables) == (22, 443, 8272)
    assert open_ports((str(tmp_path / "none"),)) == ()


def test_storage_is_written_and_read_and_left_clean(tmp_path: Path) -> None:
    assert look("m", str(tmp_path / "s")).storage == ""
    assert look("m", str(tmp_path / "s"), witness="w").storage.startswith("FileNotFoundError")  # type: ignore[union-attr]
    (tmp_path / "shared").mkdir()
    lines = {finding.check: finding for finding in doctor(storage=tmp_path / "shared")}
    assert lines["storage"].state == "ok"
    assert list((tmp_path / "shared").iterdir()) == []


def test_storage_that_cannot_be_written_is_named_where_it_would_hurt() -> None:
    """Before what is well, in the order of all findings, and this machine is called as in other lines."""
    found = doctor(storage="/proc")
    (broken,) = (finding for finding in found if finding.check == "storage")
    assert broken.state == "error"
    assert broken.found.startswith("/proc: must be writable from this machine, got ")
    assert broken.machines == ("this",)
    checks = [finding.check for finding in found]
    assert checks.index("versions") < checks.index("storage") < checks.index("disk")


@pytest.mark.parametrize(
    ("named", "got"),
    [
        ("typo", "{0}/typo: must be a folder that is there, got nothing there; correct it, or make that folder"),
        ("file", "{0}/file: must be a folder that is there, got a file; correct it, or make that folder"),
        ("file/below", "{0}/file/below: must be a folder that is there, got nothing there; correct it, or make that "
         "folder"),
        ("", ": must be a folder or a URI, got an empty text; leave it out to test none"),
    ],
)  # fmt: skip
def test_storage_that_is_not_there_is_refused_and_not_made(
    named: str, got: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.call(["doctor", "--storage", named and str(tmp_path / named)]) == 2
    told = capsys.readouterr().err.strip()
    assert told == f"ich-ray: --storage{' ' * bool(named)}{got.format(tmp_path)}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_another_and_a_home_that_cannot_be_written_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "_TMP", tmp_path)
    monkeypatch.setenv("HOME", "/proc/x")
    assert [(f.state, f.check) for f in doctor() if f.check in {"folder", "home"}] == [("warning", "home")]
    (own,) = tmp_path.iterdir()
    shutil.rmtree(own)
    own.write_text("")
    found = {finding.check: finding for finding in doctor()}
    assert found["folder"].state == "error"
    assert found["folder"].found == f"{own}: must be a folder of user {os.geteuid()} alone, got not a directory"
    assert found["home"].found.endswith("got /proc/x")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert look("m").home == "none"


def test_the_disk_of_a_node_is_the_one_where_ray_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started with --temp-dir on a larger disk, as the remedy says, it is that disk which must have room."""
    node = SimpleNamespace(get_session_dir_path=lambda: str(tmp_path))
    monkeypatch.setattr("ray._private.worker.global_worker", SimpleNamespace(node=node))
    free = {str(tmp_path): 7 * GIB}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free.get(str(path), GIB), total=GIB))
    assert _look_there("b", None, "", "id")["disk_free_bytes"] == 7 * GIB


def test_a_cluster_file_with_a_secret_fails_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("cluster_name: x\npassword: correct-horse\n")
    assert cli.call(["doctor", "--cluster-file", str(tmp_path / "mine.yaml")]) == 1
    assert "error   secrets   mine.yaml line 2: must hold none, got a password; take it out" in capsys.readouterr().out
    assert cli.call(["doctor", "--cluster-file", str(tmp_path / "none.yaml")]) == 2
    with pytest.raises(ConfigError, match=r"--cluster-file .*none\.yaml: must be a file, got none"):
        doctor(cluster_file=tmp_path / "none.yaml")


def test_a_finding_is_one_line() -> None:
    assert str(Finding("ok", "disk", "fine")) == "ok      disk      fine"
    assert str(Finding("error", "disk", "full", "free some")) == "error   disk      full; free some"

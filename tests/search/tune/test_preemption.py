"""What this machine does with a notice: who asks for it, and who is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ich_ray.search.tune import preemption
from ich_ray.search.tune.notices import SETTING, Notice
from ich_ray.storage import locks

NODE = "ab" * 28


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preemption, "_heard", [])
    monkeypatch.setattr(preemption.platform, "node", lambda: "spot-7")
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    locks._machine_lock.cache_clear()
    preemption.watch_notices.cache_clear()


def test_a_notice_drains_this_node_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str, int]] = []
    monkeypatch.setattr(preemption, "drain_node", lambda *told_of: told.append(told_of))
    assert preemption._tell(NODE, Notice("AWS spot terminate", 1795946520.5)) is True
    assert told == [(NODE, "machine spot-7: AWS spot terminate", 1795946520500)]
    assert preemption.heard() == "machine spot-7: AWS spot terminate"


def test_a_recommendation_drains_nothing_and_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "drain_node", lambda *_: pytest.fail("drained"))
    assert preemption._tell(NODE, Notice("AWS recommends to move to another machine", None)) is False
    assert preemption.heard() == "machine spot-7: AWS recommends to move to another machine"


def test_ray_is_told_again_where_it_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not now")

    monkeypatch.setattr(preemption, "drain_node", refuse)
    assert preemption._tell(NODE, Notice("AWS spot terminate", 1.0)) is False
    assert preemption.heard().endswith("AWS spot terminate, and Ray could not be told: RuntimeError: not now")


def test_one_process_of_a_node_asks_and_another_takes_over(tmp_path: Path) -> None:
    script = (
        "import sys, tempfile; tempfile.gettempdir = lambda: sys.argv[1]\n"
        "from ich_ray.search.tune import preemption\n"
        f"print(preemption._is_the_one({NODE!r}), preemption._is_the_one('cd' * 28), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True True\n"
        assert preemption._is_the_one(NODE) is False
        other.communicate()
    assert preemption._is_the_one(NODE) is True


def test_a_setting_that_is_not_right_breaks_no_trial_and_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "amazon")
    preemption.watch_notices()
    assert preemption.heard().startswith(
        "machine spot-7: ICH_RAY_METADATA_SERVICE: must be off or CLOUD=http://ADDRESS"
    )


def test_without_ray_nothing_is_draining() -> None:
    preemption._draining.cache_clear()
    assert preemption.draining() == {}
    assert not preemption.is_draining("")


def test_a_deadline_that_nobody_knows_is_soon() -> None:
    assert preemption.format_deadline(0) == "soon"
    assert preemption.format_deadline(1795946520000) == "at 10:02:00 UTC"

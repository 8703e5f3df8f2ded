from __future__ import annotations

import os
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ich_ray
from ich_ray import cli, progress, runtime
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.machines import ask_machines
from ich_ray.runtime import connected
from ich_ray.storage import private

DEMO = str(Path(__file__).parent.parent / "search_spaces" / "demo.yaml")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_without_a_cluster_is_refused_within_seconds(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=rf"--address {address}: a Ray cluster must answer there"), connected(address):
        pass
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("address", "got"),
    [
        ("http://127.0.0.1:8265", "that of a dashboard, to which jobs are sent"),
        ("https://head.example", "that of a dashboard, to which jobs are sent"),
        ("pickle://x", "a pickle address"),
    ],
)
@pytest.mark.parametrize("verb", ["doctor", "search"])
def test_an_address_of_something_else_is_named_with_who_gave_it(
    address: str,
    got: str,
    verb: str,
    dataset: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["doctor"]
    if verb == "search":
        asked = ["search", str(dataset.files.root), "--space", DEMO, "--out", str(tmp_path / "s"), "--trials", "1"]
    rule = "must be where the head of a Ray cluster listens, HOST:6379, or auto on a machine of the cluster"
    assert cli.call([*asked, "--address", address]) == 2
    told = f"{address}: {rule}, got {got}; correct it, or"
    assert capsys.readouterr().err == f"ich-ray: --address {told} leave it out for a Ray of this machine alone\n"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cli.call(asked) == 2
    assert capsys.readouterr().err == f"ich-ray: RAY_ADDRESS {told} unset it for a Ray of this machine alone\n"


def test_a_cluster_that_does_not_answer_is_named_with_who_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS 127\.0\.0\.1:1: a Ray cluster must answer there"), connected():
        pytest.fail("it was joined")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a name that leaves room for those of sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def another_package(folder: Path) -> Path:
    """A folder with an `ich_ray` that is not this one."""
    (folder / "ich_ray").mkdir(parents=True)
    (folder / "ich_ray" / "__init__.py").write_text("raise ImportError('another ich_ray')\n")
    return folder


def package_of_a_worker() -> str:
    import ich_ray

    return str(ich_ray.__file__)


def test_a_private_ray_ends_with_its_block_and_an_inner_block_shares_it(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(private, "_TMP", short)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(another_package(tmp_path))
    with connected(cpus=1):
        assert ray.get(ray.remote(package_of_a_worker).remote()) == ich_ray.__file__, "not that of this folder"
        ask_machines()
        with monkeypatch.context() as patch:
            patch.setattr(ich_ray, "__version__", "9")
            with pytest.raises(ConfigError, match=r": ich_ray must be 9 \(source .*\) as in this process, got 0\.1"):
                ask_machines()
        own = short / f"ich{os.geteuid()}"
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        assert (session.parent, list(short.iterdir())) == (own / "r", [own])
        assert stat.S_IMODE(own.stat().st_mode) == 0o700, "no other user reaches into what Ray opens to all"
        assert ray.cluster_resources()["CPU"] == 1
        with connected():
            assert ray.cluster_resources()["CPU"] == 1
        assert ray.is_initialized()
        assert not runtime._is_another(ray.get_runtime_context().gcs_address)
        late = ray.put("of a thread of Ray Data, which is still there after the block")
    with pytest.raises(ray.exceptions.RaySystemError, match="Ray has not been started yet"):
        ray.wait([late], timeout=0)
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == before


class Ended(Exception):
    """In place of the end of the process."""


@pytest.fixture
def told_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", ended)


@pytest.mark.usefixtures("told_end")
def test_last_words_are_said_before_a_lost_head_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def fails() -> None:
        said.append("fails")
        raise OSError

    with runtime.last_words(fails), runtime.last_words(lambda: said.append("told")), pytest.raises(Ended):
        runtime._leave("head: lost")
    assert said == ["fails", "told"]
    with pytest.raises(Ended):
        runtime._leave("head: lost")
    assert said == ["fails", "told"]
    assert capsys.readouterr().err.count("head: lost") == 2


@pytest.mark.usefixtures("told_end")
def test_a_head_that_no_longer_answers_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "_KNOCK_EVERY_S", 0.02)
    monkeypatch.setattr(runtime, "_PATIENCE_S", 0.2)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        threading.Timer(0.5, over.set).start()
        runtime._watch(address, over, is_own=False)
    assert capsys.readouterr().err == ""
    started = time.monotonic()
    with pytest.raises(Ended, match="1"):
        runtime._watch(address, threading.Event(), is_own=False)
    assert 0.2 <= time.monotonic() - started < 5
    said = capsys.readouterr().err
    assert said.startswith(f"ich-ray: {address}: the head of the cluster must answer, got nothing for 0 s; see to the")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("told_end")
@pytest.mark.parametrize(
    ("is_own", "code", "said"),
    [
        (False, "1", "{}: the head of the cluster was ended together with this process; see to the cluster and run the "
         "command again, a search with --resume: nothing finished is lost"),
        (True, "130", "interrupted; nothing finished is lost, run the command again, a search with --resume"),
    ],
)  # fmt: skip
def test_a_process_that_is_ended_with_its_head_waits_less(
    is_own: bool, code: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "_KNOCK_EVERY_S", 0.02)
    monkeypatch.setattr(runtime, "_PATIENCE_TERMINATED_S", 0.2)
    monkeypatch.setattr(signal, "raise_signal", lambda _: signal.default_int_handler(signal.SIGINT, None))
    before = signal.getsignal(signal.SIGTERM)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
    with runtime.terminated_as_interrupted():
        with pytest.raises(KeyboardInterrupt):
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        started = time.monotonic()
        with pytest.raises(Ended, match=f"^{code}$"):
            runtime._watch(address, threading.Event(), is_own)
        assert time.monotonic() - started < 5
    assert signal.getsignal(signal.SIGTERM) == before
    assert not runtime._terminated.is_set()
    assert capsys.readouterr().err == f"ich-ray: {said.format(address)}\n"


@pytest.mark.usefixtures("told_end")
def test_a_head_that_was_started_again_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = iter([False, True])  # the same one after a broken line, then another one
    monkeypatch.setattr(runtime, "_KNOCK_EVERY_S", 0.01)
    monkeypatch.setattr(runtime, "_KNOCK_AGAIN_S", 0.01)
    monkeypatch.setattr(runtime, "_is_another", lambda _: next(heads))
    answers = iter([True, False, True, True, False, False, True])

    def knock(*_: object) -> None:
        if not next(answers):
            raise ConnectionRefusedError

    monkeypatch.setattr(runtime, "knock", knock)
    with pytest.raises(Ended, match="1"):
        runtime._watch("10.0.0.1:6379", threading.Event(), is_own=False)
    assert list(answers) == []
    assert capsys.readouterr().err == (
        "ich-ray: 10.0.0.1:6379: the head of the cluster must stay the one that it was, got one that was started "
        "again; see to the cluster and run the command again, a search with --resume: nothing finished is lost\n"
    )


@pytest.mark.usefixtures("told_end")
def test_a_machine_that_stood_still_gives_its_head_another_knock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, over, answers = [0.0], threading.Event(), iter([False, True])

    def knock(*_: object) -> None:
        now[0] += 3600
        answer = next(answers)
        if not answer:
            raise TimeoutError
        over.set()

    monkeypatch.setattr(runtime, "_KNOCK_EVERY_S", 0.01)
    monkeypatch.setattr(runtime, "_KNOCK_AGAIN_S", 0.01)
    monkeypatch.setattr(runtime, "_is_another", lambda _: False)
    monkeypatch.setattr(runtime, "knock", knock)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    runtime._watch("10.0.0.1:6379", over, is_own=False)
    assert list(answers) == []


def test_only_the_first_line_of_what_ray_says_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    progress.show()
    try:
        runtime._say_first_line({"lines": ["Raylet is terminated.\n    [state-dump]\n    [state-dump]\n"]})
    finally:
        progress.show(False)
    assert capsys.readouterr() == ("", "Ray: Raylet is terminated.\n")


def test_a_process_that_ignores_ctrl_c_still_ends_by_sigterm() -> None:
    """What a script has started with `&` ignores SIGINT from its first moment on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), runtime.terminated_as_interrupted():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)

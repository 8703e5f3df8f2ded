"""A decoder that dies, hangs, prints or eats memory costs its own file only."""

from __future__ import annotations

import io
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from ich_ray.ct import decoder, isolation
from ich_ray.ct.dicom import read_slice
from ich_ray.errors import IchRayError, Rejection
from tests.ct.files import head, make, save
from tests.ct.planted import plant_decoder, poison


@pytest.fixture
def _planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(plant_decoder(tmp_path / "plugins"))
    monkeypatch.setattr(isolation, "_running", [])
    yield
    for running in isolation._running:
        running.end()


def rle() -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(make()))
    dataset.compress(RLELossless)
    return save(dataset, RLELossless)


def rejection(data: bytes) -> Rejection:
    with pytest.raises(Rejection) as caught:
        read_slice(data)
    return caught.value


@pytest.mark.usefixtures("_planted")
def test_the_decoder_is_not_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ich_ray").mkdir()
    (tmp_path / "ich_ray" / "__init__.py").write_text("raise ImportError('another ich_ray')\n")
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_slice(rle()).hu(), head())


@pytest.mark.usefixtures("_planted")
def test_a_bad_frame_costs_its_own_file_only() -> None:
    good = rle()
    assert np.array_equal(read_slice(good).hu(), head())
    (first,) = isolation._running
    for order in ("EXIT", "SEGV"):
        assert rejection(poison(order)).reason == "decoder_crash"
        assert isolation._running == []
        assert np.array_equal(read_slice(good).hu(), head())
    assert isolation._running != [first]
    (second,) = isolation._running
    for order in ("HUGE", "CHAT", "NOTHING"):
        assert rejection(poison(order)).reason == "decode_error"
        assert np.array_equal(read_slice(good).hu(), head())
    assert isolation._running == [second]


@pytest.mark.usefixtures("_planted")
def test_a_decoder_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    read_slice(rle())  # the process is there: only the frame is timed
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "FRAME_LIMIT_S", 0.5)
        started = time.monotonic()
        assert rejection(poison("HANG")).reason == "decoder_crash"
        assert time.monotonic() - started < 5
    assert np.array_equal(read_slice(rle()).hu(), head())


@pytest.mark.usefixtures("_planted")
def test_a_fork_gets_a_decoder_of_its_own() -> None:
    read_slice(rle())
    (before,) = isolation._running
    before.owner = -1  # as a forked process sees it
    assert np.array_equal(read_slice(rle()).hu(), head())
    assert isolation._running != [before]
    before.end()


def test_the_decoder_ends_with_its_input_and_is_confined() -> None:
    code = ("import resource, ich_ray.ct.decoder as d; d._confine(); print(resource.getrlimit(resource.RLIMIT_CORE), "
            "resource.getrlimit(resource.RLIMIT_AS)[0] > d.FRAME_LIMIT_BYTES)")  # fmt: skip
    python = isolation.sys.executable
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "(0, 0) True\n"
    ended = subprocess.run([python, "-m", "ich_ray.ct.decoder"], input=b"", capture_output=True, check=True, timeout=60)
    assert decoder.receive(io.BytesIO(ended.stdout)) == ({"outcome": "ready", "bytes": 0}, b"")


def test_a_decoder_that_cannot_start_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_running", [])
    monkeypatch.setattr(isolation.sys, "executable", "/bin/false")
    with pytest.raises(IchRayError, match="a process for compressed pixels must start, got exit status") as caught:
        read_slice(rle())
    assert not isinstance(caught.value, Rejection)


@pytest.mark.parametrize("cut", [0, 3, 10, 40])
def test_messages_are_whole_or_none(cut: int) -> None:
    stream = io.BytesIO()
    decoder.send(stream, {"outcome": "decoded"}, b"words")
    whole = stream.getvalue()
    assert decoder.receive(io.BytesIO(whole)) == ({"outcome": "decoded", "bytes": 5}, b"words")
    assert decoder.receive(io.BytesIO(whole[:cut])) is None
    assert decoder.receive(io.BytesIO(os.urandom(0))) is None

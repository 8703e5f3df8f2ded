"""Storage that fails for a moment, planted through the one function by which every try is made."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.exceptions
import pyarrow as pa
import pytest
from fsspec.exceptions import FSTimeoutError
from upath import UPath

from ich_ray.errors import ConfigError
from ich_ray.storage import (
    exists,
    is_of_storage,
    locate,
    read_json,
    read_table,
    retries,
    sha256,
    write_json,
    write_table,
)
from ich_ray.training.checkpoint_store import CheckpointStore
from tests.search.fakes import FakeState


def numbered(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/x")


def of_s3(code: str, told_as: OSError) -> OSError:
    """As s3fs raises it."""
    told_as.__cause__ = botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "x"}}, "PutObject")
    return told_as


PASSING = [
    numbered(errno.ESTALE),
    numbered(errno.EIO),
    numbered(errno.ETIMEDOUT),
    of_s3("SlowDown", OSError(errno.EBUSY, "Please reduce your request rate.")),
    of_s3("503", OSError(errno.EBUSY, "Service Unavailable")),
    of_s3("ExpiredToken", PermissionError("The provided token has expired.")),
    FSTimeoutError(),
    numbered(errno.ENOTCONN),
]
LASTING = [
    *(numbered(number) for number in (errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EACCES)),
    of_s3("AccessDenied", PermissionError("Access Denied")),
    ValueError("no error of a storage"),
    TimeoutError("of something else"),
]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int], list[str]]:
    """Let the first tries of every action fail; a list of all tries and of the pauses between."""
    done: list[str] = []

    def planted(error: Exception, times: int) -> list[str]:
        left = [times]

        def attempt(do: Callable[[], Any]) -> Any:
            done.append("try")
            left[0] -= 1
            if left[0] >= 0:
                raise error
            return do()

        monkeypatch.setattr(retries, "attempt", attempt)
        monkeypatch.setattr(retries.time, "sleep", lambda pause_s: done.append(f"{pause_s:g}"))
        return done

    return planted


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_passes_is_written_and_read_at_the_fourth_try(
    error: Exception, plant: Callable[[Exception, int], list[str]], tmp_path: Path
) -> None:
    path, table = locate(tmp_path / "a.json"), locate(tmp_path / "a.parquet")
    actions: list[Callable[[], Any]] = [
        lambda: write_json(path, {"a": 1}),
        lambda: exists(path),
        lambda: sha256(path),
        lambda: write_table(table, pa.table({"a": [1]})),
    ]
    for action in actions:
        done = plant(error, 3)
        action()
        assert done[:7] == ["try", "0.5", "try", "2", "try", "5", "try"]
        done.clear()
    plant(error, 1)
    assert read_json(path) == {"a": 1}
    plant(error, 1)
    assert read_table(table).to_pydict() == {"a": [1]}
    assert is_of_storage(error)


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_does_not_pass_is_raised_at_once(
    error: Exception, plant: Callable[[Exception, int], list[str]], tmp_path: Path
) -> None:
    path = locate(tmp_path / "a.json")
    done = plant(error, 1)
    with pytest.raises(type(error)):
        write_json(path, {})
    assert done == ["try"]
    assert not is_of_storage(error)


def test_what_never_passes_is_raised_in_the_end(plant: Callable[[Exception, int], list[str]], tmp_path: Path) -> None:
    path = locate(tmp_path / "a.json")
    done = plant(numbered(errno.EIO), 99)
    with pytest.raises(OSError, match="Input/output error"):
        write_json(path, {})
    assert done.count("try") == 4
    with pytest.raises(ConfigError) as raised:
        exists(path)
    assert is_of_storage(raised.value), "our own words for it hide nothing"


def test_a_state_whose_storage_does_not_answer_is_not_called_damaged(
    plant: Callable[[Exception, int], list[str]], tmp_path: Path
) -> None:
    folder = locate(tmp_path)
    store = CheckpointStore(folder, "newest")
    store.save(100, FakeState(100), [])
    plant(numbered(errno.ESTALE), 99)
    with pytest.raises(Exception, match=r"[Ss]tale file handle"):
        store.newest()
    plant(numbered(errno.ESTALE), 1)
    assert CheckpointStore(folder, "newest").newest() is not None
    assert store.note == ""


def test_credentials_that_have_expired_are_read_anew(plant: Callable[[Exception, int], list[str]]) -> None:
    signed: list[bool] = []

    def connect(*, refresh: bool) -> None:
        signed.append(refresh)

    s3 = SimpleNamespace(protocol=("s3", "s3a"), connect=connect)
    path: UPath = SimpleNamespace(fs=s3)  # type: ignore[assignment]
    plant(PASSING[5], 1)
    assert retries.retried(path, lambda: 7) == 7
    assert signed == [True]

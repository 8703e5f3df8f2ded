from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pyarrow as pa
import pytest
from upath import UPath

from ich_ray import cli
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.storage import (
    DatasetFiles,
    SearchFiles,
    check_file,
    check_folder,
    file_lock,
    holds_credentials,
    is_local,
    locate,
    read_json,
    read_table,
    sha256,
    system_reason,
    without_credentials,
    write_bytes,
    write_json,
    write_table,
)
from tests.records import make_record


def test_local_paths_are_absolute_and_uris_stay_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(locate("a/b")) == str(tmp_path / "a" / "b")
    assert is_local(locate("a"))
    assert str(locate("memory://bucket/a")) == "memory://bucket/a"
    assert not is_local(locate("memory://bucket/a"))


def test_a_home_folder_that_nobody_has() -> None:
    with pytest.raises(ConfigError, match=r"~nobody-is-called-so/x: the home folder"):
        locate("~nobody-is-called-so/x")


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_uri_of_this_machine_is_a_path_that_is_locked_and_replaced_like_any(protocol: str, tmp_path: Path) -> None:
    path = locate(f"{protocol}://{tmp_path}/a b")
    assert is_local(path)
    assert str(path) == f"{tmp_path}/a b"
    assert path == locate(locate(path))
    with file_lock(path / ".lock", "a search"):
        assert (tmp_path / "a b" / ".lock").exists()


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nnn: must be a place where this user may look, got file name too long"):
        locate(tmp_path / ("n" * 300))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: a search must be a folder, got a file; give another path"):
        SearchFiles(locate(tmp_path / "file"))
    (tmp_path / "s" / ".lock").mkdir(parents=True)
    for place, got in (("file", "file exists"), ("file/s", "not a directory"), ("s", "is a directory")):
        told = f"{place}: must be a folder where a search can be written, got {got}; choose another"
        with pytest.raises(ConfigError, match=told), file_lock(locate(tmp_path / place / ".lock"), "a search"):
            pass


SECRETS = [
    ("s3://key:hunter2@bucket/x", "s3://bucket/x"),
    ("s3://key@bucket/x", "s3://bucket/x"),
    ("s3://AKIA:hun/hunter2@bucket/x", "s3://bucket/x"),
    ("https://me:hunter2@host/x?v=1", "https://host/x?v=1"),
    ("https://host/x?X-Amz-Credential=a&X-Amz-Signature=hunter2", "https://host/x"),
    ("https://host/x?v=1&sig=hunter2", "https://host/x?v=1"),
    ("https://host/x#access_token=hunter2", "https://host/x"),
    ("https://host/x;jsessionid=hunter2", "https://host/x"),
    ("simplecache::s3://me:hunter2@bucket/x", "simplecache::s3://bucket/x"),
    ("zip://inner::https://me:hunter2@host/x.zip", "zip://inner::https://host/x.zip"),
    ("sftp://me@host/x", "sftp://host/x"),
    ("abfss://box:hunter2@account.dfs.core.windows.net/x", "abfss://account.dfs.core.windows.net/x"),
]


@pytest.mark.parametrize(("address", "without"), SECRETS)
def test_an_address_with_a_secret_is_refused_and_not_repeated(address: str, without: str) -> None:
    assert holds_credentials(address)
    assert without_credentials(address) == without
    assert without_credentials(f"cannot read '{address}', retry") == f"cannot read '{without}', retry"
    with pytest.raises(ConfigError, match="an address is shown and stored and must hold no user, password") as caught:
        locate(address)
    assert "hunter2" not in str(caught.value)


def test_a_long_word_is_read_once() -> None:
    """In the time of its length: by the square of it, this would take an hour."""
    word = "z" * 200_000
    assert without_credentials(f"{word} s3://me:hunter2@bucket/x {word}") == f"{word} s3://bucket/x {word}"
    assert without_credentials(f"{word}s3://me:hunter2@bucket/x") == f"{word}s3://bucket/x"


@pytest.mark.parametrize(
    "address",
    [
        "/data/me@home/x?key=1", "C:/x", "s3://bucket/me@home/x", "s3://bucket/x?versionId=3", "memory://a/b",
        "http://host:8080/x", "http://[::1]:8080/x", "abfss://box@account.dfs.core.windows.net/x", "a b@c", "",
    ],
)  # fmt: skip
def test_an_address_without_a_secret_stays_as_it_is(address: str) -> None:
    assert not holds_credentials(address)
    assert without_credentials(address) == address


def test_a_search_is_stored_without_what_opens_its_dataset() -> None:
    """Version 0.1.0 wrote addresses as they were given."""
    told = make_record(
        dataset="s3://key:hunter2@bucket/x", amendments=({"warm_start": "https://host/s?token=hunter2", "time": 1.0},)
    )
    assert (told.dataset_folder, told.warm_starts) == ("s3://bucket/x", ("https://host/s",))
    assert "hunter2" not in told.model_dump_json()


def test_what_a_file_system_says_is_shown_without_secrets() -> None:
    said = system_reason(OSError(5, "Cannot connect to https://me:hunter2@host/x"))
    assert said == "cannot connect to https://host/x"


@pytest.mark.parametrize("read", [read_json, read_table, sha256])
def test_what_is_no_file_is_not_read(read: Callable[[UPath], object], tmp_path: Path) -> None:
    """A pipe would never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(IntegrityError, match=f"{name}: must be a file, got something else"):
            read(locate(tmp_path / name))


@pytest.mark.parametrize("address", ["data:,x", "github://x", "zip:///nowhere.zip"])
def test_a_file_system_that_cannot_be_had_is_one_line(address: str) -> None:
    with pytest.raises(ConfigError, match=r"a file system for it must be installed, got "):
        locate(address)


def test_a_uri_that_nothing_here_can_read_is_one_line() -> None:
    for uri, got in (("nonsense://bucket/a", "Unsupported filesystem"), ("gs://bucket/a", "install gcsfs")):
        with pytest.raises(ConfigError, match=f"{uri[:2]}.*: a file system for it must be installed, got .*{got}"):
            locate(uri)


def test_the_names_on_disk_are_the_contract() -> None:
    dataset, search = DatasetFiles(locate("/d")), SearchFiles(locate("/s"))
    assert [str(path) for path in (dataset.manifest, dataset.slices, dataset.rejected, dataset.blocks)] == [
        "/d/dataset.json",
        "/d/slices.parquet",
        "/d/rejected.parquet",
        "/d/blocks",
    ]
    assert str(search.trial(42)) == "/s/trials/00042.json"
    assert str(search.checkpoint(42)) == "/s/checkpoints/00042"
    assert str(search.evaluation) == "/s/final/evaluation.json"


@pytest.mark.parametrize("root", ["local", "memory://writes"])
def test_json_comes_back(root: str, tmp_path: Path) -> None:
    path = locate(tmp_path if root == "local" else root) / "deep" / "value.json"
    write_json(path, {"a": [1, 2.5, None]})
    write_json(path, {"a": [1, 2.5, "x"]})
    assert read_json(path) == {"a": [1, 2.5, "x"]}
    assert sha256(path) == sha256(path.read_bytes())


def test_what_is_not_json_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = locate(tmp_path / "value.json")
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = locate(tmp_path / "value.json")
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"[]")
    assert json.loads((tmp_path / "value.json").read_bytes()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_in_the_place_of_a_file_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"report\.html: must be a file, got a folder; remove it"):
        write_bytes(UPath(tmp_path / "report.html"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "value.json").write_text('{"a": ')
    with pytest.raises(IntegrityError, match=r"value\.json: must be JSON"):
        read_json(locate(tmp_path / "value.json"))


@pytest.mark.parametrize("root", ["local", "memory://tables"])
def test_a_table_comes_back_and_one_that_is_cut_short_is_named(root: str, tmp_path: Path) -> None:
    path = locate(tmp_path if root == "local" else root) / "table.parquet"
    table = pa.table({"slice_id": ["a", "b"], "probability": [0.25, None]})
    write_table(path, table)
    assert read_table(path).equals(table)
    whole = path.read_bytes()
    damaged = whole[:4] + bytes(len(whole) - 12) + whole[-8:]
    for data in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1], damaged):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"table\.parquet: must be a Parquet file, got .*; restore"):
            read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(path.with_name("none.parquet"))


def test_a_table_of_more_rows_than_its_manifest_says_is_not_unpacked(tmp_path: Path) -> None:
    path = locate(tmp_path / "table.parquet")
    write_table(path, pa.table({"role": pa.array(["test"] * 5_000_000).dictionary_encode()}))
    assert path.stat().st_size < 20_000
    with pytest.raises(
        IntegrityError, match=r"table\.parquet: must be a Parquet file, got 5,000,000 rows in place of 10; restore"
    ):
        read_table(path, 10)
    assert len(read_table(path, 5_000_000)) == 5_000_000


def test_a_place_for_a_file_or_a_folder(tmp_path: Path) -> None:
    """Both edges of the rule; whoever asks leaves nothing behind."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for good in ("file", "new", "deep/er/new", "folder/new"):
        check_file(locate(tmp_path / good), "--out")
    for good in ("folder", "new", "deep/er/new"):
        check_folder(locate(tmp_path / good), "--out")
    for check in (check_file, check_folder):
        check(locate("memory://bucket/new"), "--out")
        with pytest.raises(
            ConfigError, match=r"--out .*/file/in.*: must be a folder, got a file at .*/file; name anot"
        ):
            check(locate(tmp_path / "file" / "in" / "it"), "--out")
        with pytest.raises(
            ConfigError, match=r"--out /proc.*: must be a place where this user may write, got .*; choo"
        ):
            check(locate("/proc/none/new"), "--out")
    with pytest.raises(ConfigError, match=r"--out .*/folder: must be a file, got a folder; name a file in it"):
        check_file(locate(tmp_path / "folder"), "--out")
    with pytest.raises(ConfigError, match=r"--out .*/file: must be a folder, got a file at .*/file; name another"):
        check_folder(locate(tmp_path / "file"), "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("read", ["read_table", "read_labels"])
def test_a_process_that_has_read_a_table_ends_as_it_wants(read: str, tmp_path: Path) -> None:
    """It aborted instead in half of all cases, or a quarter with labels."""
    write_table(locate(tmp_path / "table.parquet"), pa.table({"a": range(100)}))
    (tmp_path / "labels.csv").write_text("id,any\n" + "".join(f"{number},0\n" for number in range(100)))
    reading = {
        "read_table": f"from ich_ray.storage import locate, read_table; read_table(locate('{tmp_path}/table.parquet'))",
        "read_labels": (
            f"from ich_ray.data.prepare.label_table import read_labels; read_labels('{tmp_path}/labels.csv')"
        ),
    }
    command = [sys.executable, "-c", f"import sys, torch; {reading[read]}; sys.exit(2)"]
    assert [subprocess.run(command, check=False).returncode for _ in range(8)] == [2] * 8


def _hold(lock: str, held: multiprocessing.Event, done: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with file_lock(locate(lock), "a search"):
        held.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]


def _holder(lock: Path) -> tuple[SpawnProcess, Event]:
    """Another process that holds the lock, and what ends it."""
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(lock), held, done))
    other.start()
    assert held.wait(20)
    return other, done


def test_the_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    other, _ = _holder(tmp_path / ".lock")
    with pytest.raises(ConfigError, match="one process at a time may write a search"):
        file_lock(locate(tmp_path / ".lock"), "a search").__enter__()
    other.kill()
    other.join()
    with file_lock(locate(tmp_path / ".lock"), "a search"):
        pass


def test_who_waits_gets_the_lock_when_the_first_is_done(tmp_path: Path) -> None:
    other, done = _holder(tmp_path / ".lock")
    release = threading.Timer(1.5, done.set)  # longer than who does not wait would try
    release.start()
    with file_lock(locate(tmp_path / ".lock"), "features", wait=True):
        assert done.is_set()
    other.join()
    assert other.exitcode == 0


@pytest.mark.parametrize("verb", [["results"], ["audit"], ["predict", "--out", "rows.csv"]])
def test_storage_that_does_not_answer_is_one_line(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoCredentialsError(Exception):
        """As botocore's, which is no OSError."""

    def asked(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials for s3://key:secret@x")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.exists", asked)
    arguments = ["memory://nowhere/x", "memory://nowhere/y"] if verb[0] == "predict" else ["memory://nowhere/x"]
    assert cli.call([verb[0], *arguments, *verb[1:]]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ich-ray: memory://nowhere/x")
    assert "its storage must answer, got NoCredentialsError: Unable to locate credentials for s3://x; check" in said
    assert said.count("\n") == 1

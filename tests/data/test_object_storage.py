"""From object storage to object storage: files, labels and the dataset behind URIs.

S3 is played by moto's server on this machine. The memory file system of fsspec lies in one process, so with it the
chunks are worked on here.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from upath import UPath

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.prepare.decode_chunk import run_chunk
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import IntegrityError
from ich_ray.results import open_search
from ich_ray.runtime import connected
from ich_ray.search.ledger import Ledger
from ich_ray.search_records import SearchRecord
from tests.data.folders import PATIENTS, SLICES, spoil, uids, write_cohort
from tests.data.prepare.test_run import check_complete


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("ICH_RAY_CACHE", str(tmp_path / "cache"))


def upload(folder: Path, root: UPath) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            target = root / str(path.relative_to(folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def check(root: UPath, tmp_path: Path) -> None:
    """What is prepared behind `root` equals what is prepared from the same files on disk."""
    labels = write_cohort(tmp_path / "images")
    spoil(tmp_path / "images", labels)
    upload(tmp_path / "images", root / "images")
    (root / "labels.csv").write_bytes(labels.read_bytes())
    dataset = prepare(str(root / "images"), str(root / "labels.csv"), str(root / "out"), size=16, limit_rejected=1)
    check_complete(dataset)
    assert dataset.manifest.accepted == PATIENTS * SLICES
    assert dataset.manifest.reasons["not_dicom"] == 1
    assert (root / "out" / "sheets" / "train.png").exists()
    again = prepare(str(root / "images"), str(root / "labels.csv"), str(root / "out"), size=16, limit_rejected=1)
    assert again.manifest == dataset.manifest
    local = prepare(tmp_path / "images", labels, tmp_path / "out", size=16, limit_rejected=1)
    assert local.manifest.fingerprint == dataset.manifest.fingerprint
    everything = np.arange(PATIENTS * SLICES)
    order = np.argsort(uids(local))[np.argsort(np.argsort(uids(dataset)))]
    assert np.array_equal(PreparedDataset.open(root / "out").gather(everything), local.gather(everything[order]))


def test_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ich_ray.data.prepare.run._mapped",
        lambda job, chunks, *_: (run_chunk(job, number, files) for number, files in chunks.items()),
    )
    check(UPath(f"memory://{tmp_path.name}"), tmp_path)


@pytest.fixture(scope="module")
def bucket() -> Iterator[UPath]:
    """A bucket of a stand-in for S3 that listens on this machine only."""
    monkeypatch = pytest.MonkeyPatch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        boto3.client("s3").create_bucket(Bucket="slices")
        yield UPath("s3://slices/of/a/team")
    finally:
        server.kill()
        server.wait()
        monkeypatch.undo()


def _wait(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the stand-in for S3 did not start")


@pytest.mark.slow
def test_on_s3(tmp_path: Path, bucket: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(cpus=2):
        check(bucket, tmp_path)
    out = PreparedDataset.open("s3://slices/of/a/team/out")
    hashes = [block.sha256 for block in out.manifest.blocks]
    assert sorted(path.stem for path in (tmp_path / "cache").rglob("*.arrow")) == sorted(hashes)
    block = bucket / "out" / out.manifest.blocks[0].file
    whole = block.read_bytes()
    block.write_bytes(whole[:-900] + bytes([whole[-900] ^ 1]) + whole[-899:])
    assert len(out.gather(np.arange(3))) == 3  # this node has its copies
    monkeypatch.setenv("ICH_RAY_CACHE", str(tmp_path / "other-node"))
    with pytest.raises(IntegrityError, match=rf"s3://slices/of/a/team/out/{out.manifest.blocks[0].file}: SHA-256 must"):
        PreparedDataset.open(bucket / "out").gather(np.arange(len(out)))
    assert not list((tmp_path / "other-node").rglob("*.arrow"))


@pytest.mark.slow
def test_a_search_on_s3_is_read_while_another_machine_writes_it(bucket: UPath) -> None:
    record = SearchRecord(name="far", space={}, dataset="s3://x", fingerprint="f" * 32, prevalence=0.1, seed=0,
                          trials=2, versions={}, created=0.0)  # fmt: skip
    ledger = Ledger.create(str(bucket / "search"), record)
    ledger.add({"learning_rate": 0.1})
    assert len(open_search(str(bucket / "search")).trials) == 1
    client, key = boto3.client("s3"), "of/a/team/search/trials/0000{}.json"
    text = client.get_object(Bucket="slices", Key=key.format(0))["Body"].read()
    client.put_object(Bucket="slices", Key=key.format(1), Body=text.replace(b'"number": 0', b'"number": 1'))
    assert [trial.number for trial in open_search(str(bucket / "search")).trials] == [0, 1]

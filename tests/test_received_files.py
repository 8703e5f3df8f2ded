"""A file that somebody else wrote is never more than data, whatever stands in any field of any record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from upath import UPath

from ich_ray import cli
from ich_ray.bundle.card import Card
from ich_ray.bundle.training_patients import copy_known, write_known
from ich_ray.data.dataset import DatasetManifest, PreparedDataset
from ich_ray.data.feature_store import FeatureFiles, Features, FeaturesRecord
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.results import open_search
from ich_ray.storage import SearchFiles, locate, sha256, write_json
from tests.html_report.fake_search import build_search
from tests.prepared import make_dataset
from tests.records import make_confirmation

# What a field must not hold, as it stands in the file, and what is said of it.
HARM = {
    "no number": ("NaN", "must be JSON, got NaN"),
    "beyond all numbers": ("1e999", "must be JSON, got 1e999"),
    "steering text": (json.dumps("\x1b]0;x\x07"), "must match its format"),
    "another folder": (json.dumps("../../.config/autostart"), "must match its format"),
    "huge": (str(2**63), "must match its format"),
}
FILES = {
    "search/search.json": ("results", "fingerprint"),
    "search/trials/00000.json": ("results", "attempts"),
    "search/final/bundle/card.json": ("report", "created"),
    "search/final/calibration.json": ("report", "positives"),
    "search/final/evaluation.json": ("report", "opened"),
    "search/final/retraining.json": ("report", "trial"),
    "search/final/confirm.json": ("report", "chosen"),
}


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("received")
    files = SearchFiles(build_search(folder, patients=60, trials=4))
    write_json(files.confirmation, make_confirmation(0, 0))
    return folder


@contextmanager
def harmed(path: Path, field: str, put: str) -> Iterator[None]:
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {field: "\ue000"}).replace(json.dumps("\ue000"), put))
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", FILES)
def test_a_verb_ends_in_one_line_that_names_the_file(
    file: str, harm: str, received: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (verb, field), (put, says) = FILES[file], HARM[harm]
    with harmed(received / file, field, put):
        assert cli.call([verb, str(received / "search")]) == 5
    told = capsys.readouterr().err
    assert f"{received / file}: {says}" in told
    assert told.strip().isprintable()


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("field", ["fingerprint", "size", "accepted", "slices_sha256", "created"])
def test_a_manifest_opens_nothing(field: str, harm: str, received: Path) -> None:
    put, says = HARM[harm]
    path = received / "dataset" / "dataset.json"
    with harmed(path, field, put), pytest.raises(IntegrityError, match=rf"dataset\.json: {says}"):
        PreparedDataset.open(received / "dataset")


LARGEST = {"size": 1024, "image_shape": [3, 1024, 1024]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 1025, "image_shape": [3, 1025, 1025]}, r"size\s+Input should be less than or equal to 1024"),
        (LARGEST | {"image_shape": [3, 1024, 1023]}, r"image_shape must be \(3, 1024, 1024\), as windows and size say"),
        (LARGEST | {"windows": []}, r"windows\s+Tuple should have at least 1 item"),
        (LARGEST | {"windows": [{"name": "w", "center_hu": 0, "width_hu": 1}] * 65}, "at most 64 items"),
    ],
)
def test_a_size_is_what_it_must_equal(changes: dict[str, object], says: str, received: Path) -> None:
    card = json.loads((received / "search" / "final" / "bundle" / "card.json").read_text())
    assert Card.model_validate(card | LARGEST).size == 1024
    with pytest.raises(ValidationError, match=says):
        Card.model_validate(card | changes)
    manifest = json.loads((received / "dataset" / "dataset.json").read_text())
    changed = {name: value for name, value in changes.items() if name in manifest}
    if changed != {"size": 1024}:
        with pytest.raises(ValidationError, match=says):
            DatasetManifest.model_validate(manifest | changed)
    for shape in ((), (1,) * 5, (0,), (2**16 + 1,)):
        with pytest.raises(ValidationError, match="shape"):
            FeaturesRecord(key="a" * 24, fingerprint="f" * 32, slices=1, rows_a_file=1, shape=shape)


@pytest.mark.parametrize("harm", HARM)
def test_features_and_marks_of_patients_are_read_as_records(harm: str, tmp_path: Path) -> None:
    (put, says), dataset = HARM[harm], make_dataset(tmp_path / "dataset", patients=20)
    files = FeatureFiles.of(dataset, "a" * 24)
    files.root.mkdir(parents=True)
    files.finish(dataset, (8,))
    assert Features.open(dataset, "a" * 24) is not None
    with harmed(Path(str(files.manifest)), "slices", put), pytest.raises(IntegrityError, match=f"json: {says}"):
        Features.open(dataset, "a" * 24)
    write_known(locate(tmp_path), dataset)
    with harmed(tmp_path / "patients.json", "dataset", put), pytest.raises(IntegrityError, match=f"json: {says}"):
        copy_known(locate(tmp_path), locate(tmp_path / "other"))


def test_a_received_dataset_writes_nothing_outside_of_the_cache(
    received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint names a folder, its blocks end as their sender likes and hold what he likes."""
    for name in ("XDG_CACHE_HOME", "ICH_RAY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest = json.loads((received / "dataset" / "dataset.json").read_text())
    text = b"[Desktop Entry]\nExec=true\n"
    remote = UPath(f"memory://{tmp_path.name}")
    (remote / "blocks").mkdir(parents=True)
    for number, block in enumerate(manifest["blocks"]):
        block |= {"file": f"blocks/{number}.desktop", "sha256": sha256(text)}
        (remote / block["file"]).write_bytes(text)
    (remote / "slices.parquet").write_bytes((received / "dataset" / "slices.parquet").read_bytes())
    (remote / "dataset.json").write_text(json.dumps(manifest | {"fingerprint": "../../.config/autostart"}))
    with pytest.raises(IntegrityError, match=r"pattern '.*' at fingerprint; prepare the dataset again"):
        PreparedDataset.open(remote)
    assert [*tmp_path.rglob("*")] == []
    (remote / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="must be a block of images"):
        PreparedDataset.open(remote).gather(np.arange(3))
    home = tmp_path / ".cache" / "ich_ray" / manifest["fingerprint"]
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parent for path in written} == {home}
    assert {path.suffix for path in written} <= {".arrow", ".lock", ".verified", ""}


@pytest.mark.parametrize("verb", ["report", "audit", "results"])
def test_no_address_that_only_a_record_names_is_contacted(
    verb: str, received: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(UPath, "fs", property(lambda path: opened.append(str(path))))
    with harmed(received / "search" / "search.json", "dataset", '"http://127.0.0.1:9/x"'):
        assert cli.call([verb, str(received / "search")]) in {0, 5}
    assert opened == []
    if verb == "audit":
        assert "not looked at http://127.0.0.1:9/x, which only search.json names" in capsys.readouterr().out
    if verb == "report":
        page = (received / "search" / "final" / "report.html").read_text()
        assert "was not looked at: only search.json names http://127.0.0.1:9/x" in page


def test_the_bucket_that_the_user_opened_is_named_and_no_other(received: Path) -> None:
    root = UPath(f"memory://{received.name}/search")
    root.mkdir(parents=True)
    told = json.loads((received / "search" / "search.json").read_text())
    (root / "search.json").write_text(json.dumps(told))
    found = open_search(root)
    assert not found.is_foreign(f"memory://{received.name}/dataset")
    assert not found.is_foreign(f"MEMORY://{received.name}/dataset")
    assert not found.is_foreign("/a/folder")
    assert not found.is_foreign("local:///a/folder")
    for other in ("memory://other/dataset", f"s3://{received.name}/x", "simplecache::memory://x/y", "sftp://host/x"):
        assert found.is_foreign(other)
        assert open_search(received / "search").is_foreign(other)


def test_a_training_says_which_address_of_a_record_it_reads(received: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.data.dataset.say", said.append)
    with harmed(received / "search" / "search.json", "dataset", '"memory://nowhere/x"'):
        found = open_search(received / "search")
    with pytest.raises(ConfigError, match=r"memory://nowhere/x: a prepared dataset holds dataset\.json, got none"):
        PreparedDataset.of_search(found)
    assert said == ["reading the dataset at memory://nowhere/x, which search.json names"]
    assert PreparedDataset.of_search(found, received / "dataset").manifest.accepted == 240
    assert len(said) == 1

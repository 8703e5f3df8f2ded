from __future__ import annotations

import csv
import pickletools
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ich_ray.ct import windowing
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IntegrityError, Rejection
from ich_ray.final.bundle import Bundle, load_bundle, predict
from ich_ray.final.calibration import calibrate
from ich_ray.storage import SearchFiles, locate, read_json, write_json


@pytest.fixture(scope="module")
def search(retrained: SearchFiles, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    files = SearchFiles(locate(tmp_path_factory.mktemp("searches") / "search"))
    shutil.copytree(str(retrained.root), str(files.root))
    calibrate(files.root)
    return files


@pytest.fixture
def copy(search: SearchFiles, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    load_bundle(search.bundle).save(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def scans(dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that hold the number of a slice of the dataset, read by stand-ins for ct/dicom.py and ct/windowing.py."""

    def read_slice(path: Path) -> SimpleNamespace:
        text = path.read_text()
        if not text.isdigit():
            raise Rejection("not_dicom", "no preamble")
        name = dataset.column("slice_id")[int(text)]
        return SimpleNamespace(header=SimpleNamespace(slice_id=name), row=int(text))

    def window_slice(found: SimpleNamespace, windows: object, size: int) -> np.ndarray:
        assert (windows, size) == (dataset.manifest.windows, dataset.manifest.size)
        return dataset.gather(np.array([found.row]))[0]

    dicom = ModuleType("ich_ray.ct.dicom")
    dicom.read_slice = read_slice  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ich_ray.ct.dicom", dicom)
    monkeypatch.setattr(windowing, "window_slice", window_slice, raising=False)
    folder = tmp_path / "scans"
    (folder / "deeper").mkdir(parents=True)
    for row in dataset.role("test").rows:
        (folder / "deeper" / f"{row:04d}.dcm").write_text(str(row))
    (folder / "a.txt").write_text("not a slice")
    (folder / ".hidden").write_text("0")
    return folder


def test_a_bundle_comes_back_as_it_was(search: SearchFiles, dataset: PreparedDataset, copy: Path) -> None:
    images = dataset.role("test").gather(np.arange(20))
    one, other = load_bundle(search.bundle), load_bundle(copy)
    assert one.card == other.card
    assert one.probabilities(images).dtype == np.float64
    assert (one.probabilities(images) == other.probabilities(images)).all()
    assert repr(one) == "Bundle(plain_cnn, calibrated)"


def test_no_pickle_and_no_path_of_this_machine(search: SearchFiles, dataset: PreparedDataset) -> None:
    assert sorted(path.name for path in search.bundle.iterdir()) == ["card.json", "model.safetensors"]
    with pytest.raises(ValueError, match=r"."):
        list(pickletools.genops((search.bundle / "model.safetensors").read_bytes()))
    assert str(dataset.files.root) not in (search.bundle / "card.json").read_text()


def test_the_card_says_what_it_must(search: SearchFiles, dataset: PreparedDataset) -> None:
    card = read_json(search.bundle / "card.json")
    assert card["not_a_medical_device"] is True
    assert card["dataset"]["fingerprint"] == dataset.manifest.fingerprint
    assert [window["name"] for window in card["windows"]] == ["brain", "subdural", "bone"]
    assert "Not for diagnosis" in card["intended_use"]
    assert card["search"] == {
        "name": "by-hand", "trial": 0, "trials": 3, "objective": "average_precision", "selection_value": 0.8,
    }  # fmt: skip
    assert (card["test"], card["openings"]) == (None, 0)


def test_a_flipped_byte_is_found(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model.safetensors: SHA-256 must be"):
        load_bundle(copy)
    weights.unlink()
    with pytest.raises(IntegrityError, match="the weights of the card must be there"):
        load_bundle(copy)


def test_a_bad_card_is_found(copy: Path, tmp_path: Path) -> None:
    card = read_json(copy / "card.json")  # type: ignore[arg-type]
    write_json(copy / "card.json", {**card, "temperature": -1})  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="greater than 0 at temperature"):
        load_bundle(copy)
    with pytest.raises(ConfigError, match=r"a bundle holds card.json, got none"):
        load_bundle(tmp_path / "absent")


def test_images_of_another_shape_are_refused(search: SearchFiles) -> None:
    with pytest.raises(ConfigError, match=r"uint8 \[n, 3, 32, 32\] must be given, got float64 \[1, 3, 32, 32\]"):
        load_bundle(search.bundle).probabilities(np.zeros((1, 3, 32, 32)))  # type: ignore[arg-type]


def test_predict_gives_every_input_a_row(
    search: SearchFiles, scans: Path, dataset: PreparedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    rows, rejected = predict(search.bundle, [scans], out)
    test = dataset.role("test")
    assert (len(rows), rejected) == (len(test) + 1, 1)
    written = list(csv.DictReader(out.open()))
    assert list(written[0]) == [
        "file", "slice_id", "probability", "decision", "operating_point", "threshold", "reason",
    ]  # fmt: skip
    assert written[0]["file"].endswith("a.txt")
    assert (written[0]["reason"], written[0]["probability"], written[0]["decision"]) == ("not_dicom", "", "")
    bundle = load_bundle(search.bundle)
    expected = bundle.calibrated(bundle.slice_logits(test))
    np.testing.assert_allclose([float(row["probability"]) for row in written[1:]], expected, atol=1e-6)
    assert [row["slice_id"] for row in written[1:]] == dataset.column("slice_id")[test.rows].tolist()
    threshold = bundle.operating_point().threshold
    for row in written[1:]:
        assert row["decision"] == ("positive" if float(row["probability"]) >= threshold else "negative")
        assert float(row["threshold"]) == threshold
        assert row["operating_point"] == "f2"


def test_one_file_gets_the_probability_it_has_in_a_folder(search: SearchFiles, scans: Path) -> None:
    bundle = load_bundle(search.bundle)
    many = bundle.predict([scans])
    one = bundle.predict([many[5].file])[0]
    assert one.probability == pytest.approx(many[5].probability, abs=1e-6)


def test_predict_refuses_what_it_cannot_do(
    search: SearchFiles, scans: Path, dataset: PreparedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(ConfigError, match="a file or folder of slices must be there"):
        predict(search.bundle, [scans, tmp_path / "absent"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="at least one file must be given"):
        predict(search.bundle, [tmp_path / "empty"], out)
    raw = load_bundle(search.bundle)
    raw = Bundle(raw.network, raw.card.model_copy(update={"operating_points": {}}))
    with pytest.raises(ConfigError, match=r"comes from calibration, got none; run `ich-ray calibrate`"):
        raw.predict([scans])
    assert not out.exists()


def test_a_bundle_loads_without_ray(search: SearchFiles) -> None:
    code = (
        "import sys\nfor name in ('ray', 'sklearn', 'optuna', 'pydicom'): sys.modules[name] = None\n"
        "import ich_ray\nprint(ich_ray.load_bundle(sys.argv[1]))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(search.bundle)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "Bundle(plain_cnn, calibrated)"

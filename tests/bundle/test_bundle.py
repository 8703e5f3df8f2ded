from __future__ import annotations

import csv
import json
import pickle
import pickletools
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.bundle.batch_predict import Totals, predict
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.card import LIMITATIONS, limitations_of
from ich_ray.bundle.checklist import checklist
from ich_ray.ct import windowing
from ich_ray.ct.acquisition import Acquisition
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError, IntegrityError, Rejection
from ich_ray.statistics.metrics import Ranking
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from tests.searched import PARAMETERS, make_bundle, make_search


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
    """Files that hold the number of a slice of the dataset, read by stand-ins for slice_file.py and windowing.py."""

    def header_of(path: str) -> SimpleNamespace:
        text = Path(path).read_text()
        if not text.isdigit():
            raise Rejection("not_dicom", "no preamble")
        name = dataset.column("slice_id")[int(text)]
        ids = {"slice_id": name, "study": "s", "series": "e", "row": int(text)}
        return SimpleNamespace(**ids, rows=512, columns=512, acquisition=Acquisition(), flags=("lossy",))

    class SliceFile:
        def __init__(self, path: str, _: bool) -> None:
            self.header = header_of(path)

        def read(self, frame: int) -> SimpleNamespace:
            assert frame == 0
            return SimpleNamespace(header=self.header, row=self.header.row)

    def window_slice(found: SimpleNamespace, windows: object, size: int) -> np.ndarray:
        assert (windows, size) == (dataset.manifest.windows, dataset.manifest.size)
        return dataset.gather(np.array([found.row]))[0]

    stand_in = ModuleType("ich_ray.ct.slice_file")
    stand_in.SliceFile = SliceFile  # type: ignore[attr-defined]
    stand_in.read_headers = lambda path, _: [(0, header_of(path))]  # type: ignore[attr-defined]
    stand_in.frame_name = lambda name, _: name  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ich_ray.ct.slice_file", stand_in)
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


def test_no_pickle_and_no_path_of_this_machine(
    search: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is a length, JSON, or a number of a tensor that JSON names; and loading needs no unpickler."""
    assert sorted(path.name for path in search.bundle.iterdir()) == ["card.json", "model.safetensors", "patients.json"]
    data = (search.bundle / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8:begin])
    assert all(tensor["dtype"] in {"F32", "I64"} for tensor in tensors.values())
    spans = sorted(tensor["data_offsets"] for tensor in tensors.values())
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert begin + spans[-1][1] == len(data)
    with pytest.raises(ValueError, match=r"."):
        list(pickletools.genops(data))
    assert str(dataset.files.root) not in (search.bundle / "card.json").read_text()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a bundle was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refused)
    load_bundle(search.bundle)


def test_the_card_answers_the_guidelines_or_says_not_available(search: SearchFiles, copy: Path) -> None:
    bundle = load_bundle(copy)
    found = bundle.card.checklist
    assert all(answer.strip() for answer in found.values())
    for topic in ("Demographics: age, sex, ethnicity", "Testing on data of other sites",
                  "Performance and its uncertainty"):  # fmt: skip
        assert found[topic] == "not available"
    assert found["Data partitions, and their size"].startswith("disjoint by patient; train: 33 patients, 132 slices")
    assert "brain (40/80 HU)" in found["Preprocessing"]
    assert found["Uses of the test patients"] == "not opened"
    assert found["Selection of the model"].startswith("trial 0 of 3 in search by-hand, by average_precision")
    assert "f2: " in found["Operating points and how they were chosen"]
    figure = {"value": 0.81, "low": 0.7, "high": 0.9}
    test = {"metrics": {"average_precision": figure}, "patients": 9, "prevalence": 0.25}
    bundle.card = bundle.card.model_copy(update={"test": test, "openings": 2})
    bundle.save(copy)
    again = load_bundle(copy).card.checklist
    assert again["Performance and its uncertainty"].startswith(
        "average precision 0.810 (0.700 to 0.900) on 9 test patients, where chance gives 0.250"
    )
    assert again["Uses of the test patients"] == "opened 2 times"
    leaky = bundle.card.dataset.model_copy(update={"split": "slice"})
    again_on = "trained again on 2 folds, the best mean of 2 candidates"
    chosen = bundle.card.search.model_copy(update={"confirmed": again_on})
    update = {"dataset": leaky, "search": chosen, "site_openings": {"f00d" * 8: 1}}
    told = checklist(bundle.card.model_copy(update=update))
    assert told["Data partitions, and their size"].startswith("drawn by slice: they leak; train: ")
    assert told["Selection of the model"] == (
        f"trial 0 of 3 in search by-hand, among the best by average_precision on the validation patients; {again_on}"
    )
    by_folds = bundle.card.search.model_copy(update={"folds": 5, "repeats": 2})
    assert checklist(bundle.card.model_copy(update={"search": by_folds}))["Selection of the model"] == (
        "trial 0 of 3 in search by-hand, by average_precision by 5 folds of the train and validation patients, divided "
        "2 times"
    )
    assert "constraints" not in chosen.model_dump()
    limited = bundle.card.search.model_copy(update={"constraints": "max_parameters 5,000,000"})
    assert checklist(bundle.card.model_copy(update={"search": limited}))["Selection of the model"].endswith(
        "; of networks within max_parameters 5,000,000"
    )
    assert told["Testing on data of other sites"] == (
        f"dataset {'f00d' * 8}, opened 1 times; no figures of the present calibration"
    )


def test_the_card_says_what_it_must(search: SearchFiles, dataset: PreparedDataset) -> None:
    card = read_json(search.bundle / "card.json")
    assert card["not_a_medical_device"] is True
    assert card["dataset"]["fingerprint"] == dataset.manifest.fingerprint
    assert [window["name"] for window in card["windows"]] == ["brain", "subdural", "bone"]
    assert "Not for diagnosis" in card["intended_use"]
    assert card["search"] == {
        "name": "by-hand", "trial": 0, "trials": 3, "objective": "average_precision", "selection_value": 0.8,
        "confirmed": "", "folds": 0, "repeats": 1,
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
    found = predict(search.bundle, [scans], out)
    test = dataset.role("test")
    written = list(csv.DictReader(out.open()))
    assert list(written[0]) == [
        "file", "slice_id", "study", "probability", "decision", "operating_point", "threshold", "heatmap", "reason",
        "series", "flags",
    ]  # fmt: skip
    assert written[0]["file"].endswith("a.txt")
    assert (written[0]["reason"], written[0]["probability"], written[0]["decision"]) == ("not_dicom", "", "")
    positive = sum(row["decision"] == "positive" for row in written)
    assert [(row["series"], row["flags"]) for row in written[1:]] == [("e", "lossy")] * len(test)
    flagged = {"flagged": len(test), "flags": {"lossy": len(test)}}
    assert found == Totals(len(test) + 1, len(test), positive, rejected=1, reasons={"not_dicom": 1}, **flagged)
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


def test_a_bundle_made_again_keeps_every_opening_and_knows_its_confirmation(
    search: SearchFiles, dataset: PreparedDataset, tmp_path: Path
) -> None:
    shutil.copytree(str(search.root), tmp_path / "search")
    files = SearchFiles(locate(tmp_path / "search"))
    card = read_json(files.bundle / "card.json")
    write_json(files.bundle / "card.json", {**card, "openings": 2, "site_openings": {"f00d" * 8: 3}})
    candidate = {"trial": 0, "selection_value": 0.8, "values": [0.6, 0.7], "mean": 0.65, "spread": 0.0707}
    confirmation = {"kind": "folds", "parts": 2, "objective": {}, "chosen": 0, "candidates": [candidate]}
    write_json(files.confirmation, {**confirmation, "images": 0, "cost_gpu_s": 0.0, "created": 0.0})
    made = make_bundle(files, dataset).card
    assert (made.openings, made.site_openings) == (2, {"f00d" * 8: 3})
    calibrate(files.root)
    assert evaluate(files.root).opened == 3
    shutil.rmtree(str(files.bundle))
    assert make_bundle(files, dataset).card.openings == 3
    assert (made.search.folds, made.search.repeats) == (0, 1)
    record = read_json(files.search)
    record["space"]["objective"]["folds"] = 5
    write_json(files.search, record)
    assert make_bundle(files, dataset).card.search.judged == "by 5 folds of the train and validation patients"
    assert made.search.confirmed == (
        "trained again on 2 folds, the best mean of 1 candidates: average_precision 0.6500 (SD 0.0707)"
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "It sees one slice at a time: no neighbouring slices, no history, no earlier examination."),
        (
            {"crop": "head"},
            "It sees one slice at a time, cut to where its series shows the head: no neighbouring slices, no history, "
            "no earlier examination.",
        ),
        (
            {"crop": "head", "neighbors": 1},
            "It sees a slice with 1 on either side, cut to where its series shows the head: no others of the series, "
            "no history, no earlier examination.",
        ),
    ],
)
def test_the_first_limitation_says_what_the_network_sees(fields: dict[str, Any], said: str) -> None:
    first, *others = limitations_of(PARAMETERS.model_copy(update=fields))
    assert (first, tuple(others)) == (said, LIMITATIONS[1:])


def test_a_bundle_reduces_slices_to_its_resolution(dataset: PreparedDataset, tmp_path: Path) -> None:
    parameters = PARAMETERS.model_copy(update={"resolution": 24, "augment": 1.0})
    files = make_search(tmp_path / "search", dataset, parameters)
    make_bundle(files, dataset, parameters)
    bundle, slices = load_bundle(files.bundle), dataset.role("calibration")
    assert bundle.inputs(slices).shape == (len(slices), *dataset.image_shape)
    assert np.array_equal(bundle.logits(bundle.inputs(slices)), bundle.slice_logits(slices))
    assert Ranking(slices.labels, bundle.slice_logits(slices)).statistics()[1] > 0.7
    calibrate(files.root)
    card = load_bundle(files.bundle).card
    assert "reduced to 24 x 24 pixels by the network" in checklist(card)["Preprocessing"]
    assert card.training_data is not None
    averaged = card.model_copy(update={"training_data": card.training_data.model_copy(update={"slab_mm": 5.0})})
    assert checklist(averaged)["Preprocessing"].startswith(
        "series finer than half of 5 mm averaged in HU to slabs of 5 mm; windows brain"
    )
    beside = card.parameters.model_copy(update={"neighbors": 1, "neighbor_windows": "first"})
    told = checklist(card.model_copy(update={"parameters": beside}))["Model, its input and output"]
    assert told.startswith(
        "plain_cnn: uint8 images [5, 32, 32] (from below to above the slice, which is in the middle: 1 on either side "
        "with the window brain; where the series has none, the slice itself) to one logit"
    )

    content = read_json(files.bundle / "card.json")
    content["parameters"]["resolution"] = 33
    write_json(files.bundle / "card.json", content)
    with pytest.raises(IntegrityError, match=r"must describe a network .*, got resolution: must be at most the 32 px"):
        load_bundle(files.bundle)

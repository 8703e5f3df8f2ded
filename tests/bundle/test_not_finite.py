"""A number that is not finite, from whatever cause, is a reason and never a decision."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from ich_ray import cli
from ich_ray.assess.calibration import calibrate, fit_calibration
from ich_ray.assess.evaluate import evaluate
from ich_ray.assess.operating_points import OperatingPointSpec
from ich_ray.bundle import batch_predict, onnx_export
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.input_survey import Input
from ich_ray.bundle.logit_scaling import LogitScaling
from ich_ray.bundle.onnx_export import export_onnx
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.bundle.prediction import Predictor
from ich_ray.bundle.study_decision import StudyDecision
from ich_ray.bundle.study_prediction import GatheredStudies
from ich_ray.bundle.work_parts import as_item, single_slices
from ich_ray.ct import slice_file, windowing
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import IchRayError, IntegrityError
from ich_ray.html_report.inputs import read_predictions
from ich_ray.storage import SearchFiles, locate, read_json, sha256, write_table

PLANTED = np.array([math.nan, math.inf, -math.inf, 0.5], np.float32)


@pytest.fixture(scope="module")
def calibrated(retrained: SearchFiles, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    files = SearchFiles(locate(tmp_path_factory.mktemp("searches") / "search"))
    shutil.copytree(str(retrained.root), str(files.root))
    calibrate(files.root)
    return files


@pytest.fixture
def search(calibrated: SearchFiles, tmp_path: Path) -> SearchFiles:
    """A calibrated search that a test may break."""
    shutil.copytree(str(calibrated.root), tmp_path / "search")
    return SearchFiles(locate(tmp_path / "search"))


@pytest.fixture
def scans(dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files of one study, read by stand-ins for ct/slice_file.py and ct/windowing.py."""

    class SliceFile:
        def __init__(self, path: str, _: bool) -> None:
            self.name = Path(path).name

        def read(self, _: int) -> SimpleNamespace:
            return SimpleNamespace(header=SimpleNamespace(slice_id=self.name, study="s", series="e", flags=()))

    monkeypatch.setattr(slice_file, "SliceFile", SliceFile)
    monkeypatch.setattr(windowing, "window_slice", lambda *_: np.zeros(dataset.image_shape, np.uint8))
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in "abcd":
        (folder / name).write_text("")
    return folder


def change_card(search: SearchFiles, **values: Any) -> None:
    """As somebody else would: Python writes NaN into JSON."""
    path = Path(str(search.bundle / "card.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(search: SearchFiles, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Weights whose hash is right."""
    path = search.bundle / "model.safetensors"
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path))
    card = read_json(search.bundle / "card.json")
    change_card(search, weights={**card["weights"], "sha256": sha256(path)})


def overflow(tensors: dict[str, torch.Tensor]) -> None:
    """Finite weights whose sums are not."""
    for name, value in tensors.items():
        if name.startswith("body.head.") and value.ndim == 2:
            value.fill_(3e38)


@pytest.mark.parametrize("name", ["prior_shift", "bias", "temperature"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_card_with_such_a_number_is_refused(search: SearchFiles, scans: Path, name: str, number: float) -> None:
    change_card(search, **{name: number})
    with pytest.raises(IntegrityError, match=r"card\.json: must .*; restore the file"):
        load_bundle(search.bundle)
    out = scans.parent / "rows.csv"
    assert cli.call(["predict", str(search.bundle), str(scans), "--out", str(out)]) == 5
    assert not out.exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_with_such_a_number_are_refused_and_cost_no_opening(search: SearchFiles, number: float) -> None:
    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors["body.head.3.bias"][0] = number

    change_weights(search, plant)
    with pytest.raises(IntegrityError, match=r"safetensors: weights must be finite, got others in body\.head\.3\.bias"):
        load_bundle(search.bundle)
    for verb in ("calibrate", "evaluate"):
        assert cli.call([verb, str(search.root)]) == 5
    assert read_json(search.bundle / "card.json")["openings"] == 0


def test_only_the_slices_concerned_get_the_reason(
    search: SearchFiles, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "label_logits", lambda self, images, *_: PLANTED.copy()[:, None])
    for suffix in ("json", "csv", "parquet"):
        out = scans.parent / f"rows.{suffix}"
        assert cli.call(["predict", str(search.bundle), str(scans), "--out", str(out)]) == 3
    assert "NaN" not in (scans.parent / "rows.json").read_text()
    rows = json.loads((scans.parent / "rows.json").read_text())
    for row in rows[:3]:
        assert (row["reason"], row["probability"], row["decision"]) == ("not_finite", None, "")
        assert (row["operating_point"], row["threshold"], row["study"]) == ("", None, "s")
    probability = float(load_bundle(search.bundle).calibrated(PLANTED[3:])[0])
    assert (rows[3]["probability"], rows[3]["reason"]) == (probability, "")
    assert rows[3]["decision"] in {"positive", "negative"}


def test_by_study_such_a_file_has_a_row_of_its_own(
    search: SearchFiles, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "label_logits", lambda self, images, *_: PLANTED.copy()[:, None])
    predictor = Predictor(load_bundle(search.bundle), "f2")
    studies = GatheredStudies(StudyDecision.of_card(predictor.bundle.card, "f2"))
    for rows in predictor.stream([Input(str(path)) for path in sorted(scans.iterdir())]):
        studies.add(rows)
    assert [(Path(row.file).name, row.slices, row.reason) for row in studies.rows()] == [
        ("a", 0, "not_finite"), ("b", 0, "not_finite"), ("c", 0, "not_finite"), ("d", 1, ""),
    ]  # fmt: skip


def test_a_worker_of_ray_data_gives_the_same_rows(
    search: SearchFiles, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "label_logits", lambda self, images, *_: PLANTED.copy()[:, None])
    worker = batch_predict._Worker(batch_predict._Order(str(search.bundle), "f2", None))
    (part,) = single_slices([Input(str(path)) for path in sorted(scans.iterdir())], 4)
    found = worker(as_item(part)).to_pydict()
    assert found["reason"] == ["not_finite", "not_finite", "not_finite", ""]
    assert found["probability"][:3] == [None, None, None]


def test_no_heat_map_is_drawn_of_such_a_slice(
    search: SearchFiles, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def write(files: list[str], images: Any, probabilities: Any, threshold: float, rectangles: None) -> list[str]:
        assert rectangles is None
        assert len(images) == len(probabilities) == len(files)
        drawn.extend(files)
        return [f"{file}.png" for file in files]

    monkeypatch.setattr(Bundle, "label_logits", lambda self, images, *_: PLANTED[: len(images), None].copy())
    predictor = Predictor(load_bundle(search.bundle), "f2", SimpleNamespace(write=write))  # type: ignore[arg-type]
    inputs = [Input(str(path)) for path in sorted(scans.iterdir())]
    (rows,) = predictor.stream(inputs)
    assert drawn == [inputs[3][0]]
    assert [row.heatmap for row in rows] == ["", "", "", f"{inputs[3][0]}.png"]
    (rows,) = predictor.stream(inputs[:3])
    assert [row.reason for row in rows] == ["not_finite"] * 3


def test_a_scaling_that_leaves_float64_decides_nothing(
    search: SearchFiles, scans: Path, dataset: PreparedDataset
) -> None:
    change_card(search, temperature=1e-320)
    images = dataset.role("test").gather(np.arange(4))
    assert np.isnan(load_bundle(search.bundle).probabilities(images)).all()
    out = scans.parent / "rows.json"
    assert cli.call(["predict", str(search.bundle), str(scans), "--out", str(out)]) == 3
    assert {row["reason"] for row in json.loads(out.read_text())} == {"not_finite"}
    with pytest.raises(IchRayError, match="must be finite, got others for a black, a white and a random image"):
        evaluate(search.root)
    assert read_json(search.bundle / "card.json")["openings"] == 0
    calibrate(search.root)  # fits another scaling to logits that are sound
    assert evaluate(search.root).opened == 1


def test_logits_that_overflow_stop_calibration_and_evaluation(search: SearchFiles, tmp_path: Path) -> None:
    change_weights(search, overflow)
    before = (search.bundle / "card.json").read_bytes()
    with pytest.raises(IchRayError, match=r"must be finite, got \d+ of 36 slices .* in row \d+ of slices\.p"):
        calibrate(search.root)
    with pytest.raises(IchRayError, match="must be finite, got others for a black, a white and a random image"):
        evaluate(search.root)
    with pytest.raises(IchRayError, match="must be finite, got others for a black, a white and a random image"):
        export_onnx(search.bundle, tmp_path / "model.onnx")
    assert (search.bundle / "card.json").read_bytes() == before
    assert not (tmp_path / "model.onnx").exists()


def test_a_probability_that_fails_for_test_slices_only_is_named_by_row_and_pseudonym(
    search: SearchFiles, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, slices = load_bundle(search.bundle), dataset.role("test")
    logits = np.zeros(len(slices), np.float32)
    logits[5] = math.inf
    monkeypatch.setattr("ich_ray.bundle.bundle.predict_logits", lambda *_: logits)
    named = rf"got 1 of 36 slices .* row {slices.rows[5]} of .* \(patient {slices.patients[5]}, logit inf\)"
    with pytest.raises(IchRayError, match=named):
        bundle.slice_probabilities(slices)


def test_an_exported_graph_has_no_probability_of_such_a_logit() -> None:
    module = onnx_export._WithProbability(torch.nn.Identity(), [LogitScaling(0.5, 2.0, -0.1)])
    _, probabilities = module(torch.tensor(PLANTED))
    assert torch.isnan(probabilities[:3]).all()
    assert probabilities[3].item() == pytest.approx(1 / (1 + math.exp(-0.4)))


@pytest.mark.parametrize(
    "numbers",
    [(math.nan, 1.0, 0.0), (0.0, math.nan, 0.0), (0.0, 1.0, -math.inf), (0.0, math.inf, 0.0), (0.0, 0.0, 0.0),
     (0.0, -1.0, 0.0)],
)  # fmt: skip
def test_a_scaling_has_finite_numbers_and_a_positive_temperature(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(IchRayError, match="temperature > 0 and finite numbers must hold, got temperature"):
        LogitScaling(*numbers)


def test_scaling_gives_no_probability_of_an_infinity() -> None:
    assert np.isnan(LogitScaling()(PLANTED)).tolist() == [True, True, True, False]
    assert LogitScaling(1e300, 1e-300)(np.array([0.5])).tolist() == pytest.approx([math.nan], nan_ok=True)
    assert LogitScaling(temperature=1e-3)(np.array([-9.0, 9.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -0.1, 1.1])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(ValidationError, match="threshold"):
        OperatingPoint(threshold=threshold, sensitivity=None, specificity=None, ppv=None, f2=None)


@pytest.mark.parametrize(
    ("name", "values"),
    [("probability", [math.nan, 0.5, 0.5]), ("probability", [0.5, 1.5, 0.5]), ("probability", [None, 0.5, 0.5]),
     ("label", [0, 2, 1]), ("label", ["a", "b", "c"])],
)  # fmt: skip
def test_a_report_shows_no_prediction_that_is_none(tmp_path: Path, name: str, values: list[Any]) -> None:
    file = locate(tmp_path / "predictions.parquet")
    table = {"slice_id": ["a", "b", "c"], "patient": ["p"] * 3, "label": [0, 1, 1], "probability": [0.1, 0.2, 1.0]}
    write_table(file, pa.table(table))
    found = read_predictions(file, 3)
    assert found is not None
    assert found.probabilities.tolist() == [0.1, 0.2, 1.0]
    write_table(file, pa.table({**table, name: values}))
    with pytest.raises(IntegrityError, match=r"predictions\.parquet: (labels of 0 and 1 and|must hold slice_id)"):
        read_predictions(file, 3)
    with pytest.raises(IntegrityError, match=r"predictions\.parquet: must be a Parquet file, got 3 rows in place of 4"):
        read_predictions(file, 4)


def test_recalibration_stops_where_the_calibration_before_gives_no_probability(dataset: PreparedDataset) -> None:
    slices = dataset.role("calibration")
    logits = np.linspace(-3, 3, len(slices), dtype=np.float32)
    with pytest.raises(IchRayError, match=r"the one before must give every slice a probability, got \d+ of 36 without"):
        fit_calibration(slices, logits, LogitScaling(temperature=1e-320), "platt", 0.0, OperatingPointSpec())

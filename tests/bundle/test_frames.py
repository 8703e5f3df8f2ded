"""Enhanced CT through `predict`: a row for each frame, equal to that of its classic file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from ich_ray.bundle import prediction
from ich_ray.bundle.batch_predict import predict
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.input_survey import Input, read_facts, survey_inputs
from ich_ray.bundle.prediction import Prediction
from ich_ray.ct import slice_file
from tests.ct.enhanced import UID, enhanced, frame_changed
from tests.ct.files import head, make
from tests.searched import calibrated_bundle

FRAMES = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_bundle(tmp_path_factory.mktemp("home"))


def slices() -> list[bytes]:
    return [
        make(head(32, 32, seed=number), SOPInstanceUID=f"1.2.3.{number + 1}", ImagePositionPatient=[0, 0, 5.0 * number])
        for number in range(FRAMES)
    ]


def series(edit: Callable[[Dataset], None] | None = None) -> bytes:
    return enhanced(slices(), edit=edit)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.dcm").write_bytes(series())
    return tmp_path / "scans"


def rows_of(path: Path) -> list[Prediction]:
    return [Prediction(**row) for row in json.loads(path.read_text())]


@pytest.mark.parametrize("batch", [64, 2])
def test_frames_have_the_rows_of_their_classic_files(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(prediction, "EVALUATION_BATCH", batch)
    (tmp_path / "classic").mkdir()
    for number, data in enumerate(slices(), 1):
        (tmp_path / "classic" / f"{number}.dcm").write_bytes(data)
    found = predict(bundle, [scans], tmp_path / "found.json", heatmaps=tmp_path / "maps")
    classic = predict(bundle, [tmp_path / "classic"], tmp_path / "classic.json")
    assert found == classic
    one, other = rows_of(tmp_path / "found.json"), rows_of(tmp_path / "classic.json")
    assert [row.file for row in one] == [f"{scans}/a.dcm#{frame}" for frame in range(1, FRAMES + 1)]
    assert [row.slice_id for row in one] == [f"{UID}#{frame}" for frame in range(1, FRAMES + 1)]
    assert len({Path(row.heatmap) for row in one}) == len([*(tmp_path / "maps").iterdir()]) == FRAMES
    names = {"file": "", "slice_id": "", "heatmap": ""}
    assert [replace(row, **names) for row in one] == [
        replace(row, **names, probability=pytest.approx(row.probability, abs=1e-6)) for row in other
    ]


def test_by_study_frames_are_its_slices(bundle: Path, scans: Path, tmp_path: Path) -> None:
    predict(bundle, [scans], tmp_path / "out.json", by="study")
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert (row["study"], row["slices"], row["series"]) == ("ID_study", FRAMES, 1)
    assert row["file"].startswith(f"{scans}/a.dcm#")


def test_a_frame_or_a_file_that_is_refused_has_its_row(bundle: Path, scans: Path) -> None:
    coronal = frame_changed(3, "PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])

    def edit(file: Dataset) -> None:
        coronal(file)
        frame_changed(2, "PixelValueTransformationSequence", RescaleSlope=None)(file)

    (scans / "a.dcm").write_bytes(series(edit))
    (scans / "b.dcm").write_bytes(series(lambda file: setattr(file, "NumberOfFrames", 4)))
    (scans / "c.dcm").write_bytes(make(NumberOfFrames=3))
    rows = load_bundle(bundle).predict([scans])
    assert [(Path(row.file).name, row.reason) for row in rows] == [
        ("a.dcm#1", ""),
        ("a.dcm#2", "rescale_missing"),
        ("a.dcm#3", "not_axial"),
        ("a.dcm#4", ""),
        ("a.dcm#5", ""),
        ("b.dcm", "frames_invalid"),
        ("c.dcm", "multiframe"),
    ]


@pytest.mark.parametrize("damage", [0, 1000])
def test_a_file_is_opened_once_a_batch(bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, damage: int) -> None:
    """A damaged one, too: each frame of thousands would read the whole file again."""
    opened = []
    data = series()
    (scans / "a.dcm").write_bytes(data[: len(data) - damage])

    class Spy(slice_file.SliceFile):
        def __init__(self, source: str, without_preamble: bool) -> None:
            opened.append(Path(source).name)
            super().__init__(source, without_preamble)

    (scans / "b.dcm").write_bytes(slices()[0])
    monkeypatch.setattr(slice_file, "SliceFile", Spy)
    assert len(load_bundle(bundle).predict([scans])) == FRAMES + 1
    assert opened == ["a.dcm", "b.dcm"]


def test_frames_are_judged_by_their_series(scans: Path) -> None:
    same = [0.0, 0.0, 5.0]
    (scans / "a.dcm").write_bytes(series(frame_changed(1, "PlanePositionSequence", ImagePositionPatient=same)))
    inputs = [Input("nothing", "path_escape"), Input(str(scans / "a.dcm"))]
    found = survey_inputs(inputs, [read_facts(inputs)], None).inputs
    assert found[0] == inputs[0]
    assert [(given.frame, given.flags) for given in found[1:]] == [
        (1, "repeated_position"), (2, "repeated_position"), (3, ""), (4, ""), (5, ""),
    ]  # fmt: skip

"""Series thinner than those that trained a bundle are averaged to slabs as thick, unless one asks for them as are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ich_ray import cli
from ich_ray.bundle import prediction
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.input_survey import Survey, read_facts, survey_inputs
from ich_ray.bundle.prediction import Prediction, Predictor, list_inputs
from ich_ray.bundle.series_reading import SliceReader
from ich_ray.bundle.training_data import Distribution, TrainingData
from ich_ray.bundle.work_parts import Part, as_item, part_of
from ich_ray.ct.slabs import SlabRule
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.prepare.chunk_slices import packed, unpacked
from ich_ray.data.prepare.decode_chunk import ChunkJob
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.data.prepare.thin_series import read_places, thin_series
from ich_ray.storage import locate
from tests.bundle.test_predict_series import SIZE, make_bundle, probabilities
from tests.ct.enhanced import enhanced
from tests.ct.files import head, make

WINDOWS = parse_windows(DEFAULT_WINDOWS)
THIN, THICK = 23, 5


def distribution(median: float) -> Distribution:
    return Distribution(slices=100, p1=median, p5=median, median=median, p95=median, p99=median)


def trained(thickness_mm: float | None = 5, spacing_mm: float | None = 5) -> TrainingData:
    thickness, spacing = (None if value is None else distribution(value) for value in (thickness_mm, spacing_mm))
    return TrainingData(slices=100, thickness_mm=thickness, slice_spacing_mm=spacing)


def image(series: str, number: int) -> NDArray[np.int16]:
    return head(SIZE, SIZE, seed=ord(series) + number) + number


def content(series: str, number: int, step_mm: float, **tags: Any) -> bytes:
    ids = {"SOPInstanceUID": f"1.2.{ord(series)}.{number + 1}", "SeriesInstanceUID": series, "StudyInstanceUID": "st"}
    taken = {"ImagePositionPatient": [-125.0, -125.0, 30 + step_mm * number], "SliceThickness": step_mm}
    return make(image(series, number), **{**ids, **taken, **tags})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A series of 1 mm, numbered from the vertex down in names of files, and one of 5 mm."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(THIN):
        (folder / f"{THIN - number:02d}a.dcm").write_bytes(content("a", number, 1.0))
    for number in range(THICK):
        (folder / f"{number:02d}b.dcm").write_bytes(content("b", number, 5.0))
    return folder


def bundle(folder: Path, training: TrainingData | None = None, **fields: Any) -> Path:
    return make_bundle(folder, **fields) if training is None else with_training(make_bundle(folder, **fields), training)


def with_training(folder: Path, training: TrainingData) -> Path:
    loaded = load_bundle(folder)
    type(loaded)(loaded.network, loaded.card.model_copy(update={"training_data": training})).save(folder)
    return folder


def surveyed(paths: list[Path], training: TrainingData | None, average: bool = True) -> Survey:
    inputs = list_inputs(paths)
    return survey_inputs(inputs, [read_facts(inputs)], training, average)


def seen(found: Path, paths: list[Path]) -> dict[str, tuple[Prediction, tuple[NDArray[np.uint8], ...]]]:
    """The row and the images of each slice by its file, read from parts that have travelled through Arrow."""
    loaded = load_bundle(found)
    predictor, survey = Predictor(loaded, "f2"), surveyed(paths, loaded.card.training_data)
    result = {}
    for part in predictor.parts(survey.inputs, survey.table, survey.slabs):
        for batch in predictor.read(travelled(part)):
            given = iter(batch.images)
            result.update({row.file: (row, () if row.reason else tuple(next(given))) for row in batch.rows})
    return result


def travelled(part: Part) -> Part:
    (item,) = pa.Table.from_pylist([as_item(part)]).to_pylist()
    return part_of(item)


def windowed(hu: NDArray[Any]) -> NDArray[np.float64]:
    edges = [(window.center_hu - window.width_hu / 2, window.width_hu) for window in WINDOWS]
    return np.stack([255 * np.clip((hu - low) / width, 0, 1) for low, width in edges])


def slab(number: int) -> NDArray[np.float64]:
    """The mean in HU around a slice of the series of 1 mm, seen through the windows."""
    inside = range(max(number - 2, 0), min(number + 3, THIN))
    return windowed(np.mean([image("a", other) for other in inside], 0))


def assert_is(found: NDArray[np.uint8], expected: NDArray[np.float64]) -> None:
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("neighbors", "crop"), [(0, "none"), (2, "none"), (1, "head")])
def test_slices_of_a_thin_series_are_averaged_and_neighbors_lie_at_the_distance_of_training(
    scans: Path, tmp_path: Path, neighbors: int, crop: str
) -> None:
    found = seen(bundle(tmp_path / "bundle", trained(), neighbors=neighbors, crop=crop), [scans])
    assert len(found) == THIN + THICK
    for number in range(THIN):
        row, images = found[str(scans / f"{THIN - number:02d}a.dcm")]
        assert "slab" in row.flags.split(",")
        assert "neighbor_missing" not in row.flags.split(",")
        beside = [number + 5 * offset for offset in range(-neighbors, neighbors + 1)]
        for one, other in zip(images, beside, strict=True):
            assert_is(one, slab(other if 0 <= other < THIN else number))
    for number in range(THICK):
        row, images = found[str(scans / f"{number:02d}b.dcm")]
        assert not {"slab", "no_slab"} & {*row.flags.split(",")}
        assert_is(images[neighbors], windowed(image("b", number)))


def test_prepare_and_predict_make_the_same_slabs_of_places_that_float32_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "key"))
    (tmp_path / "scans").mkdir()
    for number in range(THIN):
        place = [-124.7, -133.3, round(-211.73 + 0.7 * number, 4)]
        data = content("a", number, 0.7, ImagePositionPatient=place, PatientID="p")
        (tmp_path / "scans" / f"{number:02d}.dcm").write_bytes(data)
    predictor = Predictor(load_bundle(bundle(tmp_path / "bundle", trained())), "f2")
    survey = surveyed([tmp_path / "scans"], trained())
    (part,) = predictor.parts(survey.inputs, survey.table, survey.slabs)
    (series,) = travelled(part).series()
    assert series.slabs is not None
    names = [Path(one.file).name for one in series.inputs]
    predicted = {
        names[row]: [(names[member], weight) for member, weight in series.slabs.around(row)] for row in range(THIN)
    }
    job = ChunkJob(locate(tmp_path / "scans"), locate(tmp_path), WINDOWS, SIZE, Pseudonyms.load(), "", slab_mm=5)
    prepared = unpacked(packed(thin_series(read_places(job, sorted(names)), sorted(names), 5).of(names)))
    found = {center: [(file, weight) for (file, _), weight in slab] for (center, _), slab in prepared.items()}
    assert found == predicted


def test_frames_of_one_file_are_averaged_as_their_classic_files(scans: Path, tmp_path: Path) -> None:
    found = bundle(tmp_path / "bundle", trained())
    (tmp_path / "enhanced.dcm").write_bytes(enhanced([content("a", number, 1.0) for number in range(THIN)]))
    frames = seen(found, [tmp_path / "enhanced.dcm"])
    for number in range(THIN):
        row, (pixels,) = frames[f"{tmp_path}/enhanced.dcm#{number + 1}"]
        assert "slab" in row.flags.split(",")
        assert_is(pixels, slab(number))


def test_in_batches_each_slice_is_read_once_and_with_neighbors_not_many_more_times(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    plain = SliceReader.read

    def counted(*arguments: Any) -> Any:
        nonlocal read
        read += 1
        return plain(*arguments)

    monkeypatch.setattr(SliceReader, "read", counted)
    monkeypatch.setattr(prediction, "EVALUATION_BATCH", 4)
    once = THIN + THICK
    for name, fields, most in [("a", {}, once), ("b", {"neighbors": 1}, once + 5 + 4), ("c", {"crop": "head"}, once)]:
        read = 0
        rows = load_bundle(bundle(tmp_path / name, trained(), **fields)).predict([scans])
        assert sum("slab" in row.flags.split(",") for row in rows) == THIN
        assert read <= most


def test_a_slice_that_cannot_be_read_has_its_reason_and_slabs_do_without(scans: Path, tmp_path: Path) -> None:
    broken = scans / f"{THIN - 7:02d}a.dcm"
    broken.write_bytes(content("a", 7, 1.0, PixelData=b""))
    found = seen(bundle(tmp_path / "bundle", trained()), [scans])
    assert found[str(broken)][0].reason == "no_pixel"
    _, (pixels,) = found[str(scans / f"{THIN - 8:02d}a.dcm")]
    assert_is(pixels, windowed(np.mean([image("a", number) for number in (6, 8, 9, 10)], 0)))


def test_what_is_averaged_is_said_and_counted_and_can_be_left(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "predict",
        str(bundle(tmp_path / "bundle", trained())),
        str(scans),
        "--out",
        str(tmp_path / "out.json"),
    ]
    assert cli.call(arguments) == 0
    shown = capsys.readouterr()
    averaged = [row["probability"] for row in json.loads((tmp_path / "out.json").read_text())]
    assert f"slab {THIN}" in shown.out
    assert "far_" not in shown.out
    assert surveyed([scans], trained()).notes[1:] == (
        "1 of 2 series are finer than the training data: their slices are averaged to slabs of 5 mm, with "
        "neighbors at 5 mm; with --no-slabs they are not",
    )
    assert surveyed([scans], trained(), average=False).slabs is None
    assert cli.call([*arguments, "--no-slabs"]) == 0
    shown = capsys.readouterr()
    assert "slab" not in shown.out.replace(str(tmp_path), "")
    assert f"far_spacing {THIN}" in shown.out
    plain = [row["probability"] for row in json.loads((tmp_path / "out.json").read_text())]
    thin = [path.stem.endswith("a") for path in sorted(scans.iterdir())]
    assert (np.abs(np.subtract(averaged, plain)) > 1e-6).tolist() == thin


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            None,
            "how the slices that trained it were taken: what is unlike them is not flagged, nor averaged where it is ",
        ),
        (trained(None, None), "kernel, matrix: what is unlike them is not flagged, nor averaged where it is thinner"),
    ],
    ids=["no record", "neither thickness nor spacing"],
)
def test_a_card_that_does_not_say_how_thick_slices_were_averages_none(
    scans: Path, tmp_path: Path, training: TrainingData | None, said: str
) -> None:
    survey = surveyed([scans], training)
    assert (survey.slabs, len(survey.notes)) == (None, 1)
    assert said in survey.notes[0]
    found = bundle(tmp_path / "bundle", training)
    rows = load_bundle(found).predict([scans])
    assert probabilities(rows) == probabilities(load_bundle(found).predict([scans], slabs=False))
    assert not [row for row in rows if "slab" in row.flags]


def test_where_one_of_thickness_and_spacing_is_known_it_stands_for_both() -> None:
    for training in (trained(5, None), trained(None, 5)):
        rule = training.slab_rule
        assert rule is not None
        assert (rule.thickness_mm, rule.spacing_mm) == (5, 5)
    rule = trained(3, 5).slab_rule
    assert rule is not None
    assert (rule.thickness_mm, rule.spacing_mm) == (3, 5)
    assert trained(0, 5).slab_rule is None
    assert trained(5, 100).slab_rule is None


@pytest.mark.parametrize(
    ("p5_mm", "slab_mm", "averaged"), [(5, 0, True), (1.25, 0, True), (1.0, 0, False), (1.0, 5, True)]
)
def test_what_training_saw_as_it_is_stays_so_unless_its_dataset_was_averaged(
    scans: Path, p5_mm: float, slab_mm: float, averaged: bool
) -> None:
    """The series of 1 mm beside training data of 5 mm that may have a tail of thin ones."""
    tail = Distribution(slices=100, p1=min(p5_mm, 1), p5=p5_mm, median=5, p95=5, p99=5)
    training = TrainingData(slices=100, thickness_mm=tail, slice_spacing_mm=tail, slab_mm=slab_mm)
    assert (surveyed([scans], training).slabs is not None) == averaged


def test_headers_that_say_a_thickness_of_0_are_no_slices_that_training_saw(scans: Path) -> None:
    said = Distribution(slices=100, p1=0, p5=0, median=5, p95=5, p99=5)
    training = TrainingData(slices=100, thickness_mm=said, slice_spacing_mm=distribution(5))
    assert surveyed([scans], training).slabs is not None


def test_slabs_of_the_dataset_are_those_of_predict_whatever_the_medians_are(scans: Path) -> None:
    training = TrainingData(slices=100, thickness_mm=distribution(3), slice_spacing_mm=distribution(3), slab_mm=5)
    assert training.slab_rule == SlabRule(5, 5)
    slabs = surveyed([scans], training).slabs
    assert slabs is not None
    assert int(slabs.counts.max()) == 5


def test_a_lone_slice_of_a_thin_series_stays_as_it_is(scans: Path, tmp_path: Path) -> None:
    found = bundle(tmp_path / "bundle", trained(), neighbors=1)
    (row,) = load_bundle(found).predict([scans / "05a.dcm"])
    assert {"neighbors_unknown"} <= {*row.flags.split(",")}
    assert "slab" not in row.flags

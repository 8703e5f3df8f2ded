"""Whole series through `predict` with a bundle that sees neighbors: the inputs of the same slices of a dataset."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ich_ray import cli, progress
from ich_ray.bundle import batch_predict, prediction
from ich_ray.bundle.batch_predict import predict
from ich_ray.bundle.bundle import WEIGHTS_FILE, Bundle, load_bundle
from ich_ray.bundle.card import Card
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.bundle.prediction import Prediction
from ich_ray.ct import windowing
from ich_ray.ct.dicom import read_slice
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows, window_slice
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from tests.ct.enhanced import enhanced
from tests.ct.files import ABSENT, head, make
from tests.prepared import make_dataset
from tests.records import make_card
from tests.sequence_bundles import add_sequence

SIZE = 32
SEEN = [{"neighbors": 1}, {"neighbors": 2, "neighbor_windows": "first", "labels": "all"}]


def make_bundle(folder: Path, **fields: Any) -> Path:
    """A calibrated one whose weights are drawn and not trained."""
    parameters = Hyperparameters.model_validate({"filters": 4, "dense": 8, **fields})
    point = OperatingPoint(threshold=0.5, sensitivity=None, specificity=None, ppv=None, f2=None)
    held = {"size": SIZE, "image_shape": [3, SIZE, SIZE], "windows": parse_windows(DEFAULT_WINDOWS)}
    told = {"parameters": parameters, "operating_points": {"f2": point}}
    card = Card.model_validate(make_card(**held, **told))
    torch.manual_seed(0)
    Bundle(build_network(parameters, card.image_shape), card).save(folder)
    assert (folder / WEIGHTS_FILE).exists()
    return folder


@pytest.fixture(scope="module", params=SEEN, ids=["one", "two"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), **request.param)


def write(folder: Path, name: str, place_mm: float | None, series: str = "a", **tags: Any) -> Path:
    folder.mkdir(exist_ok=True)
    where = ABSENT if place_mm is None else [-125.0, -125.0, place_mm]
    ids = {"SOPInstanceUID": name, "SeriesInstanceUID": series, "StudyInstanceUID": "study"}
    path = folder / f"{name}.dcm"
    path.write_bytes(make(head(SIZE, SIZE, seed=sum(name.encode())), ImagePositionPatient=where, **{**ids, **tags}))
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two series whose names alternate, one with a gap and a repeated place, one with an unknown place; a lone one."""
    folder = tmp_path / "scans"
    places_mm = [20, 5, 0, 10, 15, 15, 45, 50, 55]
    for number, place_mm in enumerate(places_mm):
        write(folder, f"{number}a", place_mm)
    for number, place in enumerate([0, 2.5, None, 5, 7.5]):
        write(folder, f"{number}b", place, "b")
    write(folder, "9c", 0, "c")
    return folder


def dataset_of(folder: Path, files: list[Path], images_of: list[NDArray[np.uint8]] | None = None) -> PreparedDataset:
    """A dataset with the slices of these files in its rows, or other images, and in others of other series."""
    slices = [read_slice(file.read_bytes()) for file in files]
    windows = parse_windows(DEFAULT_WINDOWS)
    images = np.stack(images_of or [window_slice(found, windows, SIZE) for found in slices])
    spare = -len(files) % 4 + 4
    made = make_dataset(folder, (len(files) + spare) // 4, SIZE, images=np.concatenate([images, images[:spare]]))
    columns = {
        "slice_id": [found.header.slice_id for found in slices],
        "series": [found.header.series for found in slices],
        "study": [found.header.study for found in slices],
        "position_mm": pa.array([found.header.acquisition.position_mm for found in slices], pa.float32()),
        "patient": ["p"] * len(files),
    }
    table = pq.read_table(str(made.files.slices))
    for name, values in columns.items():
        both = pa.concat_arrays([pa.array(values), table[name].combine_chunks()[len(files) :]])
        table = table.set_column(table.schema.get_field_index(name), name, both)
    pq.write_table(table, str(made.files.slices))
    return PreparedDataset.open(folder)


def expected(bundle: Path, folder: Path, files: list[Path]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Inputs and probabilities of the same slices, as `evaluate` computes them."""
    rows, loaded = SliceSet(dataset_of(folder, files), np.arange(len(files))), load_bundle(bundle)
    return loaded.inputs(rows), loaded.slice_label_probabilities(rows)


def probabilities(rows: list[Prediction]) -> list[list[float]]:
    subtypes = [name for name in prediction.SUBTYPE_COLUMNS if hasattr(rows[0], name)]
    return [[getattr(row, name) for name in (*subtypes, "probability")] for row in rows]


def rows_of(path: Path, bundle: Path) -> list[Prediction]:
    kind = prediction.Predictor(load_bundle(bundle), "f2").kind
    return [kind(**row) for row in json.loads(path.read_text())]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_series_has_the_inputs_and_probabilities_of_its_slices_in_a_dataset(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In whatever order its files are given, and beside those of others."""
    files = sorted(scans.iterdir())
    files = [files[place] for place in np.random.default_rng(seed).permutation(len(files))]
    inputs, told = expected(bundle, tmp_path / "dataset", files)
    given: dict[bytes, int] = {}
    plain = Bundle.label_logits

    def spy(self: Bundle, images: NDArray[np.uint8], rectangles: None = None) -> NDArray[np.float32]:
        for image in images:
            given[image.tobytes()] = given.get(image.tobytes(), 0) + 1
        return plain(self, images, rectangles)

    monkeypatch.setattr(Bundle, "label_logits", spy)
    rows = load_bundle(bundle).predict(files)
    assert [Path(row.file) for row in rows] == files
    assert given == {image.tobytes(): 1 for image in inputs}
    np.testing.assert_allclose(probabilities(rows), told, atol=1e-6)


def test_what_a_slice_lacks_is_among_its_flags_and_counted(
    bundle: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "page.dcm").write_text("<html>")
    write(scans, "9b", 10, "b", PixelData=b"")
    assert cli.call(["predict", str(bundle), str(scans), "--out", str(tmp_path / "out.json")]) == 3
    rows = {Path(row.file).stem: row for row in rows_of(tmp_path / "out.json", bundle)}
    assert {name: row.reason for name, row in rows.items() if row.reason} == {"9b": "no_pixel", "page": "not_dicom"}
    far = {1: ["0a", "6a"], 2: ["0a", "4a", "5a", "6a", "7a"]}
    rejected = {1: ["4b"], 2: ["3b", "4b"]}
    neighbors = load_bundle(bundle).card.parameters.neighbors
    flagged = {
        flag: sorted(name for name, row in rows.items() if flag in row.flags.split(","))
        for flag in ("neighbor_missing", "neighbors_unknown")
    }
    assert flagged == {
        "neighbor_missing": sorted([*far[neighbors], *rejected[neighbors]]),
        "neighbors_unknown": ["2b", "9c"],
    }
    said = capsys.readouterr().out
    assert f"neighbor_missing {len(flagged['neighbor_missing'])}" in said
    assert "neighbors_unknown 2" in said


def test_what_is_alone_is_said_before_anything_is_decoded(
    bundle: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction.Predictor, "rows", stop)
    neighbors = load_bundle(bundle).card.parameters.neighbors
    for paths, count in (([scans], "2 of 15"), ([scans / "3a.dcm"], "1 of 1")):
        progress.show()
        try:
            with pytest.raises(KeyboardInterrupt):
                predict(bundle, [*paths], tmp_path / "out.json")
        finally:
            progress.show(False)
        assert (
            f"neighbors: {neighbors} must lie on either side of a slice, got {count} slices without any: each stands "
            "in for its own and is flagged neighbors_unknown; give the whole series of such a file"
        ) in capsys.readouterr().err


def test_a_neighbor_that_cannot_be_read_is_as_absent_as_in_a_dataset(bundle: Path, scans: Path, tmp_path: Path) -> None:
    """Its reason stands in its row; those beside it see the next ones."""
    for name in ("1a", "3b"):
        write(scans, name, 5, name[1], PixelData=b"")
    files = sorted(path for path in scans.iterdir() if path.stem not in {"1a", "3b"})
    _, told = expected(bundle, tmp_path / "dataset", files)
    rows = load_bundle(bundle).predict([scans])
    assert {row.reason for row in rows} == {"", "no_pixel"}
    np.testing.assert_allclose(probabilities([row for row in rows if not row.reason]), told, atol=1e-6)


def test_a_lone_file_stands_in_for_its_neighbors(bundle: Path, scans: Path) -> None:
    loaded = load_bundle(bundle)
    (row,) = loaded.predict([scans / "3a.dcm"])
    card = loaded.card
    image = window_slice(read_slice((scans / "3a.dcm").read_bytes()), card.windows, SIZE)
    beside = image if card.parameters.neighbors == 1 else np.concatenate([image[:1]] * 2)
    (found,) = loaded.label_probabilities(np.concatenate([beside, image, beside])[None])
    assert probabilities([row])[0] == pytest.approx(found, abs=1e-6)
    assert "neighbors_unknown" in row.flags.split(",")


def test_frames_of_an_enhanced_file_see_each_other(bundle: Path, scans: Path, tmp_path: Path) -> None:
    files = sorted(scans.glob("?a.dcm"))[:6]
    (tmp_path / "enhanced.dcm").write_bytes(enhanced([file.read_bytes() for file in files]))
    rows, classic = (load_bundle(bundle).predict(paths) for paths in ([tmp_path / "enhanced.dcm"], files))
    assert [row.file for row in rows] == [f"{tmp_path}/enhanced.dcm#{frame}" for frame in range(1, 7)]
    np.testing.assert_allclose(probabilities(rows), probabilities(classic), atol=1e-6)
    assert [row.flags for row in rows] == [row.flags for row in classic]


def test_a_study_is_as_probable_as_the_most_probable_slice_of_its_answering_series(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    rows = load_bundle(bundle).predict([scans])
    found = predict(bundle, [scans], tmp_path / "out.json", by="study")
    (study,) = json.loads((tmp_path / "out.json").read_text())
    assert (found.cases, study["slices"], study["series"]) == (1, 15, 3)
    answering = [row.probability or 0 for row in rows if row.series == study["answering_series"]]
    assert study["probability"] == pytest.approx(max(answering), abs=1e-6)
    assert len(answering) == max(Counter(row.series for row in rows).values())
    assert {"neighbor_missing", "neighbors_unknown"} <= {*study["flags"].split(",")}


def test_on_several_threads_and_in_several_batches_the_rows_are_the_same(
    bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_bundle(bundle).predict([scans])
    monkeypatch.setattr(prediction, "EVALUATION_BATCH", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = load_bundle(bundle).predict([scans])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(probabilities(found), probabilities(whole), atol=1e-6)
    assert [(row.file, row.flags) for row in found] == [(row.file, row.flags) for row in whole]


@pytest.mark.parametrize("slices", [20, 60])
def test_each_slice_is_decoded_once_and_few_are_in_memory(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    """A batch, and what lies around the next one, however long a series is and how many there are."""
    alive = most = decoded = 0

    def over() -> None:
        nonlocal alive
        alive -= 1

    def counted(*arguments: Any) -> NDArray[np.uint8]:
        nonlocal alive, most, decoded
        image = window_slice(*arguments)
        weakref.finalize(image, over)
        alive, decoded = alive + 1, decoded + 1
        most = max(most, alive)
        return image

    for name in "abc":
        for number in range(slices):
            write(tmp_path / "scans", f"{number:02d}{name}", 5.0 * number, name)
    monkeypatch.setattr(windowing, "window_slice", counted)
    monkeypatch.setattr(prediction, "EVALUATION_BATCH", 4)
    assert len(load_bundle(bundle).predict([tmp_path / "scans"])) == 3 * slices
    assert decoded == 3 * slices
    assert most <= 4 + 2 * 2 + 1 + 4  # the batch before is forgotten when the next is whole


def test_heat_maps_are_of_the_slice_itself(bundle: Path, scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    predict(bundle, [scans], tmp_path / "out.json", heatmaps=tmp_path / "maps")
    assert len([*(tmp_path / "maps").iterdir()]) == 15
    for row in rows_of(tmp_path / "out.json", bundle):
        picture = np.asarray(Image.open(row.heatmap))[::8, :256:8, 0]
        shown = window_slice(read_slice(Path(row.file).read_bytes()), parse_windows(DEFAULT_WINDOWS), SIZE)
        assert np.array_equal(picture, shown[0])


@pytest.mark.slow
def test_ray_data_gives_the_rows_of_whole_series_and_of_frames(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a network that sees neighbors, and by a sequence model behind it."""
    files = sorted(scans.glob("?b.dcm"))
    (scans / "enhanced.dcm").write_bytes(enhanced([file.read_bytes() for file in files if file.stem != "2b"]))
    seeing = add_sequence(make_bundle(tmp_path / "bundle", neighbors=1))
    here = predict(seeing, [scans], tmp_path / "here.json")
    monkeypatch.setattr(batch_predict, "_WORTH_RAY", 1)
    monkeypatch.setattr(prediction, "EVALUATION_BATCH", 4)
    assert predict(seeing, [scans], tmp_path / "there.json") == here
    one, other = (rows_of(tmp_path / f"{name}.json", seeing) for name in ("here", "there"))
    assert [replace(row, probability=None) for row in one] == [replace(row, probability=None) for row in other]
    assert [row.file.rpartition("#")[2] for row in one[-4:]] == ["1", "2", "3", "4"]
    np.testing.assert_allclose(probabilities(one), probabilities(other), atol=1e-6)

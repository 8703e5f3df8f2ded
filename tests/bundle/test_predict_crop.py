"""Whole series through `predict` with bundles that see a part of each image: as `evaluate` shows the same slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ich_ray.bundle import series_reading
from ich_ray.bundle.batch_predict import predict
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.prediction import Prediction
from ich_ray.ct import slice_file
from ich_ray.ct.dicom import read_slice
from ich_ray.ct.head_box import head_box, side_mm
from ich_ray.ct.windowing import window_slice
from ich_ray.data.dataset import SliceSet
from tests.bundle.test_predict_series import dataset_of, make_bundle, rows_of
from tests.ct.files import ABSENT, head, make
from tests.prepared import with_views

SEEN: list[dict[str, Any]] = [
    {"crop": "head", "resolution": 24},
    {"scale": "mm", "labels": "all"},
    {"crop": "head", "scale": "mm", "neighbors": 1},
]


@pytest.fixture(scope="module", params=SEEN, ids=["crop", "mm", "both"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), **request.param)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two series whose files alternate, in fields of 200 and 400 mm; one slice has no head, another stands alone."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(5):
        write(folder, f"{number}a", 5.0 * number, "a", (10 + 2 * number, 6), 40)
        write(folder, f"{number}b", 5.0 * number, "b", (40, 30), 20 + 4 * number, mm=400, empty=number == 4)
    write(folder, "c", 0, "c", (0, 0), 60)
    return sorted(folder.iterdir())


def write(
    folder: Path, name: str, place_mm: float, series: str, at: tuple[int, int], side: int, mm: float = 200,
    empty: bool = False,
) -> None:  # fmt: skip
    """A slice of 96 pixels with a head of so many at a place, or nothing but some noise."""
    image = np.random.default_rng(sum(name.encode())).normal(-1000, 4, (96, 96)).astype(np.int16)
    if empty:
        image[20, 30:60] = 100  # of a table
    else:
        image[at[0] : at[0] + side, at[1] : at[1] + side] = head(side, side, seed=sum(name.encode()))
    ids = {"SOPInstanceUID": name, "SeriesInstanceUID": series, "StudyInstanceUID": "study"}
    tags = {"ImagePositionPatient": [-mm / 2, -mm / 2, place_mm], "PixelSpacing": [mm / 96] * 2, **ids}
    (folder / f"{name}.dcm").write_bytes(make(image, **tags))


@pytest.fixture
def told(bundle: Path, files: list[Path], tmp_path: Path) -> NDArray[np.float64]:
    """Probabilities of `any`, as `evaluate` computes them."""
    dataset = dataset_of(tmp_path / "dataset", files)
    slices = [read_slice(file) for file in files]
    boxes, sides = np.full((len(dataset), 4), np.nan), np.full(len(dataset), np.nan)
    boxes[: len(files)] = [head_box(found) for found in slices]
    sides[: len(files)] = [side_mm(found.header) for found in slices]
    assert np.isnan(boxes[: len(files), 0]).sum() == 1
    return load_bundle(bundle).slice_probabilities(SliceSet(with_views(dataset, boxes, sides), np.arange(len(files))))


def probabilities(rows: list[Prediction]) -> list[float | None]:
    return [row.probability for row in rows]


def test_a_series_is_shown_as_its_slices_in_a_dataset(
    bundle: Path, files: list[Path], told: NDArray[np.float64], tmp_path: Path
) -> None:
    rows = load_bundle(bundle).predict(files)
    assert [Path(row.file) for row in rows] == files
    np.testing.assert_allclose(probabilities(rows), told, atol=1e-6)
    predict(bundle, files[::-1], tmp_path / "rows.json")
    assert probabilities(rows_of(tmp_path / "rows.json", bundle))[::-1] == pytest.approx(told, abs=1e-6)


def test_a_series_of_more_images_than_are_kept_is_read_again(
    bundle: Path, files: list[Path], told: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    plain = slice_file.SliceFile.read
    monkeypatch.setattr(slice_file.SliceFile, "read", lambda self, frame: read.append(1) or plain(self, frame))
    load_bundle(bundle).predict(files)
    assert len(read) == len(files)
    monkeypatch.setattr(series_reading, "_KEPT_BYTES", 3 * 32 * 32)  # one image
    again = load_bundle(bundle).predict(files)
    assert len(read) == len(files) * 2 + (len(files) - 3 if load_bundle(bundle).card.parameters.crop == "head" else 0)
    np.testing.assert_allclose(probabilities(again), told, atol=1e-6)


def test_a_damaged_slice_of_a_series_is_a_row_and_the_others_have_their_box(
    bundle: Path, files: list[Path], told: NDArray[np.float64], tmp_path: Path
) -> None:
    if load_bundle(bundle).card.parameters.neighbors:
        pytest.skip("its neighbors see another slice")
    for file in files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    inside = tmp_path / "2b.dcm"  # its head lies within that of the slice above it
    inside.write_bytes(inside.read_bytes()[:-100])
    rows = load_bundle(bundle).predict([tmp_path / file.name for file in files])
    assert [row.reason != "" for row in rows] == [file.name == "2b.dcm" for file in files]
    kept = [place for place, file in enumerate(files) if file.name != "2b.dcm"]
    np.testing.assert_allclose([rows[place].probability for place in kept], told[kept], atol=1e-6)


def test_a_lone_file_is_shown_by_its_own_box(tmp_path: Path) -> None:
    write(tmp_path, "alone", 0, "a", (10, 6), 40, mm=400)
    bundle = load_bundle(make_bundle(tmp_path / "bundle", crop="head"))
    found = read_slice(tmp_path / "alone.dcm")
    top, left, bottom, right = head_box(found)
    assert [96 * edge for edge in (top, left, bottom, right)] == pytest.approx([10, 6, 50, 46], abs=3)
    shown = np.float32([[left + right - 1, top + bottom - 1, *[max(bottom - top, right - left) * 1.1] * 2]])
    image = window_slice(found, bundle.card.windows, 32)[None]
    (row,) = bundle.predict([tmp_path / "alone.dcm"])
    assert row.probability == pytest.approx(float(bundle.probabilities(image, shown)[0]), abs=1e-6)
    whole = np.float32([[0, 0, 1, 1]])
    assert row.probability != pytest.approx(float(bundle.probabilities(image, whole)[0]), abs=1e-6)


def test_what_is_not_known_of_a_slice_is_flagged(bundle: Path, files: list[Path], tmp_path: Path) -> None:
    write(tmp_path, "bare", 0, "bare", (0, 0), 60, empty=True)
    (tmp_path / "unsized.dcm").write_bytes(make(head(96, 96), PixelSpacing=ABSENT, SOPInstanceUID="unsized"))
    parameters = load_bundle(bundle).card.parameters
    bare, unsized, *others = load_bundle(bundle).predict([tmp_path / "bare.dcm", tmp_path / "unsized.dcm", *files])
    flags = {"head_unknown", "scale_unknown"}
    assert flags & {*bare.flags.split(",")} == ({"head_unknown"} if parameters.crop == "head" else set())
    assert flags & {*unsized.flags.split(",")} == ({"scale_unknown"} if parameters.scale == "mm" else set())
    assert not flags & {flag for row in others for flag in row.flags.split(",")}


def test_a_slice_whose_box_is_its_own_is_flagged_and_one_of_a_series_is_not(
    bundle: Path, files: list[Path], tmp_path: Path
) -> None:
    loaded = load_bundle(bundle)
    for paths, alone in ((files[:1], files[:1]), (files, files[-1:])):
        flagged = [Path(row.file) for row in loaded.predict(paths) if "head_of_slice" in row.flags.split(",")]
        assert flagged == (alone if loaded.card.parameters.crop == "head" else [])
    write(tmp_path, "seen", 0, "cut", (10, 6), 40)
    write(tmp_path, "short", 1, "cut", (10, 6), 40)
    short = tmp_path / "short.dcm"
    short.write_bytes(short.read_bytes()[:-100])
    seen, rejected = loaded.predict([tmp_path / "seen.dcm", short])
    assert ("head_of_slice" in seen.flags.split(",")) == (loaded.card.parameters.crop == "head")
    assert rejected.reason


def test_heat_maps_are_given_what_is_shown(bundle: Path, files: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("captum")
    predict(bundle, files[:3], tmp_path / "rows.json", heatmaps=tmp_path / "maps")
    rows = rows_of(tmp_path / "rows.json", bundle)
    assert [Path(row.heatmap).exists() for row in rows] == [True] * 3

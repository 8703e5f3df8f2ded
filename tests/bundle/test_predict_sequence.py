"""Whole series through `predict` with a sequence model: rows by slice are those that `evaluate` computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ich_ray.bundle import prediction, series_model
from ich_ray.bundle.batch_predict import predict
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.prediction import Predictor, SeriesPrediction
from ich_ray.bundle.table_writer import as_table, from_table
from ich_ray.ct.dicom import read_slice
from ich_ray.ct.head_box import head_box, side_mm
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows, window_slice
from ich_ray.data.dataset import SliceSet
from ich_ray.errors import ConfigError
from tests.bundle.test_predict_crop import write as write_head
from tests.bundle.test_predict_series import SIZE, dataset_of, make_bundle, probabilities, rows_of, scans, write
from tests.bundle.test_predict_slabs import THIN, seen, trained, with_training
from tests.bundle.test_predict_slabs import scans as thin_scans
from tests.prepared import with_views
from tests.sequence_bundles import add_sequence

__all__ = ["scans", "thin_scans"]

KINDS = {
    "one slice": {},
    "neighbors, all labels": {"neighbors": 1, "labels": "all"},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_sequence(make_bundle(tmp_path_factory.mktemp("bundle"), **request.param))


def told(bundle: Bundle, folder: Path, files: list[Path]) -> np.ndarray:
    """Probabilities of the same slices, as `evaluate` computes them."""
    return bundle.slice_label_probabilities(SliceSet(dataset_of(folder, files), np.arange(len(files))))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_series_has_the_probabilities_of_its_slices_in_a_dataset(
    bundle: Path, scans: Path, tmp_path: Path, seed: int
) -> None:
    """With a gap, a repeated place and an unknown one, in whatever order its files are given."""
    files = sorted(scans.iterdir())
    files = [files[place] for place in np.random.default_rng(seed).permutation(len(files))]
    loaded = load_bundle(bundle)
    rows = loaded.predict(files)
    assert [Path(row.file) for row in rows] == files
    np.testing.assert_allclose(probabilities(rows), told(loaded, tmp_path / "dataset", files), atol=1e-6)


def test_a_slice_in_its_series_is_judged_with_the_others_and_a_lone_one_as_a_series_of_one(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    loaded = load_bundle(bundle)
    files = sorted(scans.glob("?a.dcm"))
    whole = {Path(row.file).stem: row for row in loaded.predict(files)}
    (alone,) = loaded.predict([scans / "3a.dcm"])
    assert alone.probability != pytest.approx(whole["3a"].probability, abs=1e-4)
    apart = [scans / "3a.dcm", scans / "2b.dcm", scans / "9c.dcm", write(scans, "0d", 0, "d")]  # of four series
    expected = told(loaded, tmp_path / "dataset", apart)
    np.testing.assert_allclose(probabilities([alone]), expected[:1], atol=1e-6)
    assert "series_unknown" in alone.flags.split(",")


def test_flags_say_which_series_were_not_seen_whole(bundle: Path, scans: Path) -> None:
    write(scans, "9b", 10, "b", PixelData=b"")
    for number in range(3):
        write(scans, f"{number}d", 5 * number, "d")
    rows = {Path(row.file).stem: row for row in load_bundle(bundle).predict([scans])}
    flagged = {
        flag: sorted(name for name, row in rows.items() if flag in row.flags.split(","))
        for flag in ("series_incomplete", "series_unknown")
    }
    gap, rejected = [f"{number}a" for number in range(9)], ["0b", "1b", "3b", "4b"]
    assert flagged == {"series_incomplete": sorted([*gap, *rejected]), "series_unknown": ["2b", "9c"]}
    assert rows["9b"].reason == "no_pixel"


def test_a_slice_that_is_rejected_in_the_middle_is_as_absent_as_in_a_dataset(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    for name in ("1a", "3b"):
        write(scans, name, 5, name[1], PixelData=b"")
    files = sorted(path for path in scans.iterdir() if path.stem not in {"1a", "3b"})
    loaded = load_bundle(bundle)
    rows = [row for row in loaded.predict([scans]) if not row.reason]
    assert [Path(row.file) for row in rows] == files
    np.testing.assert_allclose(probabilities(rows), told(loaded, tmp_path / "dataset", files), atol=1e-6)


def test_a_slice_without_a_number_is_as_absent_as_one_that_cannot_be_read(
    bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(scans.glob("?a.dcm"))
    without = load_bundle(bundle).predict([file for file in files if file.stem != "3a"])
    plain = Bundle.seen

    def broken(self: Bundle, *given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own, features = plain(self, *given)
        own[2] = np.nan  # the slice at 10 mm
        return own, features

    monkeypatch.setattr(Bundle, "seen", broken)
    rows = load_bundle(bundle).predict(files)
    assert [Path(row.file).stem for row in rows if row.reason == "not_finite"] == ["3a"]
    if load_bundle(bundle).card.parameters.neighbors == 0:
        told_others = probabilities([row for row in rows if not row.reason])
        np.testing.assert_allclose(told_others, probabilities(without), atol=1e-6)


@pytest.mark.parametrize("model", ["bilstm", "dilated_conv", "transformer"])
def test_other_models_say_the_same_of_files_and_of_a_dataset(scans: Path, tmp_path: Path, model: str) -> None:
    loaded = load_bundle(add_sequence(make_bundle(tmp_path / "bundle"), model=model, position="mm", layers=2))
    files = sorted(scans.iterdir())
    expected = told(loaded, tmp_path / "dataset", files)
    np.testing.assert_allclose(probabilities(loaded.predict(files)), expected, atol=1e-6)


def test_views_of_test_time_augmentation_are_averaged_in_features_too(scans: Path, tmp_path: Path) -> None:
    plain = load_bundle(make_bundle(tmp_path / "bundle", neighbors=1))
    Bundle(plain.network, plain.card.model_copy(update={"tta": ("hflip", "depth_flip")})).save(tmp_path / "bundle")
    loaded, files = load_bundle(add_sequence(tmp_path / "bundle")), sorted(scans.iterdir())
    expected = told(loaded, tmp_path / "dataset", files)
    np.testing.assert_allclose(probabilities(loaded.predict(files)), expected, atol=1e-6)
    assert np.abs(probabilities(loaded.without_tta().predict(files)) - expected).max() > 1e-5
    images = np.random.default_rng(0).integers(0, 256, (2, *loaded.card.input_shape), np.uint8)
    shape = (2, 3, 3, *images.shape[2:])  # neighbors from below to above, their windows
    views = [images, images[..., ::-1], images.reshape(shape)[:, ::-1].reshape(images.shape)]
    alone = loaded.without_tta()
    mean = np.mean([alone.seen(np.ascontiguousarray(view))[1] for view in views], 0)
    np.testing.assert_allclose(loaded.seen(images)[1], mean, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"crop": "head", "resolution": 24}, {"crop": "head", "scale": "mm", "neighbors": 1}]
)
def test_series_that_are_cropped_to_the_head(tmp_path: Path, fields: dict[str, Any]) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(5):
        write_head(tmp_path / "scans", f"{number}a", 5.0 * number, "a", (10 + 2 * number, 6), 40)
        write_head(tmp_path / "scans", f"{number}b", 5.0 * number, "b", (40, 30), 20 + 4 * number, mm=400)
    files = sorted((tmp_path / "scans").iterdir())
    loaded = load_bundle(add_sequence(make_bundle(tmp_path / "bundle", **fields)))
    dataset, slices = dataset_of(tmp_path / "dataset", files), [read_slice(file) for file in files]
    boxes, sides = np.full((len(dataset), 4), np.nan), np.full(len(dataset), np.nan)
    boxes[: len(files)] = [head_box(found) for found in slices]
    sides[: len(files)] = [side_mm(found.header) for found in slices]
    rows = SliceSet(with_views(dataset, boxes, sides), np.arange(len(files)))
    expected = loaded.slice_label_probabilities(rows)
    np.testing.assert_allclose(probabilities(loaded.predict(files)), expected, atol=1e-6)


def test_slabs_of_a_thin_series_are_a_series(thin_scans: Path, tmp_path: Path) -> None:
    """In a dataset, too: of the images that `predict` makes of the same files."""
    with_training(make_bundle(tmp_path / "bundle"), trained())
    loaded = load_bundle(add_sequence(tmp_path / "bundle"))
    files = sorted(thin_scans.iterdir())
    images = {Path(file).name: image[0] for file, (_, image) in seen(tmp_path / "bundle", [thin_scans]).items()}
    dataset = dataset_of(tmp_path / "dataset", files, [images[file.name] for file in files])
    expected = loaded.slice_label_probabilities(SliceSet(dataset, np.arange(len(files))))
    rows = loaded.predict([thin_scans])
    assert sum("slab" in row.flags.split(",") for row in rows) == THIN
    np.testing.assert_allclose(probabilities(rows), expected, atol=1e-6)


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


def test_some_slices_of_a_dataset_get_what_their_whole_series_say(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of whole series, too."""
    files, loaded = sorted(scans.iterdir()), load_bundle(bundle)
    dataset = dataset_of(tmp_path / "dataset", files)
    whole = loaded.slice_label_logits(SliceSet(dataset, np.arange(len(files))))
    some = SliceSet(dataset, np.array([12, 2, 7]))
    monkeypatch.setattr(series_model, "_ROWS_AT_ONCE", 5)
    np.testing.assert_allclose(loaded.slice_label_logits(some), whole[some.rows], atol=1e-6)


def test_rows_travel_through_arrow_with_what_is_said_of_their_series(bundle: Path, scans: Path) -> None:
    loaded = load_bundle(bundle)
    predictor = Predictor(loaded, "f2")
    rows = loaded.predict(sorted(scans.glob("?b.dcm")))
    assert all(isinstance(row, SeriesPrediction | prediction.LabelledSeriesPrediction) for row in rows)
    (travelled,) = [from_table(pa.table(as_table(rows, predictor.row_kind)), predictor.row_kind)]
    assert travelled == rows
    assert {len(row.series_logits) for row in rows} == {len(loaded.card.parameters.predicted_labels)}  # type: ignore[attr-defined]
    assert len({row.series_logits for row in rows}) == 1  # type: ignore[attr-defined]


def test_a_study_is_answered_by_the_head_for_its_series(bundle: Path, scans: Path, tmp_path: Path) -> None:
    """The same in `predict` and in a dataset; slices of one place count once, one without a place for itself."""
    files, loaded = sorted(scans.glob("?a.dcm")), load_bundle(bundle)
    rows = loaded.predict(files)
    held = SliceSet(dataset_of(tmp_path / "dataset", files), np.arange(len(files)))
    found = loaded.study_label_logits(held)
    assert found.study.tolist() == [0] * len(files)
    np.testing.assert_allclose(rows[0].series_logits, found.logits[0], atol=1e-5)  # type: ignore[attr-defined]
    own = loaded.network_label_logits(held)
    plain = Bundle(loaded.network, loaded.card.model_copy(update={"sequence": None}))
    np.testing.assert_allclose(own, plain.slice_label_logits(held), atol=1e-6)
    np.testing.assert_allclose(plain.study_label_logits(held).logits[0], own.max(0), atol=1e-6)


def test_roles_drawn_by_slice_are_refused(bundle: Path, scans: Path, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "dataset", sorted(scans.iterdir()))
    dataset.manifest = dataset.manifest.model_copy(update={"split": "slice"})
    with pytest.raises(ConfigError, match="roles drawn by patient"):
        load_bundle(bundle).slice_label_logits(SliceSet(dataset, np.arange(3)))


def test_heat_maps_fade_with_the_probability_in_the_series(scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    folder = add_sequence(make_bundle(tmp_path / "bundle"))
    predict(folder, [scans], tmp_path / "out.json", heatmaps=tmp_path / "maps")
    rows = rows_of(tmp_path / "out.json", folder)
    assert len([*(tmp_path / "maps").iterdir()]) == len(rows) == 15
    whole = load_bundle(folder).predict([scans])
    np.testing.assert_allclose(probabilities(rows), probabilities(whole), atol=1e-6)
    for row in rows:
        picture = np.asarray(Image.open(row.heatmap))[::8, :256:8, 0]
        shown = window_slice(read_slice(Path(row.file).read_bytes()), parse_windows(DEFAULT_WINDOWS), SIZE)
        assert np.array_equal(picture, shown[0])

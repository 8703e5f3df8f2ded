"""What a card says of the slices that trained its weights, and which series are far from them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_ray.bundle.training_data import (
    FAR_FLAGS,
    Distribution,
    Names,
    SeriesLook,
    TrainingData,
    describe_training,
    differences,
    median_step,
    site_note,
)
from ich_ray.ct.dicom import FLAGS
from ich_ray.data.dataset import PreparedDataset
from ich_ray.vocabulary import ROLES
from tests.prepared import make_dataset

THICK = TrainingData(
    slices=1000,
    thickness_mm=Distribution(slices=1000, p1=4, p5=5, median=5, p95=5, p99=6),
    slice_spacing_mm=Distribution(slices=900, p1=4, p5=5, median=5, p95=5, p99=5),
    pixel_spacing_mm=Distribution(slices=1000, p1=0.4, p5=0.44, median=0.488, p95=0.5, p99=0.6),
    kernels=Names(counts={"H30s": 985, "H31s": 10}, others=5),
    matrices=Names(counts={"512x512": 1000}),
)
USUAL = SeriesLook(thickness_mm=5, slice_spacing_mm=5, pixel_spacing_mm=0.49, kernel="H30s", matrix="512x512")


@pytest.mark.parametrize(
    ("field", "value", "flags"),
    [
        ("thickness_mm", 0.625, ["far_thickness"]),
        ("thickness_mm", 1.99, ["far_thickness"]),
        ("thickness_mm", 2.0, []),
        ("thickness_mm", 12.0, []),
        ("thickness_mm", 12.1, ["far_thickness"]),
        ("thickness_mm", math.nan, []),
        ("slice_spacing_mm", 1.9, ["far_spacing"]),
        ("slice_spacing_mm", 10.0, []),
        ("pixel_spacing_mm", 0.26, ["far_spacing"]),
        ("pixel_spacing_mm", 0.89, []),
        ("pixel_spacing_mm", 0.98, ["far_spacing"]),
        ("kernel", "h30S", []),
        ("kernel", "H31s", []),
        ("kernel", "", []),
        ("kernel", "H60s", ["far_kernel"]),
        ("matrix", "768x768", ["far_matrix"]),
    ],
)
def test_a_series_is_far_by_these_limits(field: str, value: Any, flags: list[str]) -> None:
    assert [*differences(THICK, replace(USUAL, **{field: value}))] == flags


def test_a_kernel_that_may_be_among_the_others_is_not_far() -> None:
    many = THICK.model_copy(update={"kernels": Names(counts={"H30s": 980}, others=20)})
    assert differences(many, replace(USUAL, kernel="H60s")) == {}


def test_how_a_series_is_far_is_said_in_words() -> None:
    thin = replace(USUAL, thickness_mm=0.625, kernel="H60s")
    assert differences(THICK, thin) == {
        "far_thickness": "slice thickness in mm 0.625, trained with 5",
        "far_kernel": "kernel H60s, trained with H30s, H31s, others",
    }
    assert THICK.unknown == []
    assert str(THICK) == (
        "slice thickness in mm 5; distance of slices in mm 5; pixel spacing in mm 0.488 (0.44 to 0.5); "
        "kernel H30s, H31s, others; matrix 512x512"
    )


def test_what_is_not_known_is_not_far() -> None:
    nothing = TrainingData(slices=10)
    assert differences(nothing, replace(USUAL, thickness_mm=0.1, kernel="x")) == {}
    assert (len(nothing.unknown), str(nothing)) == (5, "not available")


def test_flags_of_the_bundle_are_none_of_the_file() -> None:
    assert not {*FAR_FLAGS} & {*FLAGS}


def test_median_step() -> None:
    assert median_step(np.array([10.0, 0, 5, 5.001, np.nan, 30])) == 5
    assert math.isnan(median_step(np.array([3.0, 3.0])))
    assert math.isnan(median_step(np.array([np.nan, np.nan])))


def with_columns(dataset: PreparedDataset, **columns: Any) -> PreparedDataset:
    """The dataset with more columns in its table, or others."""
    table = dataset.slices
    for name, values in columns.items():
        table = table.drop_columns(name) if name in table.column_names else table
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, str(dataset.files.slices))
    return PreparedDataset.open(dataset.files.root)


def test_the_training_data_of_a_dataset(tmp_path: Path) -> None:
    """Slices of the train role alone: those of the other roles here have other values."""
    dataset = make_dataset(tmp_path / "dataset", patients=20)
    train = dataset.column("role") == "train"
    count, trained = len(dataset), int(train.sum())
    thickness, kernel = np.where(train, 5.0, 1.0), np.where(train, "H30s", "B70f").astype(object)
    first = np.flatnonzero(train)[:4]
    thickness[first[:2]], kernel[first] = (2.5, np.nan), ("H31s", "H31s", "H31s", "")
    flags = np.full(count, "lossy").astype(object)
    flags[first[0]] = "lossy,not_512"
    dataset = with_columns(
        dataset, thickness_mm=thickness, kernel=kernel, flags=flags, tilt_deg=np.full(count, np.nan),
        spacing_mm=np.where(train, 0.5, 0.9),
    )  # fmt: skip
    found = describe_training(dataset, ["train"])
    assert found.slices == trained
    assert found.kernels == Names(counts={"H30s": trained - 4, "H31s": 3})
    assert found.matrices == Names(counts={"512x512": trained - 1}, others=1)
    assert (found.tilt_deg, found.pixel_spacing_mm and found.pixel_spacing_mm.median) == (None, 0.5)
    assert found.thickness_mm is not None
    assert (found.thickness_mm.slices, found.thickness_mm.p99) == (trained - 1, 5)
    assert 2.5 <= found.thickness_mm.p1 < found.thickness_mm.p5 == 5
    assert found.slice_spacing_mm == Distribution(slices=trained, p1=5, p5=5, median=5, p95=5, p99=5)
    both = describe_training(dataset, ["train", "validation"])
    assert both.slices > trained
    assert both.thickness_mm is not None
    assert both.thickness_mm.p1 == 1


def test_slabs_of_a_dataset_look_as_thick_as_they_are_and_as_far_apart(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", patients=20)
    train = np.flatnonzero(dataset.column("role") == "train")
    slab_mm = np.zeros(len(dataset), np.float32)
    slab_mm[train[:10]] = 4
    dataset = with_columns(dataset, slab_mm=slab_mm, thickness_mm=np.where(slab_mm > 0, 0.6, 6.0))
    found = describe_training(dataset, ["train"])
    assert found.thickness_mm is not None
    assert found.slice_spacing_mm is not None
    assert (found.thickness_mm.p1, found.thickness_mm.p99) == (4, 6)
    assert (found.slice_spacing_mm.p1, found.slice_spacing_mm.p99) == (4, 5)


def test_another_dataset_is_compared_by_its_medians(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", patients=20)
    thin = with_columns(dataset, thickness_mm=np.full(80, 0.6), kernel=["B70f"] * 41 + ["H30s"] * 39)
    said = "slice thickness in mm 0.6, trained with 5; kernel B70f, trained with H30s, H31s, others"
    assert site_note(THICK, thin, ROLES) == said
    usual = with_columns(dataset, thickness_mm=np.full(80, 5.0), kernel=["H30s"] * 41 + ["B70f"] * 39)
    assert site_note(THICK, usual, ROLES) == ""
    assert site_note(None, thin, ROLES) == ""


def test_a_site_whose_thin_series_predict_would_average_is_told_how_to_prepare_it(tmp_path: Path) -> None:
    """Slices of 1 mm as they are, of which the first series says that it is of slabs."""
    dataset = make_dataset(tmp_path / "dataset", patients=20)
    count = len({*dataset.column("series")})
    tail = Distribution(slices=1000, p1=1, p5=4, median=5, p95=5, p99=6)
    training = TrainingData(slices=1000, thickness_mm=tail, slice_spacing_mm=tail)
    thin = with_columns(
        dataset, position_mm=dataset.column("position_mm").astype(np.float32) / 5, thickness_mm=np.full(80, 1.0)
    )
    told = "series are finer, and `predict` would average them: prepare the site with --slab-mm 5, or predict with "
    assert site_note(training, thin, ROLES) == f"{count} of {count} {told}--no-slabs"
    first = thin.column("series") == thin.column("series")[0]
    some = with_columns(thin, slab_mm=np.where(first, 5.0, 0.0))
    assert f"{count - 1} of {count} {told}" in site_note(training, some, ROLES)
    assert site_note(training, with_columns(some, slab_mm=np.full(80, 5.0)), ROLES) == ""
    seen = training.model_copy(update={"thickness_mm": tail.model_copy(update={"p5": 1.0})})
    assert site_note(seen, with_columns(some, slab_mm=np.zeros(80)), ROLES) == ""


def test_the_slabs_of_a_dataset_are_in_its_training_data(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", patients=10)
    assert describe_training(dataset, ["train"]).slab_mm == 0
    dataset.manifest = dataset.manifest.model_copy(update={"slab_mm": 5.0})
    assert describe_training(dataset, ["train"]).slab_mm == 5


def test_only_the_most_frequent_kernels_are_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", patients=20)
    kernel = [f"K{number // 2 if number < 60 else 30}" for number in range(80)]
    dataset = with_columns(dataset, role=["train"] * 80, kernel=kernel)
    kernels = describe_training(dataset, ["train"]).kernels
    assert kernels is not None
    assert (len(kernels.counts), kernels.counts["K30"], kernels.others) == (20, 20, 80 - 20 - 19 * 2)


def test_a_dataset_of_an_older_version_says_what_it_has(tmp_path: Path) -> None:
    found = describe_training(make_dataset(tmp_path / "dataset", patients=10), ["train"])
    assert found.unknown == ["slice thickness in mm", "pixel spacing in mm", "kernel"]
    assert found.slice_spacing_mm is not None
    assert found.slice_spacing_mm.median == 5

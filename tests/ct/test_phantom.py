"""Phantoms are valid CT DICOM, reproducible, labelled rightly, and plausible in HU."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage

from ich_ray.ct.anatomy import Canvas, Head, HeadSection, bump, capsule, ellipse, soft
from ich_ray.ct.bleeding import Bleed, bleed_into
from ich_ray.ct.phantom import _identifier, _Patient, write_phantom
from ich_ray.ct.phantom_files import PhantomFiles
from ich_ray.ct.scanner_noise import ScannerNoise, doubled
from ich_ray.errors import ConfigError
from ich_ray.vocabulary import SUBTYPES

# RSNA's ID_... are no UIDs, and pydicom says so at every look.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")

PATIENTS = 20  # two blocks: eight bleed, so every subtype is somebody's

# Of the words of every file: their sum, and weighted by column and by row.
EARLIER_SUMS = [
    [11768, 275330, -546237],
    [1701758, 54135682, 53876120],
    [567555, 19727028, 16264617],
    [2267071, 72184405, 72899014],
    [1993667, 63711858, 63765183],
    [417356, 14955944, 10526005],
    [2134353, 67992641, 67402611],
    [-642062, -17452941, -21058163],
    [982777, 31203927, 31629772],
    [569422, 23025914, 13426907],
    [2306505, 73484395, 72761271],
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> PhantomFiles:
    return write_phantom(tmp_path_factory.mktemp("phantom"), patients=PATIENTS, seed=7, slices=6, size=64)


@pytest.fixture(scope="module")
def slices(written: PhantomFiles) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(str(path)) for path in sorted(written.images.iterdir())]


def labels_of(files: PhantomFiles) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    with Path(str(files.labels)).open(newline="") as file:
        for row in csv.DictReader(file):
            name, label = row["ID"].rsplit("_", 1)
            found.setdefault(name, {})[label] = int(row["Label"])
    return found


def digests(files: PhantomFiles) -> dict[str, str]:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.images.iterdir()}
    return found | {"labels": hashlib.sha256(files.labels.read_bytes()).hexdigest()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    one, again, other = (
        digests(write_phantom(tmp_path / name, patients=3, seed=seed, slices=3, size=64))
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert one == again
    assert not set(one.values()) & set(other.values())


def test_earlier_figures_stand_on_these_very_files(tmp_path: Path) -> None:
    """Headers and labels by the byte; pixels by their sums, which other processors round otherwise in a few places."""
    files = write_phantom(tmp_path, patients=3, seed=1, slices=3, size=64)
    everything = hashlib.sha256(files.labels.read_bytes())
    sums = []
    for path in sorted(files.images.iterdir()):
        content = path.read_bytes()
        everything.update(path.name.encode() + content[: -2 * 64 * 64])
        words = pydicom.dcmread(str(path)).pixel_array.astype(int)
        sums.append([int(words.sum()), int((words * np.arange(64)).sum()), int((words.T * np.arange(64)).sum())])
    assert everything.hexdigest() == "2c501f7af7677a964d5930ba27ed85d7496c13ed87f246cf74f31b46a0d7c9b1"
    assert sums == [pytest.approx(each, abs=600) for each in EARLIER_SUMS]  # ten pixels that differ by one


def test_a_patient_does_not_depend_on_how_many_there_are(tmp_path: Path, written: PhantomFiles) -> None:
    few = digests(write_phantom(tmp_path, patients=4, seed=7, slices=6, size=64))
    many = digests(written)
    del few["labels"]
    assert len(few) > 12
    assert few.items() <= many.items()


def test_files_lie_as_in_rsna(written: PhantomFiles) -> None:
    names = {path.name for path in written.images.iterdir()}
    assert written.images.name == "stage_2_train"
    assert written.labels.name == "stage_2_train.csv"
    lines = written.labels.read_text().splitlines()
    assert lines[0] == "ID,Label"
    assert len(lines) == 1 + 6 * len(names)
    assert {f"{name}.dcm" for name in labels_of(written)} == names
    assert all(len(name) == len("ID_xxxxxxxxx.dcm") for name in names)


def test_any_is_the_or_of_the_subtypes_and_every_subtype_occurs(written: PhantomFiles) -> None:
    labels = labels_of(written)
    for row in labels.values():
        assert list(row) == [*SUBTYPES, "any"]
        assert row["any"] == max(row[subtype] for subtype in SUBTYPES)
    assert min(sum(row[subtype] for row in labels.values()) for subtype in SUBTYPES) >= 1
    assert 0.12 <= np.mean([row["any"] for row in labels.values()]) <= 0.32


def test_four_in_ten_patients_bleed_in_neighbouring_slices(
    written: PhantomFiles, slices: list[pydicom.Dataset]
) -> None:
    labels = labels_of(written)
    by_patient: dict[str, list[tuple[float, int]]] = {}
    for slice_ in slices:
        place = float(slice_.ImagePositionPatient[2]), labels[slice_.SOPInstanceUID]["any"]
        by_patient.setdefault(slice_.PatientID, []).append(place)
    rows = ["".join(str(label) for _, label in sorted(places)) for places in by_patient.values()]
    assert len(rows) == PATIENTS
    assert all(4 <= len(row) <= 8 for row in rows)
    assert sum("1" in row for row in rows) == 8
    # At most two bleeds, each without a gap.
    assert max(len(row.replace("0", " ").split()) for row in rows) <= 2


def test_files_are_valid_ct(slices: list[pydicom.Dataset]) -> None:
    for slice_ in slices:
        assert slice_.SOPClassUID == slice_.file_meta.MediaStorageSOPClassUID == CTImageStorage
        assert slice_.Modality == "CT"
        assert slice_.Manufacturer == "ich_ray phantom"
        assert (slice_.Rows, slice_.Columns, slice_.SamplesPerPixel) == (64, 64, 1)
        assert (slice_.BitsAllocated, slice_.HighBit) == (16, slice_.BitsStored - 1)
        assert (float(slice_.RescaleSlope), float(slice_.RescaleIntercept)) == (1, -1024)
        assert slice_.PhotometricInterpretation == "MONOCHROME2"
        assert [float(value) for value in slice_.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
        assert len(slice_.PixelSpacing) == 2
        assert len(slice_.PixelData) == 64 * 64 * 2
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageType", "InstanceNumber"):
            assert slice_.get(keyword), keyword
        for keyword in ("PatientName", "PatientBirthDate", "StudyDate", "KVP"):
            assert keyword in slice_
            assert not slice_.get(keyword), keyword


def test_files_are_stored_in_all_the_ways_of_rsna(slices: list[pydicom.Dataset]) -> None:
    kinds = Counter(
        (slice_.PixelRepresentation, slice_.BitsStored, slice_.file_meta.TransferSyntaxUID.is_implicit_VR)
        for slice_ in slices
    )
    assert (1, 16, False) in kinds
    assert (0, 12, True) in kinds
    assert set(kinds) <= {(1, 16, False), (0, 12, True), (0, 12, False)}
    corners = {int(slice_.pixel_array[0, 0]) for slice_ in slices}
    assert corners == {0, -2000}
    assert all(slice_.PixelRepresentation == 1 for slice_ in slices if slice_.pixel_array[0, 0] == -2000)
    assert all(slice_.pixel_array.max() < 4096 for slice_ in slices if slice_.PixelRepresentation == 0)
    assert {isinstance(slice_.WindowCenter, pydicom.multival.MultiValue) for slice_ in slices} == {True, False}


def test_identifiers_are_distinct_and_group_slices(slices: list[pydicom.Dataset]) -> None:
    assert len({slice_.SOPInstanceUID for slice_ in slices}) == len(slices)
    assert len({slice_.file_meta.MediaStorageSOPInstanceUID for slice_ in slices}) == len(slices)
    groups = {(slice_.PatientID, slice_.StudyInstanceUID, slice_.SeriesInstanceUID) for slice_ in slices}
    assert len(groups) == PATIENTS
    assert all(patient.startswith("ID_") and len(patient) == len("ID_f15c0eee") for patient, *_ in groups)


@given(st.integers(0, 2**36 - 1), st.integers(0, 2**36 - 1), st.integers(0, 2**31))
def test_identifiers_never_collide(one: int, other: int, seed: int) -> None:
    assert (_identifier("slice", one, seed, 9) == _identifier("slice", other, seed, 9)) == (one == other)


def head(seed: int = 0) -> tuple[Head, Canvas]:
    rng = np.random.default_rng(seed)
    drawn = Head.draw(rng)
    return drawn, Canvas(drawn, 128, rng)


@pytest.mark.parametrize("height", [0.3, 0.5, 0.7])
def test_tissues_have_their_densities(height: float) -> None:
    drawn, canvas = head()
    section = HeadSection(canvas, height)
    image = section.head_in_air(section.brain()).flat[section.where]
    brain = image[(section.depth > 12) & (section.fluid == 0) & (section.ventricles == 0) & (section.side > 6)]
    assert 25 <= np.median(brain) <= 42
    assert np.all(image[section.ventricles == 1] < 100)
    assert image[(section.depth < -1) & (section.depth > -drawn.skull_mm + 2)].min() > 300
    assert section.head_in_air(section.brain())[0, 0] == -1000


def test_ventricles_are_in_the_middle_and_the_head_gets_smaller_upwards() -> None:
    _, canvas = head()
    fluid = [HeadSection(canvas, height).ventricles.sum() for height in (0.05, 0.54, 0.9)]
    assert fluid[1] > 5 * max(fluid[0], fluid[2])
    sizes = [len(HeadSection(canvas, height).where) for height in (0.3, 0.6, 0.9)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subtype", SUBTYPES)
def test_blood_is_inside_the_skull_and_has_its_density(subtype: str, seed: int) -> None:
    _, canvas = head(seed)
    bleed = Bleed.draw(np.random.default_rng(seed), subtype, [0.3, 0.42, 0.54, 0.66])
    section = HeadSection(canvas, bleed.height)
    mask = bleed.mask(section)
    assert mask is not None
    assert np.all(mask <= section.inside)
    brain = section.brain()
    assert bleed_into(brain, section, [bleed]) == {subtype}
    assert 50 <= np.median(brain[mask > 0.95]) <= 90
    assert bleed.mask(HeadSection(canvas, bleed.height + bleed.reach + 0.01)) is None


@pytest.mark.parametrize(
    ("subtype", "low_mm", "high_mm"), [("epidural", -3, 26), ("subdural", -3, 15), ("intraparenchymal", -6, 90)]
)
def test_blood_lies_where_it_belongs(subtype: str, low_mm: float, high_mm: float) -> None:
    _, canvas = head(4)
    bleed = Bleed.draw(np.random.default_rng(4), subtype, [0.5])
    section = HeadSection(canvas, 0.5)
    mask = bleed.mask(section)
    assert mask is not None
    depth = section.depth[mask > 0.5]
    assert low_mm <= depth.min()
    assert depth.max() <= high_mm


def test_ventricular_and_subarachnoid_blood_fill_fluid() -> None:
    _, canvas = head(5)
    section = HeadSection(canvas, 0.5)
    for subtype, space in (("intraventricular", section.ventricles), ("subarachnoid", section.fluid)):
        mask = Bleed.draw(np.random.default_rng(5), subtype, [0.5]).mask(section)
        assert mask is not None
        assert mask[space == 0].sum() == 0


def test_decoys_are_dense_and_negative() -> None:
    """Calcification, a dense falx and motion belong to patients without bleeding, and do look like something."""
    patients = [_Patient.draw(number, seed=3, slices=8) for number in range(30)]
    healthy = [patient for patient in patients if not patient.bleeds]
    assert len(healthy) == 18
    assert any(len(patient.head.calcifications) >= 4 for patient in healthy)
    assert any(patient.head.falx_hu > 65 for patient in healthy)
    assert sum(len(patient.moving) == 3 for patient in healthy) >= 3
    calcified = max(healthy, key=lambda patient: len(patient.head.calcifications))
    assert all(spot.hu > 100 for spot in calcified.head.calcifications)
    assert [seen for _, seen in calcified.images(64)] == [set()] * len(calcified.heights)


def test_shapes_by_hand() -> None:
    x = np.array([-4.0, 0.0, 1.0, 4.0], np.float32)
    zero = np.zeros_like(x)
    assert soft(x, 4).tolist() == [1.0, 0.5, 0.25, 0.0]
    assert [bump(height, 0.5, 0.2) for height in (0.5, 0.62, 0.7, 0.9)] == pytest.approx([1, 0.8, 0, 0], abs=1e-6)
    assert ellipse(x, zero, (0, 0), (2, 4)).tolist() == [2.0, -2.0, -1.0, 2.0]
    assert capsule(x, zero, (0, 0), (1, 0), (1, 2)).tolist() == [3.0, -1.0, -2.0, 1.0]


@given(st.integers(2, 6), st.floats(-1000, 2000, width=32))
def test_doubling_keeps_a_plane_and_its_mean(side: int, level: float) -> None:
    twice = doubled(np.full((side, side), level, np.float32))
    assert twice.shape == (2 * side, 2 * side)
    assert np.allclose(twice, level)
    ramp = np.arange(side, dtype=np.float32)[None].repeat(side, 0)
    assert doubled(ramp)[0, 1:-1].tolist() == pytest.approx(np.arange(0.25, side - 1, 0.5).tolist())


def test_a_large_image_is_the_small_one_with_more_pixels(tmp_path: Path) -> None:
    patient = _Patient.draw(0, seed=1, slices=3)
    large, _ = next(patient.images(512))
    small, _ = next(patient.images(256))
    block = large.reshape(32, 16, 32, 16).mean((1, 3)) - small.reshape(32, 8, 32, 8).mean((1, 3))
    assert large.dtype == small.dtype == np.float32
    assert np.abs(block).mean() < 6


def test_noise_is_a_scanners() -> None:
    """Fine-grained: little of it is left in means over 4 mm, where white noise would keep more."""
    patient = _Patient.draw(0, seed=1, slices=3)
    drawn = (256, patient.head.fov_mm, patient.noise_hu, patient.sharpness_per_mm)
    tile, other = ScannerNoise.draw(np.random.default_rng(0), *drawn).tiles
    assert tile.std() == pytest.approx(patient.noise_hu, rel=1e-3)
    assert abs(float(np.corrcoef(tile.ravel(), other.ravel())[0, 1])) < 0.02
    coarse = tile.reshape(80, 4, 80, 4).mean((1, 3)).std()
    assert coarse < 0.9 * patient.noise_hu / np.sqrt(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 0}, "phantom: patients from 1 to 100000 must hold, got 0"),
        ({"seed": -1}, "phantom: seed from 0 to"),
        ({"slices": 63}, "phantom: slices from 1 to 62 must hold, got 63"),
        ({"size": 32}, "phantom: size from 64 to 1024 must hold, got 32"),
        ({"size": 129}, "phantom: an even size must be given, got 129; try 130"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_phantom(tmp_path / "new", **({"patients": 1, "seed": 0, "slices": 2, "size": 64} | change))
    assert not (tmp_path / "new").exists()


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"phantom .*/file/stage_2_train: must be a folder, got a file at .*/file;"):
        write_phantom(tmp_path / "file", patients=1, seed=0)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    files = write_phantom(tmp_path, patients=1, seed=0, slices=1, size=64)
    before = digests(files)
    with pytest.raises(ConfigError, match="a folder without labels must be given"):
        write_phantom(tmp_path, patients=1, seed=1, slices=1, size=64)
    assert digests(files) == before
    # Cut short before the labels were written: the same phantom may go on, another one may not.
    files.labels.unlink()
    with pytest.raises(ConfigError, match=r"an empty folder must be given, got \d+ other files such as ID_"):
        write_phantom(tmp_path, patients=1, seed=1, slices=1, size=64)
    write_phantom(tmp_path, patients=1, seed=0, slices=1, size=64)
    assert digests(files) == before

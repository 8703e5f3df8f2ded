"""Continuous phantoms are series in space: valid DICOM, ordered along a normal, with the prevalences of RSNA."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

from ich_ray import cli
from ich_ray.ct.continuous_phantom import Geometry, _Patient, write_continuous_phantom
from ich_ray.ct.dicom import read_slice
from ich_ray.ct.phantom_files import PhantomFiles
from ich_ray.errors import ConfigError
from ich_ray.vocabulary import SUBTYPES

PATIENTS = 10


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> PhantomFiles:
    return write_continuous_phantom(tmp_path_factory.mktemp("continuous"), patients=PATIENTS, seed=2, size=64)


@pytest.fixture(scope="module")
def series(written: PhantomFiles) -> dict[str, list[pydicom.Dataset]]:
    """The slices of each series, in the order of their files' names."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted(written.images.iterdir()):
        header = pydicom.dcmread(str(path), stop_before_pixels=True)
        found.setdefault(header.SeriesInstanceUID, []).append(header)
    return found


def normal(header: pydicom.Dataset) -> np.ndarray:
    row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    return np.cross(row, column)


def along(header: pydicom.Dataset) -> float:
    return float(np.dot(normal(header), np.array(header.ImagePositionPatient, float)))


def digests(files: PhantomFiles) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in files.images.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, written: PhantomFiles) -> None:
    one, again, other = (
        write_continuous_phantom(tmp_path / name, patients=1, seed=seed, size=64)
        for name, seed in (("one", 2), ("again", 2), ("other", 3))
    )
    assert digests(one) == digests(again)
    assert one.labels.read_bytes() == again.labels.read_bytes()
    assert not digests(one) & digests(other)
    assert digests(one) < digests(written)  # a patient does not depend on how many there are


def test_identifiers_are_valid_uids_and_each_patient_has_one_series(series: dict[str, list[pydicom.Dataset]]) -> None:
    everything = [header for headers in series.values() for header in headers]
    for header in everything:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            assert UID(header[keyword].value).is_valid, keyword
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
    assert len({header.SOPInstanceUID for header in everything}) == len(everything)
    groups = {(header.PatientID, header.StudyInstanceUID, header.SeriesInstanceUID) for header in everything}
    assert len(groups) == len(series) == PATIENTS


def test_slices_are_evenly_spaced_along_the_normal(series: dict[str, list[pydicom.Dataset]]) -> None:
    tilted, downward, spacings, fields = [], [], [], set()
    for headers in series.values():
        assert 25 <= len(headers) <= 35
        assert {header.SliceThickness for header in headers} == {5}
        assert len({tuple(header.PixelSpacing) for header in headers}) == 1
        row, column = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
        assert np.array([row @ row, column @ column, row @ column]) == pytest.approx([1, 1, 0], abs=1e-5)
        ordered = sorted(headers, key=along)
        assert ordered != headers  # names say nothing of the order
        steps = np.diff([along(header) for header in ordered])
        assert steps == pytest.approx(steps.mean(), abs=1e-2)
        # The middles of all slices lie on one line along the normal.
        side = float(headers[0].PixelSpacing[0]) * 64 / 2
        middles = [np.array(header.ImagePositionPatient, float) + side * (row + column) for header in ordered]
        assert np.diff(middles, axis=0) == pytest.approx(np.outer(steps, normal(headers[0])), abs=1e-2)
        numbers = [int(header.InstanceNumber) for header in ordered]
        assert sorted(numbers) == list(range(1, len(headers) + 1))
        downward.append(numbers == sorted(numbers, reverse=True))
        tilted.append(abs(column[2]) > 0.05)
        spacings.append(round(float(steps.mean()), 2))
        fields.add(float(headers[0].PixelSpacing[0]))
    assert set(tilted) == set(downward) == {True, False}
    assert set(spacings) <= {4.75, 5.0, 5.25}
    assert len(set(spacings)) > 1
    assert len(fields) == PATIENTS


def test_a_tilted_series_by_hand() -> None:
    geometry = Geometry((0.0, 0.5), height_mm=100, table_mm=10, tilt=np.radians(30), downward=True)
    assert geometry.orientation() == ("1", "0", "0", "0", "0.866025", "0.500000")
    # The corner at (-100, -100) of the plane, 10 and 60 mm along (0, -sin, cos).
    assert geometry.position(0, 200) == ("-100.0000", "-91.6025", "-41.3397")
    assert geometry.position(1, 200) == ("-100.0000", "-116.6025", "1.9615")
    assert [geometry.number(0), geometry.number(1)] == [2, 1]
    assert geometry.thickness == 0.05


def test_files_are_read_and_every_slice_has_its_labels(
    written: PhantomFiles, series: dict[str, list[pydicom.Dataset]]
) -> None:
    for path in sorted(written.images.iterdir())[::50]:
        assert read_slice(path.read_bytes()).stored.shape == (64, 64)
    names = {header.SOPInstanceUID for headers in series.values() for header in headers}
    labels: dict[str, dict[str, int]] = {}
    with Path(str(written.labels)).open(newline="") as file:
        for row in csv.DictReader(file):
            name, label = row["ID"].rsplit("_", 1)
            labels.setdefault(name, {})[label] = int(row["Label"])
    assert labels.keys() == names
    for row in labels.values():
        assert list(row) == [*SUBTYPES, "any"]
        assert row["any"] == max(row[subtype] for subtype in SUBTYPES)


def test_prevalences_are_about_those_of_rsna() -> None:
    """There: any 14.3 %, epidural 0.4, intraparenchymal 4.8, intraventricular 3.5, subarachnoid 4.7, subdural 6.3."""
    found: Counter[str] = Counter()
    bleeding = 0
    for number in range(80):
        patient = _Patient.draw(number, seed=0)
        bleeding += bool(patient.lesions)
        found["slices"] += len(patient.geometry.heights)
        for _, seen in patient.images(64) if patient.lesions else ():
            found.update(seen)
            found["any"] += bool(seen)
            found["several"] += len(seen) > 1
    assert bleeding == 32
    share = {name: found[name] / found["slices"] for name in ("any", *SUBTYPES)}
    assert 0.12 <= share["any"] <= 0.2
    assert 0.001 <= share["epidural"] <= 0.015
    for subtype in set(SUBTYPES) - {"epidural"}:
        assert 0.02 <= share[subtype] <= 0.09, subtype
    assert 0.1 <= found["several"] / found["any"] <= 0.5


def test_heads_differ_in_size_place_and_turn() -> None:
    heads = [_Patient.draw(number, seed=1).head for number in range(40)]
    assert np.ptp([head.half_axes_mm[0] for head in heads]) > 12
    assert np.std([head.offset_mm for head in heads]) > 5
    assert np.ptp([head.turn for head in heads]) > 0.4
    assert np.ptp([head.fov_mm for head in heads]) > 40
    assert {head.headrest for head in heads} == {True, False}


def test_the_verb_writes_the_kind_asked_for(tmp_path: Path) -> None:
    folders = [tmp_path / kind for kind in ("continuous", "sparse")]
    for folder in folders:
        assert cli.call(["phantom", str(folder), "--kind", folder.name, "--patients", "1", "--size", "64"]) == 0
    counts = [len(list((folder / "stage_2_train").iterdir())) for folder in folders]
    assert counts[0] >= 25
    assert counts[1] <= 10


def test_an_odd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="phantom: an even size must be given, got 65; try 66"):
        write_continuous_phantom(tmp_path / "new", patients=1, seed=0, size=65)
    assert not (tmp_path / "new").exists()

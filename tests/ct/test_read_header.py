"""A header read by itself says what the slice says, and takes the first bytes of the file alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import JPEG2000Lossless
from upath import UPath

from ich_ray.ct.dicom import SliceHeader, read_slice
from ich_ray.ct.slice_file import read_headers
from ich_ray.errors import Rejection
from ich_ray.storage import Location
from tests.ct.files import PIXEL_HEAD, SYNTAXES, compressed_image, element, head, make, plant

# Longer than what is read at first: three private elements of 40,000 bytes.
LONG = [element(0x00291000 + number, b"LT", b" " * 40_000) for number in range(3)]
TAGS = {"PixelSpacing": [2.5, 2.5], "SliceThickness": 1, "ConvolutionKernel": "H30s", "ContrastBolusAgent": "x"}


def read_header(path: Location) -> SliceHeader:
    ((frame, found),) = read_headers(path)
    assert frame == 0
    if isinstance(found, Rejection):
        raise found
    return found


def reason(path: Path) -> str:
    with pytest.raises(Rejection) as caught:
        read_header(path)
    return caught.value.reason


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("syntax", [*SYNTAXES, "j2k"])
def test_a_header_is_that_of_the_slice(syntax: str, long: bool, tmp_path: Path) -> None:
    """Long: noise that neither deflates nor compresses to what is read at first."""
    hu = head(300, 300) if long else head()
    data = compressed_image(JPEG2000Lossless, hu, **TAGS) if syntax == "j2k" else make(hu, syntax=syntax, **TAGS)
    (tmp_path / "a.dcm").write_bytes(data)
    whole = read_slice(data).header
    # What only the pixels tell is left out.
    assert read_header(tmp_path / "a.dcm") == replace(whole, flags=("contrast", "thin"))
    assert {"contrast", "thin", "not_512"} <= {*whole.flags}
    assert whole.acquisition.kernel == "H30s"


def test_a_header_longer_than_the_first_bytes_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(plant(make(), *LONG))
    assert read_header(tmp_path / "a.dcm").slice_id == "ID_0001"


@pytest.mark.parametrize("past", [-1, 0, 1, 7, 8])
def test_where_the_first_bytes_end_does_not_matter(past: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make()
    (tmp_path / "a.dcm").write_bytes(data)
    monkeypatch.setattr("ich_ray.ct.source._HEADER_BYTES", data.index(PIXEL_HEAD) + past)
    assert read_header(tmp_path / "a.dcm").rows == 64


def test_pixels_are_not_read(tmp_path: Path) -> None:
    data = make(head(512, 512))
    (tmp_path / "torn.dcm").write_bytes(data[:100_000])
    assert read_header(tmp_path / "torn.dcm").rows == 512
    with pytest.raises(Rejection, match="pixel_short"):
        read_slice(tmp_path / "torn.dcm")


def test_a_header_lies_on_object_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    path = UPath("memory://headers/a.dcm")
    path.write_bytes(plant(make(head(512, 512)), *LONG[:1]))
    monkeypatch.setattr("ich_ray.ct.source.read_file", None)
    assert read_header(path).rows == 512
    monkeypatch.undo()
    path.write_bytes(plant(make(), *LONG))
    assert read_header(str(path)).rows == 64


def test_what_is_no_slice_has_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    for data, why in (
        (b"<html>", "not_dicom"),
        (make(Modality="MR"), "not_ct"),
        (make(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (make(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "not_axial"),
        (make(SOPInstanceUID=""), "uid_missing"),
        (make()[:400], "truncated_header"),
    ):
        path.write_bytes(data)
        assert reason(path) == why
    os.mkfifo(tmp_path / "fifo")
    assert reason(tmp_path / "fifo") == "not_regular"

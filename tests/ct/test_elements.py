"""Data sets that are not quite as PS3.5 says: what is skipped, what is refused, and where a file really ends."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, RLELossless

from ich_ray.ct.dicom import read_slice
from ich_ray.errors import Rejection
from tests.ct.files import ABSENT, PIXEL_HEAD, SYNTAXES, compressed_image, element, head, make, plant, save


def reason(data: bytes) -> str:
    with pytest.raises(Rejection) as caught:
        read_slice(data)
    return caught.value.reason


@pytest.mark.parametrize("syntax", [*SYNTAXES, RLELossless])
@pytest.mark.parametrize(
    "rest",
    [b"\n", b"\r\n", b"\0\n", b"\r\n--boundary--\r\n", b"\xff" * 40],
)
def test_bytes_behind_the_pixels_that_are_no_element_are_ignored_and_flagged(syntax: str, rest: bytes) -> None:
    data = compressed_image(syntax) if syntax == RLELossless else make(syntax=syntax)
    if syntax == "deflated":
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        start = 144 + int.from_bytes(data[140:144], "little")
        data = (
            data[:start] + deflater.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS) + rest) + deflater.flush()
        )
    else:
        data += rest
    ct = read_slice(data)
    assert np.array_equal(ct.hu(), head())
    assert ct.header.flags == ("not_512", "trailing_bytes")


def test_elements_behind_the_pixels_count() -> None:
    assert read_slice(make() + element(0x7FE11010, b"LO", b"more")).header.flags == ("not_512",)
    assert reason(make() + element(0x00280010, b"US", b"\x20\0")) == "duplicate_tag"
    assert reason(make() + make()[make().index(PIXEL_HEAD) :]) == "duplicate_tag"
    assert reason(make() + PIXEL_HEAD + b"\xff\xff\xff\x7f") == "duplicate_tag"


UNKNOWN_VR = {
    "16 bits": b"??\x04\0abcd",
    "16 bits, empty": b"??\0\0",
    "32 bits": b"??\0\0\x04\0\0\0abcd",
    "implicit": b"\x04\0\0\0abcd",
    "null": b"\0\0\x04\0abcd",
    "lower case": b"lo\x04\0abcd",
}


@pytest.mark.parametrize("rest", UNKNOWN_VR.values(), ids=UNKNOWN_VR)
@pytest.mark.parametrize("tag", [b"\x09\0\x10\x10", b"\x18\0\x10\x12"], ids=["private", "kernel"])
def test_a_vr_that_does_not_exist_costs_its_element_only(tag: bytes, rest: bytes) -> None:
    ct = read_slice(plant(make(), tag + rest))
    assert np.array_equal(ct.hu(), head())
    assert ct.header.flags == ("not_512", "vr_unknown")
    assert ct.header.acquisition.kernel == ""


@pytest.mark.parametrize(
    ("keyword", "tag", "value"),
    [
        ("RescaleIntercept", 0x00281052, b"-1000 "),
        ("PatientID", 0x00100020, b"P2"),
        ("SOPInstanceUID", 0x00080018, b"1.2."),
        ("Rows", 0x00280010, b"\x40\0"),
        ("PixelPaddingValue", 0x00280120, b"\x40\0"),
        ("ImageType", 0x00080008, b"LOCALIZER "),
    ],
)
def test_a_vr_that_does_not_exist_on_an_element_that_decides(keyword: str, tag: int, value: bytes) -> None:
    assert reason(plant(make(**{keyword: ABSENT}), element(tag, b"??", value))) == "header_invalid"


def test_a_value_of_unknown_vr_whose_end_is_a_guess() -> None:
    assert reason(plant(make(), b"\x09\0\x10\x10??\x05\0abcd")) == "header_invalid"
    both = b"\x09\0\x10\x10??\0\0" + element(0x00091011, b"LO", b"x" * 0x10)
    inside = b"\x09\0\x10\x10??\0\0\x08\0\0\0" + element(0x00091011, b"LO", b"")
    assert read_slice(plant(make(), both)).header.flags == ("not_512", "vr_unknown")
    assert read_slice(plant(make(), inside)).header.flags == ("not_512", "vr_unknown")


@pytest.mark.parametrize("value", [b"\xfe\xff\0\xe0" + (5000).to_bytes(4, "little") + b"SV10junk" * 20])
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big"])
def test_bytes_of_unknown_vr_that_look_like_an_item_are_skipped_by_their_length(syntax: str, value: bytes) -> None:
    ct = read_slice(make(syntax=syntax, edit=lambda dataset: dataset.add_new(0x00291010, "UN", value)))
    assert np.array_equal(ct.hu(), head())


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_a_directory_of_a_medium_is_no_fault(syntax: str) -> None:
    directory = Dataset()
    directory.FileSetID = "CD"
    directory.DirectoryRecordSequence = Sequence([])
    data = save(directory, SYNTAXES[syntax]).replace(
        CTImageStorage.encode() + b"\0", b"1.2.840.10008.1.3.10".ljust(26, b"\0")
    )
    assert reason(data) == "dicomdir"
    assert reason(data[:400]) == "dicomdir"


def test_a_file_that_ends_between_two_elements_has_no_pixels_and_is_not_called_cut() -> None:
    data = make()
    assert reason(data[: data.index(b"\x28\0\x02\0US")]) == "no_pixel"
    assert reason(data[: data.index(b"\x10\0\x20\0LO")]) == "no_pixel"
    assert reason(data[: data.index(b"\x08\0\x60\0CS")]) == "no_pixel"
    assert reason(data[: data.index(b"\x08\0\x16\0UI")]) == "truncated_header"


def test_a_meta_header_without_a_transfer_syntax() -> None:
    data = make()
    at = data.index(b"\x02\0\x10\0UI")
    without = data[:at] + data[at + 8 + data[at + 6] :]
    assert reason(without) == "header_invalid"
    assert reason(without[:at]) == "truncated_header"

"""Encodings that other readers take for another value: refused, because nothing in the file says who is right."""

from __future__ import annotations

import pytest

from ich_ray.ct.dicom import read_slice
from ich_ray.errors import Rejection
from tests.ct.files import PIXEL_HEAD, make, plant

UID = "1.2.826.0.1.3680043.8.498.101"
ITEM = b"\xfe\xff\x00\xe0\x0e\0\0\0\x08\0\x55\x11UI\x06\x001.2.3\0"  # 22 bytes


def spoiled(old: bytes, new: bytes, syntax: str = "explicit") -> bytes:
    data = make(syntax=syntax, SOPInstanceUID=UID, StudyInstanceUID="1.2.3.4")
    assert data.count(old) == 1
    return data.replace(old, new)


AMBIGUOUS = {
    # GDCM reads numbers, or aborts, where we would read the bytes.
    "Rows as the text of a number": (b"(\0\x10\0US", b"(\0\x10\0DS", "header_invalid"),
    "SOPInstanceUID as numbers": (b"\x08\0\x18\0UI", b"\x08\0\x18\0SS", "header_invalid"),
    "pixels of 64 bits": (PIXEL_HEAD, PIXEL_HEAD.replace(b"OW", b"OV"), "header_invalid"),
    # GDCM sees an empty text, pydicom one that begins with NUL.
    "NUL before a UID": (b"UI\x08\x001.2.3.4\0", b"UI\x08\0\0\0001.2.3.4"[:12], "uid_invalid"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_others_read_as_another_value_is_refused(name: str) -> None:
    old, new, reason = AMBIGUOUS[name]
    with pytest.raises(Rejection) as caught:
        read_slice(spoiled(old, new))
    assert caught.value.reason == reason


@pytest.mark.parametrize("new", [b"(\0\x10\0SS\2\0", b"(\0\x10\0UN\0\0\2\0\0\0"])
def test_a_vr_that_changes_no_value_is_read(new: bytes) -> None:
    assert read_slice(spoiled(b"(\0\x10\0US\2\0", new)).header.rows == 64


@pytest.mark.parametrize(("length", "fits"), [(22, True), (14, False), (20, False)])
def test_an_item_ends_where_its_sequence_ends(length: int, fits: bool) -> None:
    sequence = b"\x08\0\x40\x11SQ\0\0" + length.to_bytes(4, "little") + ITEM
    data = plant(make(), sequence)
    if fits:
        assert read_slice(data).header.rows == 64
        return
    with pytest.raises(Rejection) as caught:
        read_slice(data)
    assert caught.value.reason == "header_invalid"


def test_an_element_of_the_meta_header_stands_in_no_data_set() -> None:
    data = plant(make(), b"\2\0\x13\0SH\x02\0A ")
    with pytest.raises(Rejection) as caught:
        read_slice(data)
    assert caught.value.reason == "duplicate_tag"


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big"])
@pytest.mark.parametrize("at", [0, 64, 5000])
def test_bytes_put_in_between_the_pixels_are_no_trailing_bytes(syntax: str, at: int) -> None:
    data = make(syntax=syntax)
    place = len(data) - 8192 + at
    with pytest.raises(Rejection):
        read_slice(data[:place] + b"\1\2\3\4" + data[place:])


@pytest.mark.parametrize("syntax", ["explicit", "big"])
def test_an_element_that_is_cut_off_behind_the_pixels_is_flagged(syntax: str) -> None:
    assert "trailing_bytes" in read_slice(make(syntax=syntax) + b"\x09\0\x10\0OB\0\0\xf0\xff\xff\xff").header.flags

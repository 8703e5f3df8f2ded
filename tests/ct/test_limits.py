"""What a small file may ask for: memory and time are bounded before they are spent."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from pydicom.uid import RLELossless

from ich_ray.ct.dicom import read_slice
from ich_ray.ct.elements import ELEMENT_LIMIT
from ich_ray.errors import Rejection
from tests.ct.files import dataset_of, head, make, plant, save


def reason(data: bytes) -> str:
    with pytest.raises(Rejection) as caught:
        read_slice(data)
    return caught.value.reason


def empty(count: int, group: int) -> bytes:
    """`count` elements without a value, of this group and the next odd ones."""
    return b"".join(struct.pack("<HH2sH", group + 2 * (n >> 16), n & 0xFFFF, b"LO", 0) for n in range(count))


def test_a_slice_that_pads_to_a_huge_square() -> None:
    assert reason(make(head(16_384, 2))) == "dims_limit"
    line = dataset_of(make(np.arange(65_535, dtype=np.int16)[:, None] % 100))
    line.compress(RLELossless)
    assert reason(save(line, RLELossless)) == "size_limit"
    assert reason(make(head(4096, 2))) == "not_head"  # neither too large nor a slice


def test_elements_after_the_pixels_do_not_copy_the_rest_of_the_file() -> None:
    data = make() + empty(500, 0x7FE3) + struct.pack("<HH2sHL", 0x7FF1, 0x10, b"OB", 0, 2**25) + b"x" * 2**25
    start = time.process_time()
    assert np.array_equal(read_slice(data).hu(), head())
    assert time.process_time() - start < 3  # of 13 s


def test_a_file_of_empty_elements() -> None:
    assert reason(plant(make(), empty(ELEMENT_LIMIT, 0x0029))) == "header_invalid"

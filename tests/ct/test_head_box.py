"""The box of the head in drawn slices: with a table, in pieces, at the edge, and where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ich_ray.ct.dicom import CTSlice, read_slice
from ich_ray.ct.head_box import NO_BOX, head_box, side_mm
from ich_ray.ct.kernels import largest_body
from tests.ct.files import make


def drawn(size: int = 512, head: tuple[int, int, int] | None = (200, 260, 90)) -> NDArray[np.int16]:
    """Air with a disc: row and column of its middle, and its radius."""
    hu = np.full((size, size), -1000, np.int16)
    if head:
        row, column, radius = head
        y, x = np.mgrid[:size, :size]
        hu[np.hypot(y - row, x - column) < radius] = 40
    return hu


def table(hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """With the table below the head: wider than it, as thick as 4 pixels, and a cushion of foam."""
    hu[310:314, 20:500] = 200
    hu[290:310, 150:370] = np.maximum(hu[290:310, 150:370], -850)
    return hu


def box_of(hu: NDArray[Any], **tags: Any) -> list[float]:
    """In pixels of the image."""
    ct = read_slice(make(hu, PixelSpacing=[0.5, 0.5], **tags))
    return [round(edge * max(hu.shape), 6) for edge in head_box(ct)]


def test_the_box_is_around_the_head_within_a_cell() -> None:
    # Its edges are rows 111 and 290, columns 171 and 350; cells have four pixels.
    assert box_of(drawn()) == pytest.approx([110, 170, 290, 350], abs=4)
    assert box_of(drawn(256, (100, 130, 45))) == pytest.approx([55, 85, 145, 175], abs=2)


def test_a_table_and_a_cushion_are_no_head() -> None:
    assert box_of(table(drawn())) == box_of(drawn())
    assert box_of(table(drawn(head=(200, 260, 30)))) == box_of(drawn(head=(200, 260, 30)))  # the vertex
    hu = table(drawn(head=None))
    hu[100, 100] = 40  # files of one value are none
    assert head_box(read_slice(make(hu))) == pytest.approx(NO_BOX, nan_ok=True)


def test_the_largest_of_several_bodies_is_the_head() -> None:
    hu = drawn()
    hu[10:60, 10:60], hu[400:480, 30:110] = 40, 40  # a hand, a bag
    assert box_of(hu) == box_of(drawn())
    hu[286:400, 258:262] = 40  # a tube from the head to a bag
    assert box_of(hu)[:2] == box_of(drawn())[:2]


def test_a_head_that_is_cut_off_reaches_the_edge() -> None:
    assert box_of(drawn(head=(60, 256, 120))) == pytest.approx([0, 136, 180, 376], abs=4)
    assert box_of(drawn(head=(256, 256, 360))) == [0, 0, 512, 512]  # but for the corners


def test_the_box_is_of_the_square_that_the_image_is_padded_to() -> None:
    whole = drawn()
    ct = read_slice(make(whole[100:400], PixelSpacing=[0.5, 0.5]))
    top, left, bottom, right = (edge * 512 for edge in head_box(ct))  # 106 rows of black above
    assert [top - 106, left, bottom - 106, right] == pytest.approx([10, 170, 190, 350], abs=4)
    assert side_mm(ct.header) == 256
    assert np.isnan(side_mm(read_slice(make(whole)).header))


def test_the_threshold_is_in_hu_of_any_rescale() -> None:
    hu = drawn()
    for slope, intercept in ((1, 0), (2, -1024), (0.5, 100)):
        words = np.rint((hu - intercept) / slope).astype(np.int32)
        found = head_box(CTSlice(read_slice(make(hu)).header, words, float(slope), float(intercept)))
        assert [round(edge * 512, 6) for edge in found] == box_of(hu)


@pytest.mark.parametrize("seed", range(20))
def test_bodies_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = ndimage.zoom(rng.random((8, 9)), rng.integers(2, 6), order=1)
    words = (1000 * coarse + rng.normal(0, 60, coarse.shape)).astype(np.int16)
    full = words > 500
    core = ndimage.binary_erosion(full, np.ones((3, 3)), border_value=1)
    labelled, count = ndimage.label(core, np.ones((3, 3)))
    *box, area = largest_body(words, 500, 1)
    sizes = np.bincount(labelled.ravel())[1:]
    assert area == sizes.max(initial=0)
    if count:
        rows, columns = ndimage.find_objects(labelled)[int(sizes.argmax())]
        expected = (rows.start - 1, columns.start - 1, rows.stop + 1, columns.stop + 1)
        assert box == [max(expected[0], 0), max(expected[1], 0), min(expected[2], len(words)),
                       min(expected[3], words.shape[1])]  # fmt: skip

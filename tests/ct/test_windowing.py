"""Windows against tables worked out by hand, against a plain float64 reference, and their laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ich_ray.ct.acquisition import Acquisition
from ich_ray.ct.dicom import CTSlice, SliceHeader, read_slice
from ich_ray.ct.windowing import (
    DEFAULT_WINDOWS,
    WINDOWS,
    WindowSpec,
    _are_words,
    _integers,
    _rounding,
    brain_channel,
    parse_windows,
    window_slice,
)
from ich_ray.errors import ConfigError
from tests.ct.files import make
from tests.data.real import real_slices

DEFAULT = parse_windows(DEFAULT_WINDOWS)


def ct_of(stored: Any, slope: float = 1.0, intercept: float = 0.0) -> CTSlice:
    stored = np.asarray(stored)
    header = SliceHeader("a", "p", "", "", Acquisition(), *stored.shape, 16, True, "", slope, intercept, ())
    return CTSlice(header, stored, slope, intercept)


def areas(outputs: int, inputs: int) -> NDArray[np.float64]:
    """How much of each input pixel lies in each output pixel, `[outputs, inputs]`, rows adding up to 1."""
    edges = np.arange(outputs + 1)[:, None] * inputs / outputs
    overlap = np.minimum(edges[1:], np.arange(1, inputs + 1)) - np.maximum(edges[:-1], np.arange(inputs))
    return overlap.clip(0) * outputs / inputs


def reference(ct: CTSlice, windows: tuple[WindowSpec, ...], size: int) -> NDArray[np.float64]:
    """The definition in float64, rounded to 1e-9 only: clip, then average over areas, `[channels, size, size]`."""
    hu = ct.stored.astype(np.float64) * ct.slope + ct.intercept
    side = max(hu.shape)
    top, left = (side - hu.shape[0]) // 2, (side - hu.shape[1]) // 2
    square = np.full((side, side), -np.inf)
    square[top : top + hu.shape[0], left : left + hu.shape[1]] = hu
    weights = areas(size, side)
    scaled = [((square - w.center_hu) / w.width_hu + 0.5).clip(0, 1) * 255 for w in windows]
    return np.stack([weights @ channel @ weights.T for channel in scaled]).round(9)


# LINEAR_EXACT, worked out by hand: black up to center - width/2, white from center + width/2, 255 * (hu - low) / width
# rounded half up between. LINEAR of PS3.3 C.11.2.1.2.1 would give 255 at 79 HU already.
BRAIN = {-1024: 0, -1: 0, 0: 0, 1: 3, 8: 26, 39: 124, 40: 128, 41: 131, 72: 230, 79: 252, 80: 255, 81: 255, 3000: 255}
SUBDURAL = {-21: 0, -20: 0, -19: 1, 80: 128, 179: 254, 180: 255, 181: 255}
BONE = {-801: 0, -800: 0, -794: 1, -795: 0, 600: 128, 1994: 254, 1995: 255, 2000: 255}


@pytest.mark.parametrize(("name", "table"), [("brain", BRAIN), ("subdural", SUBDURAL), ("bone", BONE)])
@pytest.mark.parametrize("intercept", [0.0, -1024.0])
def test_hand_worked_table(name: str, table: dict[int, int], intercept: float) -> None:
    words = np.array([[int(hu - intercept)] for hu in table], np.int16)
    column = np.repeat(words, len(table), axis=1)
    for slope_free in (ct_of(column, 1.0, intercept), ct_of(column * 2, 0.5, intercept)):
        assert window_slice(slope_free, [WINDOWS[name]], len(table))[0, :, 0].tolist() == list(table.values())


def test_clipping_comes_before_averaging() -> None:
    checkerboard = ct_of(np.array([[0, 1000], [1000, 0]], np.int16))
    assert window_slice(checkerboard, [WINDOWS["brain"]], 1).tolist() == [[[128]]]


def test_rounding_is_half_up() -> None:
    window = [WindowSpec(name="grey", center_hu=127.5, width_hu=255)]
    words = np.array([[1, 2, 2, 3], [0, 0, 0, 1], [254, 255, 255, 255], [0, 0, 0, 3]], np.int16)
    rows = [window_slice(ct_of(np.tile(row.reshape(2, 2), (2, 2))), window, 2)[0, 0, 0] for row in words]
    assert rows == [2, 0, 255, 1]
    assert window_slice(ct_of(np.array([[2, 3], [2, 3]], np.int16)), window, 1)[0, 0, 0] == 3


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("size", [128, 64, 512, 100, 200, 384, 600])
def test_equals_the_reference(dtype: Any, size: int) -> None:
    rng = np.random.default_rng(size)
    ct = ct_of(rng.integers(0, 4096, (512, 512)).astype(dtype), 1.0, -1024.0)
    found, expected = window_slice(ct, DEFAULT, size), reference(ct, DEFAULT, size)
    assert np.abs(found - expected).max() <= 0.5 + 1e-6
    assert np.array_equal(found, np.floor(expected + 0.5))


@pytest.mark.parametrize(
    ("slope", "intercept"), [(2.0, -1024.0), (0.5, -1024.0), (1.0, -1023.5), (1.0625, 0.3), (1000.0, 0.0)]
)
@pytest.mark.parametrize("shape", [(512, 512), (512, 400), (300, 512), (37, 37)])
def test_any_rescale_and_shape_equal_the_reference(slope: float, intercept: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    ct = ct_of(rng.integers(-200, 3000, shape).astype(np.int16), slope, intercept)
    windows = (*DEFAULT, WindowSpec(name="narrow", center_hu=32.5, width_hu=7))
    assert np.abs(window_slice(ct, windows, 128) - reference(ct, windows, 128)).max() <= 0.5 + 1e-6


def in_whole_numbers(ct: CTSlice, windows: tuple[WindowSpec, ...], size: int) -> NDArray[np.int64]:
    """The definition for whole slopes, intercepts and edges, without any rounding but the last."""
    hu = ct.stored.astype(np.int64) * int(ct.slope) + int(ct.intercept)
    side = max(hu.shape)
    top, left = (side - hu.shape[0]) // 2, (side - hu.shape[1]) // 2
    square = np.full((side, side), -32768)
    square[top : top + hu.shape[0], left : left + hu.shape[1]] = hu
    weights = np.rint(areas(size, side) * side).astype(np.int64)
    found = []
    for window in windows:
        low, width = int(window.center_hu - window.width_hu / 2), int(window.width_hu)
        total, white = weights @ ((square - low).clip(0, width)) @ weights.T, width * side**2
        found.append((510 * total + white) // (2 * white))
    return np.stack(found)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((512, 512), 256), ((512, 512), 192), ((513, 513), 384), ((340, 400), 384), ((384, 512), 256), ((400, 512), 512),
     ((7, 5), 224), ((96, 64), 128), ((1, 3), 1)],
)  # fmt: skip
@pytest.mark.parametrize(("dtype", "slope", "intercept"), [(np.uint16, 1.0, -1024.0), (np.int16, 3.0, -8192.0)])
def test_whole_numbers_are_averaged_exactly(
    shape: tuple[int, int], size: int, dtype: Any, slope: float, intercept: float
) -> None:
    ct = ct_of(np.random.default_rng(size).integers(0, 4096, shape).astype(dtype), slope, intercept)
    assert np.array_equal(window_slice(ct, DEFAULT, size), in_whole_numbers(ct, DEFAULT, size))


def test_windows_that_are_rounded_in_float32_are_averaged_exactly() -> None:
    ct = ct_of(np.random.default_rng(1).integers(0, 4096, (512, 512)).astype(np.uint16), 1.0, -1024.0)
    narrow = DEFAULT[:2]  # the bone window needs float64
    assert np.array_equal(window_slice(ct, narrow, 384), in_whole_numbers(ct, narrow, 384))


@pytest.mark.parametrize("white", [1, 80, 320, 1280, 3199, 11_200, 13_999, 14_000, 44_800, 716_800])
def test_every_sum_is_rounded_as_a_fraction_is(white: int) -> None:
    sums = np.arange(white + 1)
    exact = (510 * sums + white) // (2 * white)
    for may_be_float32 in (False, True):
        scales, offsets = _rounding(np.array([float(white)]), may_be_float32)
        assert scales.dtype == offsets.dtype == (np.float32 if may_be_float32 and white <= 14_000 else np.float64)
        assert np.array_equal((sums.astype(scales.dtype) * scales[0] + offsets[0]).astype(np.int64), exact)


def test_words_of_a_whole_range_do_not_overflow() -> None:
    words = np.tile(np.array([-32768, 32767], np.int16), (512, 256))
    wide = (WindowSpec(name="all", center_hu=0, width_hu=65536), *DEFAULT)
    ct = ct_of(words)
    for size in (1, 2, 128):
        assert np.abs(window_slice(ct, wide, size) - reference(ct, wide, size)).max() <= 0.5 + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([np.int16, np.uint16]), factor=st.integers(1, 6), size=st.integers(1, 9),
    low=st.integers(-32768, 65535), width=st.integers(1, 70_000), seed=st.integers(0, 99),
)  # fmt: skip
def test_words_of_16_bits_give_the_same_as_wider_ones(
    dtype: Any, factor: int, size: int, low: int, width: int, seed: int
) -> None:
    limits = np.iinfo(dtype)
    words = np.random.default_rng(seed).integers(limits.min, limits.max, (factor * size,) * 2, dtype, endpoint=True)
    words[0, 0], words[-1, -1] = limits.min, limits.max
    windows = [WindowSpec(name="any", center_hu=low + width / 2, width_hu=width), WINDOWS["brain"]]
    for wanted in ([windows[0]], windows):
        short, wide = (window_slice(ct_of(kind), wanted, size) for kind in (words, words.astype(np.int32)))
        assert np.array_equal(short, wide)


@pytest.mark.parametrize(("width", "sums"), [(16383, np.uint16), (16384, np.int32)])
def test_sums_of_a_column_have_16_bits_where_they_fit(width: int, sums: Any) -> None:
    plan = _integers((WindowSpec(name="wide", center_hu=width / 2, width_hu=width),), 0.0, np.dtype(np.int16), (4, 1))
    assert plan is not None
    assert (plan.sums, plan.is_unrolled) == (sums, sums is np.uint16)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "are_words"),
    [(np.int16, 0, 80, True), (np.int16, -32769, 80, False), (np.int16, 0, 32768, False), (np.uint16, 0, 65535, True),
     (np.uint16, -1, 80, False), (np.uint8, 0, 80, False), (np.int32, 0, 80, False)],
)  # fmt: skip
def test_edges_are_compared_as_words_of_16_bits_where_they_fit(
    dtype: Any, low: int, high: int, are_words: bool
) -> None:
    assert _are_words(np.dtype(dtype), np.array([low], np.int32), np.array([high], np.int32)) is are_words


def test_a_slice_that_is_not_square_lies_in_the_middle_of_black() -> None:
    found = window_slice(ct_of(np.full((4, 2), 2000, np.int16)), DEFAULT, 4)
    assert (found == np.array([0, 255, 255, 0])).all()


def test_upsampling_repeats_pixels() -> None:
    found = window_slice(ct_of(np.array([[0, 80], [40, 8]], np.int16)), [WINDOWS["brain"]], 4)
    assert found[0].tolist() == [[0, 0, 255, 255], [0, 0, 255, 255], [128, 128, 26, 26], [128, 128, 26, 26]]


numbers = st.integers(-32768, 32767)
specs = st.builds(
    WindowSpec, name=st.just("w"), center_hu=st.floats(-2000, 3000), width_hu=st.floats(1, 5000)
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    st.lists(numbers, min_size=36, max_size=36), st.integers(0, 500), specs, st.integers(1, 9),
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 1.37]), st.sampled_from([0.0, -1024.0, 0.25])),
)  # fmt: skip
def test_windowing_is_monotone_and_bounded(
    words: list[int], more: int, window: WindowSpec, size: int, rescale: tuple[float, float]
) -> None:
    lower = np.array(words, np.int32).reshape(6, 6)
    low = window_slice(ct_of(lower, *rescale), [window], size).astype(int)
    high = window_slice(ct_of(lower + more, *rescale), [window], size).astype(int)
    assert (low <= high).all()
    black = window_slice(ct_of(np.full((6, 6), -40_000, np.int32), *rescale), [window], size)
    white = window_slice(ct_of(np.full((6, 6), 40_000, np.int32), *rescale), [window], size)
    assert black.max() == 0
    assert white.min() == 255


def test_real_slices_equal_the_reference() -> None:
    differences = []
    for path in real_slices()[::20]:
        ct = read_slice(path)
        differences.append(window_slice(ct, DEFAULT, 128) - np.floor(reference(ct, DEFAULT, 128) + 0.5))
    assert not np.any(differences)


def test_people_are_shown_the_brain_window_or_the_first() -> None:
    assert brain_channel(parse_windows("bone,brain")) == 1
    assert brain_channel(parse_windows("bone,subdural")) == 0


def test_windows_from_text() -> None:
    assert [w.name for w in DEFAULT] == ["brain", "subdural", "bone"]
    assert parse_windows("stroke=32/8") == (WindowSpec(name="stroke", center_hu=32, width_hu=8),)


@pytest.mark.parametrize("text", ["brian", "brain,brain", "a=40", "a=40/0", "a=40/-1", "a=x/80", "a=nan/80", "",
                                  "a=2e9/2e9", "a=1/2/3", "brain=", "=40/80", "a\x1b[2J=40/80"])  # fmt: skip
def test_windows_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="--windows"):
        parse_windows(text)


def test_a_misspelt_window_is_named() -> None:
    with pytest.raises(ConfigError, match=r"got 'brian' \(did you mean 'brain'\?\)"):
        parse_windows("brian")


def test_a_read_slice_is_windowed_as_it_is() -> None:
    ct = read_slice(make())
    assert np.abs(window_slice(ct, DEFAULT, 16) - reference(ct, DEFAULT, 16)).max() <= 0.5 + 1e-6


def test_a_network_sees_no_more_windows_than_a_manifest_may_name() -> None:
    named = [f"w{number}=40/80" for number in range(65)]
    assert len(parse_windows(",".join(named[:64]))) == 64
    with pytest.raises(ConfigError, match="--windows: at most 64 must be given, got 65; leave some out"):
        parse_windows(",".join(named))
    with pytest.raises(ConfigError, match="a name of letters, digits, _ and - must be given, got 'a b'"):
        parse_windows("a b=40/80")

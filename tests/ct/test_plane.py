"""Which images are axial slices of a head: none of them is lost, and nothing else is taken for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ich_ray.ct.acquisition import Acquisition
from ich_ray.ct.dicom import EXCLUSIONS, FLAGS, read_slice
from ich_ray.ct.plane import KEPT, judge_field, judge_series, judge_slice, judge_table
from ich_ray.errors import Rejection
from tests.ct.files import ABSENT, head, make
from tests.data.real import real_slices

AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def turned(tilt_deg: float, sideways_deg: float = 0.0) -> list[float]:
    """Direction cosines of a slice tilted about the left-right axis, then about the front-back axis."""
    a, b = math.radians(tilt_deg), math.radians(sideways_deg)
    row = [math.cos(b), 0.0, -math.sin(b)]
    column = [math.sin(a) * math.sin(b), math.cos(a), math.sin(a) * math.cos(b)]
    return [round(value, 6) for value in (*row, *column)]


def flags_of(**tags: Any) -> tuple[str, ...]:
    """Flags of an accepted slice, less that of the size of these test images."""
    return tuple(flag for flag in read_slice(make(**tags)).header.flags if flag != "not_512")


def reason_of(**tags: Any) -> str:
    with pytest.raises(Rejection) as caught:
        read_slice(make(**tags))
    return caught.value.reason


@pytest.mark.parametrize("sideways_deg", [0, 5, -10])
@pytest.mark.parametrize("tilt_deg", range(-30, 31, 5))
def test_no_slice_is_lost_or_flagged_to_30_degrees_of_gantry_tilt(tilt_deg: int, sideways_deg: int) -> None:
    header = read_slice(make(ImageOrientationPatient=turned(tilt_deg, sideways_deg))).header
    both = math.degrees(math.acos(math.cos(math.radians(tilt_deg)) * math.cos(math.radians(sideways_deg))))
    assert header.acquisition.tilt_deg == pytest.approx(both, abs=1e-3)
    assert header.flags == (("not_512", "tilt") if both > 30.5 else ("not_512",))


@pytest.mark.parametrize(
    ("tilt_deg", "sideways_deg"), [(31, 0), (-35, 0), (40, 0), (0, 40), (44.9, 0), (30, 30), (-25, 35)]
)
def test_no_slice_is_lost_to_45_degrees_and_beyond_a_gantry_it_is_flagged(tilt_deg: float, sideways_deg: float) -> None:
    assert flags_of(ImageOrientationPatient=turned(tilt_deg, sideways_deg)) == ("tilt",)


@pytest.mark.parametrize("orientation", [CORONAL, SAGITTAL, turned(46), turned(-60), turned(0, 50), turned(35, 35)])
@pytest.mark.parametrize("image_type", [ABSENT, ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "MPR"]])
def test_a_reformat_nearer_to_another_plane_is_excluded_whatever_it_is_called(
    orientation: list[float], image_type: Any
) -> None:
    assert reason_of(ImageOrientationPatient=orientation, ImageType=image_type) == "not_axial"


@pytest.mark.parametrize(
    "orientation",
    [
        [-1, 0, 0, 0, -1, 0],  # prone
        [0, 1, 0, -1, 0, 0],  # on the side
        [1, 0, 0, 0, -1, 0],  # mirrored
        [-1, 0, 0, 0, 1, 0],
    ],
)
def test_a_slice_turned_in_its_plane_is_kept_and_flagged(orientation: list[float]) -> None:
    assert flags_of(ImageOrientationPatient=orientation) == ("rotated",)


@pytest.mark.parametrize("turn_deg", [-40, 10, 44])
def test_a_head_turned_a_little_is_not_flagged(turn_deg: float) -> None:
    a = math.radians(turn_deg)
    assert flags_of(ImageOrientationPatient=[math.cos(a), math.sin(a), 0, -math.sin(a), math.cos(a), 0]) == ()


@pytest.mark.parametrize(
    "orientation",
    [
        ABSENT,
        "",
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 5, 0],
        ["1", "0", "0", "0", "1"],
        ["1", "0", "0", "0", "nan", "0"],
    ],
)
def test_a_slice_without_a_valid_orientation_is_kept_and_flagged(orientation: Any) -> None:
    header = read_slice(make(ImageOrientationPatient=orientation)).header
    assert header.flags == ("not_512", "plane_unknown")
    assert math.isnan(header.acquisition.tilt_deg)
    assert header.acquisition.position_mm == 40.0  # z


def test_cosines_that_were_rounded_to_one_decimal_are_still_an_orientation() -> None:
    tilted = [round(value, 1) for value in turned(25)]
    assert tilted == [1.0, 0.0, 0.0, 0.0, 0.9, 0.4]
    assert flags_of(ImageOrientationPatient=tilted) == ()
    assert math.hypot(*Acquisition(orientation=tuple(tilted)).normal) == pytest.approx(1)


IMAGE_TYPES = {
    "localizer": [
        ["ORIGINAL", "PRIMARY", "LOCALIZER"], ["ORIGINAL", "PRIMARY", "SCOUT"],
        ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"], ["DERIVED", "SECONDARY", "SURVIEW"],
    ],
    "projection": [
        ["DERIVED", "SECONDARY", "MIP"], ["DERIVED", "PRIMARY", "PROJECTION IMAGE"],
        ["DERIVED", "SECONDARY", "AXIAL", "MAXIMUM"], ["DERIVED", "SECONDARY", "REFORMATTED", "MIN IP"],
        ["DERIVED", "SECONDARY", "OTHER", "CT_SOM7 MIP"],
    ],
    "secondary_capture": [
        ["DERIVED", "SECONDARY", "SCREEN SAVE"], ["DERIVED", "SECONDARY", "OTHER", "VRT"],
        ["DERIVED", "SECONDARY", "VOLUME_RENDER"], ["DERIVED", "SECONDARY", "DOSE_INFO"],
        ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"],
    ],
}  # fmt: skip


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, ABSENT])
@pytest.mark.parametrize(
    ("reason", "image_type"), [(reason, values) for reason, many in IMAGE_TYPES.items() for values in many]
)
def test_what_the_machine_calls_something_else_is_excluded_as_that(
    reason: str, image_type: list[str], orientation: Any
) -> None:
    assert reason_of(ImageType=image_type, ImageOrientationPatient=orientation) == reason


SLICES = [
    ["ORIGINAL", "PRIMARY", "AXIAL"],
    ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
    ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
    ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"],
    ["DERIVED", "SECONDARY", "MPR", "MEAN"],
    ["DERIVED", "SECONDARY", "OTHER", "RESAMPLED"],
    ["DERIVED", "PRIMARY", "AXIAL", "SECONDARY", "LOW_DOSE"],
    ["DERIVED", "PRIMARY", "CORONAL"],  # of a series of which axial slices were sent along
]


@pytest.mark.parametrize("image_type", SLICES)
@pytest.mark.parametrize("kernel", ["H30s", "H70h", "BONEPLUS", ""])
def test_slabs_reformats_and_bone_kernels_of_axial_geometry_are_axial_slices(
    image_type: list[str], kernel: str
) -> None:
    assert flags_of(ImageType=image_type, ConvolutionKernel=kernel, SliceThickness="5") == ()


DESCRIPTIONS = {
    "localizer": ["Topogram 0.6 T20f", "Scout", "SURVIEW HEAD", "localizers"],
    "projection": ["MIP thick", "AX_MIP", "MinIP 10mm", "maximum intensity projection"],
    "secondary_capture": [
        "Dose Report",
        "DOSE INFO",
        "Patient Protocol",
        "Screen Save",
        "VRT Head",
        "Volume Rendering",
    ],
}


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in DESCRIPTIONS.items() for text in texts]
)
def test_what_people_typed_decides_only_where_geometry_does_not_say_that_it_is_a_slice(reason: str, text: str) -> None:
    assert flags_of(SeriesDescription=text) == ("described_otherwise",)
    assert reason_of(SeriesDescription=text, ImageOrientationPatient=CORONAL) == reason
    assert reason_of(SeriesDescription=text, ImageOrientationPatient=ABSENT) == reason


@pytest.mark.parametrize("text", ["Head COR 3mm", "sagittal", "BRAIN SAG", "Kopf koronar", "cerveau coronale"])
def test_a_plane_that_people_typed_excludes_only_without_an_orientation(text: str) -> None:
    assert flags_of(SeriesDescription=text) == ("described_otherwise",)
    assert reason_of(SeriesDescription=text, ImageOrientationPatient=ABSENT) == "not_axial"
    axial = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "ImageOrientationPatient": ABSENT}
    assert flags_of(SeriesDescription=text, **axial) == ("described_otherwise", "plane_unknown")


@pytest.mark.parametrize(
    "text",
    ["Head AX COR SAG", "Low Dose Head 5.0", "CORTEX", "Head 3D 0.6", "Scouting", "PROTOCOL", "Schädel 軟部"],
)
def test_words_that_mean_nothing_here_exclude_nothing(text: str) -> None:
    described = {"SeriesDescription": text, "SpecificCharacterSet": "ISO_IR 192"}
    assert flags_of(**described) == ()
    assert flags_of(**described, ImageOrientationPatient=ABSENT) == ("plane_unknown",)


def test_a_capture_is_known_by_its_class_only_without_an_orientation() -> None:
    assert flags_of(SOPClassUID=SECONDARY_CAPTURE) == ()
    assert reason_of(SOPClassUID=SECONDARY_CAPTURE, ImageOrientationPatient=ABSENT) == "secondary_capture"
    rendered = {"ImageType": ["DERIVED", "SECONDARY"], "SeriesDescription": "3D Head"}
    assert reason_of(**rendered, ImageOrientationPatient=ABSENT) == "secondary_capture"


def test_a_color_page_that_says_what_it_is_is_excluded_and_another_is_rejected() -> None:
    color = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "ImageOrientationPatient": ABSENT}
    assert reason_of(**color, SeriesDescription="Dose Report") == "secondary_capture"
    assert reason_of(**color) == "not_grayscale"


@pytest.mark.parametrize("spacing", [ABSENT, ["0.4", "0.4"]])
@pytest.mark.parametrize("sides", [(96, 40), (40, 96)])
def test_an_image_twice_as_long_as_wide_is_no_slice_of_a_head(sides: tuple[int, int], spacing: Any) -> None:
    assert reason_of(hu=head(*sides), PixelSpacing=spacing, ImageOrientationPatient=ABSENT) == "not_head"


def test_a_size_that_the_pixels_do_not_bear_out_is_a_fault_of_the_file() -> None:
    assert reason_of(Rows=300) == "pixel_short"


@pytest.mark.parametrize(
    ("size", "pixel_mm", "reason", "flags"),
    [
        (512, 0.49, "", ()),
        (512, 1.367, "", ()),  # 700 mm, of a whole body
        (512, 1.7, "not_head", ()),
        (2048, 0.098, "", ()),  # 200 mm of ultra-high resolution
        (2048, 0.49, "", ()),  # 250 mm made four times as large, its spacing left as it was
        (128, 0.49, "", ("small_field",)),  # made four times as small
        (512, 0.2, "", ("small_field",)),  # a petrous bone, or a newborn
        (512, 0.1, "not_head", ()),  # a mouse
    ],
)
def test_a_field_of_view_excludes_only_with_pixels_that_no_head_has(
    size: int, pixel_mm: float, reason: str, flags: tuple[str, ...]
) -> None:
    found = judge_field(Acquisition(spacing_mm=(pixel_mm, pixel_mm)), size, size)
    assert (found.reason, found.flags) == (reason, flags)


@pytest.mark.parametrize(
    ("tags", "flags"),
    [
        ({"SliceThickness": "0.625"}, ("thin",)),
        ({"SliceThickness": "2"}, ()),
        ({"SliceThickness": "5.5"}, ()),
        ({"SliceThickness": "8"}, ("thick",)),
        ({"SliceThickness": "0"}, ()),
        ({"SliceThickness": "nan"}, ()),
        ({"ContrastBolusAgent": "Iodine"}, ("contrast",)),
        ({"PixelSpacing": ["4", "4.1"]}, ("not_isotropic",)),
        ({"PixelSpacing": ["4", "4.001"]}, ()),
        ({"PixelSpacing": ["0", "4"]}, ()),
    ],
)
def test_what_is_odd_about_a_slice_is_flagged(tags: dict[str, Any], flags: tuple[str, ...]) -> None:
    assert flags_of(**tags) == flags
    assert {*flags} <= {*FLAGS}


def stack(
    count: int = 12, orientation: Sequence[float] = AXIAL, step: tuple[float, ...] = (0, 0, 5)
) -> list[Acquisition]:
    corner = np.array([-120.0, -110.0, 30.0])
    return [
        Acquisition(position=tuple(corner + index * np.array(step)), orientation=tuple(orientation))
        for index in range(count)
    ]


def judged(acquisitions: list[Acquisition], size: tuple[int, int] = (512, 512)) -> list[tuple[str, tuple[str, ...]]]:
    found = judge_series(acquisitions, [size] * len(acquisitions))
    return [(one.reason, one.flags) for one in found]


FINE = ("", ())


@pytest.mark.parametrize("tilt_deg", [-30, 0, 20, 45])
def test_a_stack_of_slices_is_a_series_whether_the_table_moves_along_their_normal_or_not(tilt_deg: float) -> None:
    assert judged(stack(30, turned(tilt_deg))) == [FINE] * 30  # a gantry tilts, the table moves along z
    oblique = Acquisition(orientation=tuple(turned(tilt_deg))).normal
    assert judged(stack(30, turned(tilt_deg), oblique)) == [FINE] * 30


@pytest.mark.parametrize("tilts", [(0, 20), (-15, 5, 25)])
def test_a_gantry_that_changes_its_tilt_within_a_series_loses_no_slice(tilts: tuple[float, ...]) -> None:
    series = [one for tilt in tilts for one in stack(6, turned(tilt))]
    assert not any(reason for reason, _ in judged(series))


def test_perfusion_and_repeated_scans_are_kept_and_flagged() -> None:
    perfusion = [one for one in stack(4) for _ in range(20)]
    assert judged(perfusion) == [("", ("repeated_position",))] * 80
    bolus = [Acquisition(position=(-120, -110, 30), orientation=(1, 0, 0, 0, 1, 0))] * 15
    assert judged(bolus) == [("", ("repeated_position",))] * 15
    twice = [*stack(5), stack(5)[2]]
    assert [flags for _, flags in judged(twice)] == [(), (), ("repeated_position",), (), (), ("repeated_position",)]


def test_slices_at_one_level_with_several_fields_of_view_are_kept() -> None:
    zooms = [Acquisition(position=(-120 + 30 * zoom, -110 + 30 * zoom, 30), orientation=(1, 0, 0, 0, 1, 0))
             for zoom in range(4)]  # fmt: skip
    assert judged(zooms) == [FINE] * 4


def test_a_rendering_that_turns_is_excluded_even_where_it_looks_down_from_above() -> None:
    tumbling = [Acquisition(position=(0, 0, 0), orientation=tuple(turned(10 * index))) for index in range(36)]
    assert sum(not judge_slice(one).reason for one in tumbling) == 18  # each by itself: half of them
    assert judged(tumbling) == [("not_axial", ())] * 36
    above = [one for one in tumbling if not judge_slice(one).reason]
    assert judged(above) == [("not_axial", ())] * 18


def test_images_that_move_only_within_their_plane_are_no_stack_of_axial_slices() -> None:
    coronal_called_axial = stack(20, AXIAL, (0, 3, 0))
    assert judged(coronal_called_axial) == [("not_axial", ())] * 20


def test_one_or_two_long_images_are_no_slices_and_three_or_more_are() -> None:
    without_plane = [Acquisition(position=(0, 0, float(index))) for index in range(3)]
    assert judged(without_plane[:2], (800, 500)) == [("not_head", ())] * 2
    assert judged(without_plane, (800, 500)) == [FINE] * 3
    assert judged(without_plane[:2], (700, 500)) == [FINE] * 2
    assert judged(stack(2), (800, 500)) == [FINE] * 2  # they say that they are axial


def test_series_without_positions_or_images_are_judged_without_an_error() -> None:
    assert judge_series([], []) == []
    assert judged([Acquisition()] * 9) == [FINE] * 9
    assert judged([Acquisition(orientation=(1, 0, 0, 0, 1, 0))] * 9) == [FINE] * 9


def test_impossible_places_and_spacings_are_as_good_as_none() -> None:
    far = [Acquisition(position=(1e308, -1e308, 1e308 / (1 + index)), orientation=(1, 0, 0, 0, 1, 0))
           for index in range(9)]  # fmt: skip
    assert judged(far) == [FINE] * 9
    assert judge_field(Acquisition(spacing_mm=(1e308, 1e308)), 512, 512).reason == "not_head"
    assert judge_field(Acquisition(spacing_mm=(1e-308, 1e-308)), 512, 512).reason == "not_head"


def test_series_of_a_table_are_judged_each_by_itself() -> None:
    good, sliding = stack(12), stack(12, AXIAL, (0, 3, 0))
    both = [one for pair in zip(good, sliding, strict=True) for one in pair]
    arguments = (
        np.array([one.position for one in both]),
        np.array([one.normal for one in both]),
        np.full((24, 2), 512),
    )
    found = judge_table(np.tile([7, 3], 12), *arguments)
    assert [one.reason for one in found] == ["", "not_axial"] * 12
    assert all(one is KEPT for one in judge_table(np.full(24, -1), *arguments))


def test_no_real_slice_is_lost_or_newly_flagged() -> None:
    new = {"contrast", "described_otherwise", "not_isotropic", "plane_unknown", "rotated", "small_field", "tilt"}
    for path in real_slices():
        assert not new & {*read_slice(path).header.flags}


def test_every_reason_is_an_exclusion() -> None:
    reasons = {*IMAGE_TYPES, *DESCRIPTIONS, "not_axial", "not_head", "not_ct"}
    assert {*reasons, "dicomdir", "not_image"} == EXCLUSIONS


def test_the_page_of_limits_names_every_reason_and_flag_of_this_module() -> None:
    page = (Path(__file__).parents[2] / "docs/what-is-a-slice.md").read_text()
    flags = {"contrast", "described_otherwise", "not_isotropic", "plane_unknown", "repeated_position", "rotated",
             "small_field", "thick", "thin", "tilt"}  # fmt: skip
    assert flags <= {*FLAGS}
    others = {"not_ct", "dicomdir", "not_image"}
    assert [name for name in {*EXCLUSIONS, *flags} - others if f"`{name}`" not in page] == []
    for limit in ("30.5 to 45 degrees", "below 80 mm", "above 850 mm", "below 140 mm", "below 2 mm, above 5.5 mm"):
        assert limit in page

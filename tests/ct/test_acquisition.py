"""What a header says of how a slice was taken, and which text of it may be kept."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ich_ray.ct.acquisition import Acquisition, clean_name
from ich_ray.ct.dicom import read_slice
from tests.ct.files import ABSENT, make


def test_a_header_says_how_its_slice_was_taken() -> None:
    taken = read_slice(
        make(
            ImagePositionPatient=[-120, -110, 35],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.5, 0.4],
            SliceThickness="5.0",
            ImageType=["ORIGINAL", "PRIMARY", "axial"],
            SeriesDescription="Head 5.0 H30s",
            ConvolutionKernel="H30s",
            ContrastBolusAgent="Iodine",
        )
    ).header.acquisition
    assert taken == Acquisition(
        position=(-120.0, -110.0, 35.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing_mm=(0.5, 0.4),
        thickness_mm=5.0,
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        series_description="Head 5.0 H30s",
        kernel="H30s",
        contrast=True,
        sop_class="1.2.840.10008.5.1.4.1.1.2",
    )
    assert taken.normal == (0.0, 0.0, 1.0)
    assert taken.position_mm == 35.0


@pytest.mark.parametrize("spacing", [ABSENT, "", "0.5", ["0.5", "nan"]])
def test_what_a_header_does_not_say_validly_is_not_known(spacing: Any) -> None:
    taken = read_slice(make(PixelSpacing=spacing, SliceThickness=ABSENT, ConvolutionKernel=ABSENT)).header.acquisition
    assert taken.spacing_mm == ()
    assert math.isnan(taken.thickness_mm)
    assert taken.kernel == ""
    assert not taken.contrast


@pytest.mark.parametrize(
    ("text", "kept"),
    [("H30s", "H30s"), ("Qr40d\\3", "Qr40d 3"), ("\x1b[31mred", "31mred"), ("k" * 99, "k" * 64), ("軟部", "")],
)
def test_what_people_typed_is_kept_in_plain_letters(text: str, kept: str) -> None:
    assert clean_name(text) == kept

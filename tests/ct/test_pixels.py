"""Frames of every codec: where they end, what may follow, and what no decoder here reads."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless

from ich_ray.ct import decoder
from ich_ray.ct.dicom import read_slice
from ich_ray.errors import Rejection
from tests.ct.files import INTERCEPT, compressed, compressed_image, dataset_of, head, lossless_jpeg, make

WORDS = (head().astype(np.int32) - INTERCEPT).astype(np.uint16)


def reason(data: bytes) -> str:
    with pytest.raises(Rejection) as caught:
        read_slice(data)
    return caught.value.reason


FRAMES = {
    "jpeg": (lambda: lossless_jpeg(WORDS), JPEGLosslessSV1),
    "jpegls": (lambda: frame_of(compressed_image(JPEGLSLossless, signed=False)), JPEGLSLossless),
    "j2k": (lambda: frame_of(compressed_image(JPEG2000Lossless, signed=False)), JPEG2000Lossless),
}


def frame_of(data: bytes) -> bytes:
    return next(generate_frames(dataset_of(data).PixelData, number_of_frames=1)).rstrip(b"\0")


@pytest.mark.parametrize(
    ("rest", "flags"),
    [
        (b"", ()),
        (b"\0", ()),
        (b"\0" * 9, ()),
        (b"\xff", ("pixel_padding",)),
        (b" ", ("pixel_padding",)),
        (b"\xff" * 30, ("pixel_padding",)),
        (b"what the buffer held", ("pixel_padding",)),
    ],
)
@pytest.mark.parametrize("codec", FRAMES)
def test_what_follows_the_end_marker_changes_no_pixel(codec: str, rest: bytes, flags: tuple[str, ...]) -> None:
    frame, syntax = FRAMES[codec][0](), FRAMES[codec][1]
    ct = read_slice(compressed(frame + rest, syntax, signed=False))
    assert np.array_equal(ct.hu(), head())
    assert ct.header.flags == ("not_512", *flags)


@pytest.mark.parametrize("codec", FRAMES)
def test_a_codestream_ends_once(codec: str) -> None:
    frame, syntax = FRAMES[codec][0](), FRAMES[codec][1]
    for cut in (frame[:-2], frame[:-1], frame[: len(frame) // 2]):
        assert reason(compressed(cut, syntax, signed=False)) == "truncated_pixel"
    assert reason(compressed(frame + frame, syntax, signed=False)) == "pixel_excess"
    for cut in (10, len(frame) // 2):  # libjpeg makes up the rest, and says so to stderr alone
        assert reason(compressed(frame[:-cut] + frame[-2:], syntax, signed=False)) == "decode_error"
    assert np.array_equal(read_slice(compressed(frame, syntax, signed=False)).hu(), head())


@pytest.mark.parametrize("codec", FRAMES)
def test_an_end_marker_in_two_fragments_and_one_in_a_thumbnail(codec: str) -> None:
    frame, syntax = FRAMES[codec][0](), FRAMES[codec][1]
    frame += b"\0" * (len(frame) % 2)

    def edit(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate([frame], fragments_per_frame=len(frame) // 2, has_bot=False)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    assert np.array_equal(read_slice(make(syntax=syntax, signed=False, edit=edit)).hu(), head())
    if codec != "j2k":
        thumbnail = b"\xff\xe0\0\x08JF\xff\xd8\xff\xd9"
        assert np.array_equal(
            read_slice(compressed(frame[:2] + thumbnail + frame[2:], syntax, signed=False)).hu(), head()
        )
        cut = frame[:2] + thumbnail + frame[2 : len(frame) // 2]
        assert reason(compressed(cut, syntax, signed=False)) == "truncated_pixel"


def test_lossy_jpeg_of_12_bits_has_no_decoder_here() -> None:
    frame = decoder._SAMPLE
    data = compressed(frame, JPEGExtended12Bit, Rows=8, Columns=8, BitsStored=12, HighBit=11, PixelRepresentation=0)
    with pytest.raises(Rejection, match="syntax_unsupported: no decoder for this transfer syntax with 12 bits is"):
        read_slice(data)
    damaged = frame.replace(b"\xff\xc1\0\x0b\x0c", b"\xff\xc1\0\x0b\x08")
    assert reason(compressed(damaged, JPEGExtended12Bit, Rows=8, Columns=8)) == "decode_error"

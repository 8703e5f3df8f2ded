"""Files with one fault each, for the table of reasons, with UIDs as in an archive."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ich_ray.ct import decoder
from tests.ct.enhanced import enhanced
from tests.ct.files import (
    ABSENT,
    IDENTIFIERS,
    INTERCEPT,
    compressed,
    compressed_image,
    dataset_of,
    element,
    head,
    lossless_jpeg,
    make,
    plant,
    save,
)

UIDS = IDENTIFIERS["uid"]
WORDS = (head().astype(np.int32) - INTERCEPT).astype(np.uint16)
_META_END = 144  # after the element that holds the length of the rest of the meta header


def good(**changes: Any) -> bytes:
    return make(**{**UIDS, **changes})


def jpeg_declared() -> bytes:
    return good(declared=JPEGBaseline8Bit)


def no_codestream() -> bytes:
    return compressed(b"no codestream", JPEG2000Lossless, **UIDS)


def damaged_jpeg_2000() -> bytes:
    data = compressed_image(JPEG2000Lossless, **UIDS)
    at = data.index(b"\xff\x4f\xff\x51") + 60
    return data[:at] + b"\0" * 600 + data[at + 600 :]


def _deflated(change: Callable[[bytes], bytes], **changes: Any) -> bytes:
    """A deflated file with a change of its data set."""
    data = good(syntax="deflated", **changes)
    start = _META_END + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    changed = change(zlib.decompress(data[start:], -zlib.MAX_WBITS))
    return data[:start] + deflater.compress(changed) + deflater.flush()


def deflated_bomb() -> bytes:
    size = 70 * 2**20
    return _deflated(lambda data: plant(data, b"\x27\0\x10\x10OB\0\0" + size.to_bytes(4, "little") + bytes(size)))


def not_deflated() -> bytes:
    data = good(syntax="deflated")
    start = _META_END + int.from_bytes(data[140:144], "little")
    return data[:start] + b"\xff" * 2000


def directory() -> bytes:
    dataset = Dataset()
    dataset.FileSetID, dataset.DirectoryRecordSequence = "CD", Sequence([])
    storage, medium = CTImageStorage.encode() + b"\0", b"1.2.840.10008.1.3.10".ljust(26, b"\0")
    return save(dataset, ExplicitVRLittleEndian).replace(storage, medium)


def other_size() -> bytes:
    return compressed(lossless_jpeg(WORDS), JPEGLosslessSV1, Rows=32, PixelRepresentation=0, **UIDS)


def rows_twice() -> bytes:
    return plant(good(), element(0x00280010, b"US", b"\x20\0"))


def float_pixels() -> bytes:
    def edit(dataset: Dataset) -> None:
        del dataset.PixelData
        dataset.FloatPixelData = head().astype(np.float32).tobytes()

    return good(edit=edit, BitsAllocated=32)


def unknown_vr() -> bytes:
    return plant(good(RescaleIntercept=ABSENT), element(0x00281052, b"??", b"-1000 "))


def no_transfer_syntax() -> bytes:
    data = good()
    at = data.index(b"\x02\0\x10\0UI")
    return data[:at] + data[at + 8 + data[at + 6] :]


def constant() -> bytes:
    return good(hu=np.full((64, 64), 35))


def lost_sign() -> bytes:
    return good(hu=np.where(head() < -900, -3024, head()), PixelRepresentation=0)


def modality_lut() -> bytes:
    def edit(dataset: Dataset) -> None:
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4096, 0, 16], "HU", b"\0" * 8192
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
        dataset.ModalityLUTSequence = Sequence([item])

    return good(edit=edit)


def three_frames() -> bytes:
    return good(NumberOfFrames="3", pixels=WORDS.tobytes() * 3)


def nested() -> bytes:
    inside = b""
    for _ in range(40):
        item = b"\xfe\xff\x00\xe0" + len(inside).to_bytes(4, "little") + inside
        inside = b"\x40\x00\x60\xa7SQ\0\0" + len(item).to_bytes(4, "little") + item
    return plant(good(), inside)


def page() -> bytes:
    return b"<html><body>404</body></html>" * 20


def no_preamble() -> bytes:
    return good()[132:]


def program() -> bytes:
    return b"MZ" + good()[2:]


def _jpeg_ls() -> bytes:
    dataset = dataset_of(compressed_image(JPEGLSLossless))
    return next(generate_frames(dataset.PixelData, number_of_frames=1)).rstrip(b"\0")


def two_codestreams() -> bytes:
    return compressed(_jpeg_ls() * 2, JPEGLSLossless, **UIDS)


def no_end_marker() -> bytes:
    """Zeros stand in its place: of a stream that just ends, readers say what chance left in the memory behind it."""
    return compressed(_jpeg_ls()[:-2] + bytes(8), JPEGLSLossless, **UIDS)


def half_a_jpeg() -> bytes:
    frame = lossless_jpeg(WORDS)
    half = frame[: len(frame) // 2] + frame[-2:]
    return compressed(half, JPEGLosslessSV1, PixelRepresentation=0, **UIDS)


def cut_off() -> bytes:
    return good()[:-1]


def jpeg_bomb() -> bytes:
    frame = lossless_jpeg(WORDS).replace(b"\x10\0\x40\0\x40", b"\x10\xff\xff\xff\xff")
    return compressed(frame, JPEGLosslessSV1, PixelRepresentation=0, **UIDS)


def unknown_syntax() -> bytes:
    return good(declared="1.2.840.10008.1.2.9")


def twelve_bits() -> bytes:
    tags = {"Rows": 8, "Columns": 8, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    return compressed(decoder._SAMPLE, JPEGExtended12Bit, **UIDS, **tags)


def cut_in_header() -> bytes:
    data = good()
    return data[: data.index(b"\x10\0\x20\0LO") + 9]


def too_long() -> bytes:
    return plant(good(), b"\x27\x00\x10\x00UN\0\0\xf0\xff\xff\xff")


def cut_rle() -> bytes:
    return compressed_image(RLELossless, **UIDS)[:-500]


def no_uid() -> bytes:
    data = good()
    tag = b"\x08\0\x18\0UI"
    at = data.index(tag)
    return data[:at] + tag + b"\0\0" + data[at + 8 + data[at + 6] :]


def a_group_fewer() -> bytes:
    def edit(file: Dataset) -> None:
        file.PerFrameFunctionalGroupsSequence.pop()

    return enhanced([make(head(seed=seed), **IDENTIFIERS["uid"]) for seed in range(3)], edit=edit)


def strip() -> bytes:
    return make(head(128, 32), **IDENTIFIERS["uid"])

"""DICOM files for tests: one valid head-CT slice, and every way to spoil it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

ABSENT = object()
PIXEL_HEAD = b"\xe0\x7f\x10\x00OW\0\0"
SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
INTERCEPT = -1024
# Identifiers as in the RSNA set, and UIDs as in an archive: some rules hold for one of the kinds only.
IDENTIFIERS = {
    "rsna": {"SOPInstanceUID": "ID_0001", "StudyInstanceUID": "ID_study", "SeriesInstanceUID": "ID_series"},
    "uid": {"SOPInstanceUID": "1.2.826.0.1.1", "StudyInstanceUID": "1.2.826.0.2", "SeriesInstanceUID": "1.2.826.0.3"},
}


def head(rows: int = 64, columns: int = 64, seed: int = 0) -> NDArray[np.int16]:
    """A disc of noisy brain with a skull in air, HU."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    radius = np.hypot(x, y)
    hu = np.full((rows, columns), -1000.0)
    hu[radius < 0.9], hu[radius < 0.8] = 900, 35
    return (hu + rng.normal(0, 8, hu.shape)).clip(-1023, 3000).astype(np.int16)


def make(
    hu: NDArray[Any] | None = None,
    *,
    signed: bool = True,
    syntax: str = "explicit",
    declared: str | None = None,
    pixels: bytes | None = None,
    edit: Callable[[Dataset], None] | None = None,
    **tags: Any,
) -> bytes:
    """The bytes of a DICOM file.

    Args:
        hu: the image; `head()` if not given.
        signed: 16-bit signed words, else 12-bit unsigned ones.
        syntax: a key of `SYNTAXES`, or a UID.
        declared: what the file says instead.
        pixels: PixelData in place of the image.
        edit: changes the data set last of all.
        tags: keywords with their values; `ABSENT` removes one.
    """
    hu = head() if hu is None else hu
    words = (hu.astype(np.int32) - INTERCEPT).astype(np.int16 if signed else np.uint16)
    order = ">" if syntax == "big" else "<"
    dataset = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        **IDENTIFIERS["rsna"],
        "Modality": "CT",
        "PatientID": "P1",
        "ImagePositionPatient": [-125.0, -100.0, 40.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": hu.shape[0],
        "Columns": hu.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16 if signed else 12,
        "HighBit": 15 if signed else 11,
        "PixelRepresentation": int(signed),
        "RescaleIntercept": INTERCEPT,
        "RescaleSlope": 1,
        "PixelData": pixels if pixels is not None else words.astype(words.dtype.newbyteorder(order)).tobytes(),
        **tags,
    }
    with unchecked():
        for keyword, value in values.items():
            if value is not ABSENT:
                setattr(dataset, keyword, value)
        if "PixelData" in dataset:
            dataset["PixelData"].VR = "OW"
        if edit:
            edit(dataset)
    return save(dataset, SYNTAXES.get(syntax, syntax), declared)


def save(dataset: Dataset, syntax: str, declared: str | None = None) -> bytes:
    """Write with a preamble and a meta header, encoded as `syntax` and labeled as `declared`."""
    with unchecked():
        return _save(dataset, syntax, declared)


def _save(dataset: Dataset, syntax: str, declared: str | None) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or "1.2.3"
    meta.TransferSyntaxUID = syntax
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    file = FileDataset("", dataset, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=little)
    target = io.BytesIO()
    file.save_as(target, enforce_file_format=True)
    data = target.getvalue()
    if declared is not None:
        old, new = (uid.encode() + b"\0" * (len(uid) % 2) for uid in (syntax, declared))
        head_of = b"\x02\x00\x10\x00UI"
        length = (len(old).to_bytes(2, "little"), len(new).to_bytes(2, "little"))
        data = data.replace(head_of + length[0] + old, head_of + length[1] + new, 1)
    return data


@contextmanager
def unchecked() -> Iterator[None]:
    """Let pydicom write what is not allowed, without a word."""
    reading, writing = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    try:
        yield
    finally:
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = reading, writing


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One explicit little endian element with a short length, for planting into a file."""
    head_bytes = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr
    return head_bytes + len(value).to_bytes(2, "little") + value


def plant(data: bytes, *elements_: bytes) -> bytes:
    """`data` with elements put before its PixelData."""
    at = data.index(PIXEL_HEAD)
    return data[:at] + b"".join(elements_) + data[at:]


def dataset_of(data: bytes) -> Dataset:
    return dcmread(io.BytesIO(data))


def lossless_jpeg(words: NDArray[Any]) -> bytes:
    """ITU-T T.81 process 14, first-order prediction, 16-bit words: the one codec here that has no encoder."""
    rows, columns = words.shape
    bits = []
    for row in range(rows):
        for column in range(columns):
            above = int(words[row - 1, 0]) if row else 1 << 15
            predicted = int(words[row, column - 1]) if column else above
            difference = (int(words[row, column]) - predicted + (1 << 15)) % (1 << 16) - (1 << 15)
            size = abs(difference).bit_length()
            bits.append(f"{size:05b}")  # 17 codes of equal length 5
            if 0 < size < 16:
                bits.append(format(difference if difference > 0 else difference + (1 << size) - 1, f"0{size}b"))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = b"\xff\xc3\0\x0b\x10" + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + b"\x01\x01\x11\0"
    table = b"\xff\xc4\0" + bytes([19 + 17, 0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    return b"\xff\xd8" + frame + table + b"\xff\xda\0\x08\x01\x01\0\x01\0\0" + scan + b"\xff\xd9"


def compressed(frame: bytes, syntax: str, **tags: Any) -> bytes:
    def edit(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return make(syntax=syntax, edit=edit, **tags)


def compressed_image(syntax: str, hu: NDArray[Any] | None = None, **tags: Any) -> bytes:
    """An image compressed by an encoder of pydicom; the test skips where that is missing, as for JPEG-LS on 3.14."""
    if not get_encoder(UID(syntax)).is_available:
        pytest.skip(f"no encoder for {UID(syntax).name}")
    dataset = dataset_of(make(hu, **tags))
    dataset.compress(syntax, generate_instance_uid=False)
    return save(dataset, syntax)

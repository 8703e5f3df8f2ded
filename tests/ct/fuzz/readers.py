"""A file as pydicom and GDCM read it, in a process of their own: damaged files make both crash, hang and allocate."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import resource
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Failure", "Reading", "readings"]

_LIMIT_S, _LIMIT_BYTES = 20, 2**30
_TEXTS = {
    "meta class": (0x0002, 0x0002),
    "class": (0x0008, 0x0016),
    "slice_id": (0x0008, 0x0018),
    "patient": (0x0010, 0x0020),
    "study": (0x0020, 0x000D),
    "series": (0x0020, 0x000E),
    "position": (0x0020, 0x0032),
    "orientation": (0x0020, 0x0037),
}
# For each transfer syntax a decoder that ours is not, where there is one. RLE and lossless JPEG have none here: GDCM's
# own reading of the file is compared.
_OTHER_PLUGINS = {
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"), "pillow"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "pyjpegls"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), "pylibjpeg"),
}
_HTJ2K = tuple(f"1.2.840.10008.1.2.4.{last}" for last in (201, 202, 203))


@dataclass(frozen=True)
class Reading:
    """What a library makes of a file: texts as they stand, words with their rescale, nothing repaired.

    `silences` names what the library read over without a word although it makes the HU or the slice another.
    """

    texts: dict[str, str]
    words: NDArray[Any]
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, ...]
    silences: tuple[str, ...] = ()

    def hu(self) -> NDArray[np.float32]:
        """HU by the rules that docs and flags state: bits above BitsStored, the RSNA repair, padding as air."""
        words = self.words.astype(np.int64) & ((1 << self.bits_stored) - 1)
        if self.signed:
            words = np.where(words >> (self.bits_stored - 1), words - (1 << self.bits_stored), words)
        if (self.bits_stored, self.signed, self.slope) == (12, False, 1) and self.intercept > -100:
            return np.where(words >= 3096, words - 4096, words).astype(np.float32)
        if self.padding:
            air = round((-1024 - self.intercept) / self.slope)
            words = np.where((words >= min(self.padding)) & (words <= max(self.padding)), air, words)
        return (words * np.float64(self.slope) + self.intercept).astype(np.float32)


@dataclass(frozen=True)
class Failure:
    """Why a library does not read a file."""

    reason: str


def _by_pydicom(data: bytes) -> Reading:
    from pydicom import dcmread
    from pydicom.pixels.decoders.base import get_decoder

    dataset = dcmread(io.BytesIO(data))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _HTJ2K:
        words = _by_pillow(dataset)
    else:
        plugin = _OTHER_PLUGINS.get(syntax, "")
        words, _ = get_decoder(syntax).as_array(dataset, raw=True, decoding_plugin=plugin)
    limits = [dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    return Reading(
        {name: _raw(dataset, tag) for name, tag in _TEXTS.items()},
        words,
        dataset.BitsStored,
        bool(dataset.PixelRepresentation),
        float(dataset.RescaleSlope),
        float(dataset.RescaleIntercept),
        tuple(limit for limit in limits if isinstance(limit, int)) if isinstance(limits[0], int) else (),
        _silences(dataset, data),
    )


def _silences(dataset: Any, data: bytes) -> tuple[str, ...]:
    """What must be refused: pydicom reads all of it, and so does GDCM most of it."""
    tags = Counter(_tags(dataset, data))
    found = {
        "a tag that stands twice": any(count > 1 for tag, count in tags.items() if tag),  # zeros at the end are padding
        "PhotometricInterpretation": str(dataset.get("PhotometricInterpretation")).upper() != "MONOCHROME2",
        "SamplesPerPixel": dataset.get("SamplesPerPixel") != 1,
        "NumberOfFrames": int(dataset.get("NumberOfFrames") or 1) != 1,
        "Modality": str(dataset.get("Modality")).strip().upper() != "CT",
        "a Modality LUT": "ModalityLUTSequence" in dataset,
        "RescaleType": str(dataset.get("RescaleType") or "HU").strip().upper() != "HU",
        "BitsAllocated": dataset.get("BitsAllocated") not in {8, 16},
        "BitsStored": not 0 < dataset.BitsStored <= dataset.BitsAllocated,
        "HighBit": dataset.get("HighBit") != dataset.BitsStored - 1,
        "PixelRepresentation": dataset.PixelRepresentation not in {0, 1},
        "floating-point pixels": "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset,
    }
    return tuple(name for name, holds in found.items() if holds)


def _tags(dataset: Any, data: bytes) -> Iterator[int]:
    """Every tag of the file as often as it stands there."""
    from pydicom.filereader import data_element_generator

    file = io.BytesIO(data)
    file.seek(132)
    yield from (int(one.tag) for one in data_element_generator(file, False, True, lambda tag, *_: tag.group != 2))
    if dataset.file_meta.TransferSyntaxUID.is_deflated:
        file = io.BytesIO(zlib.decompress(file.read(), -zlib.MAX_WBITS))
    yield from (int(one.tag) for one in data_element_generator(file, *dataset.original_encoding))


def _raw(dataset: Any, tag: tuple[int, int]) -> str:
    part = dataset.file_meta if tag[0] == 0x0002 else dataset
    if tag not in part:
        return ""
    value = part.get_item(tag).value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value or "")


def _by_pillow(dataset: Any) -> NDArray[Any]:
    from PIL import Image
    from pydicom.encaps import generate_fragments

    frame = b"".join(list(generate_fragments(dataset.PixelData))[1:])
    return np.asarray(Image.open(io.BytesIO(frame), formats=("JPEG2000",)))


def _by_gdcm(data: bytes) -> Reading:
    import gdcm

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        reader = gdcm.ImageReader()
        reader.SetFileName(file.name)
        if not reader.Read():
            raise ValueError("gdcm.ImageReader")
        image = reader.GetImage()
        texts = gdcm.StringFilter()
        texts.SetFile(reader.GetFile())
        form = image.GetPixelFormat()
        signed = bool(form.GetPixelRepresentation())
        kind = np.dtype(f"{'i' if signed else 'u'}{form.GetBitsAllocated() // 8}")
        dimensions = image.GetDimensions()
        words = np.frombuffer(_bytes(image.GetBuffer()), kind).reshape(dimensions[::-1])
        found = {name: _bytes(texts.ToString(gdcm.Tag(*tag))).decode("latin-1") for name, tag in _TEXTS.items()}
        limits = (texts.ToString(gdcm.Tag(0x0028, 0x0120)), texts.ToString(gdcm.Tag(0x0028, 0x0121)))
    found_padding = tuple(int(limit) for limit in limits if limit.strip(" \0")) if limits[0].strip(" \0") else ()
    return Reading(found, words, form.GetBitsStored(), signed, image.GetSlope(), image.GetIntercept(), found_padding)


def _bytes(text: str) -> bytes:
    """The bytes that GDCM's binding took for UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _attempt(read: Callable[[bytes], Reading], data: bytes) -> Reading | Failure:
    try:
        return read(data)
    except Exception as error:  # noqa: BLE001  (both raise whatever they like)
        return Failure(type(error).__name__)


def _serve(requests: Connection) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # GDCM's parts in C print
    import gdcm
    import pydicom.pixels.decoders  # noqa: F401  (its time is not the first file's)

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError):
        while True:
            data = requests.recv()
            requests.send(_attempt(_by_pydicom, data))
            requests.send(_attempt(_by_gdcm, data))


class _Process:
    """The process that reads; a new one after each death."""

    def __init__(self) -> None:
        self._running: tuple[multiprocessing.Process, Connection] | None = None

    def ask(self, data: bytes) -> tuple[Reading | Failure, Reading | Failure]:
        if self._running is None:
            ours, theirs = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._running = process, ours  # type: ignore[assignment]
        _, pipe = self._running
        pipe.send(data)
        first = self._answer()
        # One that died of the file with pydicom is not asked again: what GDCM would have said stays unknown.
        return first, self._answer() if self._running else Failure("not asked")

    def _answer(self) -> Reading | Failure:
        process, pipe = self._running
        try:
            if pipe.poll(_LIMIT_S):
                return pipe.recv()
        except EOFError:
            pass
        process.kill()
        process.join()
        self._running = None
        return Failure("crash" if process.exitcode != -9 else "hang")


_PROCESS = _Process()


def readings(data: bytes) -> tuple[Reading | Failure, Reading | Failure]:
    """By pydicom, with a decoder that ours is not where there is one, and by GDCM."""
    return _PROCESS.ask(data)

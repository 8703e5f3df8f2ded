"""Files with one to three wrong bytes: each ends as a typed rejection or as the pixels of the good file.

An exception handler is not a check: pydicom reads a third of such files without a word as something else.
"""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from ich_ray.ct import isolation
from ich_ray.ct.dicom import CTSlice, read_slice
from ich_ray.ct.elements import PIXEL_DATA, parse
from ich_ray.errors import Rejection
from tests.ct.files import IDENTIFIERS, compressed, compressed_image, dataset_of, make


def padded_jpeg_ls() -> bytes:
    dataset = dataset_of(compressed_image(JPEGLSLossless))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1)).rstrip(b"\0")
    return compressed(frame + b"\xff" * (2 - len(frame) % 2), JPEGLSLossless, **IDENTIFIERS["uid"])


BASES: dict[str, Callable[[], bytes]] = {
    "signed 16 bits": make,
    "unsigned 12 bits": lambda: make(signed=False, syntax="implicit"),
    "big endian": lambda: make(syntax="big"),
    "with UIDs": lambda: make(**IDENTIFIERS["uid"]),
    "jpeg-ls, padded, with UIDs": padded_jpeg_ls,
    "rle": lambda: compressed_image(RLELossless),
    "jpeg-ls": lambda: compressed_image(JPEGLSLossless),
    "j2k": lambda: compressed_image(JPEG2000Lossless),
}
LIMIT_S, LIMIT_KIB = 2.0, 512 * 1024


@dataclass(frozen=True)
class Base:
    """A good file, and where its pixels lie."""

    data: bytes
    ct: CTSlice
    start: int
    end: int
    is_native: bool

    @classmethod
    def of(cls, data: bytes) -> Base:
        elements = parse(memoryview(data))
        start, end = elements.spans[PIXEL_DATA]
        return cls(data, read_slice(data), start, end, not elements.fragments)

    def mutant(self, seed: int) -> tuple[bytes, list[int]]:
        """One to three bytes changed, half of the time in the header only; the data and the places."""
        rng = random.Random(seed)
        data = bytearray(self.data)
        end = self.start if rng.random() < 0.5 else len(data)
        at = rng.randrange(128, end)
        places = [at, *(rng.choice([min(at + 1, end - 1), rng.randrange(128, end)]) for _ in range(rng.randrange(3)))]
        for place in places:  # any byte, one bit, or a byte of the header: digits become other digits
            flipped = data[place] ^ 1 << rng.randrange(8)
            data[place] = rng.choice([rng.randrange(256), flipped, data[rng.randrange(128, self.start)]])
        return bytes(data), places

    def untouched(self, places: list[int]) -> NDArray[np.bool_]:
        """Which pixels must be as they were; one byte of a codestream may decide all of them."""
        kept = np.ones(self.ct.stored.size, bool)
        for place in places:
            if self.start <= place < self.end:
                kept[(place - self.start) // 2 if self.is_native else slice(None)] = False
        return kept.reshape(self.ct.stored.shape)


def facts(ct: CTSlice) -> tuple[object, ...]:
    """What the header says about the pixels: with other facts they are rightly others."""
    header = ct.header
    of_pixels = (header.rows, header.columns, header.bits_stored, header.signed, header.slope, header.intercept)
    return (*of_pixels, "padding" in header.flags)


def fate(base: Base, seed: int) -> str:
    """The reason of a mutant, or `accepted`; fails where its pixels are wrong."""
    data, places = base.mutant(seed)
    try:
        ct = read_slice(data)
    except Rejection as rejection:
        return rejection.reason
    assert ct.stored.shape == (ct.header.rows, ct.header.columns)
    if facts(ct) != facts(base.ct):
        return "accepted with other facts"
    kept = base.untouched(places)
    assert np.array_equal(ct.hu()[kept], base.ct.hu()[kept]), f"seed {seed}: {places}"
    return "accepted"


def peak_kib(process: int) -> int:
    """Of a process that runs; what `getrusage` says of children includes their parent's when it forked."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def check(name: str, seeds: range) -> Counter[str]:
    base, fates = Base.of(BASES[name]()), Counter[str]()
    for seed in seeds:
        started = time.perf_counter()
        fates[fate(base, seed)] += 1
        if time.perf_counter() - started > LIMIT_S:  # a busy machine, or a file that takes its time?
            started = time.perf_counter()
            fate(base, seed)
            assert time.perf_counter() - started < LIMIT_S, f"seed {seed}"
    for running in isolation._running:
        assert peak_kib(running._process.pid) < LIMIT_KIB
    assert fates["accepted"] > 0
    assert sum(fates.values()) == len(seeds)
    return fates


@pytest.mark.parametrize("name", BASES)
def test_200_mutants(name: str) -> None:
    check(name, range(34))


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_3000_mutants(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fates = check(name, range(1000, 1500))
    print(name, dict(fates.most_common()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT_KIB

"""The field on decoding: phantom DICOM files of 512x512, uncompressed as RSNA's, to three windows of 128x128, uint8.

One thread each, file cache warm, CPU time: the usual pydicom + float NumPy + OpenCV code, the fastest that we could
write on public readers (windows as an integer clip of the raw words, then one area average in float32), the libraries'
own routes, and reading the bytes only, which is the floor. Each is compared with the usual code first. Ours also checks
what it reads and rejects what it must not trust; the others do not.

    python benchmarks/field_decode.py [--patients 8] [--rounds 7]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contest import Peer, absent, in_turns, machine, ratios, spread, table
from benchmarks.decode import SIZE, WINDOWS, ours, usual
from ich_ray.ct.phantom import write_phantom
from ich_ray.ct.source import read_file
from ich_ray.storage import locate

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Decode = Callable[[Path], NDArray[np.uint8]]

DICOMSDL = Peer("dicomsdl + integer clip + OpenCV", "dicomsdl", "dicomsdl")
SIMPLE_ITK = Peer("SimpleITK alone", "SimpleITK", "SimpleITK")
MONAI = Peer("MONAI transforms", "monai", "monai")
PEERS = (DICOMSDL, SIMPLE_ITK, MONAI)
EDGES_HU = [(window.center_hu - window.width_hu / 2, window.center_hu + window.width_hu / 2) for window in WINDOWS]


@lru_cache
def kept(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Memory that is used again: a new array for each image would cost more in page faults than its arithmetic."""
    return np.empty(shape, kind)


def clipped(words: NDArray[Any], slope: float, intercept: float) -> NDArray[np.uint8]:
    """Windows cut on the integers as they are stored: exact where their edges are whole words, as all of ours are."""
    channels = np.empty((len(EDGES_HU), SIZE, SIZE), np.uint8)
    whole, floating = kept(words.shape, words.dtype), kept(words.shape, np.dtype(np.float32))
    for channel, edges in zip(channels, EDGES_HU, strict=True):
        low, high = ((edge - intercept) / slope for edge in edges)
        assert low.is_integer()
        assert high.is_integer()
        floating[:] = np.clip(words, int(low), int(high), out=whole)
        small = cv2.resize(floating, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        channel[:] = (small - low) * (255 / (high - low)) + 0.5
    return channels


def pydicom_clipped(path: Path) -> NDArray[np.uint8]:
    """Without `pixel_array`, which takes longer than the file's parsing."""
    read = pydicom.dcmread(path)
    kind = np.int16 if read.PixelRepresentation else np.uint16
    words = np.frombuffer(read.PixelData, kind).reshape(read.Rows, read.Columns)
    return clipped(words, float(read.RescaleSlope), float(read.RescaleIntercept))


def of_dicomsdl() -> Decode:
    import dicomsdl

    def decode(path: Path) -> NDArray[np.uint8]:
        read = dicomsdl.open(str(path))
        return clipped(read.pixelData(storedvalue=True), float(read.RescaleSlope), float(read.RescaleIntercept))

    return decode


def of_simple_itk() -> Decode:
    """Filters in C++ from the file to the shrunk windows."""
    import SimpleITK as sitk  # noqa: N813  (as its documentation has it)

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def decode(path: Path) -> NDArray[np.uint8]:
        hu = sitk.ReadImage(str(path), sitk.sitkFloat32)
        factors = [hu.GetWidth() // SIZE, hu.GetHeight() // SIZE, 1]
        small = (sitk.BinShrink(sitk.IntensityWindowing(hu, *edges, 0.0, 255.0), factors) for edges in EDGES_HU)
        return np.concatenate([np.floor(sitk.GetArrayViewFromImage(one) + 0.5).astype(np.uint8) for one in small])

    return decode


def of_torchvision() -> Decode:
    """Its resizing with antialiasing is a triangle filter, not an area average: it differs, as it would in training."""
    import torch
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)

    def decode(path: Path) -> NDArray[np.uint8]:
        read = pydicom.dcmread(path)
        words = torch.from_numpy(read.pixel_array.astype(np.float32))
        hu = words * float(read.RescaleSlope) + float(read.RescaleIntercept)
        cut = torch.stack([(hu - low).div_(high - low).clamp_(0, 1) for low, high in EDGES_HU])
        return np.asarray(functional.resize(cut, [SIZE, SIZE], antialias=True).mul(255).round().to(torch.uint8))

    return decode


def of_monai() -> Decode:
    """Its transforms for single images, with the same area average."""
    import torch
    from monai.transforms import LoadImage, Resize, ScaleIntensityRange

    torch.set_num_threads(1)
    load = LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True, swap_ij=False)
    windows = [ScaleIntensityRange(low, high, 0.0, 255.0, clip=True) for low, high in EDGES_HU]
    resize = Resize((SIZE, SIZE), mode="area")

    def decode(path: Path) -> NDArray[np.uint8]:
        hu = load(path)
        return np.asarray(resize(torch.cat([window(hu) for window in windows])).round().to(torch.uint8))

    return decode


def reading() -> Decode:
    return lambda path: read_file(locate(path))  # type: ignore[return-value]


FLOOR = "reading the bytes only (floor)"
ROUTES: dict[str, Callable[[], Decode]] = {
    "ours": lambda: ours,
    "pydicom + float NumPy + OpenCV (usual)": lambda: usual,
    "pydicom + integer clip + OpenCV": lambda: pydicom_clipped,
    "pydicom + torchvision": of_torchvision,
    DICOMSDL.name: of_dicomsdl,
    SIMPLE_ITK.name: of_simple_itk,
    MONAI.name: of_monai,
    FLOOR: reading,
}


@lru_cache
def made(route: str) -> Decode:
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    return ROUTES[route]()


def milliseconds(route: str, paths: list[Path]) -> float:
    decode = made(route)
    started = time.process_time()
    for path in paths:
        decode(path)
    return (time.process_time() - started) / len(paths) * 1e3


def difference(route: str, paths: list[Path]) -> str:
    """Against the usual code, in grey levels."""
    if route == FLOOR:
        return ""
    apart = np.stack([abs(made(route)(path).astype(int) - usual(path)) for path in paths])
    return f"{apart.max()}, {apart.mean():.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=8, help="phantom patients of about 8 slices")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    out = {peer.name for peer in PEERS if not peer.there}
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(Path(str(write_phantom(folder, options.patients, seed=0).images)).iterdir())
        timed = {route: partial(milliseconds, route, paths) for route in ROUTES if route not in out}
        times = in_turns(timed, options.rounds)
        rows = [
            [route, spread(values, 2), spread(ratios(values, times["ours"]), 2), difference(route, paths[:16])]
            for route, values in sorted(times.items(), key=lambda item: -min(item[1]))
        ]
    print(f"decoding {len(paths)} files of 512x512, {options.rounds} rounds; {machine()}")
    print(table(["route", "CPU ms a file", "time / ours", "grey levels apart: most, mean"], rows))
    print(*absent(PEERS), sep="\n")


if __name__ == "__main__":
    main()

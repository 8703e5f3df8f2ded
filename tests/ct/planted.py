"""A decoder that obeys the frame: planted before the real JPEG-LS plug-in, in a folder that a test puts on its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless

from tests.ct.files import make

_PLUGIN = """
import os, signal, time
__version__ = "1.5.1"

def decode_pixel_data(frame):
    if b"EXIT" in frame:
        os._exit(3)
    if b"SEGV" in frame:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"HANG" in frame:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        time.sleep(600)
    if b"CHAT" in frame:
        print("a library that prints", flush=True)
        os.write(1, b"in C too")
    if b"HUGE" in frame:
        bytearray(1200 * 2**20)
    raise ValueError("no JPEG-LS here")
"""


def plant_decoder(folder: Path) -> Path:
    """Write the plug-in below `folder`, which then belongs at the front of the path."""
    package = folder / "jpeg_ls"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_PLUGIN)
    return folder


def poison(order: str, side: int = 64, **tags: Any) -> bytes:
    """A JPEG-LS file whose frame holds an order to the planted decoder."""
    frame = (
        b"\xff\xd8\xff\xf7\0\x0b\x10" + side.to_bytes(2, "big") * 2 + b"\x01\x01\x11\0" + order.encode() + b"\xff\xd9"
    )

    def edit(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return make(syntax=JPEGLSLossless, edit=edit, **tags)

"""What pydicom, GDCM and DCMTK say of a file: `image`, `header` (no image) or `nothing`."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import gdcm
import pydicom

_DCMDUMP = shutil.which("dcmdump") or ""
# Each program of DCMTK decodes its own family of transfer syntaxes; none decodes JPEG 2000.
_DECODERS = {
    "1.2.840.10008.1.2.4.5": "dcmj2pnm",
    "1.2.840.10008.1.2.4.70": "dcmj2pnm",
    "1.2.840.10008.1.2.4.8": "dcml2pnm",
}


def by_pydicom(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
            dataset.walk(lambda _, __: None)
        except Exception:  # noqa: BLE001  (anything may come of a spoiled file)
            return "nothing"
        try:
            return "image" if dataset.pixel_array.size else "header"
        except Exception:  # noqa: BLE001
            return "header"


def by_gdcm(data: bytes) -> str:
    for silence in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        silence()
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(data)
        file.flush()
        header, image = gdcm.Reader(), gdcm.ImageReader()
        header.SetFileName(file.name)
        image.SetFileName(file.name)
        if not header.Read():
            return "nothing"
        return "image" if image.Read() and _pixels(image) else "header"


def _pixels(reader: gdcm.ImageReader) -> bool:
    try:
        return bool(reader.GetImage().GetBuffer())
    except Exception:  # noqa: BLE001
        return False


def by_dcmtk(data: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.dcm"
        path.write_bytes(data)
        dump = subprocess.run([_DCMDUMP, path], capture_output=True, check=False)
        if dump.returncode:
            return "nothing"
        syntax = re.search(rb"\(0002,0010\) UI =?(\S+)", dump.stdout)
        name = syntax[1].decode() if syntax else ""
        program = next((program for start, program in _DECODERS.items() if name.startswith(start)), "dcm2pnm")
        image = subprocess.run([program, path, Path(folder) / "image"], capture_output=True, check=False)
        return "header" if image.returncode else "image"


READERS: dict[str, Callable[[bytes], str]] = {"pydicom": by_pydicom, "GDCM": by_gdcm, "DCMTK": by_dcmtk}


def versions() -> str:
    return f"pydicom {pydicom.__version__}, GDCM {gdcm.Version.GetVersion()}, DCMTK {dcmtk_version()}"


def dcmtk_version() -> str:
    """Empty where the programs are not installed."""
    if not _DCMDUMP:
        return ""
    said = subprocess.run([_DCMDUMP, "--version"], capture_output=True, text=True, check=False).stdout
    return said.split()[2].lstrip("v")

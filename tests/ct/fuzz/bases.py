"""One good file of every transfer syntax that is read, with identifiers of the RSNA kind and with UIDs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tests.ct.files import IDENTIFIERS, compressed, dataset_of, head, lossless_jpeg, make, save

__all__ = ["BASES"]

HU = head(32, 32)
HU[:4, :4] = -1023  # word 1, which one of the files calls padding

# `head(16, 16) + 1024` as High-Throughput JPEG 2000, by OpenJPH 0.26: nothing that is installed encodes it.
_HTJ2K = base64.b85decode(
    "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmw"
    "h=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00001@Bjh-lfVEbkNO1%bN~Rr024p}6F>kH01EyBhjai0{sM<|0PFq&hjakI02MF*1yle5"
    "RFDv#J0Ad|lmMit+;}|x0HKrsXn?9$6Y~LsGyuQ=7VH24ZomK*@Us+=$Q=rC1gvC7E*7MC!Vf}V=~4a%Do8L9mjJc6XkiYDIU&RriLlBP;zJ3f"
    "GT|r!5=e|-"
    "0Js3rKG1jyU^3kRhpGT`4r5%JoDrqSsQ^+`kbna?0Kfn*V1NK#!vFxilnd;EU(*LK0$AWjB+J>tAt{0Z)gS~90`bQIf&*X_aGeHVNep_l6QTvC"
    "Log)^N5`Uo0js2#wiU)B90mZ)S-IvdD4;jgO9YjU=#B+o-~dK91XDZ^2N1x^h9Cow0SWZG>k|thuwf4@)x(LmIgWA-"
    "+`I??q*(Ar00ssFAi#ii12i82CgrIGD_G442;mXP&sVu-"
    "p+L$JpanmRG0v6x1+I;b6*!>Bga!gs^C5_IfFKlHG8Bw}U=ToSl>r0bJHBH9`v}YfBto3x6<h)BBtQ)^ay2r*11bOn7{CVt;J^*&{Q$93z$Al1"
    "92JL+w7?Kz+;EoUT>}y*!7V3Xvf2(Hk@CtT<pGqNfdn@22<Ar-L{x_tO8^Q&0h}Q~CzApH*#"
)


def _ordinary(dataset: Dataset) -> None:
    """What scanners write besides what is read: texts, private elements, sequences of either length."""
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate, dataset.PatientName, dataset.KVP = "20180101", "A^B", "120"
    dataset.SliceThickness, dataset.PixelSpacing = "5", ["0.5", "0.5"]
    dataset.GantryDetectorTilt, dataset.RescaleType = "0", "HU"
    block = dataset.private_block(0x0009, "MAKER", create=True)
    block.add_new(1, "OB", b"\0\1\2\3")
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    dataset.ReferencedImageSequence, dataset.SourceImageSequence = [item], [item]
    dataset["SourceImageSequence"].is_undefined_length = item.is_undefined_length_sequence_item = True


def _file(syntax: str = "explicit", **tags: Any) -> bytes:
    return make(HU, syntax=syntax, edit=_ordinary, **tags)


def _encoded(syntax: str, tags: dict[str, Any], **options: Any) -> bytes:
    dataset = dataset_of(_file(**tags))
    dataset.compress(syntax, generate_instance_uid=False, **options)
    return save(dataset, syntax)


def _framed(frame: bytes, syntax: str, **tags: Any) -> bytes:
    def edit(dataset: Dataset) -> None:
        _ordinary(dataset)

    dataset = dataset_of(compressed(frame + b"\0" * (len(frame) % 2), syntax, **tags))
    edit(dataset)
    return save(dataset, syntax)


def _jpeg_8_bits(syntax: str, tags: dict[str, Any]) -> bytes:
    target = io.BytesIO()
    words = ((HU.astype(int) + 1024) // 16).clip(0, 255).astype(np.uint8)
    Image.fromarray(words).save(target, "JPEG", quality=95)
    frame = target.getvalue()
    if syntax == JPEGExtended12Bit:  # the same process with another name for its frame (ITU-T T.81 B.1.1.3)
        frame = frame.replace(b"\xff\xc0", b"\xff\xc1", 1)
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "RescaleSlope": 16}
    return _framed(frame, syntax, hu=HU, **bits, **tags)


def _jpeg_lossless(syntax: str, tags: dict[str, Any]) -> bytes:
    return _framed(
        lossless_jpeg((HU.astype(int) + 1024).astype(np.uint16)), syntax, hu=HU, PixelRepresentation=0, **tags
    )


def _htj2k(syntax: str, tags: dict[str, Any]) -> bytes:
    return _framed(_HTJ2K, syntax, hu=head(16, 16), PixelRepresentation=0, **tags)


_MAKERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "implicit": lambda tags: make(HU, syntax="implicit", edit=_ordinary, **tags),
    "explicit": lambda tags: _file(**tags),
    "12 bits": lambda tags: make(HU, signed=False, edit=_ordinary, PixelPaddingValue=1, **tags),
    "big endian": lambda tags: _file("big", **tags),
    "deflated": lambda tags: _file("deflated", **tags),
    "rle": lambda tags: _encoded(RLELossless, tags),
    "jpeg baseline": lambda tags: _jpeg_8_bits(JPEGBaseline8Bit, tags),
    "jpeg extended": lambda tags: _jpeg_8_bits(JPEGExtended12Bit, tags),
    "jpeg lossless": lambda tags: _jpeg_lossless(JPEGLossless, tags),
    "jpeg lossless sv1": lambda tags: _jpeg_lossless(JPEGLosslessSV1, tags),
    "jpeg-ls": lambda tags: _encoded(JPEGLSLossless, tags),
    "jpeg-ls near": lambda tags: _encoded(JPEGLSNearLossless, tags, jls_error=2),
    "j2k lossless": lambda tags: _encoded(JPEG2000Lossless, tags),
    "j2k lossy": lambda tags: _encoded(JPEG2000, tags, j2k_cr=[2]),
    "htj2k lossless": lambda tags: _htj2k(HTJ2KLossless, tags),
    "htj2k rpcl": lambda tags: _htj2k(HTJ2KLosslessRPCL, tags),
    "htj2k": lambda tags: _htj2k("1.2.840.10008.1.2.4.203", tags),
}

BASES: dict[str, Callable[[], bytes]] = {
    f"{name}, {kind}": lambda make_=make_, tags=tags: make_(tags)  # type: ignore[misc]
    for name, make_ in _MAKERS.items()
    for kind, tags in IDENTIFIERS.items()
}

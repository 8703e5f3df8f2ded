"""Read safetensors files of unknown origin: headers are checked before tensors are read.

Knows names, types and shapes of tensors, not what they are for. The format: eight bytes with the length of the header,
the header as JSON, the tensors one after another: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from ich_ray.storage import check_regular, retried

if TYPE_CHECKING:
    from torch import nn
    from upath import UPath

__all__ = ["Layout", "Tensors", "layout_of", "not_finite", "read_tensors", "unpack"]

Tensors: TypeAlias = dict[str, torch.Tensor]
# Type and shape of each tensor, by name.
Layout: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# The states of a DenseNet121 with its optimizer, 2,000 tensors, have a header of 0.2 MB.
_LARGEST_HEADER_BYTES = 8 << 20


def layout_of(network: nn.Module) -> Layout:
    """The expected tensors of a file of weights of `network`, which may be an `outline`."""
    return {name: (value.dtype, tuple(value.shape)) for name, value in network.state_dict().items()}


def read_tensors(path: UPath, expected: Layout | None = None, part: str = "") -> bytes:
    """Read a safetensors file whose header fits its size, at most the bytes that `expected` has.

    Args:
        path: the file.
        expected: what it must hold: no more, no less, where `part` is empty.
        part: compare only the tensors whose name begins so.

    Raises:
        OSError: it cannot be read.
        ValueError: the header is damaged or another one, in a few words.
        IntegrityError: it is no regular file.
    """
    check_regular(path, "restore the file")

    def read() -> bytes:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            _check_header(_header(file, size), size, expected, part)
            file.seek(0)
            data: bytes = file.read(size)
        return data

    return retried(path, read)


def unpack(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors and notes of the bytes of a safetensors file.

    Raises:
        ValueError: the bytes are damaged.
    """
    notes = _parsed(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    try:
        return load(data), notes
    except (SafetensorError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(str(error).strip().splitlines()[-1]) from None


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite; None if there is none."""
    for name, value in tensors.items():
        # One pass without a copy: an infinity is an end of the range, and NaN is both.
        if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all():
            return name
    return None


def _header(file: IO[bytes], size: int) -> dict[str, Any]:
    """What stands before the tensors; its length and where it begins are checked before it is read."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _LARGEST_HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    return _parsed(file.read(length))


def _parsed(header: bytes) -> dict[str, Any]:
    try:
        found = json.loads(header)
    except (ValueError, RecursionError) as error:  # Python's ints have a length limit, its parser a depth
        raise ValueError(f"a header that is no JSON ({type(error).__name__})") from None
    if not isinstance(found, dict) or not isinstance(found.get("__metadata__", {}), dict):
        raise ValueError("a header that is no JSON object")
    return found


def _check_header(header: dict[str, Any], size: int, expected: Layout | None, part: str) -> None:
    found = {name: _entry(name, entry) for name, entry in header.items() if name != "__metadata__"}
    if expected is not None:
        named = {name.removeprefix(part): entry for name, entry in found.items() if name.startswith(part)}
        for name in sorted({*named} ^ {*expected}):
            raise ValueError(f"{'no' if name in expected else 'another'} tensor {name[:80]!r}")
        for name, (dtype, shape) in expected.items():
            if named[name] != (dtype, shape):
                raise ValueError(f"{name} as {named[name][0]} {list(named[name][1])}, not {dtype} {list(shape)}")
    # Whatever lies in the header: what is allocated for it is in the file.
    length = size - sum(dtype.itemsize * math.prod(shape) for dtype, shape in found.values()) - 8
    if not 0 <= length <= _LARGEST_HEADER_BYTES:
        raise ValueError(f"a header that does not fit a file of {size} bytes")


def _entry(name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    dtype = _TYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if dtype is None or not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"a tensor {name[:80]!r} without type and shape")
    return dtype, tuple(shape)

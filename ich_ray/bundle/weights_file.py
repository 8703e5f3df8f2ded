"""Write and read weights beside the card of a bundle, checked by header and hash."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from safetensors.torch import save

from ich_ray.errors import IchRayError, IntegrityError
from ich_ray.model.tensors import not_finite, read_tensors, unpack
from ich_ray.storage import sha256, unreadable, write_bytes
from ich_ray.trial_records import WeightsNote

if TYPE_CHECKING:
    from torch import nn
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.model.tensors import Layout, Tensors

__all__ = ["REMEDY", "damaged_weights", "read_weights_file", "remove_other_weights", "write_weights_file"]

REMEDY = "restore the file or retrain"
# Beside the first network: others of an ensemble, and sequence models, whose names were not always by content.
_NAME = re.compile(r"(model-\d+|sequence(-[0-9a-f]{8})?)\.safetensors")


def write_weights_file(folder: UPath, name: str, network: nn.Module, *, by_content: bool = False) -> WeightsNote:
    """Write the weights of a network, and say what the card must say of them.

    Args:
        folder: of the bundle.
        name: of the file.
        network: whose weights.
        by_content: put the beginning of their hash into the name, so that the file of a card that is there stays.

    Raises:
        IchRayError: a weight is not finite.
    """
    tensors = {tensor: value.cpu().contiguous() for tensor, value in network.state_dict().items()}
    if bad := not_finite(tensors):
        raise IchRayError(f"{folder}: weights must be finite, got others in {bad}; retrain")
    data = save(tensors)
    note = WeightsNote(file=name, sha256=sha256(data))
    if by_content:
        stem, _, suffix = name.rpartition(".")
        note = note.model_copy(update={"file": f"{stem}-{note.sha256[:8]}.{suffix}"})
    write_bytes(folder / note.file, data)
    return note


def remove_other_weights(folder: UPath, card: Card) -> None:
    """Remove files of cards before this one, which must be written."""
    named = {weights.file for weights in card.each_weights}
    for path in [*folder.iterdir()]:
        if _NAME.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def read_weights_file(folder: UPath, note: WeightsNote, expected: Layout) -> Tensors:
    """The tensors of a file of weights; nothing is allocated before its header is as expected.

    Raises:
        IntegrityError: it is not there, another one, or holds a number that is not finite.
        ConfigError: nobody may read it.
    """
    file = folder / note.file
    try:
        data = read_tensors(file, expected)
        if (found := sha256(data)) != note.sha256:
            raise IntegrityError(
                f"{file}: SHA-256 must be {note.sha256[:12]}… as in card.json, got {found[:12]}…; {REMEDY}"
            )
        tensors, _ = unpack(data)
        name = not_finite(tensors)
    except FileNotFoundError:
        raise IntegrityError(f"{file}: the weights of the card must be there, got none; {REMEDY}") from None
    except OSError as error:
        raise unreadable(file, error) from None
    except (ValueError, RuntimeError, MemoryError) as error:
        raise damaged_weights(file, error) from None
    if name:
        raise IntegrityError(f"{file}: weights must be finite, got others in {name}; {REMEDY}")
    return tensors


def damaged_weights(file: UPath, error: Exception) -> IntegrityError:
    """Of weights that are not those of the card."""
    line = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return IntegrityError(f"{file}: must be the weights of its card, got {line}; {REMEDY}")

"""Read the sequence model of a bundle; nothing is allocated before header and hash are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ich_ray.bundle.weights_file import REMEDY, damaged_weights, read_weights_file
from ich_ray.errors import IchRayError, IntegrityError
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.model.tensors import layout_of

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.model.sequence_networks import SequenceNetwork

__all__ = ["read_sequence"]


def read_sequence(folder: UPath, card: Card) -> SequenceNetwork | None:
    """The sequence model that the card of a bundle describes; None where it describes none.

    Raises:
        IntegrityError: its file is not the one that was saved, or holds a number that is not finite.
        ConfigError: nobody may read it.
    """
    note = card.sequence
    if note is None:
        return None
    described = note.parameters, note.features, len(card.parameters.predicted_labels)
    try:
        with torch.device("meta"):
            expected = layout_of(build_sequence_network(*described))
    except (IchRayError, RuntimeError, ValueError, OverflowError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise IntegrityError(f"{folder / 'card.json'}: must describe a sequence model, got {line}; {REMEDY}") from None
    tensors = read_weights_file(folder, note.weights, expected)
    try:
        network = build_sequence_network(*described)
        network.load_state_dict(tensors)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise damaged_weights(folder / note.weights.file, error) from None
    return network

"""Write and read the file of the sequence model of a bundle.

It is named by its content, as a card that is there must find its own until the next card is written. Nothing is
allocated before header and hash are checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ich_ray.bundle.sequence_note import SEQUENCE_FILE
from ich_ray.bundle.weights_file import REMEDY, damaged_weights, read_weights_file, write_weights_file
from ich_ray.errors import IchRayError, IntegrityError
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.model.tensors import layout_of

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.trial_records import WeightsNote

__all__ = ["read_sequence", "write_sequence"]


def write_sequence(folder: UPath, network: SequenceNetwork) -> WeightsNote:
    """Write the file, and say what the card must say of it.

    Raises:
        IchRayError: a weight is not finite.
    """
    return write_weights_file(folder, SEQUENCE_FILE, network, by_content=True)


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

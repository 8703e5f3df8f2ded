"""The state of a training as tensors and numbers, stored without pickle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ich_ray.errors import IntegrityError
from ich_ray.storage import Location, locate, parse_json, sha256, write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ich_ray.model.tensors import Layout
    from ich_ray.vocabulary import Precision

__all__ = ["TrainingState"]


@dataclass(frozen=True)
class TrainingState:
    """Everything that training needs to go on: tensors by name, and numbers that JSON can hold.

    Tensors are `weights.<name>`, `optimizer.<index>.<key>` and, where weights are averaged, `average.<name>`; numbers
    are `images_seen`, `elapsed_s`, `precision` (unless written by version 0.1.0) and `plan`, the parameters, seed and
    training data that it belongs to.
    """

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, Any]

    @property
    def images_seen(self) -> int:
        return int(self.numbers["images_seen"])

    @property
    def precision(self) -> Precision | None:
        """In which training goes on; None where the state does not say so."""
        return self.numbers.get("precision")

    @property
    def validated_weights(self) -> dict[str, torch.Tensor]:
        """The weights that validation saw, which a bundle gets: the average where there is one."""
        return self.part("average") or self.part("weights")

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors below `weights`, `optimizer` or `average`, without that word."""
        return {
            key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")
        }

    def packed(self) -> bytes:
        """One safetensors file, the numbers as JSON in its header."""
        from safetensors.torch import save

        return save(self.tensors, metadata={"numbers": json.dumps(self.numbers)})

    def save(self, path: Location) -> str:
        """Write it `packed`, whole or not at all; returns its SHA-256."""
        data = self.packed()
        write_bytes(locate(path), data)
        return sha256(data)

    @classmethod
    def load(cls, path: Location, network: Layout | None = None) -> TrainingState:
        """Read what `save` wrote.

        Args:
            path: the file.
            network: what its weights must be, compared before they are read.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        from ich_ray.model.tensors import read_tensors, unpack

        try:
            tensors, notes = unpack(read_tensors(locate(path), network, "weights."))
            numbers = parse_json(notes["numbers"])
            if not isinstance(numbers, dict) or not isinstance(numbers["plan"], dict):
                raise ValueError("no numbers")
            images_seen, elapsed_s = numbers["images_seen"], numbers["elapsed_s"]
            if type(images_seen) is not int or images_seen < 0 or not 0 <= float(elapsed_s) < math.inf:
                raise ValueError(f"{str(images_seen)[:80]} images in {str(elapsed_s)[:80]} s")
            state = cls(tensors, numbers)
            if state.part("average") and _shapes(state.part("average")) != _shapes(state.part("weights")):
                raise ValueError("averaged weights of another network")
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
            raise IntegrityError(
                f"{path}: a training state must be there, whole, got {type(error).__name__}: {error}; go on from an "
                "earlier state or start again"
            ) from None
        return state


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (value.dtype, value.shape) for name, value in tensors.items()}

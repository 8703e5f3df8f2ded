"""Where a training stands, as tensors and numbers that go to disk without pickle. It knows no more of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ich_ray.errors import IntegrityError
from ich_ray.storage import Location, locate, sha256, write_bytes

if TYPE_CHECKING:
    import torch

    from ich_ray.results import Precision

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
    def load(cls, path: Location) -> TrainingState:
        """Read what `save` wrote.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            data = locate(path).read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return cls(load(data), json.loads(header["__metadata__"]["numbers"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{path}: a training state must be there, whole, got {type(error).__name__}: {error}; go on from an "
                "earlier state or start again"
            ) from None

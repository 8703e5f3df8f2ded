"""The most memory that tensors take at a time, counted without making them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["peak_bytes"]


def peak_bytes(compute: Callable[[], object]) -> int:
    """Bytes of all tensors that `compute` makes, when they are most.

    No gradients are kept. On PyTorch's meta device nothing of it is allocated.
    """
    live = _LiveTensors()
    with torch.no_grad(), live:
        compute()
    return live.peak


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts memory from the operation that makes it until its last tensor is gone; views share it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: dict[int, int] = {}
        self._now, self.peak = 0, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        known = {_storage(given) for given in tree_leaves((arguments, keywords)) if isinstance(given, torch.Tensor)}
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (key := _storage(tensor)) not in known and key not in self._held:
                storage = tensor.untyped_storage()
                self._held[key] = storage.nbytes()
                self._now += storage.nbytes()
                weakref.finalize(storage, self._drop, key)
        self.peak = max(self.peak, self._now)
        return made

    def _drop(self, key: int) -> None:
        self._now -= self._held.pop(key, 0)


def _storage(tensor: torch.Tensor) -> int:
    """Of its storage, for as long as that lives."""
    return int(tensor.untyped_storage()._cdata)

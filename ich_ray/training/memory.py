"""Errors that say that memory ran out."""

from __future__ import annotations

import torch

__all__ = ["out_of_memory"]

# Allocators of CPUs, and libraries of accelerators that find no room, raise nothing of a kind of its own.
_WORDS = ("DefaultCPUAllocator: can't allocate memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: RuntimeError) -> str | None:
    """What an error says of memory that ran out, on a CPU or an accelerator; None for any other error."""
    if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in _WORDS):
        return None
    return str(error).rpartition("DefaultCPUAllocator: ")[2].split(". ")[0]

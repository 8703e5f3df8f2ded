"""Errors that say that memory ran out; torch need not be there to tell them."""

from __future__ import annotations

__all__ = ["out_of_memory"]

# Of torch, and of Ray; MemoryError is Python's own.
_KINDS = ("OutOfMemoryError", "MemoryError")
# Allocators of CPUs, and libraries of accelerators that find no room, raise nothing of a kind of its own.
_WORDS = ("DefaultCPUAllocator: can't allocate memory", "STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def out_of_memory(error: Exception) -> str | None:
    """What an error says of memory that ran out, on a CPU or an accelerator; None for any other error."""
    if not any(kind.__name__ in _KINDS for kind in type(error).__mro__) and not any(w in str(error) for w in _WORDS):
        return None
    return str(error).rpartition("DefaultCPUAllocator: ")[2].split(". ")[0]

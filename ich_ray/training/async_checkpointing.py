"""Checkpoints written one at a time in a thread, while the training goes on.

Knows nothing of what a state is: it is handed a function that writes a copy of one.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ich_ray.training.checkpoint_store import Checkpoint

__all__ = ["AsyncCheckpointer"]


class AsyncCheckpointer:
    """Writes a state while its training goes on.

    The next one waits for it, so that at most one is in memory. As a context manager it waits at its end for what is
    being written, also where the training has failed: an attempt that goes on after it needs that state, and whoever
    removes the folder must find nobody at work in it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[Checkpoint] | None = None

    def __enter__(self) -> AsyncCheckpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What ended the training is told rather than an error of the thread."""
        self._thread.shutdown(wait=True)
        if kind is None:
            self.finish()

    def start(self, write: Callable[[], Checkpoint]) -> None:
        """Write a state that nothing changes any more, once the one before is whole.

        Raises:
            Exception: what the write before has raised.
        """
        self.finish()
        self._pending = self._thread.submit(write)

    def finish(self) -> Checkpoint | None:
        """Wait for what is being written, which is whole then; None where nothing is.

        Raises:
            Exception: what the write has raised, once.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending else None

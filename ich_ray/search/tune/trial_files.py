"""What a trial writes: states to go on from, and logits and weights of its best report.

It is written beside the training, after Tune has let the trial go on: of a report that ends it no state is needed, and
none is written. So the ledger has a report before its state is whole, and names the one before until then. Nothing is
being written while a report is out, so that whoever ends the trial there can remove its files.
"""

from __future__ import annotations

import errno
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ich_ray.storage import bytes_written, without_credentials
from ich_ray.training.async_checkpointing import AsyncCheckpointer
from ich_ray.trial_records import CheckpointReference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from upath import UPath

    from ich_ray.search.best_states import BestStates
    from ich_ray.search.chances import BestLogits
    from ich_ray.training.checkpoint_store import Checkpoint, CheckpointStore, SavedState

__all__ = ["TrialFiles", "UnwrittenError", "reference_to"]

# Whether this process has written a state. Its first one is written before its report: to the driver a report says that
# trials run well there, and one that cannot write must not say so.
_has_written = threading.Event()


class UnwrittenError(OSError):
    """The search's folder, which every trial needs, takes nothing from this process.

    That is no failure of its trial.

    Attributes:
        is_full: whether it says that it has no room, to any machine.
    """

    def __init__(self, folder: UPath, error: OSError) -> None:
        super().__init__(f"{folder}: {without_credentials(error.strerror or str(error))}"[:500])
        self.is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)


class _Progress(Protocol):
    @property
    def images_seen(self) -> int: ...
    @property
    def metrics(self) -> dict[str, float]: ...
    def state(self) -> SavedState: ...


@dataclass(frozen=True)
class _Measured:
    """What is kept of a progress while its files are written: it holds no network."""

    images_seen: int
    metrics: Mapping[str, float]
    logits: Any


class TrialFiles:
    """The files of one attempt at a trial.

    Args:
        checkpoints: its states.
        kept: the state that it goes on from; None where it begins.
        best: logits of its best report.
        states: weights of its best report; None where they are not kept.
    """

    def __init__(
        self, checkpoints: CheckpointStore, kept: Checkpoint | None, best: BestLogits, states: BestStates | None
    ) -> None:
        self._checkpoints, self._best, self._states = checkpoints, best, states
        self._whole = kept
        self._writer = AsyncCheckpointer()
        self._waited_s, self._counted = 0.0, bytes_written()

    def __enter__(self) -> TrialFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.waiting():
            self._writer.__exit__(kind, error, trace)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The training waits for its files meanwhile.

        Raises:
            UnwrittenError: they cannot be written.
        """
        started = time.monotonic()
        try:
            yield
        except OSError as error:
            raise UnwrittenError(self._checkpoints.folder, error) from error
        finally:
            self._waited_s += time.monotonic() - started

    def before_report(self, progress: _Progress, history: Sequence[dict[str, Any]], *, last: bool) -> dict[str, Any]:
        """What the driver is told of files, all of which are whole.

        Args:
            progress: the report.
            history: all reports up to it.
            last: it ends the trial, which needs all but a state then.

        Raises:
            UnwrittenError: the files of the report before cannot be written.
        """
        self.finish()
        with self.waiting():
            if last:
                self._keep_best(_measured(progress), history[-1], progress.state)
            elif not _has_written.is_set():
                self._whole = self._write(_measured(progress), history, progress.state())
        written = bytes_written()
        told = {
            "checkpoint": reference_to(self._whole).model_dump() if self._whole and not last else None,
            "logits": self._best.reference.model_dump() if self._best.reference else None,
            "saving_s": self._waited_s,
            "bytes_written": written - self._counted,
        }
        self._waited_s, self._counted = 0.0, written
        return told

    def after_report(self, progress: _Progress, history: Sequence[dict[str, Any]]) -> None:
        """Begin to write the files of a report after which the trial goes on; its state is copied at once."""
        if self._whole and self._whole.images_seen == progress.images_seen:
            return
        with self.waiting():
            measured, state, reports = _measured(progress), progress.state(), [*history]
            self._writer.start(lambda: self._write(measured, reports, state))

    def finish(self) -> None:
        """Wait until what is being written is whole.

        Raises:
            UnwrittenError: it cannot be written.
        """
        with self.waiting():
            self._whole = self._writer.finish() or self._whole

    def _write(self, measured: _Measured, history: Sequence[dict[str, Any]], state: SavedState) -> Checkpoint:
        """In this order: an attempt that finds the state finds what belongs to it."""
        self._keep_best(measured, history[-1], lambda: state)
        written = self._checkpoints.save(measured.images_seen, state, history)
        _has_written.set()
        return written

    def _keep_best(self, measured: _Measured, report: Mapping[str, Any], state: Callable[[], SavedState]) -> None:
        self._best.report(report, measured.logits)
        if self._states:
            self._states.offer(measured, state)


def _measured(progress: _Progress) -> _Measured:
    return _Measured(progress.images_seen, progress.metrics, getattr(progress, "logits", None))


def reference_to(checkpoint: Checkpoint) -> CheckpointReference:
    """What the ledger says of a checkpoint."""
    name = f"checkpoints/{checkpoint.file.parent.name}/{checkpoint.file.name}"
    return CheckpointReference(file=name, sha256=checkpoint.sha256, images_seen=checkpoint.images_seen)

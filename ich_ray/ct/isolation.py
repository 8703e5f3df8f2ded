"""Decode in a process of its own: a frame that kills or hangs its decoder costs one file.

Native decoders for JPEG, JPEG 2000 and RLE are C code that reads what a stranger wrote. Each process of ours that meets
compressed pixels keeps one decoder process, started at the first frame (0.5 s) and replaced when it dies; a frame then
costs 0.3 ms more. Uncompressed pixels never come here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ich_ray.ct.decoder import FRAME_LIMIT_S, receive, send
from ich_ray.errors import IchRayError, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["decoded_frame"]

_START_LIMIT_S = 120.0


class _Decoder:
    """A running decoder process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ich_ray.ct.decoder"],  # without -P the working directory would come first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The same order of folders as here. Threads of a BLAS that is never used would count as memory.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path),
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        if not self._exchange(_START_LIMIT_S):
            raise IchRayError(
                f"decoder: a process for compressed pixels must start, got exit status {self._process.wait()}; check "
                "that `python -m ich_ray.ct.decoder` starts here"
            )

    def ask(self, facts: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes] | None:
        """The answer to one frame; None if the process died of it or was too late, and it is over then."""
        return self._exchange(FRAME_LIMIT_S, facts, frame)

    def _exchange(
        self, limit_s: float, facts: dict[str, Any] | None = None, frame: bytes = b""
    ) -> tuple[dict[str, Any], bytes] | None:
        source, target = _pipe(self._process.stdout), _pipe(self._process.stdin)
        with self._killed_after(limit_s):
            try:
                if facts is not None:
                    send(target, facts, frame)
                answer = receive(source)
            except OSError:
                answer = None
        if answer is None:
            self.end()
        return answer

    @contextmanager
    def _killed_after(self, limit_s: float) -> Iterator[None]:
        clock = threading.Timer(limit_s, self._process.kill)
        clock.daemon = True
        clock.start()
        try:
            yield
        finally:
            clock.cancel()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                _pipe(pipe).close()
            except OSError:  # half a frame was still waiting to be written
                continue


def _pipe(pipe: IO[bytes] | None) -> Any:
    return pipe


_lock = threading.Lock()
_running: list[_Decoder] = []


def decoded_frame(syntax: str, frame: bytes, options: dict[str, Any], bits: int = 0) -> NDArray[Any]:
    """The words of one encapsulated frame, decoded elsewhere.

    Args:
        syntax: transfer syntax UID.
        frame: the value of PixelData.
        options: of pydicom's decoder.
        bits: of a sample of the codestream; see `decoder.is_available`.

    Raises:
        Rejection: `decoder_crash` (dead, or not done in 10 s), `decode_error` (not within 1 GiB, too) or
            `syntax_unsupported`.
        IchRayError: no decoder process can be started here.
    """
    with _lock:
        answer = _decoder().ask({"syntax": syntax, "bits": bits, "options": options}, frame)
        if answer is None:
            _running.clear()
            raise Rejection("decoder_crash", f"the decoder died, or was not done in {FRAME_LIMIT_S} s")
    facts, words = answer
    if facts["outcome"] == "unavailable":
        of = f" with {bits} bits" if bits else ""
        raise Rejection("syntax_unsupported", f"no decoder for this transfer syntax{of} is installed")
    if facts["outcome"] == "failed":
        raise Rejection("decode_error", f"the decoder gave up ({facts['error']})")
    return np.frombuffer(words, np.dtype(facts["dtype"])).reshape(facts["shape"])


def _decoder() -> _Decoder:
    """The decoder of this process; a fork must not write into the pipes of its parent."""
    if _running and _running[0].owner != os.getpid():
        _running.clear()
    if not _running:
        _running.append(_Decoder())
    return _running[0]

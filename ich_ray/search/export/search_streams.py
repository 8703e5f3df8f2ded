"""Streams beside a search: a process each, which reads the ledger and ends with the search.

The search holds a pipe to each of them. When it closes it, or dies, they make one more pass and end.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ich_ray import progress, terminal
from ich_ray.errors import IchRayError
from ich_ray.search.export.follow import stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["streaming"]

# What a tracker that does not answer may cost a search that is over.
_LAST_PASS_S = 60.0
_NICE = 10


@contextmanager
def streaming(search: str, targets: Sequence[str]) -> Iterator[None]:
    """Write a search to trackers while the block runs, and once more after it; it never fails."""
    started = [_Child(search, target) for target in dict.fromkeys(targets)]
    try:
        yield
    finally:
        until = time.monotonic() + _LAST_PASS_S
        for child in started:
            child.tell()
        for child in started:
            child.end(until)


class _Child:
    """A process that streams to one target; what it says is said here."""

    def __init__(self, search: str, target: str) -> None:
        self._target = target
        self._process: subprocess.Popen[str] | None = None
        command = [sys.executable, "-P", "-m", __name__, search, target]
        pipe = subprocess.PIPE
        try:
            # A session of its own: Ctrl-C is for the search, which then tells it.
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True, start_new_session=True
            )
        except OSError as error:
            progress.say(f"{target}: cannot be written ({error.strerror or error}); the search goes on without it")
            return
        self._reader = threading.Thread(target=self._repeat, daemon=True)
        self._reader.start()

    def _repeat(self) -> None:
        assert self._process is not None  # noqa: S101  (for mypy)
        for line in self._process.stderr or ():
            progress.say(line.strip())

    def tell(self) -> None:
        """Say that the search is over."""
        if self._process and self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()

    def end(self, until: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            progress.say(
                f"{self._target}: did not take the last trials within {_LAST_PASS_S:.0f} s; "
                f"`ich-ray export SEARCH --to {self._target}` writes what it lacks"
            )
        self._reader.join(timeout=1.0)


def _told(seconds: float) -> bool:
    """Wait; True once the search has closed its end."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready)


def _main(search: str, target: str) -> int:
    terminal.guard_libraries()
    progress.show()
    os.nice(_NICE)
    try:
        stream(search, [target], wait=_told, queue=True, flag="--export", until_told=True)
    except IchRayError as error:
        terminal.complain(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))

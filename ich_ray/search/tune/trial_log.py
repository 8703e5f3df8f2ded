"""What the processes of a trial write, kept in its search while it runs and when it ends badly.

Each process of Ray writes into files of its machine, so nothing is written for this, and a thread that looks at their
sizes every few seconds is all that it costs. Of a process that has died its machine is asked.
"""

from __future__ import annotations

import os
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ich_ray.errors import TrialFailure
from ich_ray.machines import on_node
from ich_ray.ray_internals import output_files
from ich_ray.search.trial_output import Output, kept_output, read_output, write_output
from ich_ray.storage import SearchFiles, locate

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["TrialLog", "keep_output_of", "own_output"]

_EVERY_S = 5.0


def own_output() -> Output:
    """What this process writes from now on."""
    return Output.from_now(_named(os.getpid()), output_files())


def _named(pid: int) -> str:
    return f"{platform.node()}, process {pid}"


class TrialLog:
    """Keeps what the processes of one attempt at a trial write, within the block.

    Args:
        search: the folder of the search.
        number: of the trial.
        every_s: how often it looks.
    """

    def __init__(self, search: str, number: int, every_s: float = _EVERY_S) -> None:
        self._search, self._number, self._every_s = search, number, every_s
        self._outputs = [own_output()]
        self._seen = self._sizes()
        self._over, self._writing = threading.Event(), threading.Lock()

    def __enter__(self) -> TrialLog:
        if self._outputs[0].files:
            threading.Thread(target=self._follow, name="trial log", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()

    def also(self, output: Output) -> None:
        """Keep what another process of this trial on this machine writes, too."""
        if output not in self._outputs:
            self._outputs = [self._outputs[0], output]  # of one that has grown, or trains its next fold, the last one

    def failed(self, error: BaseException) -> None:
        """The attempt has failed, and with it the trial."""
        # Why a training fails as one may stands in its detail; where in our code that was, helps nobody.
        is_told = isinstance(error, TrialFailure) and not hasattr(error, "__notes__")
        self._over.set()
        with self._writing:
            self._write(None if is_told else error)

    def lost(self, error: BaseException) -> None:
        """The attempt has ended by no fault of the trial's, which another one goes on with."""
        self._over.set()
        write_output(self._search, self._number, kept_output(self._outputs, error), lost=True)

    def _follow(self) -> None:
        while not self._over.wait(self._every_s):
            self.look()

    def look(self) -> None:
        """Keep what is new, if anything is."""
        sizes = self._sizes()
        with self._writing:
            if sizes != self._seen and not self._over.is_set():
                self._seen = sizes
                self._write()

    def _sizes(self) -> list[tuple[int, ...]]:
        return [output.sizes() for output in self._outputs]

    def _write(self, error: BaseException | None = None) -> None:
        if text := kept_output(self._outputs, error):
            write_output(self._search, self._number, text)


def keep_output_of(search: str, number: int, node: str, pid: int) -> None:
    """Let a machine keep what a process of it wrote that has died, or will be killed.

    Nobody waits for it.
    """
    on_node(node, _keep, search, number, pid)


def _keep(search: str, number: int, pid: int) -> None:
    """On the machine, unless the process has kept it itself. It may have run other trials before."""
    with suppress(Exception):  # the driver would print it; a storage, or a file that is gone by now
        _keep_output(search, number, pid)


def _keep_output(search: str, number: int, pid: int) -> None:
    if any(f"{_named(pid)}, " in line for line in read_output(SearchFiles(locate(search)).lost_log(number))):
        return
    found: list[str] = []
    for own in map(Path, output_files()):
        of_process = sorted(own.parent.glob(f"worker-*-{pid}{own.suffix}"), key=lambda path: path.stat().st_mtime)
        found += map(str, of_process[-1:])
    if text := kept_output([Output(_named(pid), tuple(found), (0,) * len(found))]):
        write_output(search, number, text, lost=True)

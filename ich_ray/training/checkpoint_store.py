"""States of one training in a folder: the newest are kept, or the newest and the best.

Beside each `NAME.safetensors` stands `NAME.json`, written after it, with its hash and all that was reported by then: a
state with another hash is none. Needs no PyTorch, except to read states of a retraining of version 0.1.0.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ich_ray.errors import IntegrityError
from ich_ray.storage import Location, is_of_storage, read_json, sha256, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from upath import UPath

__all__ = ["Checkpoint", "CheckpointStore", "Keep", "SavedState"]

# The newest means the newest two, so that a torn one never costs the other.
Keep = Literal["newest", "newest and best"]
_NAME = re.compile(r"(?:[ab](?:-[0-9a-f]{8})?|state-[0-9]{12})\.")
# What version 0.1.0 kept all reports of a retraining in, beside states without a hash.
_REPORTS_OF_0_1_0 = "reports.json"


@dataclass(frozen=True)
class Checkpoint:
    """A state that can be resumed: its file, and all that the training had reported by then."""

    file: UPath
    sha256: str
    images_seen: int
    reports: tuple[Any, ...]


class SavedState(Protocol):
    """A state that can be written."""

    def save(self, path: Location) -> str:
        """Write it whole or not at all; the SHA-256 of what was written."""


class CheckpointStore:
    """The checkpoints of one training, as one attempt at it writes them.

    Where the newest are kept, two files take turns, and every attempt has a token of its own, because one that was
    taken for lost may wake up (a machine that stood still for a minute) and write once more before Ray ends it: it must
    not touch the files of the attempt that took its place. Where the best is kept too, a file is named by its images.

    Args:
        folder: where they lie.
        keep: which of them.
        is_report: whether a report is one that its reader takes; a checkpoint with any other is damaged.

    Attributes:
        folder: where they lie.
        note: what was found wrong, for those who read the records.
    """

    def __init__(self, folder: UPath, keep: Keep, is_report: Callable[[Any], bool] = lambda _: True) -> None:
        self.folder, self.note = folder, ""
        self._is_report = is_report
        self._keep: Keep = keep
        token = secrets.token_hex(4)
        self._turns = [f"a-{token}", f"b-{token}"]
        self._files: dict[str, list[UPath]] = {}  # by state, the newest last

    def file(self, images_seen: int) -> UPath:
        """Where a state lies that is named by its images."""
        return self.folder / f"state-{images_seen:012d}.safetensors"

    def newest(self) -> Checkpoint | None:
        """The newest state that is whole, else one before it, else None."""
        found = [*self._whole(), *self._whole_of_0_1_0()]
        newest = max(found, key=lambda checkpoint: checkpoint.images_seen, default=None)
        self._files = {}
        for path in self._there():
            if _is_of_state(path):
                self._files.setdefault(path.stem, []).append(path)
        if newest:
            self._files[newest.file.stem] = self._files.pop(newest.file.stem)
        return newest

    def reports(self) -> tuple[Any, ...]:
        """The reports up to the newest checkpoint, whole or not; empty without any."""
        entries = [entry for index in self._indices() if (entry := _entry(index))]
        if entries:
            return tuple(max(entries, key=lambda entry: entry.images_seen).reports)
        old = self.folder / _REPORTS_OF_0_1_0
        found = read_json(old) if old.exists() else []
        return tuple(found) if isinstance(found, list) else (found,)

    def save(self, images_seen: int, state: SavedState, reports: Sequence[Any], best: int | None = None) -> Checkpoint:
        """Write a state with all reports up to it, then remove what need not stay.

        Args:
            images_seen: by the training.
            state: that it has then.
            reports: what JSON can hold.
            best: images seen at the best of these reports, where the best is kept.
        """
        # The state that was resumed stays until there are newer ones.
        file = self._next(images_seen)
        written = Checkpoint(file, state.save(file), images_seen, tuple(reports))
        index = file.with_suffix(".json")
        entry = {"file": file.name, "sha256": written.sha256, "images_seen": written.images_seen, "reports": [*reports]}
        write_json(index, entry)
        self._files.pop(file.stem, None)
        self._files[file.stem] = [file, index]
        self._remove_others(best)
        return written

    def _next(self, images_seen: int) -> UPath:
        if self._keep == "newest and best":
            return self.file(images_seen)
        self._turns.reverse()
        return self.folder / f"{self._turns[1]}.safetensors"

    def _remove_others(self, best: int | None) -> None:
        last = list(self._files)[-2:]
        if self._keep == "newest and best":
            last = [last[-1], *([] if best is None else [self.file(best).stem])]
        for name in [name for name in self._files if name not in last]:
            for path in self._files.pop(name):
                path.unlink(missing_ok=True)

    def _there(self) -> list[UPath]:
        return sorted(self.folder.iterdir()) if self.folder.exists() else []

    def _indices(self) -> list[UPath]:
        return [path for path in self._there() if path.suffix == ".json" and _NAME.match(path.name)]

    def _whole(self) -> Iterator[Checkpoint]:
        for index in self._indices():
            entry = _entry(index)
            if entry and all(map(self._is_report, entry.reports)) and _has_hash(entry):
                yield entry
            else:
                self.note = f"checkpoint {index.stem} was damaged"

    def _whole_of_0_1_0(self) -> Iterator[Checkpoint]:
        old = self.folder / _REPORTS_OF_0_1_0
        if self._keep == "newest" or not old.exists():
            return
        from ich_ray.training.state import TrainingState

        reports = read_json(old)
        for count, report in enumerate(reports if isinstance(reports, list) else [], start=1):
            seen = report.get("images_seen") if isinstance(report, dict) else None
            if type(seen) is not int or not (file := self.file(seen)).exists() or file.with_suffix(".json").exists():
                continue
            try:
                TrainingState.load(file)
            except IntegrityError as error:
                self.note = str(error)
            else:
                yield Checkpoint(file, sha256(file), seen, tuple(reports[:count]))


def _is_of_state(path: UPath) -> bool:
    """Whether a file, or what a killed attempt left of it, is that of a state."""
    return _NAME.match(path.name.lstrip(".")) is not None


def _entry(index: UPath) -> Checkpoint | None:
    """What an index says of its state, None where it is damaged; the state is beside it, whatever the index says.

    Raises:
        OSError: its storage does not answer now, which says nothing of the state.
    """
    try:
        entry = read_json(index)
        file = index.with_suffix(".safetensors")
        if type(entry["images_seen"]) is not int or entry["images_seen"] < 0:
            return None
        return Checkpoint(file, str(entry["sha256"]), entry["images_seen"], tuple(entry["reports"]))
    except (OSError, KeyError, TypeError, ValueError, IntegrityError) as error:
        if isinstance(error, OSError) and is_of_storage(error):
            raise
        return None


def _has_hash(entry: Checkpoint) -> bool:
    try:
        return sha256(entry.file) == entry.sha256
    except (OSError, IntegrityError) as error:
        if isinstance(error, OSError) and is_of_storage(error):
            raise
        return False

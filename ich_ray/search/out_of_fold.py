"""Logits of the patients whom networks of folds have not seen: written beside the ledger, compared.

A file a report, in `SEARCH/logits/NNNNN/`: float32, little-endian, a row for each slice of the fold in the order of the
dataset and a column for each label that the network answers. Its name ends with its hash, which the report holds: an
attempt that was taken for lost can write no file of the one that took its place. Knows nothing of Ray.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.data.folds import SearchFolds
from ich_ray.errors import IntegrityError
from ich_ray.statistics.pooling import FoldPart, chance_of_better
from ich_ray.storage import check_regular, exists, read_bytes, sha256, write_bytes
from ich_ray.trial_records import LogitsReference
from ich_ray.vocabulary import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset, SliceSet
    from ich_ray.storage import SearchFiles
    from ich_ray.trial_records import Objective

__all__ = ["OutOfFold", "kept_logits", "part_of", "read_logits", "save_logits"]

_REMEDY = "restore the file from a copy, or start the trial again"


class OutOfFold:
    """The folds of a search, and what networks said of them.

    Args:
        files: of the search.
        dataset: whole.
        objective: with a number of folds.
        seed: of the search.
    """

    def __init__(self, files: SearchFiles, dataset: PreparedDataset, objective: Objective, seed: int) -> None:
        self._files, self._metric = files, objective.metric
        self.folds = SearchFolds(dataset, objective.parts, objective.repeats, seed)
        self._held_out = lru_cache(maxsize=None)(self.folds.held_out)

    def save(self, trial: int, images_seen: int, logits: NDArray[np.float32]) -> LogitsReference:
        """Write what a network said; `images_seen` of its trial name the file."""
        return save_logits(self._files, trial, images_seen, logits)

    def part(self, number: int, logits: NDArray[np.float32]) -> FoldPart:
        """Fold `number` with what a network said of it, `[n, labels]`."""
        return part_of(self._held_out(number), logits)

    def read(self, number: int, reference: LogitsReference) -> FoldPart:
        """Fold `number` with what a file says of it.

        Raises:
            IntegrityError: the file is not there, or not the one that was written.
        """
        slices = self._held_out(number)
        return self.part(number, read_logits(self._files, reference, len(slices)))

    def chance(self, one: Sequence[LogitsReference], other: Sequence[LogitsReference]) -> float | None:
        """How probable it is that `one` is at least as good as `other` on the folds from the first on.

        None where that cannot be told, see `statistics.pooling.chance_of_better`.

        Raises:
            IntegrityError: a file is not there, or not the one that was written.
        """
        ours, theirs = ([self.read(*pair) for pair in enumerate(references)] for references in (one, other))
        return chance_of_better(ours, theirs, self._metric)


def part_of(slices: SliceSet, logits: NDArray[np.float32]) -> FoldPart:
    """Slices with what a network said of them, `[n, labels]`."""
    several = logits.shape[1] == len(LABELS)
    return FoldPart(slices.targets(LABELS) if several else slices.labels[:, None], logits, slices.patients)


def save_logits(files: SearchFiles, trial: int, images_seen: int, logits: NDArray[np.float32]) -> LogitsReference:
    """Write what a network of a trial said, `[n, labels]`."""
    data = np.ascontiguousarray(logits, "<f4").tobytes()
    reference = _reference(files, trial, images_seen, sha256(data))
    write_bytes(files.root / reference.file, data)
    return reference


def kept_logits(files: SearchFiles, trial: int, images_seen: int) -> LogitsReference | None:
    """What an attempt before has written of a report; None where there is none, or it is not whole."""
    folder = files.logits_of(trial)
    try:
        for path in folder.glob(f"{images_seen:012d}-*.f32") if exists(folder) else ():
            reference = _reference(files, trial, images_seen, sha256(path))
            if path.name == reference.file.rpartition("/")[2]:
                return reference
    except (OSError, IntegrityError):  # it only tells less then
        return None
    return None


def _reference(files: SearchFiles, trial: int, images_seen: int, digest: str) -> LogitsReference:
    path = files.logits_of(trial) / f"{images_seen:012d}-{digest[:8]}.f32"
    return LogitsReference(file=f"{files.logits.name}/{path.parent.name}/{path.name}", sha256=digest)


def read_logits(files: SearchFiles, reference: LogitsReference, slices: int) -> NDArray[np.float32]:
    """What a network said of so many slices, `[n, labels]`.

    Raises:
        IntegrityError: the file is not there, or not the one that was written.
    """
    path = files.root / reference.file
    if not exists(path):
        raise IntegrityError(f"{path}: the logits of a network must be there, got no file; {_REMEDY}")
    check_regular(path, _REMEDY)
    size = path.stat().st_size
    labels = next((count for count in (1, len(LABELS)) if size == 4 * count * slices), None)
    if labels is None:
        raise IntegrityError(f"{path}: logits of {slices} slices must be in it, got {size} bytes; {_REMEDY}")
    data = read_bytes(path)
    if sha256(data) != reference.sha256:
        raise IntegrityError(f"{path}: SHA-256 must be the one in the ledger, got another one; {_REMEDY}")
    return np.frombuffer(data, "<f4").reshape(slices, labels).astype(np.float32)

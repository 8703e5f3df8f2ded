"""Views of a dataset with one fold held out, or none, for searching, confirming and retraining.

The pool is the train and validation patients. Those of one fold are validated on and the others trained on, so that
each patient of the pool is held out once over all folds; a last training may take them all. Calibration and test
patients cannot be reached from here. A confirmation goes by the folds of the dataset, a search by folds of its own: it
has as many as it asks for, and a confirmation then divides otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.roles import assign_folds
from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ich_ray.vocabulary import Patients, Role

__all__ = [
    "HeldOut",
    "SearchFolds",
    "check_folds",
    "development_rows",
    "folds_of",
    "pool_of",
    "ranking_roles",
    "ranking_slices",
    "roles_of",
    "trained_and_validated",
]

POOL: tuple[Role, ...] = ("train", "validation")


def ranking_roles(pooled: bool) -> tuple[Role, ...]:
    """Whose patients rank the trials of a search: those of the pool where it is judged by folds."""
    return POOL if pooled else ("validation",)


class SearchFolds:
    """The pool of a dataset, divided by patient into folds, once or more.

    Positive and negative patients are divided apart. Nothing but patients, labels and the seed decides: folds are
    the same for all trials.

    Args:
        dataset: whole.
        folds: parts of each division.
        repeats: divisions.
        seed: of the search.
    """

    def __init__(self, dataset: PreparedDataset, folds: int, repeats: int, seed: int) -> None:
        self._whole, self._folds = dataset, folds
        self._pool = pool_of(dataset)
        every = np.full(len(self._pool), POOL[0], object)
        self._fold = [
            assign_folds(self._pool.patients, self._pool.labels == 1, every, _seed(seed, repeat), folds)
            for repeat in range(repeats)
        ]

    def __len__(self) -> int:
        """Networks of a trial."""
        return self._folds * len(self._fold)

    def held_out(self, number: int) -> SliceSet:
        """The slices that network `number` is validated on, in the order of the dataset."""
        return SliceSet(self._whole, self._pool.rows[self._is_held_out(number)])

    def view(self, number: int) -> SearchFold:
        """The dataset as network `number` sees it."""
        return SearchFold(self._whole, self.held_out(number), self._pool.rows[~self._is_held_out(number)])

    def _is_held_out(self, number: int) -> NDArray[np.bool_]:
        repeat, fold = divmod(number, self._folds)
        return np.asarray(self._fold[repeat] == fold)


class SearchFold(PreparedDataset):
    """A view of a dataset: slices that are held out are `validation`, the rest of its pool `train`."""

    def __init__(self, whole: PreparedDataset, held_out: SliceSet, others: NDArray[np.int64]) -> None:
        super().__init__(whole.files, whole.manifest)
        self._parts = {"validation": held_out, "train": SliceSet(whole, others)}

    def role(self, role: Role) -> SliceSet:
        """The slices of `train` or `validation` in this view, read through the dataset's mapping.

        Raises:
            ValueError: another role was asked for, which neither search nor confirmation may see.
        """
        if role not in self._parts:
            raise ValueError(f"role must be train or validation where a fold is held out, got {role}")
        return self._parts[role]


class HeldOut(SearchFold):
    """A view of a dataset: fold `fold` of its own division is held out."""

    def __init__(self, whole: PreparedDataset, fold: int) -> None:
        self.fold = fold
        pool, held_out = _pool(whole), whole.column("fold") == fold
        super().__init__(whole, SliceSet(whole, np.flatnonzero(pool & held_out)), np.flatnonzero(pool & ~held_out))


def _seed(seed: int, repeat: int) -> int:
    return int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])


def pool_of(dataset: PreparedDataset) -> SliceSet:
    """All slices that may train or validate."""
    return SliceSet(dataset, development_rows(dataset))


def _pool(dataset: PreparedDataset) -> NDArray[np.bool_]:
    return np.isin(dataset.column("role"), POOL)


def development_rows(dataset: PreparedDataset) -> NDArray[np.int64]:
    """Rows of slices.parquet that may train or validate, in any fold."""
    return np.flatnonzero(_pool(dataset))


def ranking_slices(dataset: PreparedDataset, pooled: bool) -> SliceSet:
    """The slices of these patients."""
    return pool_of(dataset) if pooled else dataset.role("validation")


def roles_of(patients: Patients) -> tuple[Role, ...]:
    """The roles that train."""
    return POOL if patients == "train+validation" else ("train",)


def trained_and_validated(dataset: PreparedDataset, patients: Patients) -> tuple[SliceSet, SliceSet | None]:
    """The slices to learn from, and those to validate on if there are any left."""
    if patients == "train":
        return dataset.role("train"), dataset.role("validation")
    return pool_of(dataset), None


def folds_of(dataset: PreparedDataset) -> list[int]:
    """The folds that the pool of a dataset is divided into, in order; empty if it never was."""
    if "fold" not in dataset.slices.column_names:
        return []
    return sorted({int(fold) for fold in dataset.column("fold")[_pool(dataset)]})


def check_folds(dataset: PreparedDataset, wanted: int) -> list[int]:
    """The first `wanted` folds, each of which can be trained without and validated on.

    Raises:
        ConfigError: there are fewer, or one lacks positive or negative slices on either side.
    """
    found = folds_of(dataset)
    if len(found) < 2:
        raise ConfigError(
            f"{dataset.files.root}: --folds needs a dataset whose patients are divided into folds, got {len(found)}; "
            "prepare it again, or confirm with --seeds"
        )
    if not 2 <= wanted <= len(found):
        raise ConfigError(f"--folds: must be from 2 to {len(found)}, the folds of this dataset, got {wanted}")
    for fold in found[:wanted]:
        view = HeldOut(dataset, fold)
        for labels, side in ((view.role("validation").labels, "in"), (view.role("train").labels, "outside")):
            if not 0 < labels.sum() < len(labels):
                raise ConfigError(
                    f"{dataset.files.root}: slices with and without haemorrhage must be {side} fold {fold}, got "
                    f"{int(labels.sum())} positive of {len(labels)}; confirm with --seeds, or prepare more patients"
                )
    return found[:wanted]

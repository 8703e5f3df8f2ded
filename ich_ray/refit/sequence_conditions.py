"""For which bundles a sequence model can be searched.

The verb refuses all others; `run` leaves the stage out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.bundle.card_file import has_card, read_card
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.series_order import order_of_slices
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.storage import is_local, remove

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.results import SearchResult

__all__ = ["drop_outdated", "nothing_to_learn", "why_skipped"]

# Below, slices beside each other are so rare that whatever a model over them gains is gained by no one.
_LEAST_SHARE = 0.1


def why_skipped(found: SearchResult, dataset: PreparedDataset) -> str:
    """Why a sequence model for the bundle of a search has nothing to learn; empty if it has.

    Raises:
        ConfigError: none can be searched: there is no bundle, its network trained on the validation patients, or there
            are several networks; slices of one series have several roles, calibration slices are all alike, or the
            search lies on object storage.
    """
    where = found.files.bundle
    if not has_card(where):
        raise ConfigError(
            f"{where}: a sequence model reads features of a bundle, got none; run `ich-ray retrain` first"
        )
    if why := nothing_to_learn(dataset):
        return why
    _check_networks(where, read_card(where))
    _check_calibration(dataset)
    if not is_local(root := found.files.sequence.root):
        raise ConfigError(
            f"{root}: features of slices are mapped from a folder that all machines see, got object storage; copy the "
            "search into one"
        )
    return ""


def nothing_to_learn(dataset: PreparedDataset) -> str:
    """Why a model over series has nothing to learn from a dataset; empty if it has.

    Raises:
        ConfigError: slices of one series have several roles.
    """
    if dataset.manifest.split == "slice":
        raise ConfigError(
            f"{dataset.files.root}: slices of a series must be of one role, got roles drawn by slice; prepare it by "
            "patient"
        )
    for role in ("train", "validation"):
        rows = dataset.role(role).rows
        order = order_of_slices(dataset.slices.take(rows))
        several = int((order.lengths[order.series] > 1).sum())
        if several < _LEAST_SHARE * len(rows):
            return f"{several:,} of {len(rows):,} {role} slices have another slice in their series"
    return ""


def _check_networks(where: UPath, card: Card) -> None:
    """One network, to which validation patients are new.

    Raises:
        ConfigError: it trained on them, or there are several.
    """
    if card.retraining is not None and card.retraining.patients != "train":
        raise ConfigError(
            f"{where}: validation patients select the sequence model and must be new to the network, got one that "
            f"trained on {card.retraining.patients}; retrain it with --patients train"
        )
    if card.members:
        raise ConfigError(
            f"{where}: a sequence model reads features of one network, got a bundle of several; retrain without "
            "--ensemble"
        )


def _check_calibration(dataset: PreparedDataset) -> None:
    """The blend must be fitted.

    Raises:
        ConfigError: calibration slices are all alike.
    """
    there = dataset.manifest.roles.get("calibration")
    slices, positives = (there.slices, there.positives) if there else (0, 0)
    if not 0 < positives < slices:
        raise ConfigError(
            f"{dataset.files.root}: calibration must have positive and negative slices, got {positives} positive of "
            f"{slices}; prepare a dataset with more patients"
        )


def drop_outdated(found: SearchResult) -> None:
    """Remove a search over features of another bundle, such as the one that a retraining has replaced."""
    from ich_ray.refit.bundle_features import feature_files, outdated

    files, card = found.files.sequence, read_card(found.files.bundle)
    if outdated(files, feature_files(files, PreparedDataset.of_search(found), card)):
        say(f"  {files.root}: of the bundle before this one, removed")
        remove(files.root)

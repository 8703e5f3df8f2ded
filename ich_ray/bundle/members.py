"""Networks of an ensemble beside the first: what the card says of each, and which may be there.

They are given one input and answer the same labels, so that whoever asks a bundle need not know of them. Knows no
network, so that a report reads cards without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.storage import Count, Record, Seed
from ich_ray.trial_records import WeightsNote

if TYPE_CHECKING:
    from ich_ray.model.fields import NetworkFields

__all__ = ["MOST_MEMBERS", "Member", "differing_inputs"]

# Far more than anybody averages; what a received card says to load ends here.
MOST_MEMBERS = 64

_INPUTS = ("labels", "neighbors", "neighbor_windows", "crop", "scale")


class Member(Record):
    """One network of an ensemble.

    Attributes:
        trial: which trial's hyperparameters trained it, with which `seed`.
        shifts: what is added to its logits before they are averaged, a number for each label, `any` last: class weights
            of its training that those of the first network did not have.
    """

    trial: Count
    seed: Seed
    parameters: Hyperparameters
    shifts: tuple[float, ...] = Field(min_length=1)
    weights: WeightsNote


def differing_inputs(one: NetworkFields, other: NetworkFields) -> str:
    """The first field that gives two networks another input or other labels; empty if none does.

    Where a part of an image is shown it is cut out once, at the side that all of them see.
    """
    names = (*_INPUTS, "resolution") if one.shows_part else _INPUTS
    return next((name for name in names if getattr(one, name) != getattr(other, name)), "")

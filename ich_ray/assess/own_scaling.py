"""Probabilities of the network alone, beside those of its blend with a sequence model.

The calibration of a bundle is of blended logits, and makes no probabilities of the network's own: these have a scaling
of their own, fitted to the same calibration patients. It decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.bundle.logit_scaling import fit_scaling
from ich_ray.bundle.sequence_note import OwnScaling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.card import Card
    from ich_ray.bundle.logit_scaling import Method
    from ich_ray.data.dataset import SliceSet

__all__ = ["probabilities_alone", "trained_shift", "with_own_scaling"]


def trained_shift(card: Card) -> float:
    """What takes the class weights of its training out of the network's own logit of `any`."""
    from ich_ray.training.loss import prior_shift  # loads PyTorch

    trained = [held for role in card.trained_by if (held := card.dataset.roles.get(role)) is not None]
    positives = sum(role.positives for role in trained)
    return prior_shift(card.parameters.loss, positives, sum(role.slices for role in trained) - positives)


def with_own_scaling(card: Card, bundle: Bundle, slices: SliceSet, method: Method) -> Card:
    """The card with the scaling of the network's own logits; as it is where there is no sequence model.

    Args:
        card: to put it into.
        bundle: that reads the slices.
        slices: of patients who trained nothing, with labels of both kinds.
        method: how to fit.
    """
    if card.sequence is None:
        return card
    logits = bundle.network_label_logits(slices)[:, -1]
    found = fit_scaling(method, slices.labels, logits, trained_shift(card))
    own = OwnScaling(prior_shift=found.prior_shift, temperature=found.temperature, bias=found.bias)
    return card.model_copy(update={"sequence": card.sequence.model_copy(update={"own_scaling": own})})


def probabilities_alone(card: Card, own: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Of the network's own logits of `any`, `[n]`; None where no calibration fitted them."""
    scaling = None if card.sequence is None else card.sequence.own_scaling
    return None if scaling is None else scaling.scaling(own)

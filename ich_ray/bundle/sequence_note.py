"""What the card of a bundle says of its sequence model: how it was built, chosen and blended.

A sequence model is a small network over features of the slices of one series, in their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ich_ray.bundle.adaptation_note import AdaptationNote
from ich_ray.bundle.logit_scaling import LogitScaling
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.storage import Count, JsonValue, Line, Record, Time
from ich_ray.trial_records import WeightsNote
from ich_ray.vocabulary import Subtype

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MOST_FEATURES", "SEQUENCE_FILE", "Blend", "OwnScaling", "SequenceNote"]

SEQUENCE_FILE = "sequence.safetensors"
# Far beyond what any network pools for its last layer.
MOST_FEATURES = 2**16


class Blend(Record):
    """Of one label: logit = own * (the network's) + sequence * (the sequence model's) + bias."""

    own: float = 0.0
    sequence: float = 1.0
    bias: float = 0.0


class OwnScaling(Record):
    """What turns the network's own logit of `any` into a probability, as `LogitScaling` does."""

    prior_shift: float
    temperature: float = Field(gt=0)
    bias: float = 0.0

    @property
    def scaling(self) -> LogitScaling:
        """What turns its logits into probabilities."""
        return LogitScaling(self.prior_shift, self.temperature, self.bias)


class SequenceNote(Record):
    """A sequence model that stands beside the network of a bundle.

    Attributes:
        features: of each slice, what goes into the last layer of the network.
        weights: the file and its hash.
        blend: of each label that the network answers.
        trial: of the search over `trials` that chose it by `objective`, in which it reached `value`: optimistic.
        figures: what was measured on `validation` and, cross-fitted, on `calibration` patients: without it (`none`),
            with Gaussian `smoothing` and with it (`sequence`); empty where it was adapted since.
        adaptations: to the labels of other sites, the last one in force.
        own_scaling: of the network alone, to tell what it would say; it decides nothing. None until calibrated, and in
            older cards.
    """

    parameters: SequenceParameters
    features: int = Field(ge=1, le=MOST_FEATURES)
    weights: WeightsNote = WeightsNote(file=SEQUENCE_FILE, sha256="0" * 64)  # until it is saved
    blend: dict[Literal["any"] | Subtype, Blend]
    objective: Line = ""
    trial: Count = 0
    trials: Count = 0
    value: float | None = None
    figures: dict[Line, JsonValue] = Field(default_factory=dict)
    created: Time = 0.0
    adaptations: tuple[AdaptationNote, ...] = ()
    own_scaling: OwnScaling | None = Field(default=None, exclude_if=lambda scaling: scaling is None)

    def adapted_to(self, fingerprint: str) -> bool:
        """Whether patients of this dataset taught it, or chose its weights."""
        return any(one.dataset == fingerprint for one in self.adaptations)

    def blends(self, labels: Sequence[str]) -> list[Blend]:
        """Of these labels, in their order."""
        held = {str(label): blend for label, blend in self.blend.items()}
        return [held[label] for label in labels]

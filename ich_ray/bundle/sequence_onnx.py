"""Export the sequence model of a bundle as a second ONNX graph, checked against the bundle.

It takes what the first graph gives for the slices of one series, in order along the normal of the slices, lowest place
first; of slices at one place the mean of their outputs stands for them.

A transformer attends to the whole series in the graph, and beyond 1,024 places to windows of it in the bundle: logits
of series that long differ, by 0.03 at 1,100 places. The metadata `ich_ray_longest_series` name the limit.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ich_ray.data.sequence_features import as_stored
from ich_ray.errors import ConfigError
from ich_ray.model.sequence_networks import LONGEST_ATTENTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.logit_scaling import LogitScaling
    from ich_ray.bundle.sequence_note import Blend
    from ich_ray.model.sequence_networks import SequenceNetwork

__all__ = ["INPUTS", "LONGEST_KEY", "OUTPUTS", "SequenceGraph", "bundle_outputs", "example_series", "exported_sequence"]

INPUTS = ("features", "network_logits", "places_mm")
OUTPUTS = ("label_logits", "label_probabilities", "study_logits")
LONGEST_KEY = "ich_ray_longest_series"
_STEP_MM = 5.0


class SequenceGraph(nn.Module):
    """The sequence network, its blend with own logits, and the scaling of what comes of both."""

    def __init__(self, network: SequenceNetwork, blend: Sequence[Blend], scalings: Sequence[LogitScaling]) -> None:
        super().__init__()
        self.network = network
        told = [[one.own, one.sequence, one.bias] for one in blend]
        self.register_buffer("blend", torch.tensor(told).T.contiguous())
        numbers = [[one.prior_shift, one.temperature, one.bias] for one in scalings]
        self.register_buffer("scalings", torch.tensor(numbers).T.contiguous())

    def forward(
        self, features: torch.Tensor, network_logits: torch.Tensor, places_mm: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`OUTPUTS` of `INPUTS` of one series: `[1, slices, labels]` twice, and `[1, labels]`.

        Args:
            features: float32 `[1, slices, d]`.
            network_logits: float32 `[1, slices, labels]`.
            places_mm: float32 `[1, slices]`.
        """
        kept = features.clamp(-65504.0, 65504.0).half().float()  # as `as_stored`
        of_sequence, study = self.network(kept, places_mm)
        weight, weight_of_sequence, bias = self.blend.unbind(0)  # type: ignore[operator]
        logits = weight * network_logits + weight_of_sequence * of_sequence + bias
        shift, temperature, moved = self.scalings.unbind(0)  # type: ignore[operator]
        scaled = (logits + shift) / temperature + moved
        return logits, torch.where(scaled.abs() < torch.inf, torch.sigmoid(scaled), torch.nan), study


def exported_sequence(bundle: Bundle, metadata: dict[str, str]) -> bytes:
    """The graph of the sequence model of a bundle, for series of any length.

    Of a transformer it holds for series of at most as many places as the metadata `LONGEST_KEY` say.

    Raises:
        ConfigError: PyTorch cannot export it.
    """
    network, note = bundle.sequence, bundle.card.sequence
    if network is None or note is None:
        raise ConfigError(f"{bundle.card.name}: a sequence model must be there, got none; run `ich-ray sequence`")
    blend = note.blends(bundle.card.parameters.predicted_labels)
    module = SequenceGraph(network.cpu(), blend, bundle.card.scalings).eval()
    examples = tuple(torch.from_numpy(one) for one in example_series(bundle, 7))
    slices = torch.export.Dim("slices", min=1)
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # of one operator that ONNX does not have
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own future
            program: Any = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                verbose=False,
                input_names=[*INPUTS],
                output_names=[*OUTPUTS],
                dynamic_shapes={name: {1: slices} for name in INPUTS},
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
        network.to(bundle.device)
    longest = {LONGEST_KEY: str(LONGEST_ATTENTION)} if note.parameters.model == "transformer" else {}
    program.model.metadata_props.update(metadata | longest)
    data: bytes = program.model_proto.SerializeToString()
    return data


def example_series(bundle: Bundle, slices: int) -> tuple[NDArray[np.float32], ...]:
    """Random features, own logits and places of one series, as the graph takes them."""
    count, labels = bundle.card.sequence.features, len(bundle.card.parameters.predicted_labels)  # type: ignore[union-attr]
    rng = np.random.default_rng(slices)
    features, own = (rng.normal(0, 1, (1, slices, width)).astype(np.float32) for width in (count, labels))
    return features, own, np.arange(slices, dtype=np.float32)[None] * np.float32(_STEP_MM)


def bundle_outputs(
    bundle: Bundle, features: NDArray[np.float32], own: NDArray[np.float32], places_mm: NDArray[np.float32]
) -> tuple[NDArray[np.floating[Any]], ...]:
    """`OUTPUTS` of the bundle itself."""
    series = np.zeros(features.shape[1], np.int64)
    found = bundle.of_series(own[0], as_stored(features[0]), series, places_mm[0].astype(np.float64))
    return found.logits[None], bundle.label_calibrated(found.logits)[None], found.series[:1]

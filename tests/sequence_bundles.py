"""Bundles with a sequence model whose weights are drawn and not trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.sequence_note import Blend, SequenceNote
from ich_ray.model.pooled_features import FeatureNetwork
from ich_ray.model.sequence_networks import build_sequence_network
from ich_ray.model.sequence_parameters import SequenceParameters


def add_sequence(folder: Path, **fields: object) -> Path:
    """Put a sequence model into a bundle: drawn, normalized to what random images give, and felt in every answer."""
    before = load_bundle(folder)
    made = with_sequence(before, **fields)
    # As calibrated as it was.
    fitted = ("operating_points", "temperature", "bias", "subtypes", "studies")
    kept = {name: getattr(before.card, name) for name in fitted}
    made.card = made.card.model_copy(update=kept)
    made.save(folder)
    return folder


def with_sequence(bundle: Bundle, **fields: object) -> Bundle:
    parameters = SequenceParameters.model_validate({"hidden": 8, "projection": 16, "deltas": True, **fields})
    labels = bundle.card.parameters.predicted_labels
    count = FeatureNetwork(bundle.network, bundle.card.input_shape).width
    torch.manual_seed(1)
    network = build_sequence_network(parameters, count, len(labels))
    blend = {label: Blend(own=0.5, sequence=2.0, bias=0.1 * place) for place, label in enumerate(labels)}
    made = bundle.with_sequence(network, SequenceNote.model_validate(
        {"parameters": parameters, "features": count, "blend": blend, "trial": 3, "trials": 8, "objective": "roc_auc"}
    ))  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (20, *bundle.card.input_shape), np.uint8)
    shown = np.tile(np.array([0, 0, 1, 1], np.float32), (20, 1)) if bundle.card.parameters.shows_part else None
    features = torch.from_numpy(made.seen(images, shown)[1]).to(made.device)
    network.normalize_by(features.mean(0), features.std(0))
    return made

"""Fit a sequence model to the labels of a site, by one fixed recipe, and keep the best report.

The start is a report like any other: where nothing is better on the validation patients, nothing changes. What is
compared is the log loss after scaling and blending, which follow anyway, so that a site where blood is rarer is no
reason to move a network. Nor does the training begin with that: both heads are linear, and are scaled to the labels
first, as the steep loss of logits that are far off would bend what ranks well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logit

from ich_ray.progress import bar
from ich_ray.refit.sequence_figures import fit_weights
from ich_ray.statistics.metrics import log_loss

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.model.sequence_parameters import SequenceParameters
    from ich_ray.training.sequence_batches import PlaceFeatures
    from ich_ray.training.sequence_set import SequenceSet

__all__ = ["Adapted", "adapted_parameters", "budget_of", "fit_to_labels", "scaled_loss", "site_loss"]

# At the low end of what searches draw, as the model reads series already; heads alone bear more.
_LEARNING_RATE, _LEARNING_RATE_OF_HEAD = 3e-4, 3e-3
_BATCH_SIZE, _WARMUP = 16, 0.05
_LEAST_STUDY_WEIGHT = 0.25  # where a study head counted for nothing it would learn nothing
# Each series so often, but as many steps at least as a rate like this needs, and no more than minutes take.
_PASSES, _LEAST_SERIES, _MOST_SERIES = 20, 4_000, 200_000
_REPORTS = 20
_LEAST_SCALE = 0.05  # below, a head would have next to nothing left to learn with
_SAYS_SOMETHING = 0.999  # of the log loss of the share alone


@dataclass(frozen=True, eq=False)
class Adapted:
    """What a training at a site ended with.

    Attributes:
        weights: at the best report.
        best: series shown at that report, 0 at the start.
        losses: on the validation patients of the start and of each report, in turn.
    """

    weights: dict[str, torch.Tensor]
    best: int
    losses: tuple[float, ...]


def adapted_parameters(parameters: SequenceParameters, study_alone: bool) -> SequenceParameters:
    """The draw of a sequence model, with the rates of an adaptation in place of its own."""
    changes = {
        "learning_rate": _LEARNING_RATE_OF_HEAD if study_alone else _LEARNING_RATE,
        "batch_size": _BATCH_SIZE,
        "warmup": _WARMUP,
        "study_weight": max(parameters.study_weight, _LEAST_STUDY_WEIGHT),
    }
    return parameters.model_copy(update=changes)


def budget_of(series: int) -> int:
    """How many series are shown where a site has so many to learn from."""
    return min(max(_PASSES * series, _LEAST_SERIES), _MOST_SERIES)


def fit_to_labels(
    network: SequenceNetwork,
    train: SequenceSet,
    validation: SequenceSet,
    own: NDArray[np.float32],
    *,
    study_alone: bool,
    device: torch.device,
    seed: int = 0,
) -> Adapted:
    """Train a sequence model on from its weights.

    Args:
        network: at its start; it is not changed.
        train: who teaches it.
        validation: who chooses among its reports.
        own: logits of the bundle's network for the validation slices, `[n, labels]`.
        study_alone: fit the study head alone, as slices have no labels.
        device: where to train.
        seed: of order, noise and dropout.

    Raises:
        TrialFailure: it diverged.
    """
    from ich_ray.model.sequence_networks import build_sequence_network
    from ich_ray.training.parts import TrainingBudget
    from ich_ray.training.sequence_batches import PlaceFeatures
    from ich_ray.training.sequence_loop import SequenceStart, train_sequence

    drawn = adapted_parameters(network.drawn, study_alone)
    weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    judged = build_sequence_network(drawn, network.features, network.labels).to(device)
    budget = budget_of(len(train))
    plan = TrainingBudget(budget, -(-budget // _REPORTS))
    places = PlaceFeatures(validation.features, validation.order, device)

    def loss(values: dict[str, torch.Tensor]) -> float:
        judged.load_state_dict(values)
        return site_loss(judged, validation, places, own)

    losses, best, kept = [loss(weights)], 0, weights
    start = SequenceStart(_scaled(weights, judged, train, device), study_alone)
    with bar("Adapting", budget, "series") as advance:
        for progress in train_sequence(drawn, train, None, budget=plan, seed=seed, device=device, start=start):
            told = progress.state().part("weights")
            losses.append(loss(told))
            if losses[-1] < min(losses[:-1]):
                best, kept = progress.images_seen, told
            advance(progress.images_seen, f"log loss {losses[0]:.4f} -> {min(losses):.4f}")
    return Adapted(kept, best, tuple(losses))


def _scaled(
    weights: dict[str, torch.Tensor], network: SequenceNetwork, train: SequenceSet, device: torch.device
) -> dict[str, torch.Tensor]:
    """The weights of a network with heads whose logits suit the labels as far as a scale and a shift can."""
    from ich_ray.training.sequence_batches import sequence_logits

    found = dict(weights)
    told = sequence_logits(network, train.features, train.order, device)
    for head, logits, targets in (
        ("slice_head", told.slices, train.targets),
        ("study_head", told.study, train.study_targets),
    ):
        scales, shifts = np.array([_scale(*pair) for pair in zip(targets.T, logits.T, strict=True)], np.float32).T
        weight, bias = found[f"{head}.weight"], found[f"{head}.bias"]
        found[f"{head}.weight"] = weight * weight.new_tensor(scales)[:, None]
        found[f"{head}.bias"] = bias * bias.new_tensor(scales) + bias.new_tensor(shifts)
    return found


def _scale(targets: NDArray[np.float32], logits: NDArray[np.float32]) -> tuple[float, float]:
    """Scale and shift of the logits of a label; none where it is not known to be there and to be absent.

    Logits that say no more than how often the label is there, or less, are made small: they rank it wrongly.
    """
    if not {0.0, 1.0} <= {*targets.tolist()}:
        return 1.0, 0.0
    known = np.isfinite(targets)
    truth, columns = targets[known], logits[known, None]
    fitted, share = fit_weights(truth, columns), float(truth.mean())
    if log_loss(truth, expit(fitted(columns))) < _SAYS_SOMETHING * log_loss(truth, np.full(len(truth), share)):
        return max(fitted.weights[0], _LEAST_SCALE), fitted.bias
    return _LEAST_SCALE, float(logit(share)) - _LEAST_SCALE * float(columns.mean())


def site_loss(network: SequenceNetwork, given: SequenceSet, places: PlaceFeatures, own: NDArray[np.float32]) -> float:
    """Scaled log loss of `any` by study, plus that of blended slices where these have labels.

    Args:
        network: of series.
        given: the series with their labels.
        places: their features, on the device of the network.
        own: logits of the bundle's network for the slices, `[n, labels]`.
    """
    from ich_ray.training.sequence_batches import sequence_logits
    from ich_ray.training.sequence_metrics import of_studies

    slices, study = sequence_logits(network, places, given.order, places.device)
    truth, of_study = of_studies(given, study)
    both = np.stack([own[:, -1], slices[:, -1]], 1)
    losses = [scaled_loss(truth[:, -1], of_study[:, -1:]), scaled_loss(given.targets[:, -1], both)]
    return float(np.nansum(losses))


def scaled_loss(targets: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Log loss of logits `[n, k]` by the weights that suit these very targets best; NaN without one."""
    known = np.isfinite(targets)
    if not known.any():
        return float("nan")
    truth, columns = targets[known], logits[known]
    return log_loss(truth, expit(fit_weights(truth, columns)(columns)))

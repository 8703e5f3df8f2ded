"""A model over the slices of each series, searched on features of the bundle's network.

Who sees whom: the network trained on the training patients, whose features teach the sequence model (features may be
in-sample; logits would not be, and are not shown to it). Validation patients, on whom the network did not train, stop
and select its trials. Calibration patients weigh the two logits against each other, and what is then said of them is
cross-fitted by patient. Test patients stay closed: their features are computed when `evaluate` opens them.

The trials are a search folder of their own, `SEARCH/final/sequence/`, with the same ledger as any other, so they can be
killed and gone on with, read by `ich-ray results` and checked by `ich-ray audit`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.bundle.answering_series import answering_series
from ich_ray.bundle.card_file import read_card
from ich_ray.bundle.sequence_note import Blend, SequenceNote
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.series_order import order_of_slices
from ich_ray.data.study_labels import studies_of
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.refit.sequence_conditions import why_skipped
from ich_ray.refit.sequence_trials import SequenceTrainer
from ich_ray.results import open_network_search
from ich_ray.runtime import connected
from ich_ray.search.best_states import best_state, keep_only
from ich_ray.search.request import SearchRequest
from ich_ray.search.space.builtin_spaces import builtin_space

if TYPE_CHECKING:
    from pathlib import Path

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.data.dataset import SliceSet
    from ich_ray.data.sequence_features import SequenceFeatures
    from ich_ray.model.sequence_networks import SequenceNetwork
    from ich_ray.model.sequence_parameters import SequenceParameters
    from ich_ray.refit.sequence_figures import ReadSlices
    from ich_ray.results import SearchResult
    from ich_ray.search.tune.trial import Trainer
    from ich_ray.storage import Location
    from ich_ray.trial_records import TrialResult

__all__ = ["DEFAULT_TRIALS", "read_slices", "sequence", "space_for"]

DEFAULT_TRIALS = 8
# Fewer series are shown so few times by the budget of the large space that the small one tells as much.
_MANY_SERIES = 5000


def sequence(
    search: Location,
    *,
    space: Location | None = None,
    trials: int | None = None,
    resume: bool = False,
    seed: int | None = None,
    address: str | None = None,
    _trainer: Trainer | None = None,
) -> SequenceNote | None:
    """Search a sequence model for the bundle of a search, and put the best into the bundle.

    The bundle is not calibrated then, and if its test patients were opened, opening them again counts as the second
    time. None where the series of the dataset have a slice each, from which nothing can be learned: the bundle stays.

    Args:
        search: the search folder, with its bundle.
        space: the YAML file of a space that `searches: sequence`; if not given, that of the search that is there, or
            the one of the package for as many series as the dataset has.
        trials: in all, counting those already there; 8, or as many as before, if not given.
        resume: go on with the search that is there.
        seed: of its draws and trials; that of the search if not given.
        address: a Ray cluster; this machine if not given.

    Raises:
        ConfigError: it cannot be done as asked; nothing was written.
        Interrupted: it was stopped before its end; the message says how to go on.
        IchRayError: no trial completed.
    """
    from ich_ray.search.checked_request import validate_request

    found = open_network_search(search)
    dataset = PreparedDataset.of_search(found)
    if why := why_skipped(found, dataset):
        say(f"sequence: skipped, {why}; the bundle stays as it is")
        return None
    from ich_ray.refit.bundle_features import check_features, compute_features, feature_files, open_features

    card, files = read_card(found.files.bundle), found.files.sequence
    features = feature_files(files, dataset, card)
    check_features(files, features, "remove the folder to search anew")
    if (there := files.search.exists()) and not resume:
        raise ConfigError(
            f"{files.root}: a new search needs a folder without one, got one; add --resume to go on with it, or remove "
            "the folder"
        )
    request = SearchRequest(
        dataset.files.root,
        space or (None if there else space_for(dataset)),
        files.root,
        trials=DEFAULT_TRIALS if trials is None and not there else trials,
        resume=resume,
        seed=found.record.seed if seed is None and not there else seed,
        address=address,
    )
    validate_request(request, "sequence")  # a mistake must cost no features
    from ich_ray.search.run import run_request

    with connected(address):
        compute_features(features, found.files.bundle, dataset, files)
        trainer = _trainer or SequenceTrainer(features.key, card.parameters.predicted_labels)
        ended = run_request(request, trainer, "sequence", keep_weights=True)
    return _into_bundle(found, ended, open_features(files, dataset, features.key))


def space_for(dataset: PreparedDataset) -> Path:
    """The search space of sequence models for as many series as a dataset has."""
    series = len(order_of_slices(dataset.slices.take(dataset.role("train").rows)))
    return builtin_space("sequence" if series >= _MANY_SERIES else "sequence_small")


def _into_bundle(found: SearchResult, ended: SearchResult, features: SequenceFeatures) -> SequenceNote | None:
    """Put the best trial's network into the bundle, unless it is there.

    Raises:
        ConfigError: the bundle is another one than that whose features were searched.
    """
    from ich_ray.bundle.bundle import load_bundle  # loads PyTorch
    from ich_ray.model.sequence_networks import build_sequence_network
    from ich_ray.model.sequence_parameters import SequenceParameters
    from ich_ray.model.tensors import layout_of
    from ich_ray.refit.bundle_features import features_key
    from ich_ray.training.state import TrainingState

    trial, bundle = ended.best(), load_bundle(found.files.bundle)
    if features_key(bundle.card, PreparedDataset.of_search(ended)) != features.files.key:
        raise ConfigError(
            f"{found.files.bundle}: the bundle must be the one whose features were searched, got another one, made "
            f"meanwhile; remove {ended.files.root} and search again"
        )
    parameters = SequenceParameters.model_validate(trial.parameters)
    network = build_sequence_network(parameters, features.record.features, len(bundle.card.parameters.predicted_labels))
    state = TrainingState.load(best_state(ended.files.weights_of(trial.seed), trial), layout_of(network))
    network.load_state_dict(state.validated_weights)
    there = bundle.card.sequence
    if there is not None and bundle.sequence is not None:
        said = there.trial, there.trials, there.value, there.parameters
        if said == (trial.number, len(ended.trials), trial.value, parameters) and _same(bundle.sequence, network):
            say("sequence: the bundle has the best of these trials already")
            return there
    note = _measured(bundle, network.eval(), parameters, trial, ended, features)
    made = bundle.with_sequence(network, note)
    made.save(found.files.bundle)
    keep_only(ended.files.weights, [trial.seed])
    return made.card.sequence


def _same(one: SequenceNetwork, other: SequenceNetwork) -> bool:
    """Whether two networks of the same parameters have the same weights."""
    weights = other.state_dict()
    return all(np.array_equal(value.cpu(), weights[name].cpu()) for name, value in one.state_dict().items())


def _measured(
    bundle: Bundle,
    network: SequenceNetwork,
    parameters: SequenceParameters,
    trial: TrialResult,
    ended: SearchResult,
    features: SequenceFeatures,
) -> SequenceNote:
    """What the card says: the blend of calibration patients, and what each way reaches."""
    from ich_ray.refit.sequence_figures import compared, cross_fitted, fit_blends

    dataset, labels = PreparedDataset.of_search(ended), bundle.card.parameters.predicted_labels
    validation, calibration = (
        read_slices(bundle, network, dataset.role(role), features) for role in ("validation", "calibration")
    )
    blends = fit_blends(calibration)
    figures = {"validation": compared(calibration, validation), "calibration": cross_fitted(calibration)}
    return SequenceNote(
        parameters=parameters,
        features=features.record.features,
        blend={
            label: Blend(own=one.weights[0], sequence=one.weights[1], bias=one.bias)
            for label, one in zip(labels, blends, strict=True)
        },
        objective=ended.objective.metric,
        trial=trial.number,
        trials=len(ended.trials),
        value=trial.value,
        figures=figures,
        created=time.time(),
    )


def read_slices(bundle: Bundle, network: SequenceNetwork, slices: SliceSet, features: SequenceFeatures) -> ReadSlices:
    """Slices of a role, as the network of the bundle and the sequence model read them."""
    from ich_ray.refit.bundle_features import read_set
    from ich_ray.refit.sequence_figures import ReadSlices
    from ich_ray.training.sequence_batches import sequence_logits

    labels, studies = bundle.card.parameters.predicted_labels, studies_of(slices)
    given = read_set(slices, features, labels)
    order = given.order
    said = sequence_logits(network.to(bundle.device), given.features, order, bundle.device)
    return ReadSlices(
        targets=given.targets,
        own=features.logits(slices.rows),
        sequence=said.slices,
        head=said.study[order.series],
        series=order.series,
        studies=studies.of_slice,
        study_targets=np.append(studies.label("any"), np.float32(np.nan))[studies.of_slice],  # -1 is the last
        answering=answering_series(slices, bundle.card.training_data),
        places_mm=order.places_mm[order.place].astype(np.float64),
        patients=given.patients,
    )

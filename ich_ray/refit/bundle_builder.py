"""The bundle of weights that are chosen and not calibrated yet: their card says where they come from."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import ConfigDict

import ich_ray
from ich_ray.bundle.card import Card, DatasetNote, RetrainingNote, SearchNote, limitations_of
from ich_ray.bundle.card_file import has_card, read_card
from ich_ray.bundle.members import Member
from ich_ray.bundle.training_data import describe_training
from ich_ray.bundle.training_patients import write_known
from ich_ray.data.folds import roles_of
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.refit.confirmation import confirmed
from ich_ray.refit.ensemble_members import class_weight_shifts
from ich_ray.refit.retrain_record import SEED_RULE
from ich_ray.search.space.constraints import Constraints
from ich_ray.storage import Count, Record, read_record
from ich_ray.training.state import TrainingState
from ich_ray.trial_records import WeightsNote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upath import UPath

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.networks import Network
    from ich_ray.refit.retrain_record import Retraining
    from ich_ray.results import SearchResult
    from ich_ray.trial_records import TrialResult
    from ich_ray.vocabulary import TtaView

__all__ = ["make_bundle"]

_UNSAVED = WeightsNote(file="model.safetensors", sha256="0" * 64)  # until `Bundle.save` says where and which


def make_bundle(
    found: SearchResult,
    trial: TrialResult,
    parameters: Hyperparameters,
    dataset: PreparedDataset,
    state: UPath,
    retraining: Retraining | None = None,
    tta: Sequence[TtaView] = (),
    *,
    member_states: Sequence[UPath] = (),
) -> Bundle:
    """Write the bundle of a search; openings that are known of the one it replaces stay on record.

    `state` is a file of `retraining`, or of the trial itself without one; `member_states` are those of its members.
    """
    from ich_ray.bundle.bundle import Bundle  # loads PyTorch

    manifest, image_shape = dataset.manifest, dataset.image_shape
    network = _network(parameters, state, image_shape)
    members = _members(parameters, dataset, retraining) if retraining else ()
    others = [
        _network(member.parameters, file, image_shape) for member, file in zip(members, member_states, strict=True)
    ]
    before = read_card(found.files.bundle) if has_card(found.files.bundle) else None
    card = Card(
        name=f"{found.record.name}-{trial.number:05d}",
        created=time.time(),
        architecture=parameters.architecture,
        parameters=parameters,
        image_shape=image_shape,
        size=manifest.size,
        windows=manifest.windows,
        dataset=DatasetNote(fingerprint=manifest.fingerprint, roles={**manifest.roles}, split=manifest.split),
        limitations=(*filter(None, [manifest.leak]), *limitations_of(parameters)),
        search=SearchNote(
            name=found.record.name,
            trial=trial.number,
            trials=len(found.trials),
            objective=found.objective.metric,
            selection_value=trial.value,
            confirmed=_how_confirmed(found, trial),
            folds=found.objective.parts,
            repeats=found.objective.repeats,
            constraints=str(Constraints.model_validate(found.record.space.get("constraints", {}))),
        ),
        retraining=_note(retraining) if retraining else None,
        training_data=describe_training(dataset, roles_of(retraining.patients if retraining else "train")),
        members=members,
        tta=tuple(tta),
        openings=_openings(found, before),
        site_openings=before.site_openings if before else {},
        weights=_UNSAVED,
        versions=_versions(),
    )
    bundle = Bundle(network, card, others=others)
    write_known(found.files.bundle, dataset)
    bundle.save(found.files.bundle)
    return bundle


def _network(parameters: Hyperparameters, state: UPath, image_shape: tuple[int, int, int]) -> Network:
    """A network with the weights of a state."""
    from ich_ray.model.outline import filled, outline
    from ich_ray.model.tensors import layout_of

    network = outline(parameters, image_shape)
    weights = TrainingState.load(state, layout_of(network)).validated_weights
    return filled(network, weights, parameters, image_shape)


def _members(parameters: Hyperparameters, dataset: PreparedDataset, retraining: Retraining) -> tuple[Member, ...]:
    """Networks beside the first, with what its class weights and theirs differ by; their weights are saved later."""
    if not retraining.members:
        return ()
    patients, fold = retraining.patients, retraining.runs[0].fold if retraining.runs else None
    first = class_weight_shifts(parameters, dataset, patients, retraining.seed or 0, fold)
    members = []
    for one in retraining.members:
        own = Hyperparameters.model_validate(one.parameters)
        shifts = class_weight_shifts(own, dataset, patients, one.run.seed, one.run.fold)
        members.append(
            Member(
                trial=one.trial,
                seed=one.run.seed,
                parameters=own,
                shifts=tuple(shift - of_first for shift, of_first in zip(shifts, first, strict=True)),
                weights=_UNSAVED,
            )
        )
    return tuple(members)


class _Openings(Record):
    """Of evaluation.json, how often the test patients were looked at; assess/evaluation.py has the rest."""

    model_config = ConfigDict(extra="ignore")

    opened: Count


def _openings(found: SearchResult, before: Card | None) -> int:
    """Of the same test patients, by the bundle that this one replaces: its card may be gone and its evaluation not."""
    told = found.files.evaluation
    opened = read_record(told, _Openings, "remove the file").opened if told.exists() else 0
    return max(opened, before.openings if before else 0)


def _how_confirmed(found: SearchResult, trial: TrialResult) -> str:
    """How a confirmation chose this trial; empty if none did."""
    again = confirmed(found.files)
    if again is None or again.chosen != trial.number:
        return ""
    held = next((candidate for candidate in again.candidates if candidate.trial == again.chosen), None)
    if held is None or held.mean is None:
        return ""
    apart = "" if held.spread is None else f" (SD {held.spread:.4f})"
    if again.race:
        return (
            f"trained again on {len(held.values)} {again.kind}, chosen by a race of {len(again.candidates)} candidates "
            f"over {again.race.trainings} trainings: {again.objective.metric} {held.mean:.4f}{apart}"
        )
    return (
        f"trained again on {again.parts} {again.kind}, the best mean of {len(again.candidates)} candidates: "
        f"{again.objective.metric} {held.mean:.4f}{apart}"
    )


def _note(retraining: Retraining) -> RetrainingNote:
    return RetrainingNote(
        patients=retraining.patients,
        images=retraining.images or retraining.best_images_seen,
        budget=retraining.budget,
        best_images_seen=retraining.best_images_seen,
        seed=retraining.seed or 0,
        seeds=tuple(run.seed for run in retraining.rehearsal or retraining.runs),
        rule=SEED_RULE if len(retraining.runs) > 1 else "the only one",
        validation=retraining.spread,
    )


def _versions() -> dict[str, str]:
    return {
        "ich_ray": ich_ray.__version__,
        **{name: version(name) for name in ("torch", "torchvision", "timm", "ray", "numpy")},
    }

"""Report B's retraining: passes over a stratified sample, each measured, ended by patience."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.schedule import SCHEDULES
from ich_ray.refit.confirmation import chosen_trial
from ich_ray.refit.retrain_record import RetrainCourse
from ich_ray.results import open_search

if TYPE_CHECKING:
    from ich_ray.storage import Location

__all__ = ["sampled_course"]


def sampled_course(search: Location, *, slices: int | None, epochs: int | None) -> RetrainCourse:
    """The course of a retraining of the chosen trial, for `retrain`.

    Args:
        search: the search folder.
        slices: train on so many, drawn at random with their share of haemorrhage.
        epochs: passes over them at most.

    Raises:
        ConfigError: no search, one of the two alone, or more slices than there are.
        IchRayError: no completed trial.
    """
    found = open_search(search)
    drawn = Hyperparameters.model_validate(chosen_trial(found).parameters)
    if slices is None or epochs is None or slices < 1 or epochs < 1:
        raise ConfigError(
            f"--slices, --epochs: both must be given, at least 1 each, got {slices} and {epochs}; give both or none"
        )
    if slices > (there := PreparedDataset.of_search(found).manifest.roles["train"].slices):
        raise ConfigError(f"--slices: at most the {there:,} training slices can be drawn, got {slices:,}; lower it")
    end = "" if SCHEDULES[drawn.schedule].patience is None else ", ended by patience"
    return RetrainCourse(
        drawn.model_copy(update={"training_slices": slices, "epochs": epochs}),
        images=slices * epochs,
        report_every=slices,
        budget=f"{epochs} passes over {slices:,} slices{end}",
    )

"""One typed draw: its defaults, and what makes two draws the same."""

from __future__ import annotations

from typing import Any

import pytest

from ich_ray.model.hyperparameters import Hyperparameters


class OneMore(Hyperparameters):
    """With a field that comes later, whose default means "as before"."""

    blur: float = 0.0


# Of version 0.1.0, and frozen: ledgers, states and bundles leave out what has its default, so that another default
# would give what was written before another meaning. A field that comes later is added here with "as before".
DEFAULTS: dict[str, Any] = {
    "architecture": "plain_cnn",
    "blocks": 2,
    "filters": 16,
    "convolutions": "3/2,3/2",
    "padding": "same",
    "input_batch_norm": False,
    "dense": 64,
    "dense_layers": 1,
    "dropout_before_pool": 0.0,
    "dropout_after_pool": 0.0,
    "dropout_dense": 0.0,
    "weights": "none",
    "unfreeze_from": "all",
    "batch_size": 64,
    "learning_rate": 1e-3,
    "decay": 0.01,
    "dropout": 0.5,
    "optimizer": "adam",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "loss": "weighted",
    "training_slices": 0,
    "epochs": 0,
}
DRAWN = {"blocks": 3, "optimizer": "sgd", "dropout": 0.0, "batch_size": 64}


def test_the_defaults_are_those_that_files_were_written_with() -> None:
    assert Hyperparameters().model_dump() == DEFAULTS


def test_the_identity_is_what_differs_from_the_defaults() -> None:
    assert Hyperparameters().identity() == {}
    assert Hyperparameters.model_validate(DRAWN).identity() == {"blocks": 3, "optimizer": "sgd", "dropout": 0.0}
    assert OneMore.model_validate(DRAWN).identity() == {"blocks": 3, "optimizer": "sgd", "dropout": 0.0}
    assert OneMore(blur=1.5).identity() == {"blur": 1.5}


@pytest.mark.parametrize("kind", [Hyperparameters, OneMore])
@pytest.mark.parametrize("stored", [DRAWN, {"blocks": 3, "optimizer": "sgd", "dropout": 0}, {**DEFAULTS, **DRAWN}])
def test_parameters_are_the_same_with_and_without_defaults(kind: type[Hyperparameters], stored: dict[str, Any]) -> None:
    assert kind.model_validate(DRAWN).is_same(stored)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {**DRAWN, "blocks": 2},
        {**DRAWN, "momentum": 0.8},
        {**DRAWN, "blur": 0.0},  # of a later version, which may mean anything
        {**DRAWN, "blocks": 99},
        None,
        "blocks",
    ],
)
def test_other_unknown_or_damaged_parameters_are_not_the_same(stored: object) -> None:
    assert not Hyperparameters.model_validate(DRAWN).is_same(stored)


def test_a_later_field_with_another_value_than_before_is_not_the_same() -> None:
    assert not OneMore.model_validate({**DRAWN, "blur": 1.5}).is_same(DRAWN)

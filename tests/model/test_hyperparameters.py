"""One typed draw: its defaults, and what makes two draws the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ich_ray.model.architectures import ARCHITECTURES
from ich_ray.model.hyperparameters import GROUPS, Hyperparameters, known_fields, readers
from ich_ray.published.probe import PROBED
from ich_ray.published.sequential_cnn import SequentialFields
from ich_ray.search.progress_table import _FIRST


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
    "schedule": "inverse_time",
    "warmup": 0.0,
    "decay": 0.01,
    "dropout": 0.5,
    "labels": "any",
    "optimizer": "adam",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "decay_norms": True,
    "clip": 0.0,
    "ema": 0.0,
    "loss": "weighted",
    "any_weight": 2.0,
    "training_slices": 0,
    "epochs": 0,
    "resolution": 0,
    "crop": "none",
    "scale": "pixels",
    "neighbors": 0,
    "neighbor_windows": "same",
    "augment": 0.0,
    "erase": 0.0,
}
DRAWN = {"blocks": 3, "optimizer": "sgd", "dropout": 0.0, "batch_size": 64}


def test_the_defaults_are_those_that_files_were_written_with() -> None:
    assert {name: field.default for name, field in known_fields().items()} == DEFAULTS
    assert Hyperparameters.model_validate(DEFAULTS).model_dump() == DEFAULTS


def test_the_identity_is_what_differs_from_the_defaults() -> None:
    assert Hyperparameters().identity() == {}
    assert Hyperparameters.model_validate(DRAWN).identity() == {"blocks": 3, "optimizer": "sgd", "dropout": 0.0}
    assert OneMore.model_validate(DRAWN).identity() == {"blocks": 3, "optimizer": "sgd", "dropout": 0.0}
    assert OneMore(blur=1.5).identity() == {"blur": 1.5}
    assert Hyperparameters.model_validate({**DEFAULTS, "architecture": "stacked_cnn"}).identity() == {
        "architecture": "stacked_cnn"
    }


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


def test_every_field_is_in_one_group() -> None:
    for name in Hyperparameters.model_fields:
        assert len([group for group, fields in GROUPS.items() if name in fields.model_fields]) == 1, name


def test_fields_of_one_architecture_are_none_of_a_group_and_have_a_default() -> None:
    for architecture in ARCHITECTURES.names():
        own = ARCHITECTURES[architecture].own.model_fields
        assert not own.keys() & Hyperparameters.model_fields.keys()
        assert not [name for name, field in own.items() if field.is_required()]


def test_what_an_architecture_alone_reads_is_checked_and_completed() -> None:
    parameters = Hyperparameters.model_validate({"architecture": "stacked_cnn", "padding": "valid"})
    assert SequentialFields.of(parameters) == SequentialFields(padding="valid")
    dumped = parameters.model_dump()
    assert (dumped["padding"], dumped["convolutions"], dumped["dense_layers"]) == ("valid", "3/2,3/2", 1)
    assert Hyperparameters.model_validate_json(parameters.model_dump_json()) == parameters
    assert "padding" not in Hyperparameters().model_dump()
    assert readers("padding") == ["stacked_cnn"]
    assert readers("filters") == []


@pytest.mark.parametrize(
    ("given", "place", "rule"),
    [
        ({"paddin": "same"}, "paddin", "Extra inputs are not permitted"),
        ({"padding": "some"}, "padding", "Input should be 'same' or 'valid'"),
        ({"architecture": "stacked_cnn", "dense_layers": 0}, "dense_layers", "greater than or equal to 1"),
        (
            {"architecture": "resnet19", "width": 3},
            "architecture",
            "Input should be 'plain_cnn', 'resnet18', 'resnet34', 'resnet50', 'densenet121', 'efficientnet_b0', "
            "'convnext_tiny', 'mobilenet_v3_small', 'stacked_cnn', 'timm/NAME' or one that was registered",
        ),
        ({"architecture": "stacked_cnn", "dropout_dense": float("nan")}, "dropout_dense", "should be a finite number"),
        ({"decay": float("nan")}, "decay", "should be a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate", "should be a finite number"),
        ({"weights": "a\x1b[2Jb"}, "weights", "printable characters only"),
        ({"architecture": ["resnet18"]}, "architecture", "Input should be a valid string"),
        (
            {"schedule": "cosin"},
            "schedule",
            "Input should be 'inverse_time', 'constant', 'cosine', 'flat_cosine' or one that was registered",
        ),
        ({"warmup": 1}, "warmup", "less than 1"),
        ({"ema": 1.0}, "ema", "less than 1"),
        ({"clip": -1}, "clip", "greater than or equal to 0"),
    ],
)
def test_what_no_architecture_reads_is_refused(given: dict[str, Any], place: str, rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Hyperparameters.model_validate(given)
    (problem,) = caught.value.errors()
    assert problem["loc"] == (place,)
    assert rule in problem["msg"]


def test_the_network_is_all_but_training_and_dropout() -> None:
    given = {"architecture": "stacked_cnn", "dense_layers": 2, "padding": "valid"}
    shuffled = {"padding": "valid", "dense_layers": 2, "architecture": "stacked_cnn", "learning_rate": 0.1}
    network = Hyperparameters.model_validate(given).network
    assert network == {
        "architecture": "stacked_cnn", "blocks": 2, "filters": 16, "dense": 64, "weights": "none",
        "unfreeze_from": "all", "resolution": 0, "convolutions": "3/2,3/2", "padding": "valid",
        "input_batch_norm": False, "dense_layers": 2, "labels": "any", "crop": "none", "scale": "pixels",
        "neighbors": 0, "neighbor_windows": "same",
    }  # fmt: skip
    assert json.dumps(Hyperparameters.model_validate(shuffled).network) == json.dumps(network)


def test_speed_depends_on_whether_there_is_dropout() -> None:
    def speed(**given: object) -> tuple[object, ...]:
        return Hyperparameters.model_validate({"architecture": "stacked_cnn", **given}).of_speed

    assert speed(dropout_dense=0.1, decay=0.5) == speed(dropout_dense=0.2, weights="a.safetensors")
    assert speed(dropout_dense=0.1) != speed()
    assert speed(batch_size=32) != speed()
    assert speed(ema=0.99, schedule="cosine", warmup=0.1, clip=1.0, decay_norms=False) == speed()
    assert speed(padding="valid") != speed()
    assert speed(augment=0.5) == speed(augment=1.5)
    assert len({speed(), speed(augment=1), speed(erase=0.5), speed(augment=1, erase=1), speed(resolution=64)}) == 5


def test_what_is_shown_first_and_what_is_probed_are_fields() -> None:
    assert {*_FIRST, *PROBED} <= known_fields().keys()

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ich_ray.model.schedule import ScheduleStep, rate_of
from ich_ray.model.sequence_parameters import SEQUENCE_MODELS, SequenceParameters

# Frozen: what is on disk leaves them out. A new field is added here with a default that means "as before".
DEFAULTS = {
    "model": "bigru",
    "hidden": 128,
    "layers": 1,
    "projection": 128,
    "dropout": 0.2,
    "noise": 0.02,
    "slice_dropout": 0.02,
    "deltas": False,
    "position": "ordinal",
    "study_weight": 0.25,
    "learning_rate": 3e-4,
    "weight_decay": 1e-2,
    "batch_size": 64,
    "warmup": 0.05,
    "any_weight": 2.0,
}


def test_defaults_are_those_that_files_leave_out() -> None:
    assert SequenceParameters().model_dump() == DEFAULTS
    assert SequenceParameters().identity() == {}


def test_identity_is_what_differs_from_the_defaults() -> None:
    drawn = SequenceParameters(model="transformer", hidden=128, noise=0.0)
    assert drawn.identity() == {"model": "transformer", "noise": 0.0}
    assert drawn.is_same({**DEFAULTS, "model": "transformer", "noise": 0.0})
    assert not drawn.is_same({"model": "transformer"})
    assert not drawn.is_same({"model": "transformer", "noise": 0.0, "blocks": 3})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"model": "rnn"}, "'bigru', 'bilstm', 'transformer', 'dilated_conv' or one that was registered"),
        ({"architecture": "plain_cnn"}, "Extra inputs are not permitted"),
        ({"position": "cm"}, "'none', 'ordinal' or 'mm'"),
        ({"dropout": 1.0}, "less than 1"),
        ({"noise": float("nan")}, "finite"),
        ({"batch_size": 0}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_belong_is_refused(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        SequenceParameters.model_validate(given)


def test_models_stand_in_a_registry() -> None:
    assert SEQUENCE_MODELS.names() == ["bigru", "bilstm", "transformer", "dilated_conv"]


def test_a_search_grants_series() -> None:
    assert SequenceParameters(batch_size=7).images_within(1000) == 1000


def test_the_rate_rises_and_then_falls_along_a_cosine() -> None:
    fitted = SequenceParameters(learning_rate=0.01, warmup=0.1).optimization
    rates = [rate_of(fitted, ScheduleStep(seen, 1000, 50)) for seen in (0, 50, 100, 550, 1000)]
    assert rates == pytest.approx([1e-4, 0.00505, 0.01, 0.00505, 1e-4])
    assert (fitted.optimizer, fitted.decay_norms, fitted.clip, fitted.loss) == ("adamw", False, 1.0, "unweighted")

"""Class weights and what they do to the probabilities."""

from __future__ import annotations

import math

import pytest

from ich_ray.errors import ConfigError
from ich_ray.model.weighting import class_weights, prior_shift


def test_class_weights_have_mean_one() -> None:
    assert class_weights("weighted", 25, 75) == (pytest.approx(2 / 3), 2.0)
    assert class_weights("unweighted", 25, 75) == (1.0, 1.0)
    assert prior_shift("weighted", 25, 75) == pytest.approx(math.log(1 / 3))
    assert prior_shift("unweighted", 25, 75) == 0
    with pytest.raises(ConfigError, match="got 0 with and 10 without"):
        class_weights("weighted", 0, 10)

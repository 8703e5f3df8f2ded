from __future__ import annotations

import pytest

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.input_shape import input_shape
from ich_ray.published.full_size import _stages, rate
from ich_ray.published.scale import SCALES, ours
from ich_ray.search.plan.cost_model import first_draws
from ich_ray.search.space.yaml_file import parse_space


def test_every_network_of_full_size_fits_the_images_of_its_stage() -> None:
    sides = {stage.name.split(",")[0]: input_shape(stage.network, stage.shape)[1] for stage in _stages()}
    assert (sides["report A"], sides["report B"], sides["ours"]) == (128, 512, 256)


@pytest.mark.parametrize("name", ["small", "full"])
def test_images_are_prepared_as_large_as_our_space_asks_for(name: str) -> None:
    scale = SCALES[name]
    draws = first_draws(parse_space(ours(scale), scale.ours), 40)
    sides = {input_shape(drawn, (3, scale.size_ours, scale.size_ours))[1] for drawn in draws}
    assert max(sides) == scale.size_ours


def test_a_rate_is_measured_on_noise() -> None:
    images_per_s, device = rate(Hyperparameters(architecture="plain_cnn", blocks=1, filters=1, dense=0), (1, 16, 16))
    assert images_per_s > 0
    assert device

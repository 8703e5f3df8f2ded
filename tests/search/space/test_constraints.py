from __future__ import annotations

from typing import Any

import pytest

from ich_ray.errors import ConfigError, SpaceError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.space.constraints import Constraints, Refusal
from ich_ray.search.space.feasible_draw import check_fits, first_that_fits
from ich_ray.search.space.yaml_file import SearchSpace, parse_space

SOURCE: dict[str, Any] = {
    "name": "x",
    "budget": {"images": 900, "report_every": 100, "first_rung": 100},
    "parameters": {"optimizer": {"choice": ["sgd", "adam"]}, "batch_size": {"choice": [16, 32]}},
}


def space(**constraints: Any) -> SearchSpace:
    return parse_space(SOURCE | {"constraints": constraints}, "x.yaml")


def test_constraints_are_read() -> None:
    read = space(max_ms_per_slice=5, max_parameters="30e6", max_gpu_gb=20.5).constraints
    assert read == Constraints(max_ms_per_slice=5.0, max_parameters=3e7, max_gpu_gb=20.5)
    assert str(read) == "max_ms_per_slice 5, max_parameters 30,000,000, max_gpu_gb 20.5"
    assert not parse_space(SOURCE, "x.yaml").constraints


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            {"max_params": 1},
            "constraints.max_params: the key must be one of max_ms_per_slice, max_parameters, max_gpu_gb",
        ),
        ({"max_gpu_gb": 0}, "constraints.max_gpu_gb: input should be greater than 0, got 0"),
        ({"max_gpu_gb": True}, "constraints.max_gpu_gb: input should be a valid number, got True"),
        ({"max_gpu_gb": "much"}, "constraints.max_gpu_gb: input should be a valid number, got 'much'"),
        ({"max_gpu_gb": "inf"}, "constraints.max_gpu_gb: input should be a finite number, got 'inf'"),
    ],
)
def test_constraints_that_cannot_be_are_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        space(**written)
    assert str(caught.value).startswith(f"x.yaml: {message}")


@pytest.mark.parametrize("listed", [{"sampler": "grid"}, {"candidates": [{"optimizer": "sgd"}]}])
def test_what_is_listed_is_trained_whatever_it_takes(listed: dict[str, Any]) -> None:
    source = SOURCE | listed | {"constraints": {"max_gpu_gb": 1}}
    if "candidates" in listed:
        source = {name: value for name, value in source.items() if name != "parameters"}
    with pytest.raises(SpaceError, match=r"x\.yaml: constraints: only draws can be refused before training, got"):
        parse_space(source, "x.yaml")


def test_a_long_search_for_a_draw_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.search.space.feasible_draw.say", said.append)
    refused = iter([Refusal("max_gpu_gb", 0.5)] * 99)
    first_that_fits(space(max_gpu_gb=1), lambda _: next(refused, None), 0)
    assert said == []
    refused = iter([Refusal("max_gpu_gb", 0.5)] * 250)
    first_that_fits(space(max_gpu_gb=1), lambda _: next(refused, None), 0)
    assert said == ["constraints: 100 random draws refused, at most 1,000 are tried (can take minutes)"]


def test_a_draw_that_fits_is_found_or_none() -> None:
    def refuses(parameters: Hyperparameters) -> Refusal | None:
        return Refusal("max_gpu_gb", 0.5) if parameters.batch_size > 16 else None

    limited = space(max_gpu_gb=1)
    assert [first_that_fits(limited, refuses, seed)["batch_size"] for seed in range(9)] == [16] * 9
    with pytest.raises(ConfigError) as caught:
        first_that_fits(limited, refuses, 0, {"batch_size": 32})
    assert str(caught.value) == (
        "constraints: some draw of point {'batch_size': 32} of the space x must keep max_gpu_gb 1, got none in 1,000, "
        "most refused by max_gpu_gb; raise it, or add smaller networks"
    )


def test_a_space_fits_if_some_draw_does_and_some_of_each_point() -> None:
    def refuses(parameters: Hyperparameters) -> Refusal | None:
        return Refusal("max_gpu_gb", 0.5) if parameters.batch_size > 16 else None

    told = SOURCE | {"constraints": {"max_gpu_gb": 1}}
    check_fits(parse_space(told | {"points": [{"batch_size": 16}]}, "x.yaml"), refuses, 0)
    with pytest.raises(ConfigError, match=r"some draw of point \{'batch_size': 32\} of the space x must keep"):
        check_fits(parse_space(told | {"points": [{"batch_size": 16}, {"batch_size": 32}]}, "x.yaml"), refuses, 0)
    with pytest.raises(ConfigError, match="some draw of the space x must keep"):
        check_fits(parse_space(told, "x.yaml"), lambda _: Refusal("max_gpu_gb", 0.5), 0)

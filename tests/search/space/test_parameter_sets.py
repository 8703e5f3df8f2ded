from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ich_ray.errors import SpaceError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.sequence_parameters import SequenceParameters
from ich_ray.search.optuna_adapter import fitting
from ich_ray.search.space.space import RandomSuggest
from ich_ray.search.space.yaml_file import load_space, parse_space
from ich_ray.trial_records import TrialResult

SPACES = Path(__file__).parents[3] / "search_spaces"
SMALL: dict[str, Any] = yaml.safe_load((SPACES / "sequence_small.yaml").read_text())


@pytest.mark.parametrize("name", ["sequence", "sequence_small"])
def test_every_draw_of_a_space_of_ours_is_a_sequence_model(name: str) -> None:
    space = load_space(SPACES / f"{name}.yaml", "sequence")
    drawn = [space.draw(RandomSuggest(seed)) for seed in range(50)]
    assert {type(one.hyperparameters) for one in drawn} == {SequenceParameters}
    assert {one.parameters["model"] for one in drawn} == {"bigru", "bilstm", "transformer", "dilated_conv"}
    assert space.images_of(drawn[0].parameters) == space.budget.images


def test_a_space_that_does_not_say_what_it_searches_is_of_networks() -> None:
    space = load_space(SPACES / "demo.yaml", "network")
    assert isinstance(space.draw(RandomSuggest(0)).hyperparameters, Hyperparameters)
    assert "searches" not in space.source


@pytest.mark.parametrize(
    ("name", "searches", "says"),
    [
        ("sequence_small", "network", "searches: must be network here, got sequence; give it to `ich-ray sequence`"),
        ("demo", "sequence", "searches: must be sequence here, got network; give it to `ich-ray search`"),
    ],
)
def test_a_space_of_the_wrong_kind_is_refused(name: str, searches: Any, says: str) -> None:
    with pytest.raises(SpaceError, match=f"{name}.yaml: {says}"):
        load_space(SPACES / f"{name}.yaml", searches)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"searches": "sequences"}, "searches: input should be 'network' or 'sequence', got 'sequences'"),
        ({"parameters": {"hiden": 64}, "points": []}, r"hiden: must be .* got 'hiden' \(did you mean 'hidden'\?\)"),
        ({"parameters": {"filters": 8}, "points": []}, "filters: must be a parameter of the model, got 'filters'"),
        ({"parameters": {"model": "bigri"}, "points": []}, r"got 'bigri' \(did you mean 'bigru'\?\)"),
        ({"parameters": {"position": "m"}, "points": []}, r"got 'm' \(did you mean 'mm'\?\)"),
        ({"parameters": {"dropout": {"uniform": [0, 2]}}, "points": []}, "dropout: .*got 2"),
        ({"objective": {"folds": 5}}, "objective.folds: trials with `searches: sequence` are judged by the validation"),
    ],
)
def test_parameters_are_checked_as_those_of_sequence_models(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpaceError, match=says):
        parse_space({**SMALL, **change}, "x.yaml")


def test_candidates_are_completed_with_the_defaults_of_a_sequence_model() -> None:
    source = {key: value for key, value in SMALL.items() if key not in {"parameters", "points"}}
    space = parse_space({**source, "candidates": [{"hidden": 64}, {"model": "bilstm"}]}, "x.yaml")
    assert space.listed == ({"hidden": 64, "model": "bigru"}, {"hidden": 128, "model": "bilstm"})


def test_a_sampler_learns_from_trials_of_its_own_kind_alone() -> None:
    ended = [
        TrialResult(number=0, parameters=SMALL["points"][0], state="pruned"),
        TrialResult(number=1, parameters={"architecture": "plain_cnn"}, state="pruned"),
    ]
    assert [trial.number for trial in fitting(parse_space(SMALL, "x.yaml"), ended)] == [0]


def test_a_space_on_disk_reads_again_as_it_was(tmp_path: Path) -> None:
    (path := tmp_path / "x.yaml").write_text(yaml.safe_dump(SMALL))
    assert load_space(path).source == SMALL

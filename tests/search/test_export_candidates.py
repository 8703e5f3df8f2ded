from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ich_ray import cli
from ich_ray.errors import ConfigError, SpaceError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.results import SearchResult, open_search
from ich_ray.search.export import export
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.run import _listed
from ich_ray.search.space.yaml_file import load_space, parse_space
from ich_ray.search.tune.sampler import LedgerSampler
from tests.records import make_record
from tests.search.fakes import SPACE

SOURCE = {**yaml.safe_load(SPACE), "objective": {"metric": "roc_auc"}, "constraints": {"max_parameters": 10**9}}


def drawn(folder: Path, count: int, space: dict[str, Any] = SOURCE, **keys: Any) -> SearchResult:
    """A search whose sampler has drawn so many trials, every third of which failed."""
    ledger = Ledger.create(folder, make_record(space=space, seed=7))
    parsed = parse_space(space, "x.yaml")
    sampler = LedgerSampler(parsed, ledger, wanted=count, concurrent=lambda: 1, out_of_time=lambda: False, **keys)
    for number in range(count):
        sampler.suggest(str(number))
        end = Verdict("failed", "diverged") if number % 3 == 2 else Verdict("completed")
        ledger.report(number, 100, {"roc_auc": 0.5 + number / 100}, 1.0, end=end)
        sampler.on_trial_complete(str(number), {})
    return open_search(folder)


def test_the_list_draws_the_same_trials_in_the_same_order(tmp_path: Path) -> None:
    found, file = drawn(tmp_path / "s", 12), tmp_path / "again.yaml"
    command = f"ich-ray search DATASET --space {file} --out NEW_SEARCH --seed 7"
    assert export(found.files.root, candidates=file) == [command]
    space = load_space(file)
    assert space.objective == found.objective
    assert space.budget == parse_space(SOURCE, "x.yaml").budget
    again = yaml.safe_load(file.read_text())
    empty = Ledger.create(tmp_path / "empty", make_record(space=again))
    replayed = drawn(tmp_path / "replay", 12, again, listed=_listed(space, empty, 12))
    assert [trial.seed for trial in replayed.trials] == [trial.seed for trial in found.trials]
    for trial, again in zip(found.trials, replayed.trials, strict=True):
        assert trial.parameters.items() <= again.parameters.items(), "what others name has its default"
        assert Hyperparameters.model_validate(again.parameters).is_same(
            Hyperparameters.model_validate(trial.parameters).identity()
        )


def test_a_trial_that_repeats_another_is_listed_once_and_that_is_said(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record(space=SOURCE))
    for rate, more in ((0.001, {}), (0.002, {}), (0.001, {}), (0.002, {"dropout": 0.5}), (0.003, {"dropout": 0.25})):
        ledger.add({"architecture": "resnet18", "learning_rate": rate, **more})
    (command,) = export(tmp_path / "s", candidates=tmp_path / "again.yaml")
    assert command.endswith("--seed 0  # without 2 trials that repeat earlier ones")
    listed = load_space(tmp_path / "again.yaml").listed
    assert [one["learning_rate"] for one in listed or ()] == [0.001, 0.002, 0.003]


def test_one_trial_that_repeats_another_is_one(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record(space=SOURCE))
    for _ in range(2):
        ledger.add({"architecture": "resnet18", "learning_rate": 0.001})
    (command,) = export(tmp_path / "s", candidates=tmp_path / "again.yaml")
    assert command.endswith("--seed 0  # without 1 trial that repeats earlier ones")


def test_a_list_of_a_search_for_sequence_models_says_so(tmp_path: Path) -> None:
    space = {
        "name": "seq",
        "searches": "sequence",
        "budget": {"images": 900, "report_every": 100, "first_rung": 100},
        "parameters": {"hidden": {"choice": [16, 32]}},
    }
    ledger = Ledger.create(tmp_path / "s", make_record(space=space))
    ledger.add({"hidden": 32})
    file = tmp_path / "again.yaml"
    assert export(tmp_path / "s", candidates=file) == [f"ich-ray sequence SEARCH --space {file}"]
    assert load_space(file, "sequence").listed == ({"hidden": 32},)


def test_values_that_yaml_could_take_for_others_come_back_as_they_were(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record(space=SOURCE))
    tricky = [{"weights": "/x/no"}, {"weights": "1e-3"}, {"learning_rate": 1e-05}, {"learning_rate": 0.1 + 0.2}]
    for parameters in tricky:
        ledger.add({"architecture": "resnet18", **parameters})
    export(tmp_path / "s", candidates=tmp_path / "again.yaml")
    listed = load_space(tmp_path / "again.yaml").listed or ()
    assert [{name: one[name] for name in asked} for one, asked in zip(listed, tricky, strict=True)] == tricky


def test_a_search_without_trials_has_nothing_to_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger.create(tmp_path / "s", make_record(space=SOURCE))
    with pytest.raises(ConfigError, match="--candidates: a list needs at least one trial, got none in"):
        export(tmp_path / "s", candidates=tmp_path / "again.yaml")
    assert not (tmp_path / "again.yaml").exists()
    assert cli.call(["export", str(tmp_path / "s"), "--candidates", str(tmp_path / "again.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_trial_that_no_space_knows_is_named(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "s", make_record(space=SOURCE))
    ledger.add({"learning_rate": 0.001})
    ledger.add({"flux": 0.001})
    with pytest.raises(SpaceError, match=r"again\.yaml: candidates\[1\]: .*'flux'"):
        export(tmp_path / "s", candidates=tmp_path / "again.yaml")
    assert not (tmp_path / "again.yaml").exists()


def test_each_export_has_a_place_of_its_own(tmp_path: Path) -> None:
    drawn(tmp_path / "s", 1)
    with pytest.raises(ConfigError, match=r"--optuna, --candidates: must be two places, got .*/x for both"):
        export(tmp_path / "s", optuna=tmp_path / "x", candidates=tmp_path / "x")

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray.assess.calibration import calibrate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import pool_of
from ich_ray.errors import ConfigError, TrialFailure
from ich_ray.refit.ensemble_members import check_ensemble, class_weight_shifts, other_trials
from ich_ray.refit.ray_train import RetrainPlan, _train, best_report
from ich_ray.refit.retrain import retrain
from ich_ray.refit.retrain_record import Retraining
from ich_ray.results import open_search
from ich_ray.storage import SearchFiles, read_json, write_json
from ich_ray.training.data_parallel import ALONE
from ich_ray.trial_records import ExecutionInfo
from tests.records import make_confirmation
from tests.searched import PARAMETERS, make_search


def search_of(folder: Path, dataset: PreparedDataset, *changes: dict[str, Any]) -> SearchFiles:
    """Trials by rank: 0, 2, and then one for each of the other changes, worse and worse."""
    files = make_search(folder / "search", dataset, images=200, report_every=100)
    worst = read_json(files.trial(2))
    write_json(files.trial(2), {**worst, "parameters": {**worst["parameters"], **changes[0]}})
    for number, change in enumerate(changes[1:], 3):
        reports = [{**report, "metrics": {"average_precision": 0.4 - number / 100}} for report in worst["reports"]]
        trial = {**worst, "number": number, "reports": reports, "seed": number + 10}
        write_json(files.trial(number), {**trial, "parameters": {**worst["parameters"], **change}})
    return files


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> list[RetrainPlan]:
    """Train in this process; the plans in their order."""
    plans: list[RetrainPlan] = []

    def fit_here(plan: RetrainPlan, *_: object) -> tuple[str, ExecutionInfo | None]:
        plans.append(plan)
        if plan.parameters.get("filters") == 5:
            raise TrialFailure("diverged", "the training loss is nan after 100 images")
        return "cpu", _train(plan, ALONE, torch.device("cpu"))

    monkeypatch.setattr("ich_ray.refit.retrain.fit", fit_here)
    monkeypatch.setattr("ich_ray.refit.retrain.connected", lambda _: nullcontext())
    monkeypatch.setattr("ich_ray.refit.retrain.ask_machines", lambda: None)
    return plans


@pytest.mark.parametrize(
    ("ensemble", "seeds", "said"),
    [(0, 1, "--ensemble: must be from 1 to 64, got 0"), (3, 2, "--ensemble 3: must be at most --seeds, .* got 2")],
)
def test_networks_that_cannot_be_had_are_refused(ensemble: int, seeds: int, said: str) -> None:
    check_ensemble(3, 1)
    check_ensemble(3, 3)
    with pytest.raises(ConfigError, match=said):
        check_ensemble(ensemble, seeds)


def test_the_best_others_of_the_same_input_stand_beside_the_chosen_trial(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.refit.ensemble_members.say", said.append)
    files = search_of(tmp_path, dataset, {"filters": 12}, {"neighbors": 1}, {"filters": 12}, {"blocks": 1})
    found = open_search(files.root)
    assert [trial.number for trial in other_trials(found, found.trials[0], 1)] == [2]
    assert [trial.number for trial in other_trials(found, found.trials[0], 3)] == [2, 5], "4 repeats 2"
    assert "  ensemble: trial 3 is left out, its neighbors is 1 and that of trial 0 0" in said
    assert said[-1].startswith("  ensemble: only 3 of 4 networks")


def test_what_was_confirmed_comes_first(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = search_of(tmp_path, dataset, {"filters": 12}, {"filters": 4}, {"blocks": 1})
    confirmation = make_confirmation(0, 0, 3, 4)
    confirmation["candidates"][2]["mean"] = 0.45
    write_json(files.confirmation, confirmation)
    found = open_search(files.root)
    assert [trial.number for trial in other_trials(found, found.trials[0], 3)] == [4, 3, 2]


def test_a_race_ranks_by_estimates_whatever_the_folds(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Trial 3 had one easy fold alone, trial 5 failed; trial 2 is the best by all trainings."""
    files = search_of(tmp_path, dataset, {"filters": 12}, {"filters": 4}, {"blocks": 1}, {"dense": 8})
    confirmation = make_confirmation(0, 0, 2, 3, 4, 5)
    told = {0: (0.7, 0.7), 2: (0.60, 0.68), 3: (0.90, 0.55), 4: (None, 0.60), 5: (0.95, 0.69)}
    for candidate in confirmation["candidates"]:
        candidate["mean"], candidate["estimate"] = told[candidate["trial"]]
        candidate["values"] = [] if candidate["mean"] is None else [candidate["mean"]]
    dropped = {"trainings": 3, "chance": 0.5, "leader": 0, "reason": "out_of_memory"}
    confirmation["candidates"][4] |= {"dropped": dropped, "values": [0.95, None]}
    write_json(files.confirmation, confirmation)
    found = open_search(files.root)
    assert [trial.number for trial in other_trials(found, found.trials[0], 4)] == [2, 3, 4]


def test_what_failed_on_a_fold_is_left_out(dataset: PreparedDataset, tmp_path: Path) -> None:
    files = search_of(tmp_path, dataset, {"filters": 12}, {"filters": 4})
    confirmation = make_confirmation(0, 0, 2, 3)
    confirmation["candidates"][1] |= {"values": [0.9, None], "mean": 0.9}
    write_json(files.confirmation, confirmation)
    found = open_search(files.root)
    assert [trial.number for trial in other_trials(found, found.trials[0], 2)] == [3]


def test_a_fold_that_was_held_out_has_no_part_in_the_class_weights(dataset: PreparedDataset) -> None:
    pool = pool_of(dataset)
    fold = dataset.column("fold")[pool.rows]
    shifts = [class_weight_shifts(PARAMETERS, dataset, "train+validation", 0, held)[0] for held in (0, 1)]
    shares = [pool.labels[fold != held].mean() for held in (0, 1)]
    assert shifts == pytest.approx([math.log(share / (1 - share)) for share in shares])
    assert shares[0] != shares[1]


def test_a_member_whose_objective_was_never_finite_is_left_out(
    dataset: PreparedDataset, tmp_path: Path, trained_here: list[RetrainPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ich_ray.refit.retrain.say", said.append)
    monkeypatch.setattr(
        "ich_ray.refit.retrain.best_report",
        lambda reports, objective: best_report(reports, objective) if len(trained_here) < 2 else None,
    )
    files = search_of(tmp_path, dataset, {"filters": 12})
    bundle = retrain(files.root, ensemble=2)
    assert len(trained_here) == 2
    assert bundle.card.members == ()
    assert "  ensemble: seed 12 is left out, its objective was finite in no report" in said


def test_class_weights_of_a_training_shift_its_logits(dataset: PreparedDataset) -> None:
    share = dataset.role("train").labels.mean()
    weighted = class_weight_shifts(PARAMETERS, dataset, "train", 0)
    assert weighted == (pytest.approx(math.log(share / (1 - share))),)
    plain = PARAMETERS.model_copy(update={"loss": "unweighted"})
    assert class_weight_shifts(plain, dataset, "train", 0) == (0.0,)


def test_an_ensemble_of_trials_is_one_bundle(
    dataset: PreparedDataset,
    tmp_path: Path,
    trained_here: list[RetrainPlan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    for module in ("refit.retrain", "assess.calibration"):
        monkeypatch.setattr(f"ich_ray.{module}.say", said.append)
    files = search_of(tmp_path, dataset, {"filters": 12, "loss": "unweighted"}, {"filters": 5})
    retrain(files.root, ensemble=3)
    assert [plan.parameters.get("filters") for plan in trained_here] == [8, 12, 5]
    assert any(line.startswith("  seed 13 failed: diverged") for line in said)
    bundle = load_bundle(files.bundle)
    assert [member.trial for member in bundle.card.members] == [2]
    share = dataset.role("train").labels.mean()
    assert bundle.card.members[0].shifts == (pytest.approx(-math.log(share / (1 - share))),)
    record = Retraining.model_validate(read_json(files.retraining))
    assert [(one.trial, one.run.seed) for one in record.members] == [(2, 12)]
    assert not [*files.final.glob("retraining-*")]
    slices = dataset.role("calibration")
    alone = [one.slice_logits(slices) for one in (bundle, bundle.without_members())]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    found = calibrate(files.root)
    assert found.ensemble_gain is not None
    assert found.ensemble_gain.networks == 2
    assert load_bundle(files.bundle).card.calibrations[-1].ensemble_gain == found.ensemble_gain
    assert any("ensemble of 2 networks against its first, cross-fitted by patient" in line for line in said)


def test_the_best_seeds_of_one_trial_are_an_ensemble(
    dataset: PreparedDataset, tmp_path: Path, trained_here: list[RetrainPlan]
) -> None:
    files = search_of(tmp_path, dataset, {"filters": 12})
    bundle = retrain(files.root, seeds=3, ensemble=2)
    record = Retraining.model_validate(read_json(files.retraining))
    best = sorted(record.runs, key=lambda run: -(run.value or 0))
    assert [record.seed, *(one.run.seed for one in record.members)] == [best[0].seed, best[1].seed]
    assert [member.trial for member in bundle.card.members] == [0]
    assert len(trained_here) == 3

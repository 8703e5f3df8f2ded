from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray import cli
from ich_ray.assess.calibration import calibrate
from ich_ray.bundle.bundle import load_bundle
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.model.networks import build_network
from ich_ray.refit.confirmed_ensemble import bundle_confirmed
from ich_ray.refit.retrain_record import Retraining
from ich_ray.search.tune import trial as trials
from ich_ray.storage import SearchFiles, locate, read_json, remove, write_json
from ich_ray.training.state import TrainingState
from tests.records import make_confirmation
from tests.searched import PARAMETERS, make_search


@pytest.fixture
def search(tmp_path: Path, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> SearchFiles:
    """Trial 0 confirmed on two folds, by trainings as a worker runs them, without Ray."""
    files = make_search(tmp_path / "search", dataset, images=200, report_every=100)
    confirming = make_search(Path(str(files.confirming("folds").root)), dataset, images=200, report_every=100)
    confirming.trial(2).unlink()
    settings = trials.TrialSettings(
        dataset=str(dataset.files.root),
        fingerprint=dataset.manifest.fingerprint,
        search=str(confirming.root),
        images=200,
        report_every=100,
        cpus=1,
        gpus=0,
        keep_weights=True,
    )
    for number, fold in enumerate((0, 1)):
        config = {"number": number, "seed": 40 + number, "parameters": PARAMETERS.identity(), "fold": fold}
        told: list[dict[str, Any]] = []
        monkeypatch.setattr(trials, "tune", SimpleNamespace(report=told.append))
        trials.trial_function(settings)({**config, "reported": 0})
        record = {
            "number": number, "parameters": PARAMETERS.model_dump(), "state": "completed", "seed": 40 + number,
            "repeats": 0, "fold": fold, "reports": [
                {key: one[key] for key in ("images_seen", "metrics", "elapsed_s")} | {"time": 0.0}
                for one in told
                if "failure" not in one  # Tune would have ended the thread at its last report
            ],
        }  # fmt: skip
        write_json(confirming.trial(number), record)
    write_json(files.confirmation, make_confirmation(0, 0, 2))
    return files


def test_the_networks_of_a_confirmation_are_one_bundle(search: SearchFiles, dataset: PreparedDataset) -> None:
    bundle = bundle_confirmed(search.root)
    confirming = search.confirming("folds")
    assert [member.seed for member in bundle.card.members] == [41]
    assert bundle.card.trained_by == ("train", "validation")
    for number, network in enumerate(bundle.networks):
        kept = TrainingState.load(max(confirming.weights_of(40 + number).iterdir()))
        values = {
            report["images_seen"]: report["metrics"]["average_precision"]
            for report in read_json(confirming.trial(number))["reports"]
        }
        assert values[kept.images_seen] == max(values.values())
        for name, weight in network.state_dict().items():
            assert torch.equal(weight.cpu(), kept.validated_weights[name]), name
    again = load_bundle(search.bundle)
    slices = dataset.role("calibration")
    shape = dataset.image_shape
    own = build_network(PARAMETERS, shape).eval()
    own.load_state_dict(TrainingState.load(max(confirming.weights_of(41).iterdir())).validated_weights)
    with torch.no_grad():
        second = own(torch.from_numpy(slices.gather(np.arange(len(slices))))).numpy()
    first = again.without_members().slice_logits(slices)
    assert again.slice_logits(slices) == pytest.approx((first + second) / 2, abs=1e-5)
    record = Retraining.model_validate(read_json(search.retraining))
    assert record.budget == "that of the search, for each of 2 folds of its confirmation"
    assert calibrate(search.root).ensemble_gain is not None


def test_without_a_confirmation_or_its_weights_it_is_refused(
    search: SearchFiles, tmp_path: Path, dataset: PreparedDataset
) -> None:
    remove(search.confirming("folds").weights_of(41))
    with pytest.raises(ConfigError, match=r"takes the weights of trial 0's trainings, got none of its training 1; re"):
        bundle_confirmed(search.root)
    files = make_search(tmp_path / "other", dataset)
    with pytest.raises(ConfigError, match=r"--from-confirmation takes the networks of a confirmation, got none; run "):
        bundle_confirmed(files.root)


def test_it_trains_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["retrain", str(locate(tmp_path)), "--from-confirmation", "--seeds", "3"]) == 2
    assert "--from-confirmation: trains nothing, so it must stand alone or with --tta" in capsys.readouterr().err

from __future__ import annotations

import math
from contextlib import nullcontext
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
from ich_ray.data.folds import HeldOut
from ich_ray.errors import ConfigError
from ich_ray.model.networks import build_network
from ich_ray.refit import confirm as confirm_module
from ich_ray.refit.confirm import confirm
from ich_ray.refit.confirmed_ensemble import bundle_confirmed
from ich_ray.refit.retrain import _rehearsal
from ich_ray.refit.retrain_record import Retraining
from ich_ray.results import open_search
from ich_ray.search import cluster_resources, preflight, run
from ich_ray.search.ledger import Ledger, Verdict
from ich_ray.search.preflight import Slots
from ich_ray.search.space.space import Listed, SearchSpace
from ich_ray.search.tune import trial as trials
from ich_ray.storage import SearchFiles, locate, read_json, remove, write_json
from ich_ray.training.state import TrainingState
from tests.records import make_confirmation
from tests.refit.test_confirm import searched
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
    shares = [HeldOut(dataset, fold).role("train").prevalence for fold in (0, 1)]
    odds = [math.log(share / (1 - share)) for share in shares]  # by which each weighed its classes
    assert again.slice_logits(slices) == pytest.approx((first + second + odds[1] - odds[0]) / 2, abs=1e-5)
    record = Retraining.model_validate(read_json(search.retraining))
    assert record.budget == "that of the search, for each of 2 folds of its confirmation"
    assert calibrate(search.root).ensemble_gain is not None


def test_networks_of_folds_are_no_rehearsal_and_have_no_spread(search: SearchFiles) -> None:
    note = bundle_confirmed(search.root).card.retraining
    assert note is not None
    assert (note.patients, note.validation) == ("train+validation", None)
    found = open_search(search.root)
    record = Retraining.model_validate(read_json(search.retraining))
    assert [one.fold for one in (*record.runs, *(member.run for member in record.members))] == [0, 1]
    assert record.runs[0].value is not None
    assert _rehearsal(found, found.best(), PARAMETERS) == ()


def test_a_choice_that_was_trained_once_is_refused_with_what_gives_it_more(search: SearchFiles) -> None:
    confirming = search.confirming("folds")
    confirming.trial(1).unlink()
    with pytest.raises(ConfigError) as caught:
        bundle_confirmed(search.root)
    assert str(caught.value) == (
        f"{confirming.root}: --from-confirmation takes two trainings of trial 0 at least, got 1 that completed; "
        f"`ich-ray confirm {search.root} --top 3 --folds 5` goes on in this folder until all have as many, or use "
        "--ensemble, which trains"
    )


def test_without_a_confirmation_or_its_weights_it_is_refused(
    search: SearchFiles, tmp_path: Path, dataset: PreparedDataset
) -> None:
    remove(search.confirming("folds").weights_of(41))
    with pytest.raises(
        ConfigError, match=r"takes two trainings of trial 0 at least, got the weights of 1 of 2: others"
    ):
        bundle_confirmed(search.root)
    files = make_search(tmp_path / "other", dataset)
    with pytest.raises(ConfigError, match=r"--from-confirmation takes the networks of a confirmation, got none; run "):
        bundle_confirmed(files.root)


def test_what_run_confirms_is_an_ensemble_and_goes_on(
    tmp_path: Path, dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The top 3 on 2 folds, as `run` asks, then on 3, trained as a worker does, without Ray."""
    trained: list[tuple[int | None, int | None]] = []

    def run_listed(
        space: SearchSpace, data: PreparedDataset, ledger: Ledger, _: Slots, listed: list[Listed], **keys: Any
    ) -> None:
        settings = trials.TrialSettings(
            str(data.files.root), data.manifest.fingerprint, str(ledger.files.root), space.budget.images,
            space.budget.report_every, cpus=1, gpus=0, keep_weights=keys["keep_weights"],
        )  # fmt: skip
        for one in listed:
            trained.append((one.repeats, one.fold))
            record, told = ledger.add(one.parameters, repeats=one.repeats, fold=one.fold), list[dict[str, Any]]()
            monkeypatch.setattr(trials, "tune", SimpleNamespace(report=told.append))
            keys = {"number": record.number, "parameters": record.parameters, "seed": record.seed, "fold": one.fold}
            trials.trial_function(settings)({**keys, "reported": 0})
            for report in (each for each in told if "failure" not in each):
                end = Verdict("completed") if report["images_seen"] >= settings.images else None
                ledger.report(record.number, report["images_seen"], report["metrics"], report["elapsed_s"], end=end)

    monkeypatch.setattr(run, "run_listed", run_listed)
    monkeypatch.setattr(confirm_module, "connected", lambda _: nullcontext())
    monkeypatch.setattr(cluster_resources, "ClusterResources", lambda: SimpleNamespace(machines=list))
    monkeypatch.setattr(preflight, "plan_slots", lambda *_: Slots(1.0, 0.0, 2))
    monkeypatch.setattr(preflight, "check_machines", lambda *_: None)
    files = SearchFiles(locate(searched(tmp_path / "s", dataset, {1e-3: 0.8, 1e-2: 0.78, 2e-2: 0.77})))
    weights = files.confirming("folds").weights

    def kept() -> list[tuple[int | None, int | None]]:
        by_seed = {str(one.seed): (one.repeats, one.fold) for one in open_search(weights.parent).trials}
        return sorted(by_seed[folder.name] for folder in weights.iterdir())

    chosen = confirm(files.root, top=3, folds=2).chosen
    assert len(trained) == 6
    assert kept() == [(chosen, 0), (chosen, 1)]
    assert len(bundle_confirmed(files.root).networks) == 2
    again = confirm(files.root, top=3, folds=3)
    assert trained[6:] == [(number, 2) for number in range(3)]
    assert [len(one.values) for one in again.candidates] == [3, 3, 3]
    assert {number for number, _ in kept()} == {again.chosen}
    other = next(number for number in range(3) if number not in {chosen, again.chosen})
    write_json(files.confirmation, again.model_copy(update={"chosen": other}).model_dump(mode="json"))
    with pytest.raises(
        ConfigError, match=f"of trial {other} at least, got the weights of 0 of 3: others than those of"
    ):
        bundle_confirmed(files.root)


def test_it_trains_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["retrain", str(locate(tmp_path)), "--from-confirmation", "--seeds", "3"]) == 2
    assert "--from-confirmation: trains nothing, so it must stand alone or with --tta" in capsys.readouterr().err

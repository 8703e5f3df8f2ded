from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from upath import UPath

from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.ledger import trial_seed
from ich_ray.search.out_of_fold import OutOfFold
from ich_ray.search.trial_output import Output
from ich_ray.search.tune.folded_training import FoldedTraining, FoldProgress
from ich_ray.search.tune.trial import TrialSettings, train_model
from ich_ray.statistics.metrics import average_precision
from ich_ray.storage import SearchFiles, locate
from ich_ray.trial_records import Objective
from tests.prepared import make_dataset
from tests.search.fakes import FoldTrainer

OBJECTIVE = Objective(folds=3)


class Folded:
    """A trial of three networks of 200 images each, and what its trainer was called with."""

    def __init__(self, folder: Path) -> None:
        self.dataset = make_dataset(folder / "data", patients=30)
        self.kept = OutOfFold(SearchFiles(locate(folder / "search")), self.dataset, OBJECTIVE, seed=1)
        fingerprint = self.dataset.manifest.fingerprint
        self.settings = SimpleNamespace(images=200, report_every=100, fingerprint=fingerprint)
        self.calls: list[tuple[int, UPath | None]] = []

    def trainer(
        self, parameters: Hyperparameters, view: PreparedDataset, settings: Any, seed: int, resume: UPath | None
    ) -> Generator[Any, None, None]:
        self.calls.append((seed, resume))
        yield from FoldTrainer()(parameters, view, settings, seed, resume)

    def training(self) -> FoldedTraining:
        return FoldedTraining(self.trainer, self.kept, "average_precision", images=200, number=4)

    def run(self, training: FoldedTraining, resume: UPath | None = None) -> list[dict[str, Any]]:
        """The reports as a checkpoint would keep them."""
        reports = []
        for progress in training(Hyperparameters(), self.dataset, self.settings, 7, resume):
            assert isinstance(progress, FoldProgress)
            note = training.note(progress)
            reports.append(
                {
                    "images_seen": progress.images_seen,
                    "metrics": progress.metrics,
                    "elapsed_s": progress.elapsed_s,
                    "fold": note.model_dump(),
                }
            )
        return reports


def test_networks_follow_each_other_and_their_images_count_on(tmp_path: Path) -> None:
    folded = Folded(tmp_path)
    reports = folded.run(folded.training())
    assert [report["images_seen"] for report in reports] == [100, 200, 300, 400, 500, 600]
    notes = [(report["fold"]["number"], report["fold"]["images_seen"], report["fold"]["whole"]) for report in reports]
    assert notes == [(0, 100, False), (0, 200, True), (1, 100, False), (1, 200, True), (2, 100, False), (2, 200, True)]
    assert [report["elapsed_s"] for report in reports] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert [seed for seed, _ in folded.calls] == [7, trial_seed(7, 1), trial_seed(7, 2)]


def test_a_report_pools_all_folds_so_far_at_equally_many_images(tmp_path: Path) -> None:
    folded = Folded(tmp_path)
    reports = folded.run(folded.training())
    labels, logits = [], []
    for index in (0, 2, 4):  # each network after 100 images
        note = reports[index]["fold"]
        data = np.fromfile(str(tmp_path / "search" / note["logits"]["file"]), "<f4")
        slices = folded.kept.folds.held_out(note["number"])
        assert note["value"] == pytest.approx(average_precision(slices.labels, data))
        labels, logits = [*labels, *slices.labels], [*logits, *data]
        pooled = average_precision(np.array(labels), np.array(logits))
        assert reports[index]["metrics"]["average_precision"] == pytest.approx(pooled)
    assert len(labels) == len(folded.dataset.role("train")) + len(folded.dataset.role("validation"))


@pytest.mark.parametrize(("done", "state"), [(1, True), (2, False), (3, True), (4, False)])
def test_a_trial_goes_on_in_the_fold_where_it_stood(tmp_path: Path, done: int, state: bool) -> None:
    folded = Folded(tmp_path)
    whole = folded.run(folded.training())
    folded.calls.clear()
    kept = locate(tmp_path / "state")
    kept.write_text('{"images_seen": 100}')
    again = folded.training()
    assert again.resume(whole[:done]) == ""
    assert folded.run(again, kept) == whole[done:]
    assert folded.calls[0][1] == (kept if state else None)


def test_a_trial_whose_logits_are_lost_says_so(tmp_path: Path) -> None:
    folded = Folded(tmp_path)
    reports = folded.run(folded.training())
    file = tmp_path / "search" / reports[0]["fold"]["logits"]["file"]
    content = file.read_bytes()
    file.write_bytes(content[::-1])
    assert "SHA-256 must be the one in the ledger" in folded.training().resume(reports)
    file.write_bytes(content[:-4])
    slices = len(folded.kept.folds.held_out(0))
    assert f"logits of {slices} slices must be in it, got {4 * slices - 4} bytes" in folded.training().resume(reports)
    file.unlink()
    assert "must be there, got no file" in folded.training().resume(reports)
    file.write_bytes(content)
    assert folded.training().resume(reports) == ""
    assert folded.training().resume([{**report, "fold": None} for report in reports]) == "reports without their folds"


@pytest.mark.parametrize(
    ("number", "kept", "why"),
    [
        (3, slice(None), "reports of more folds than the search has"),
        (None, slice(2, None), "reports of some folds and not of others"),
        (None, slice(1, None), "reports of some folds and not of others"),
    ],
)
def test_a_checkpoint_of_folds_that_cannot_be_is_not_used(
    tmp_path: Path, number: int | None, kept: slice, why: str
) -> None:
    folded = Folded(tmp_path)
    reports = folded.run(folded.training())[kept]
    if number is not None:
        moved = {"images_seen": 200 * number + 200, "fold": {**reports[-1]["fold"], "number": number}}
        reports[-1] = {**reports[-1], **moved}
    assert folded.training().resume(reports) == why


def test_a_real_network_says_what_its_report_measures(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=30)
    kept = OutOfFold(SearchFiles(locate(tmp_path / "search")), dataset, Objective(folds=2), seed=1)
    settings = TrialSettings("", "", "", images=64, report_every=64, cpus=1, gpus=0)
    training = FoldedTraining(train_model, kept, "average_precision", images=64, number=0)
    parameters = Hyperparameters(filters=2, blocks=1, labels="all", loss="weighted")
    first, second = training(parameters, dataset, settings, 0, None)
    assert first.usage is first.of_network.usage
    assert first.usage.images_per_s > 0
    own = first.of_network.metrics
    assert own["average_precision"] == pytest.approx(first.metrics["average_precision"])
    assert own["log_loss"] == pytest.approx(first.metrics["log_loss"], rel=1e-4)  # corrected for the class weights
    assert own["weighted_log_loss"] == pytest.approx(first.metrics["weighted_log_loss"], rel=1e-4)
    assert first.metrics.keys() == second.metrics.keys()
    at_half = {"sensitivity_at_half", "specificity_at_half"}  # of the network's own logits, which are not pooled
    assert own.keys() - first.metrics.keys() == at_half
    assert not first.metrics.keys() - own.keys()
    assert first.of_network.logits.shape == (len(kept.folds.held_out(0)), 6)
    assert second.metrics["average_precision"] != second.of_network.metrics["average_precision"]
    read = kept.read(1, training.note(second).logits)
    assert np.array_equal(read.logits, second.of_network.logits)


def test_what_a_process_beside_the_trial_writes_is_known_of_a_fold_too() -> None:
    output = Output("host, process 7", (), ())
    networks = (SimpleNamespace(output=output), SimpleNamespace())
    first, alone = (FoldProgress(100, {}, 1.0, None, 0, of) for of in networks)
    assert (first.output, alone.output) == (output, None)

"""The search with the trainer that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.runtime import connected
from ich_ray.search.run import run_search
from ich_ray.trial_records import ExecutionInfo
from tests.prepared import make_dataset

training = pytest.importorskip("ich_ray.training.loop")

SPACE = """
name: real
budget: {images: 600, report_every: 200, first_rung: 200, min_peers: 1}
parameters:
  architecture: {fixed: plain_cnn}
  blocks: {int: [1, 2]}
  filters: {choice: [4, 8]}
  dense: {fixed: 0}
  batch_size: {choice: [16, 32]}
  learning_rate: {loguniform: [1e-3, 1e-1]}
  dropout: {fixed: 0.0}
points:
  - {blocks: 2, filters: 8, batch_size: 16, learning_rate: 3e-3}
"""


def test_a_trial_is_the_training_loop_reported(tmp_path: Path) -> None:
    import torch

    dataset = make_dataset(tmp_path / "data", patients=60)
    (tmp_path / "space.yaml").write_text(SPACE)
    with connected(cpus=2):
        found = run_search(tmp_path / "data", tmp_path / "space.yaml", tmp_path / "s", trials=4)
    assert {trial.state for trial in found.trials} <= {"completed", "pruned"}
    first = found.trials[0]
    torch.set_num_threads(1)
    alone = list(
        training.train(
            Hyperparameters.model_validate(first.parameters),
            dataset.role("train"),
            dataset.role("validation"),
            budget=training.TrainingBudget(images=600, report_every=200),
            seed=first.seed,
        )
    )
    assert first.state == "completed"
    assert found.record.precision == "float32"
    for report, progress in zip(first.reports, alone, strict=True):
        assert report.images_seen == progress.images_seen
        assert report.metrics == pytest.approx(progress.metrics, rel=1e-5)
    figures = {"average_precision", "roc_auc", "f2", "f2_threshold", "log_loss", "train_loss"}
    assert set(first.metrics) == {*figures, "sensitivity_at_half", "specificity_at_half"}
    assert found.best().value is not None
    assert first.setup == ExecutionInfo(device="cpu", workers=1, images="host", mode="float32")
    assert found.to_frame()["setup"][0] == "cpu, float32, images on host"
    measured = {"images_per_s", "data_wait_s", "validation_s", "device_use"}
    for report in (report for trial in found.trials for report in trial.reports):
        assert report.usage is not None
        assert measured <= {name for name, value in report.usage.model_dump().items() if value is not None}
    assert sum(images for images, _ in first.measured) == 600

"""Short trainings whose reports were recorded with version 0.1.0, and the machine that they were recorded on.

The recording and the test that repeats it run the same code, so that only the package differs.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters

# make_v0_1_0.py runs this with version 0.1.0, where the loop had another place.
loop = import_module("ich_ray.training.loop" if find_spec("ich_ray.training") else "ich_ray.model.training")
TrainingBudget = loop.TrainingBudget

FIXTURES = Path(__file__).parent / "v0_1_0"
SEED = 7

# Each is one architecture with one optimizer; fields are named as version 0.1.0 names them.
TRAININGS: dict[str, tuple[dict[str, Any], TrainingBudget]] = {
    "plain_cnn, adam": (
        {"architecture": "plain_cnn", "blocks": 2, "filters": 4, "dense": 8, "dropout": 0.3, "batch_size": 16,
         "learning_rate": 1e-3, "decay": 0.05, "optimizer": "adam"},
        TrainingBudget(400, 100),
    ),
    "plain_cnn, adamw, no dense layer": (
        {"architecture": "plain_cnn", "blocks": 1, "filters": 4, "dense": 0, "dropout": 0.0, "batch_size": 24,
         "learning_rate": 1e-2, "optimizer": "adamw", "weight_decay": 0.1, "loss": "unweighted"},
        TrainingBudget(250, 100),
    ),
    "stacked_cnn, sgd": (
        {"architecture": "stacked_cnn", "convolutions": "3/2,3/2", "filters": 4, "padding": "valid",
         "input_batch_norm": True, "dense": 8, "dense_layers": 2, "dropout": 0.1, "dropout_before_pool": 0.1,
         "dropout_after_pool": 0.1, "dropout_dense": 0.2, "batch_size": 12, "learning_rate": 3e-2, "decay": 0.0,
         "optimizer": "sgd", "momentum": 0.8, "epochs": 6, "training_slices": 40},
        TrainingBudget(240, 80),
    ),
    "resnet18, head alone": (
        {"architecture": "resnet18", "weights": "none", "unfreeze_from": "head", "dropout": 0.2, "batch_size": 16,
         "learning_rate": 1e-2, "optimizer": "sgd"},
        TrainingBudget(128, 64),
    ),
}  # fmt: skip


def trained(name: str, dataset: PreparedDataset) -> list[dict[str, Any]]:
    """The reports of one training, on one thread of the CPU: images seen and metrics."""
    parameters, budget = TRAININGS[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stream = loop.train(
            Hyperparameters.model_validate(parameters),
            dataset.role("train"),
            dataset.role("validation"),
            budget=budget,
            seed=SEED,
        )
        return [{"images_seen": report.images_seen, "metrics": report.metrics} for report in stream]
    finally:
        torch.set_num_threads(threads)


def machine() -> dict[str, str]:
    """What decides which kernels PyTorch runs on this CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else "unknown",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


# What changes by little where a logit does. The others go by the order of 16 validation slices: one pair that changes
# places moves ROC AUC by 0.026, and with other kernels that happened.
SMOOTH = ("log_loss", "train_loss")


def tolerance(recorded: dict[str, str]) -> float:
    """How far figures may lie from recorded ones: 1e-6 where PyTorch runs the same kernels, else 1e-3."""
    return 1e-6 if recorded == machine() else 1e-3

"""What `search --plan` counts for a trial against what its training then takes, on a CPU.

Each network trains two steps and validates once in a process of its own. Taken is the peak of its resident memory over
what it had after a training of a few tiny images, which loads every library. Planned is `trial_memory`; buffers of
PyTorch's convolutions are in what is taken alone. malloc gives back what is freed, which it does by itself only of
blocks of more than 32 MB.

    python benchmarks/planned_memory.py [--size 128] [--batch 64] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contest import machine, table
from ich_ray.data.dataset import PreparedDataset
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.search.plan.cost_model import trial_memory
from ich_ray.training.loop import TrainingBudget, train
from tests.prepared import make_dataset

TRIALS: dict[str, dict[str, Any]] = {
    "plain CNN": {"blocks": 4, "filters": 32, "dense": 64},
    "plain CNN, reduced to a half": {"blocks": 4, "filters": 32, "dense": 64, "resolution": 0.5},
    "plain CNN, augmented": {"blocks": 4, "filters": 32, "dense": 64, "augment": 1.0, "erase": 0.5},
    "plain CNN, neighbors 1": {"blocks": 4, "filters": 32, "dense": 64, "neighbors": 1},
    "plain CNN, neighbors 1, reduced, augmented": {
        "blocks": 4, "filters": 32, "dense": 64, "neighbors": 1, "resolution": 0.5, "augment": 1.0,
    },
    "resnet18": {"architecture": "resnet18"},
    "resnet18, reduced to a half": {"architecture": "resnet18", "resolution": 0.5},
    "resnet18, from layer4": {"architecture": "resnet18", "unfreeze_from": "layer4"},
    "mobilenet_v3_small": {"architecture": "mobilenet_v3_small"},
    "timm/convnext_atto": {"architecture": "timm/convnext_atto"},
}  # fmt: skip


def trial(changes: dict[str, Any], size: int, batch: int) -> Hyperparameters:
    resolution = round(size * changes.get("resolution", 0))
    return Hyperparameters.model_validate({**changes, "resolution": resolution, "batch_size": batch})


def status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def taken(small: PreparedDataset, dataset: PreparedDataset, parameters: Hyperparameters) -> int:
    """Bytes at the peak of a training, validation included."""

    def run(of: PreparedDataset, changed: Hyperparameters) -> None:
        images = 2 * changed.batch_size
        budget = TrainingBudget(images, images)
        list(train(changed, of.role("train"), of.role("validation"), budget=budget, seed=0))

    run(small, parameters.model_copy(update={"batch_size": 2, "resolution": 0}))
    dataset.role("train")
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run(dataset, parameters)
    return status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--taken", nargs=2, help=argparse.SUPPRESS)  # of the process that is measured
    options = parser.parse_args()
    if options.taken:
        torch.set_num_threads(options.threads)
        folder = Path(options.taken[0])
        parameters = trial(json.loads(options.taken[1]), options.size, options.batch)
        print(taken(*(PreparedDataset.open(folder / name) for name in ("small", "data")), parameters))
        return
    rows, environment = [], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder) / "small", 60, 32)
        dataset = make_dataset(Path(folder) / "data", 240, options.size)
        for name, changes in TRIALS.items():
            if options.only and not any(part in name for part in options.only):
                continue
            again = [sys.executable, *sys.argv, "--taken", folder, json.dumps(changes)]
            said = subprocess.run(again, check=True, capture_output=True, text=True, env=environment).stdout
            planned, found = trial_memory(trial(changes, options.size, options.batch), dataset.image_shape), int(said)
            mib = [f"{size / 2**20:,.0f}" for size in (planned.total, found)]
            rows.append([name, *mib, f"{planned.total / found:.2f}"])
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"{options.size} pixels a side, batches of {options.batch}, {options.threads} threads")
    print(table(["trial", "planned, MiB", "taken, MiB", "planned / taken"], rows))
    print(machine())


if __name__ == "__main__":
    main()

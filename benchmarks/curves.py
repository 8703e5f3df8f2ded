"""Train draws of the phantom's space once, so that search_efficiency.py can replay their curves to every contestant.

All draws with seed 0 come first, then all with seed 1, so that what is there when it is stopped is a whole smaller
table. It goes on where it was stopped. `pack` writes what is there into one table, which is committed: parameters,
average precision at every report, seconds on one thread. Logits of the last report lie beside it, as float16.

    python benchmarks/curves.py train WORK [--draws 256] [--seeds 3] [--until 20:50]
    python benchmarks/curves.py pack WORK
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.efficiency.computed import EVERY, IMAGES
from benchmarks.efficiency.phantom import PATIENTS, SPACE
from benchmarks.efficiency.replay import LOGITS, TABLE
from benchmarks.searchers.task import METRIC, make_phantom
from ich_ray.search.space.space import RandomSuggest

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset


def draws(count: int) -> list[dict[str, Any]]:
    suggest = RandomSuggest(0)
    return [SPACE.draw(suggest).parameters for _ in range(count)]


def trained(data: PreparedDataset, parameters: dict[str, Any], seed: int) -> tuple[dict[str, Any], Any]:
    """The curve of one training, cut where it diverged, and its last logits."""
    from ich_ray.errors import TrialFailure
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.training.loop import TrainingBudget, train

    steps = train(
        Hyperparameters(**parameters),
        data.role("train"),
        data.role("validation"),
        budget=TrainingBudget(IMAGES, EVERY),
        seed=seed,
    )
    values, seconds, logits = [], 0.0, None
    try:
        for progress in steps:
            values.append(progress.metrics[METRIC])
            seconds, logits = progress.elapsed_s, progress.logits
    except TrialFailure:
        logits = None
    return {"values": values, "seconds": seconds}, logits


def train_all(work: Path, count: int, seeds: int, until: str | None) -> None:
    import torch

    from ich_ray.data.dataset import PreparedDataset

    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "data" / "dataset.json").exists():
        make_phantom(work, PATIENTS)
    data = PreparedDataset.open(work / "data")
    for seed in range(seeds):
        for number, parameters in enumerate(draws(count)):
            curve = work / f"{seed}-{number:03}.json"
            if curve.exists():
                continue
            if until and time.strftime("%H:%M") >= until:
                return
            told, logits = trained(data, parameters, 1000 * seed + number)
            if logits is not None:
                np.save(work / f"{seed}-{number:03}.npy", logits[:, -1].astype(np.float16))
            curve.write_text(json.dumps({"parameters": parameters, **told}))


def pack(work: Path) -> None:
    """One table of all curves that are there, by draw and seed; NaN where none was trained or one diverged."""
    there = sorted(work.glob("?-???.json"))
    keys = [tuple(map(int, file.stem.split("-"))) for file in there]
    shape = 1 + max(number for _, number in keys), 1 + max(seed for seed, _ in keys)
    values = np.full((*shape, IMAGES // EVERY), math.nan, np.float32)
    seconds, trained_to = np.full(shape, math.nan, np.float32), np.full(shape, -1, np.int16)
    parameters: list[dict[str, Any]] = [{} for _ in range(shape[0])]
    logits = {}
    for file, (seed, number) in zip(there, keys, strict=True):
        told = json.loads(file.read_text())
        parameters[number] = told["parameters"]
        trained_to[number, seed] = len(told["values"])
        values[number, seed, : len(told["values"])] = told["values"]
        seconds[number, seed] = told["seconds"]
        if (said := file.with_suffix(".npy")).exists():
            logits[file.stem] = np.load(said)
    TABLE.parent.mkdir(exist_ok=True)
    np.savez_compressed(TABLE, parameters=json.dumps(parameters), values=values, reports=trained_to, seconds=seconds)
    np.savez_compressed(LOGITS, **logits)
    print(f"{len(there)} trainings of {shape[0]} draws, {shape[1]} seeds: {TABLE.stat().st_size / 1e6:.2f} MB, logits "
          f"{LOGITS.stat().st_size / 1e6:.2f} MB")  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("do", choices=["train", "pack"])
    arguments.add_argument("work", type=Path)
    arguments.add_argument("--draws", type=int, default=256)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--until", help="the time of day after which none is begun")
    given = arguments.parse_args()
    if given.do == "train":
        train_all(given.work, given.draws, given.seeds, given.until)
    else:
        pack(given.work)


if __name__ == "__main__":
    main()

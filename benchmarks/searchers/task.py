"""What every search is given, and the training that all of them call. Knows none of them.

The training notes what it does in a file of its own, so that images, busy time and lost trials are counted in the same
way for all, and the searches end when so many images have been shown.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.storage import locate, write_json

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ich_ray.training.loop import Progress
    from ich_ray.training.state import TrainingState

# No `when`: not every peer has conditional parameters.
PARAMETERS: dict[str, dict[str, Any]] = {
    "blocks": {"int": [1, 3]},
    "filters": {"choice": [8, 16]},
    "batch_size": {"choice": [32, 64, 128]},
    "learning_rate": {"loguniform": [1e-4, 3e-2]},
    "decay": {"loguniform": [1e-3, 1e-1]},
    "dropout": {"uniform": [0.0, 0.6]},
    "optimizer": {"choice": ["sgd", "adam", "adamw"]},
}
FIXED = {"architecture": "plain_cnn", "dense": 32}
METRIC = "average_precision"
REDUCTION = 3
# Networks see little in their first 1,000 images and are near their end after 10,000.
BUDGET = {"images": 13_500, "report_every": 500, "first_rung": 1500, "reduction": REDUCTION, "min_peers": 3}
SIZE = 32


def make_phantom(folder: Path, patients: int) -> Path:
    """The dataset of all searches: some eight slices of 32x32x3 for each patient."""
    from ich_ray.ct.phantom import write_phantom
    from ich_ray.data.prepare.run import prepare

    os.environ["ICH_RAY_KEY_FILE"] = str(folder / "key")
    made = write_phantom(folder / "dicom", patients, seed=0, size=256)
    prepare(made.images, made.labels, folder / "data", size=SIZE)
    return folder / "data"


def tested(dataset: str | Path, parameters: dict[str, Any], images: int, seed: int) -> float:
    """Average precision on the test patients at the end of a training on one thread."""
    import torch

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.training.loop import TrainingBudget, train

    torch.set_num_threads(1)
    data, budget = PreparedDataset.open(dataset), TrainingBudget(images, images)
    (end,) = train(Hyperparameters(**parameters), data.role("train"), data.role("test"), budget=budget, seed=seed)
    return float(end.metrics[METRIC])


@dataclass(frozen=True)
class Task:
    """One search.

    Attributes:
        folder: its own; `dataset` lies elsewhere.
        images: after which it ends, over all trials.
        trial_images: the budget of a trial, with a report every `report_every` and the first rung at `first_rung`.
        slots: trials at a time.
    """

    dataset: str
    folder: str
    seed: int
    images: int
    trial_images: int
    report_every: int
    first_rung: int
    slots: int

    @classmethod
    def read(cls, folder: Path) -> Task:
        return cls(**json.loads((folder / "task.json").read_text()))

    def write(self) -> None:
        Path(self.folder).mkdir(parents=True)
        write_json(locate(self.folder) / "task.json", asdict(self))

    @property
    def notes(self) -> Path:
        return Path(self.folder) / "notes.jsonl"

    def spent(self) -> bool:
        return sum(note["images"] for note in notes(self.notes)) >= self.images

    def trial_seed(self, name: str) -> int:
        return zlib.crc32(f"{self.seed} {name}".encode())


def named(number: str, parameters: dict[str, Any]) -> str:
    """Of a trial in a search that may give its number to another one, after it was killed."""
    drawn = [parameters[name] for name in PARAMETERS]
    return f"{number} {zlib.crc32(repr([one if isinstance(one, str) else float(one) for one in drawn]).encode())}"


def notes(file: Path) -> list[dict[str, Any]]:
    """What was trained, in the order in which it was; a line that was being written is left out."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def note(file: Path, **facts: Any) -> None:
    """One line in one write: processes may do it at the same time."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, (json.dumps({"time": time.time(), **facts}) + "\n").encode())
    os.close(handle)


def losses(all_notes: list[dict[str, Any]], before: int, ended: set[str]) -> tuple[int, int, int]:
    """Of the notes of a search whose first `before` are from before a kill, with the names of the trials that ended."""
    begun = {one["trial"] for one in all_notes[:before]}
    reached: dict[str, int] = {}
    again = 0
    for one in all_notes:
        trial, start = one["trial"], one["at"] - one["images"]
        again += min(one["images"], max(reached.get(trial, 0) - start, 0))
        reached[trial] = max(reached.get(trial, 0), one["at"])
    lost = begun - ended
    return len(begun), len(lost), again + sum(reached[trial] for trial in lost)


def noted(
    task: Task, name: str, steps: Generator[Progress, None, None], begun: TrainingState | None
) -> Iterator[Progress]:
    """The steps of a training, each noted with its images and the seconds that they took, evaluation among them."""
    seen, busy_s = (begun.images_seen, float(begun.numbers["elapsed_s"])) if begun else (0, 0.0)
    note(task.notes, trial=name, images=0, at=seen, busy_s=0.0)
    with closing(steps):
        for progress in steps:
            facts = {"images": progress.images_seen - seen, "busy_s": progress.elapsed_s - busy_s}
            seen, busy_s = progress.images_seen, progress.elapsed_s
            note(task.notes, trial=name, at=seen, **facts)
            yield progress


def trained(task: Task, parameters: dict[str, Any], name: str, resume: Path | None = None) -> Iterator[Progress]:
    """The training of one trial, on one thread; its seed follows from its name."""
    import torch

    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.model.hyperparameters import Hyperparameters
    from ich_ray.training.loop import TrainingBudget, TrainingState, train

    torch.set_num_threads(1)
    data = PreparedDataset.open(task.dataset)
    state = TrainingState.load(resume) if resume else None
    steps = train(
        Hyperparameters(**FIXED, **parameters),
        data.role("train"),
        data.role("validation"),
        budget=TrainingBudget(task.trial_images, task.report_every),
        seed=task.trial_seed(name),
        resume=state,
    )
    return noted(task, name, steps, state)  # type: ignore[arg-type]


def write_found(task: Task, parameters: dict[str, Any] | None, ended: list[str]) -> None:
    """What a search hands to its user: its choice, None without one, and the trials whose end it knows."""
    chosen = {name: parameters[name] for name in PARAMETERS} if parameters else None
    write_json(locate(task.folder) / "found.json", {"parameters": chosen, "ended": sorted(ended)})

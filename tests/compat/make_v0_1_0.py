"""Write tests/compat/v0_1_0: files as version 0.1.0 left them, to be read by every version after it.

It must be run with version 0.1.0, from the root of a checkout of it that holds these two files; it refuses any other:

    OMP_NUM_THREADS=1 .venv/bin/python -m tests.compat.make_v0_1_0

Everything is made by the verbs themselves, of synthetic patients. Two searches and a retraining are killed at work.
Places of the machine that it ran on are replaced by /moved, where no test finds anything: a test gives the files a new
place as a user does who has moved them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from ich_ray.bundle.bundle import load_bundle
from ich_ray.data.dataset import PreparedDataset
from ich_ray.results import open_search
from ich_ray.search.tune.trial import checkpoints_of
from ich_ray.storage import sha256
from ich_ray.vocabulary import ROLES
from tests.compat.recorded import FIXTURES, TRAININGS, machine, trained

PATIENTS, SLICES = 20, 5
PREDICTED = 6
MOVED = "/moved"

PLAIN = """
name: {name}
budget: {{images: {images}, report_every: {every}, first_rung: {rung}, reduction: 2, min_peers: 2}}
parameters:
  architecture: {{fixed: plain_cnn}}
  blocks: {{int: [1, 2]}}
  filters: {{choice: [4, 6]}}
  dense: {{fixed: 8}}
  batch_size: {{choice: [8, 16]}}
  learning_rate: {{loguniform: [1.0e-3, 3.0e-2]}}
  dropout: {{uniform: [0.0, 0.4]}}
  optimizer: {{choice: [sgd, adam, adamw]}}
  momentum: {{fixed: 0.9, when: {{optimizer: sgd}}}}
points:
  - {{blocks: 2, filters: 6, batch_size: 16, learning_rate: 3.0e-3, dropout: 0.2, optimizer: adam}}
"""

# As search_spaces/report_b.yaml: candidates with a sample of the slices and passes over it.
PUBLISHED = """
name: published
objective: {metric: f2, mode: max}
budget: {images: 4000, report_every: 200, first_rung: 4000}
candidates:
  - {architecture: stacked_cnn, convolutions: "6/3", filters: 4, padding: valid, input_batch_norm: true, dense: 8,
     dense_layers: 1, dropout: 0.0, batch_size: 8, learning_rate: 1.0e-3, decay: 0.0, optimizer: adam, loss: weighted,
     epochs: 20, training_slices: 40}
  - {architecture: stacked_cnn, convolutions: "3/2,3/2", filters: 4, padding: valid, input_batch_norm: true, dense: 8,
     dense_layers: 2, dropout: 0.0, dropout_dense: 0.2, batch_size: 8, learning_rate: 1.0e-3, decay: 0.0,
     optimizer: adam, loss: weighted, epochs: 100, training_slices: 40}
"""


def main() -> None:
    if version("ich_ray") != "0.1.0":
        raise SystemExit(f"fixtures of 0.1.0 must be made by it, got version {version('ich_ray')}; check it out")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "v0_1_0"
        work.mkdir()
        os.environ["ICH_RAY_KEY_FILE"] = str(Path(folder) / "key")
        make_dataset(Path(folder), work)
        make_finished(work)
        make_interrupted(work)
        make_published(work)
        record(work)
        forget_places(work)
        shutil.rmtree(FIXTURES, ignore_errors=True)
        shutil.copytree(work, FIXTURES)


def ich_ray(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("ich-ray")), *map(str, arguments)]


def run(*arguments: object) -> None:
    print("ich-ray", *arguments, flush=True)
    subprocess.run(ich_ray(*arguments), check=True, stdout=subprocess.DEVNULL)


def make_dataset(folder: Path, work: Path) -> None:
    from ich_ray.ct.phantom import write_phantom

    written = write_phantom(folder / "phantom", patients=PATIENTS, seed=3, slices=SLICES, size=64)
    run("prepare", written.images, "--labels", written.labels, "--out", work / "dataset", "--size", 32)
    shutil.rmtree(work / "dataset" / "sheets", ignore_errors=True)  # pictures for people
    roles = PreparedDataset.open(work / "dataset").manifest.roles
    assert all(0 < roles[role].positives < roles[role].slices for role in ROLES), roles
    (work / "slices").mkdir()
    files = sorted(Path(str(written.images)).glob("*.dcm"))
    for file in files[:: len(files) // PREDICTED][:PREDICTED]:
        shutil.copy(file, work / "slices" / file.name)


def make_finished(work: Path) -> None:
    (work / "finished.yaml").write_text(PLAIN.format(name="finished", images=600, every=200, rung=200))
    found = work / "finished"
    run("search", work / "dataset", "--space", work / "finished.yaml", "--out", found, "--trials", 5)
    run("confirm", found, "--top", 2, "--seeds", 2)
    run("retrain", found, "--seeds", 2)
    run("calibrate", found)
    run("evaluate", found)
    run("audit", found)


def make_interrupted(work: Path) -> None:
    """Killed with trials that have ended and at least one that has not, and can go on from a checkpoint."""
    (work / "interrupted.yaml").write_text(PLAIN.format(name="interrupted", images=3000, every=200, rung=600))
    out = work / "interrupted"
    killed(
        lambda: both_kinds(out, ended=3),
        ("search", work / "dataset", "--space", work / "interrupted.yaml", "--out", out, "--trials", 8),
    )
    assert both_kinds(out, ended=3), "ended before it was killed: try again"
    run("audit", out)


def make_published(work: Path) -> None:
    """Killed in its second candidate; then a retraining of its first candidate, killed, too."""
    (work / "published.yaml").write_text(PUBLISHED)
    out = work / "published"
    killed(
        lambda: both_kinds(out, ended=1),
        ("search", work / "dataset", "--space", work / "published.yaml", "--out", out, "--concurrent", 1),
    )
    assert both_kinds(out, ended=1), "ended before it was killed: try again"
    run("audit", out)
    killed(
        lambda: any(len(json.loads(path.read_text())) >= 2 for path in out.glob("final/retraining-*/reports.json")),
        ("retrain", out),
    )
    assert not (out / "final" / "bundle").exists(), "ended before it was killed: try again"
    for left in out.glob("final/retraining-*/ray_train"):  # Ray's own, removed at the end of a run
        shutil.rmtree(left)


def both_kinds(out: Path, ended: int) -> bool:
    """Whether so many trials have ended, and one at least is unfinished and has two reports or more and a state."""
    if not (out / "search.json").exists():
        return False
    found = open_search(out)
    running = [trial for trial in found.trials if trial.state == "running" and len(trial.reports) >= 2]
    kept = [checkpoints_of(found.files, trial.number).newest() for trial in running]
    return found.count("completed") + found.count("pruned") >= ended and any(kept)


def killed(when: Callable[[], bool], arguments: tuple[object, ...]) -> None:
    """Run a verb and end it and all its processes by SIGKILL at that moment."""
    print("ich-ray", *arguments, "... killed", flush=True)
    process = subprocess.Popen(ich_ray(*arguments), stdout=subprocess.DEVNULL)
    while process.poll() is None and not when():
        time.sleep(0.01)
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        psutil.wait_procs(family, timeout=30)


def record(work: Path) -> None:
    dataset, bundle = PreparedDataset.open(work / "dataset", verify=True), load_bundle(work / "finished/final/bundle")
    pixels = {role: sha256(images.tobytes()) for role, images in images_of(dataset).items()}
    recorded = {
        "version": version("ich_ray"),
        "machine": machine(),
        "fingerprint": dataset.manifest.fingerprint,
        "pixels_sha256": pixels,
        "predictions": {
            Path(row.file).name: {"probability": row.probability, "decision": row.decision}
            for row in bundle.predict([work / "slices"])
        },
        "trainings": {name: trained(name, dataset) for name in TRAININGS},
    }
    (work / "recorded.json").write_text(json.dumps(recorded, indent=1) + "\n")


def images_of(dataset: PreparedDataset) -> dict[str, Any]:
    import numpy as np

    sets = {role: dataset.role(role) for role in ROLES}
    return {role: slices.gather(np.arange(len(slices))) for role, slices in sets.items()}


def forget_places(work: Path) -> None:
    for file in work.rglob("*"):
        if file.name == ".lock" or file.suffix == ".tmp":
            file.unlink()
        elif file.suffix in {".json", ".html"}:
            file.write_text(file.read_text().replace(str(work), MOVED))
    for file in work.rglob("*"):
        assert not file.is_file() or str(work.parent).encode() not in file.read_bytes(), file


if __name__ == "__main__":
    main()

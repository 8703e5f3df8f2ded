"""A whole search folder made by hand, as later stages leave it, for tests of what reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from upath import UPath

from ich_ray.data.dataset import PreparedDataset
from ich_ray.search_records import SearchRecord
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from ich_ray.trial_records import Objective, Report, TrialResult
from ich_ray.usage import ReportUsage
from tests.prepared import make_dataset
from tests.records import make_card

Stage = Literal["empty", "searched", "retrained", "calibrated", "evaluated"]
STAGES: tuple[Stage, ...] = ("empty", "searched", "retrained", "calibrated", "evaluated")

SPACE: dict[str, Any] = {
    "name": "demo",
    "objective": {"metric": "average_precision", "mode": "max"},
    "budget": {"images": 9000, "report_every": 500, "first_rung": 1000, "reduction": 3, "min_peers": 3},
    "parameters": {
        "architecture": {"choice": ["plain_cnn", "resnet18", "convnext_tiny"]},
        "blocks": {"int": [2, 4], "when": {"architecture": "plain_cnn"}},
        "batch_size": {"choice": [32, 64, 128]},
        "learning_rate": {"loguniform": [1e-5, 1e-1]},
        "dropout": {"uniform": [0.0, 0.6]},
        "optimizer": {"choice": ["sgd", "adam", "adamw"]},
        "momentum": {"fixed": 0.9},
    },
}
START = 1_760_000_000.0


def build_search(
    folder: Path,
    stage: Stage = "evaluated",
    *,
    trials: int = 14,
    space: dict[str, Any] | None = None,
    seed: int = 0,
    patients: int = 120,
    size: int = 32,
    signal: float = 2.0,
) -> UPath:
    """Write `folder/dataset` and `folder/search` as they are after `stage`; the search's path is returned.

    Args:
        signal: distance of positive from negative slices in logits; 0 makes a model at chance.
    """
    dataset = make_dataset(folder / "dataset", patients=patients, size=size, seed=seed)
    files = SearchFiles(locate(folder / "search"))
    rng = np.random.default_rng(seed)
    record = _record(dataset, space or SPACE, trials)
    write_json(files.search, record.model_dump(mode="json"))
    done = STAGES.index(stage)
    if done >= 1:
        for trial in fake_trials(trials, rng):
            write_json(files.trial(trial.number), trial.model_dump(mode="json"))
    if done >= 2:
        _retraining(files)
        _card(files, dataset)
    if done >= 3:
        _calibration(files, dataset)
    if done >= 4:
        _evaluation(files, dataset, signal)
    return files.root


def _record(dataset: PreparedDataset, space: dict[str, Any], trials: int) -> SearchRecord:
    return SearchRecord(
        name=space["name"],
        space=space,
        dataset=str(dataset.files.root),
        fingerprint=dataset.manifest.fingerprint,
        prevalence=dataset.role("validation").prevalence,
        seed=7,
        trials=trials,
        versions={"ich_ray": "0.1.0", "ray": "2.60.0", "torch": "2.14.0"},
        created=START,
    )


def fake_trials(count: int, rng: np.random.Generator, slots: int = 3) -> list[TrialResult]:
    """Trials with every way to end: trial 0 completes, 1 is pruned at the first rung, 2 fails without a report."""
    found = []
    free = [START] * slots
    for number in range(count):
        state = "completed" if number == 0 else "pruned" if number == 1 else "failed" if number == 2 else None
        state = state or str(rng.choice(["completed", "pruned", "pruned"]))
        images = {"completed": 9000, "pruned": int(rng.choice([1000, 1000, 3000])), "failed": 0}[state]
        images = 1000 if number == 1 else images
        best = rng.uniform(0.45, 0.8) if state == "completed" else rng.uniform(0.3, 0.55)
        slot = int(np.argmin(free))
        started = free[slot] + 0.5
        reports = tuple(
            Report(
                images_seen=seen,
                metrics={
                    "average_precision": best - 0.3 * float(np.exp(-seen / 1500)) + float(rng.normal(0, 0.01)),
                    "log_loss": 0.4,
                    "train_loss": 0.5,
                },
                elapsed_s=seen / 120,
                time=started + seen / 120,
                usage=_usage(state),
            )
            for seen in range(500, images + 1, 500)
        )
        free[slot] = started + images / 120 + 2
        found.append(
            TrialResult(
                number=number,
                objective=Objective(),
                parameters=_draw(rng),
                state=state,  # type: ignore[arg-type]
                reason={"completed": "", "pruned": f"rung_{images}", "failed": "diverged"}[state],
                detail="loss is NaN after 12 batches" if state == "failed" else "",
                reports=reports,
                seed=number * 11,
                started=started,
                ended=free[slot],
                cost_gpu_s=images / 120,
            )
        )
    return found


def _usage(state: str) -> ReportUsage:
    return ReportUsage(
        images_per_s=200.0, data_wait_s=0.5, validation_s=1.5, saving_s=0.25, device_use=0.8,
        peak_memory_bytes=2_000_000_000 if state == "completed" else 1_500_000_000, bytes_written=4_000_000,
    )  # fmt: skip


def _draw(rng: np.random.Generator) -> dict[str, Any]:
    architecture = str(rng.choice(["plain_cnn", "resnet18", "convnext_tiny"]))
    return {
        "architecture": architecture,
        **({"blocks": int(rng.integers(2, 5))} if architecture == "plain_cnn" else {}),
        "batch_size": int(rng.choice([32, 64, 128])),
        "learning_rate": float(10 ** rng.uniform(-5, -1)),
        "dropout": float(rng.uniform(0, 0.6)),
        "optimizer": str(rng.choice(["sgd", "adam", "adamw"])),
        "momentum": 0.9,
    }


def _retraining(files: SearchFiles) -> None:
    from ich_ray.results import open_search

    best = open_search(files.root).best()
    reports = [
        Report(
            images_seen=seen,
            metrics={"average_precision": 0.8 - 0.3 * float(np.exp(-seen / 2500)) - seen * 2e-6, "log_loss": 0.3},
            elapsed_s=seen / 100,
            time=START + 900 + seen / 100,
        ).model_dump(mode="json")
        for seen in range(500, 12001, 500)
    ]
    value = {"format": 1, "trial": best.number, "parameters": best.parameters, "workers": 2, "reports": reports,
             "best_images_seen": 10500, "stopped_early": True, "seconds": 121.4, "device": "cpu"}  # fmt: skip
    write_json(files.retraining, value)


def _card(files: SearchFiles, dataset: PreparedDataset) -> None:
    roles = {name: counts.model_dump() for name, counts in dataset.manifest.roles.items()}
    manifest = dataset.manifest
    card = make_card(
        name="demo-trial-0",
        image_shape=[len(manifest.windows), manifest.size, manifest.size],
        size=manifest.size,
        windows=[window.model_dump() for window in manifest.windows],
        dataset={"fingerprint": manifest.fingerprint, "roles": roles},
        intended_use="Research on detectors of intracranial haemorrhage.",
        limitations=["Slices are judged one by one, without their neighbors."],
        checklist={"Intended use": "research", "Demographics: age, sex, ethnicity": "not available"},
    )
    write_json(files.bundle / "card.json", card)


def note(files: SearchFiles, **values: Any) -> None:
    """Change the card of the bundle, as the stages do."""
    write_json(files.bundle / "card.json", {**read_json(files.bundle / "card.json"), **values})


def _calibration(files: SearchFiles, dataset: PreparedDataset) -> None:
    counts = dataset.manifest.roles["calibration"]
    value = {**counts.model_dump(), "format": 1, "prevalence": counts.positives / counts.slices, "temperature": 1.37,
             "prior_shift": -0.62, "log_loss_before": 0.5512, "log_loss_after": 0.4803,
             "operating_points": {"f2": {"threshold": 0.2,
                                         "sensitivity": 0.9, "specificity": 0.8, "ppv": 0.7, "f2": 0.85}}}  # fmt: skip
    write_json(files.calibration, value)
    note(files, operating_points=value["operating_points"])


def _interval(value: float) -> dict[str, float]:
    return {"value": value, "low": max(value - 0.06, 0.0), "high": min(value + 0.06, 1.0)}


def _evaluation(files: SearchFiles, dataset: PreparedDataset, signal: float) -> None:
    rng = np.random.default_rng(3)
    test = dataset.role("test")
    labels = test.labels.astype(int)
    p = float(labels.mean())
    logit = np.log(p / (1 - p)) - signal**2 / 2 * 0.5 + signal * labels + rng.normal(0, 1, len(labels))
    probabilities = 1 / (1 + np.exp(-logit))
    write_predictions(files.predictions, dataset.column("slice_id")[test.rows], test.patients, labels, probabilities)
    threshold = 0.3
    flagged = probabilities >= threshold
    tp, fp = int((flagged & (labels == 1)).sum()), int((flagged & (labels == 0)).sum())
    fn, tn = int(labels.sum()) - tp, int((labels == 0).sum()) - fp
    figures = {"sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp), "ppv": tp / (tp + fp),
               "npv": tn / (tn + fn), "f2": 5 * tp / (5 * tp + 4 * fn + fp),
               "accuracy": (tp + tn) / len(labels)}  # fmt: skip
    precision = 0.79 if signal else p
    floors = {"average_precision": p, "roc_auc": 0.5, "log_loss": -p * np.log(p) - (1 - p) * np.log(1 - p),
              "brier": p * (1 - p), "f2": 5 * p / (4 * p + 1), "accuracy": max(p, 1 - p), "ppv": p}  # fmt: skip
    point = {
        "threshold": threshold,
        "confusion": {"tp": tp, "fp": fp, "fn": fn, "tn": tn},
        **{name: _interval(figure) for name, figure in figures.items()},
    }
    stated = {"prevalence": 0.02, "ppv": _interval(0.27), "npv": _interval(0.998)}
    group = {"cases": 61, "patients": 17, "positives": 9, "prevalence": 0.148, "floors": {"average_precision": 0.148},
             "metrics": {"average_precision": _interval(0.66), "roc_auc": _interval(0.88)},
             "operating_points": {"f2": point}, "at_chance": False}  # fmt: skip
    value = {
        "format": 1,
        "slices": len(labels),
        "patients": len(set(test.patients)),
        "positives": int(labels.sum()),
        "prevalence": p,
        "opened": 1,
        "time": START + 2000,
        "metrics": {
            "average_precision": _interval(precision),
            "roc_auc": _interval(0.87 if signal else 0.5),
            "log_loss": _interval(0.44),
            "brier": _interval(0.14),
            "ece": {"value": 0.07},
            "calibration_slope": {"value": 1.31, "low": 0.9, "high": 1.7},
            "calibration_intercept": {"value": -0.2, "low": -0.5, "high": 0.1},
        },
        "operating_points": {"f2": {**point, "stated": stated}},
        "ece_null": {"value": 0.061, "low": 0.031, "high": 0.102},
        "patient_level": {**group, "cases": 18, "positives": 11},
        "subtypes": {
            "subdural": group,
            "epidural": {
                **group,
                "cases": 3,
                "positives": 0,
                "at_chance": True,
                "metrics": {**group["metrics"], "roc_auc": {}},
            },
        },
        "representations": {"int16": group},
        "floors": floors,
        "at_chance": not signal,
        "confidence": 0.95,
        "resamples": 1000,
        "notes": ["The test patients were never used before."],
    }
    write_json(files.evaluation, value)
    note(files, test={"metrics": value["metrics"]})


def write_predictions(
    path: UPath,
    slice_ids: NDArray[np.object_],
    patients: NDArray[np.object_],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
) -> None:
    table = pa.table(
        {
            "slice_id": pa.array(list(slice_ids)),
            "patient": pa.array(list(patients)),
            "label": pa.array(labels.astype(np.int8)),
            "probability": probabilities,
        }
    )
    pq.write_table(table, str(path))

"""A record of a search, for tests that need one and care for few of its fields."""

from __future__ import annotations

from typing import Any

from ich_ray.results import SearchRecord


def make_record(**fields: Any) -> SearchRecord:
    usual: dict[str, Any] = {
        "name": "x",
        "space": {"name": "x"},
        "dataset": "",
        "fingerprint": "f" * 32,
        "prevalence": 0.1,
        "seed": 0,
        "trials": 9,
        "versions": {},
        "created": 0.0,
    }
    return SearchRecord(**{**usual, **fields})


def make_confirmation(chosen: int, *trials: int) -> dict[str, Any]:
    """A confirm.json of trials that all came out alike."""
    held = [{"trial": trial, "selection_value": 0.5, "values": [0.4], "mean": 0.4, "spread": None} for trial in trials]
    return {"kind": "folds", "parts": 2, "objective": {}, "chosen": chosen, "candidates": held, "images": 1,
            "cost_gpu_s": 0.0, "created": 0.0}  # fmt: skip

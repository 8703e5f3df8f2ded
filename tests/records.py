"""Records for tests that need one and care for few of its fields."""

from __future__ import annotations

from typing import Any

from ich_ray.search_records import SearchRecord


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


def make_card(**fields: Any) -> dict[str, Any]:
    """A card.json, not calibrated."""
    window = {"name": "brain", "center_hu": 40, "width_hu": 80}
    usual = {
        "name": "x",
        "created": 0.0,
        "architecture": "plain_cnn",
        "parameters": {},
        "image_shape": [1, 16, 16],
        "size": 16,
        "windows": [window],
        "dataset": {"fingerprint": "f" * 32, "roles": {}},
        "search": {"name": "x", "trial": 0, "trials": 9, "objective": "average_precision", "selection_value": 0.5},
        "operating_points": {},
        "test": None,
        "weights": {"file": "model.safetensors", "sha256": "ab" * 32},
        "versions": {},
    }
    return {**usual, **fields}


def make_confirmation(chosen: int, *trials: int) -> dict[str, Any]:
    """A confirm.json of trials that all came out alike."""
    held = [{"trial": trial, "selection_value": 0.5, "values": [0.4], "mean": 0.4, "spread": None} for trial in trials]
    return {"kind": "folds", "parts": 2, "objective": {}, "chosen": chosen, "candidates": held, "images": 1,
            "cost_gpu_s": 0.0, "created": 0.0}  # fmt: skip

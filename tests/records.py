"""A record of a search, for tests that need one and care for few of its fields."""

from __future__ import annotations

from typing import Any

from ich_ray.results import SearchRecord


def make_record(**fields: Any) -> SearchRecord:
    usual: dict[str, Any] = {
        "name": "x",
        "space": {"name": "x"},
        "dataset": "",
        "fingerprint": "f",
        "prevalence": 0.1,
        "seed": 0,
        "trials": 9,
        "versions": {},
        "created": 0.0,
    }
    return SearchRecord(**{**usual, **fields})

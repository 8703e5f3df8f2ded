"""Prepared datasets with labels of studies and the like, made from those of tests/prepared.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ich_ray.data.dataset import ExaminationRecord, PreparedDataset
from ich_ray.storage import read_json, sha256, write_json
from ich_ray.vocabulary import LABELS, Level
from tests.prepared import SLICES_A_PATIENT


def with_columns(dataset: PreparedDataset, **columns: Sequence[Any]) -> PreparedDataset:
    """The dataset with these columns of slices.parquet in place of its own."""
    table = dataset.slices
    for name, values in columns.items():
        column = pa.array(values)
        there = name in table.column_names
        table = (
            table.set_column(table.column_names.index(name), name, column)
            if there
            else table.append_column(name, column)
        )
    pq.write_table(table, str(dataset.files.slices))
    return PreparedDataset.open(dataset.files.root)


def half_bleeding(dataset: PreparedDataset) -> PreparedDataset:
    """Every second patient shows nothing, every other one a subdural bleeding in the second and third slice."""
    positive = np.repeat(np.arange(len(dataset) // SLICES_A_PATIENT) % 2 == 0, SLICES_A_PATIENT)
    positive &= np.tile([False, True, True, False], len(dataset) // SLICES_A_PATIENT)
    none = np.zeros(len(dataset), np.int8)
    held = positive.astype(np.int8)
    others = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid")
    return with_columns(dataset, any=held, subdural=held, **dict.fromkeys(others, none))


def with_examinations(
    dataset: PreparedDataset, level: Level, known: Mapping[str, Mapping[str, int | None]], *, alone: bool = False
) -> PreparedDataset:
    """The dataset with labels by pseudonym of an examination; `alone` without any of slices."""
    ids, patients = dataset.column(level), dataset.column("patient")
    first = [int(np.flatnonzero(ids == name)[0]) for name in known]
    values = {name: pa.array([one.get(name) for one in known.values()], pa.int8()) for name in LABELS}
    table = pa.table(
        {
            "examination": list(known),
            "patient": patients[first].tolist(),
            "role": dataset.column("role")[first].tolist(),
            "slices": pa.array([int((ids == name).sum()) for name in known], pa.int32()),
            **values,
            "contradiction": [""] * len(known),
        }
    )
    pq.write_table(table, str(dataset.files.examinations))
    positives = sum(one.get("any") == 1 for one in known.values())
    record = ExaminationRecord(
        level=level, rows=len(known), positives=positives, sha256=sha256(dataset.files.examinations), contradictions={}
    )
    changes: dict[str, Any] = {"examinations": record.model_dump(mode="json")}
    if alone:
        changes["level"] = level
        changes["roles"] = {
            role: {**counts.model_dump(), "positives": 0} for role, counts in dataset.manifest.roles.items()
        }
        with_columns(dataset, **{name: pa.nulls(len(dataset), pa.int8()) for name in LABELS})
    write_json(dataset.files.manifest, {**read_json(dataset.files.manifest), **changes})
    return PreparedDataset.open(dataset.files.root)

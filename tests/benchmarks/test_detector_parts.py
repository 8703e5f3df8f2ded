"""The negative controls of detector_parts and the old space of small_site are what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.detector_parts import OfOthers, Results, Variant
from benchmarks.small_site import NEW, SMALL, space_of
from ich_ray.data.neighbors import MOST_NEIGHBORS
from ich_ray.data.roles import assign_folds
from ich_ray.vocabulary import SUBTYPES
from tests.prepared import make_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ich_ray.data.dataset import PreparedDataset


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, NDArray[np.int8]]:
    data = make_dataset(tmp_path_factory.mktemp("parts") / "data", size=8)
    together = np.full(len(data), "train", object)
    return data, assign_folds(data.column("patient"), data.label("any"), together, 0, 2)


def test_neighbors_of_another_series_are_of_another_patient_and_the_same_fold(
    divided: tuple[PreparedDataset, NDArray[np.int8]],
) -> None:
    data, folds = divided
    found = OfOthers(data, folds, Variant(neighbors=False)).neighbors
    patients, beside = data.column("patient"), np.delete(found, MOST_NEIGHBORS, axis=1)
    assert found[:, MOST_NEIGHBORS].tolist() == list(range(len(data)))
    assert (patients[beside] != patients[:, None]).all()
    assert (folds[beside] == folds[:, None]).all()
    assert OfOthers(data, folds, Variant()).neighbors.tolist() == data.neighbors.tolist()


def test_exchanged_subtypes_stay_among_positive_slices(divided: tuple[PreparedDataset, NDArray[np.int8]]) -> None:
    data, folds = divided
    other, positive = OfOthers(data, folds, Variant(subtypes=False)), data.label("any") == 1
    before, after = (np.stack([one.label(name) for name in SUBTYPES], 1) for one in (data, other))
    assert other.label("any").tolist() == data.label("any").tolist()
    assert after[~positive].tolist() == before[~positive].tolist()
    assert after[positive].tolist() != before[positive].tolist()
    for fold in (0, 1):
        assert sorted(after[folds == fold].tolist()) == sorted(before[folds == fold].tolist())


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "trainings.jsonl"
    Results(file).add({"variant": "base", "seed": 0, "logits": [0.5]})
    with file.open("a") as lines:
        lines.write('{"variant": "base", "se')
    results = Results(file)
    assert results.of({"variant": "base", "seed": 0}) == {"variant": "base", "seed": 0, "logits": [0.5]}
    assert results.of({"variant": "base", "seed": 1}) is None
    results.add({"variant": "base", "seed": 1, "logits": [1.5]})
    assert len(Results(file).found) == 2


def test_the_old_space_is_the_new_one_without_what_is_new() -> None:
    old, new = (space_of(name, SMALL).source["parameters"] for name in ("old", "new"))
    assert old.keys() == new.keys() - NEW
    assert {"labels", "augment", "schedule", "ema", "neighbors"} <= new.keys()
    assert {name: old[name] for name in old if name != "decay"} == {name: new[name] for name in old if name != "decay"}
    assert old["decay"] == {"loguniform": new["decay"]["loguniform"]}

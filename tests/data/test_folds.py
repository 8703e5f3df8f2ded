from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.folds import HeldOut, SearchFolds, check_folds, folds_of
from ich_ray.errors import ConfigError
from tests.prepared import make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("folds") / "data", patients=40)


def with_column(dataset: PreparedDataset, name: str, values: pa.Array | None) -> PreparedDataset:
    """The same dataset with another column, or without it."""
    changed = PreparedDataset(dataset.files, dataset.manifest)
    table = dataset.slices.drop_columns(name)
    changed.__dict__["slices"] = table if values is None else table.append_column(name, values)
    return changed


def test_every_patient_of_the_pool_is_held_out_once(dataset: PreparedDataset) -> None:
    assert folds_of(dataset) == [0, 1, 2, 3, 4]
    held_out: list[int] = []
    for fold in range(5):
        view = HeldOut(dataset, fold)
        train, validation = view.role("train"), view.role("validation")
        assert not set(train.patients) & set(validation.patients)
        assert set(dataset.column("fold")[validation.rows]) == {fold}
        assert sorted([*train.rows, *validation.rows]) == sorted(
            [*dataset.role("train").rows, *dataset.role("validation").rows]
        )
        held_out += list(validation.rows)
    assert len(held_out) == len(set(held_out)) == len(dataset.role("train")) + len(dataset.role("validation"))


@pytest.mark.parametrize("role", ["calibration", "test"])
def test_calibration_and_test_patients_cannot_be_reached(dataset: PreparedDataset, role: str) -> None:
    kept = set(dataset.role(role).patients)  # type: ignore[arg-type]
    for fold in range(5):
        view = HeldOut(dataset, fold)
        assert not kept & {*view.role("train").patients, *view.role("validation").patients}
        with pytest.raises(ValueError, match=f"must be train or validation where a fold is held out, got {role}"):
            view.role(role)  # type: ignore[arg-type]


def test_images_are_those_of_the_whole_dataset(dataset: PreparedDataset) -> None:
    validation = HeldOut(dataset, 2).role("validation")
    np.testing.assert_array_equal(validation.gather(np.arange(3)), dataset.gather(validation.rows[:3]))


def test_folds_that_cannot_be_used_are_refused(dataset: PreparedDataset) -> None:
    assert check_folds(dataset, 3) == [0, 1, 2]
    with pytest.raises(ConfigError, match="--folds: must be from 2 to 5, the folds of this dataset, got 6"):
        check_folds(dataset, 6)
    with pytest.raises(ConfigError, match="--folds: must be from 2 to 5, the folds of this dataset, got 1"):
        check_folds(dataset, 1)
    for nothing in (None, pa.array(np.zeros(len(dataset), np.int8))):
        with pytest.raises(ConfigError, match=r"whose patients are divided into folds, got [01]; prepare it again"):
            check_folds(with_column(dataset, "fold", nothing), 2)
    negative = np.where(dataset.column("fold") == 1, 0, dataset.label("any")).astype(np.int8)
    with pytest.raises(ConfigError, match="must be in fold 1, got 0 positive of 24; confirm with --seeds"):
        check_folds(with_column(dataset, "any", pa.array(negative)), 2)


def test_each_division_of_a_search_holds_every_patient_out_once(dataset: PreparedDataset) -> None:
    folds = SearchFolds(dataset, folds=4, repeats=2, seed=3)
    assert len(folds) == 8
    pool = sorted([*dataset.role("train").rows, *dataset.role("validation").rows])
    for repeat in (range(4), range(4, 8)):
        assert sorted(row for number in repeat for row in folds.held_out(number).rows) == pool
    assert folds.held_out(0).rows.tolist() != folds.held_out(4).rows.tolist()
    positive = [len(np.unique(held.patients[held.labels == 1].astype(str))) for held in map(folds.held_out, range(4))]
    assert max(positive) - min(positive) <= 1
    for number in range(8):
        view = folds.view(number)
        assert not set(view.role("train").patients) & set(view.role("validation").patients)
        assert sorted([*view.role("train").rows, *view.role("validation").rows]) == pool
    with pytest.raises(ValueError, match="role must be train or validation"):
        folds.view(0).role("test")


def test_the_seed_of_a_search_decides_how_its_patients_are_divided(dataset: PreparedDataset) -> None:
    first, same, other = (SearchFolds(dataset, 3, 1, seed).held_out(0).rows.tolist() for seed in (1, 1, 2))
    assert first == same
    assert first != other

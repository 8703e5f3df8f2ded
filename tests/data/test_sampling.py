from __future__ import annotations

import numpy as np
import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.sampling import stratified
from ich_ray.errors import ConfigError
from tests.prepared import make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("sampling") / "data", patients=40)


def test_a_part_has_the_share_of_the_whole(dataset: PreparedDataset) -> None:
    train = dataset.role("train")
    part = stratified(train, 40, seed=1)
    assert len(part) == 40
    assert int(part.labels.sum()) == round(40 * train.prevalence)
    assert set(part.rows) < set(train.rows)
    assert (np.diff(part.rows) > 0).all()


def test_the_seed_decides_who_is_taken(dataset: PreparedDataset) -> None:
    train = dataset.role("train")
    assert stratified(train, 20, seed=1).rows.tolist() == stratified(train, 20, seed=1).rows.tolist()
    assert stratified(train, 20, seed=1).rows.tolist() != stratified(train, 20, seed=2).rows.tolist()
    assert stratified(train, len(train), seed=1).rows.tolist() == train.rows.tolist()


def test_few_slices_still_hold_both_classes(dataset: PreparedDataset) -> None:
    assert sorted(stratified(dataset.role("train"), 2, seed=0).labels) == [0.0, 1.0]


def test_more_than_there_are(dataset: PreparedDataset) -> None:
    with pytest.raises(ConfigError, match="training_slices: at most the 88 slices to train on can be drawn, got 89"):
        stratified(dataset.role("train"), 89, seed=0)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ich_ray.data import sequence_features
from ich_ray.data.sequence_features import SequenceFeatureFiles, SequenceFeatures, sequence_features_key
from ich_ray.errors import IntegrityError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.model.pooled_features import FeatureNetwork
from ich_ray.storage import locate, read_json, write_json
from ich_ray.training.feature_pass import predict_features
from ich_ray.training.inference import predict_logits
from ich_ray.training.sequence_set import SequenceSet
from tests.prepared import make_dataset

KEY, FINGERPRINT = "a" * 64, "b" * 32
ROWS = np.array([2, 3, 5, 7, 11, 13, 17])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SequenceFeatureFiles:
    """Of seven rows in three parts: feature `[row, row / 2]`, logit `-row`."""
    monkeypatch.setattr(sequence_features, "ROWS_A_PART", 3)
    files = SequenceFeatureFiles(locate(tmp_path / "features"), KEY, FINGERPRINT, ROWS)
    for number in range(files.count):
        rows = files.rows_of(number).astype(np.float32)
        files.write(number, np.stack([rows, rows / 2], 1), -rows)
    files.finish()
    return files


def opened(files: SequenceFeatureFiles) -> SequenceFeatures:
    found = SequenceFeatures.open(files)
    assert found is not None
    return found


def test_features_of_some_rows_are_read_like_an_array(files: SequenceFeatureFiles) -> None:
    assert files.count == 3
    assert all(files.is_there(number) for number in range(3))
    some = opened(files).of_rows(np.array([13, 3, 17]))
    assert some.shape == (3, 2)
    assert some[np.array([2, 0])].tolist() == [[17, 8.5], [13, 6.5]]
    assert some[np.array([1])].dtype == np.float16
    assert some[np.arange(0)].shape == (0, 2)


def test_logits_of_the_network_lie_beside_them(files: SequenceFeatureFiles) -> None:
    assert opened(files).logits(np.array([17, 2])).tolist() == [[-17], [-2]]


def test_a_row_without_features_is_refused(files: SequenceFeatureFiles) -> None:
    for absent in (4, 18):
        with pytest.raises(IntegrityError, match="features of all slices must be there"):
            opened(files).of_rows(np.array([3, absent]))


def test_without_the_manifest_there_are_none(files: SequenceFeatureFiles) -> None:
    files.manifest.unlink()
    assert SequenceFeatures.open(files) is None


@pytest.mark.parametrize("change", [{"key": "c" * 64}, {"fingerprint": "c" * 32}, {"rows": ROWS[1:]}])
def test_features_of_something_else_are_none(files: SequenceFeatureFiles, change: dict[str, object]) -> None:
    assert SequenceFeatures.open(SequenceFeatureFiles(**{**vars(files), **change})) is None


def test_a_damaged_part_is_named(files: SequenceFeatureFiles) -> None:
    files.file(1, "features").write_bytes(files.file(1, "features").read_bytes()[:-200])
    with pytest.raises(IntegrityError, match=r"00001\.features\.arrow: must hold features"):
        opened(files).of_rows(ROWS)[np.array([3])]


def test_the_manifest_tells_the_widths_of_the_parts(files: SequenceFeatureFiles) -> None:
    record = opened(files).record
    assert (record.slices, record.rows_a_part, record.features, record.labels) == (7, 3, 2, 1)
    files.write(0, np.zeros((3, 4)), np.zeros((3, 6)))
    files.finish()
    record = opened(files).record
    assert (record.features, record.labels) == (4, 6)


def test_a_damaged_first_part_is_named_before_they_count_as_whole(files: SequenceFeatureFiles) -> None:
    files.manifest.unlink()
    files.file(0, "logits").write_bytes(files.file(0, "logits").read_bytes()[:-200])
    with pytest.raises(IntegrityError, match=r"00000\.logits\.arrow: must hold logits"):
        files.finish()
    assert not files.manifest.exists()


def test_a_damaged_manifest_is_named(files: SequenceFeatureFiles) -> None:
    write_json(files.manifest, {**read_json(files.manifest), "features": 0})
    with pytest.raises(IntegrityError, match=r"features\.json"):
        SequenceFeatures.open(files)


def test_what_float16_does_not_hold_becomes_its_largest_number(files: SequenceFeatureFiles) -> None:
    files.write(0, np.full((3, 2), 1e6, np.float32), np.zeros(3, np.float32))
    assert opened(files).of_rows(ROWS)[np.array([0])].tolist() == [[65504, 65504]]


def test_a_key_depends_on_all_that_computes_features() -> None:
    drawn = Hyperparameters(filters=4)
    keys = [
        sequence_features_key("a", drawn, "b"),
        sequence_features_key("c", drawn, "b"),
        sequence_features_key("a", drawn.model_copy(update={"neighbors": 1}), "b"),
        sequence_features_key("a", drawn, "c"),
        sequence_features_key("a", drawn, "b", ["hflip"]),
    ]
    assert len(set(keys)) == 5
    assert keys[0] == sequence_features_key("a", Hyperparameters(filters=4), "b")


def test_a_network_fills_them_in_one_pass(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=20)
    role, drawn = dataset.role("validation"), Hyperparameters(filters=4, dense=8, labels="all")
    network = build_network(drawn, dataset.image_shape)
    both = FeatureNetwork(network, dataset.image_shape)
    logits, features = predict_features(both, role, drawn)
    assert network.training
    predict_features(both.eval(), role, drawn)
    assert not any(module.training for module in both.modules())
    assert np.array_equal(logits, predict_logits(network, role, drawn))
    files = SequenceFeatureFiles(locate(tmp_path / "features"), KEY, dataset.manifest.fingerprint, role.rows)
    files.write(0, features, logits)
    files.finish()
    given = SequenceSet.of(dataset, role.rows, opened(files).of_rows(role.rows), drawn.predicted_labels, KEY)
    assert given.features.shape == (len(role), both.width) == (len(role), 8)
    assert np.allclose(given.features[np.arange(len(role))], features, rtol=1e-3)
    assert np.array_equal(opened(files).logits(role.rows), logits)

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.card_file import read_card
from ich_ray.data import sequence_features
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.refit import bundle_features
from ich_ray.refit.bundle_features import compute_features, feature_files, open_features, outdated
from ich_ray.storage import SearchFiles, locate, write_json


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of 32 slices, made in this process; the numbers of those that were."""
    numbers: list[int] = []

    def here(job: bundle_features._Job, missing: list[int]) -> Iterator[int]:
        for number in missing:
            bundle_features.make_part(job, number)
            network = bundle_features._opened(job)[1].model
            assert not any(module.training for module in network.modules()), "as a bundle predicts"
            numbers.append(number)
            yield number

    bundle_features._opened.cache_clear()
    monkeypatch.setattr(sequence_features, "ROWS_A_PART", 32)
    monkeypatch.setattr(bundle_features, "_mapped", here)
    return numbers


def test_what_was_made_before_a_kill_is_kept(
    made: list[int], retrained: SearchFiles, dataset: PreparedDataset, tmp_path: Path
) -> None:
    search = SearchFiles(locate(tmp_path / "sequence"))
    files = feature_files(search, dataset, read_card(retrained.bundle))
    compute_features(files, retrained.bundle, dataset, search)
    assert made == list(range(files.count))
    assert files.count > 3
    files.manifest.unlink()
    files.file(2, "logits").unlink()
    made.clear()
    compute_features(files, retrained.bundle, dataset, search)
    assert made == [2]
    compute_features(files, retrained.bundle, dataset, search)
    assert made == [2]
    files.manifest.unlink()
    bundle_features._opened.cache_clear()
    compute_features(files, retrained.bundle, dataset, search)
    assert made == [2]
    assert bundle_features._opened.cache_info().currsize == 0  # whoever asks for them loads no network

    bundle, validation = load_bundle(retrained.bundle), dataset.role("validation")
    found = open_features(search, dataset, files.key)
    np.testing.assert_allclose(found.logits(validation.rows), bundle.slice_label_logits(validation), atol=1e-5)
    assert found.of_rows(validation.rows).shape[0] == len(validation)


def test_test_patients_have_none(retrained: SearchFiles, dataset: PreparedDataset, tmp_path: Path) -> None:
    files = feature_files(SearchFiles(locate(tmp_path)), dataset, read_card(retrained.bundle))
    assert not set(files.rows) & set(dataset.role("test").rows)
    assert len(files.rows) == len(dataset) - len(dataset.role("test"))


def test_another_bundle_has_others(
    made: list[int], retrained: SearchFiles, dataset: PreparedDataset, tmp_path: Path
) -> None:
    search, card = SearchFiles(locate(tmp_path / "sequence")), read_card(retrained.bundle)
    with_views = feature_files(search, dataset, card.model_copy(update={"tta": ("hflip",)}))
    assert with_views.root != feature_files(search, dataset, card).root
    write_json(with_views.manifest, {})
    assert outdated(search, feature_files(search, dataset, card)) == [with_views.root.name]
    with pytest.raises(ConfigError, match=r"features of this bundle must be there, got none; run"):
        open_features(search, dataset, "f" * 64)


def test_a_machine_with_another_bundle_makes_none(
    made: list[int], retrained: SearchFiles, dataset: PreparedDataset, tmp_path: Path
) -> None:
    shutil.copytree(str(retrained.bundle), str(tmp_path / "bundle"))
    other = locate(tmp_path / "bundle")
    search, card = SearchFiles(locate(tmp_path / "sequence")), read_card(other)
    files = feature_files(search, dataset, card.model_copy(update={"tta": ("hflip",)}))
    with pytest.raises(ConfigError, match="every machine must see the same bundle, got features"):
        compute_features(files, other, dataset, search)
    assert made == []

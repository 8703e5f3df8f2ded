"""What the tests of the last stages share: made once, because training a network takes seconds."""

from __future__ import annotations

import pytest

from ich_ray.data.dataset import PreparedDataset
from ich_ray.storage import SearchFiles
from tests.prepared import make_dataset
from tests.searched import make_bundle, make_search


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("prepared") / "dataset")


@pytest.fixture(scope="session")
def retrained(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    """A search with a bundle that is not calibrated. Who writes into it takes a copy."""
    files = make_search(tmp_path_factory.mktemp("searches") / "search", dataset)
    make_bundle(files, dataset)
    return files

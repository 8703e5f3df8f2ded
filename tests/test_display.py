from __future__ import annotations

import pytest

from ich_ray.data.dataset import PreparedDataset, RoleCounts
from ich_ray.display import print_dataset


@pytest.mark.parametrize(
    ("level", "positives", "says"),
    [
        ("slice", 25, "55 positives are too few to rank models: 25 of them lie in validation, "),
        ("slice", 1000, None),
        ("study", 25, None),
    ],
)
def test_too_few_positives_are_said_before_a_search(
    level: str, positives: int, says: str | None, dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    roles = {
        "train": RoleCounts(slices=300, patients=30, positives=30),
        "validation": RoleCounts(slices=2000, patients=20, positives=positives),
    }
    manifest = dataset.manifest.model_validate({**dataset.manifest.model_dump(), "level": level, "roles": roles})
    print_dataset(manifest, "data")
    lines = [line for line in capsys.readouterr().out.splitlines() if "too few to rank models" in line]
    assert [line.startswith(str(says)) for line in lines] == [True] * (says is not None)


def test_labels_without_a_file_are_not_counted_as_files(
    dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = {"not_ct": 2, "file_missing": 3}
    manifest = dataset.manifest.model_validate({**dataset.manifest.model_dump(), "reasons": counted, "rejected": 2})
    print_dataset(manifest, "data")
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["not_ct", "2"] in said
    assert ["labels", "without", "a", "file:", "3", "(file_missing)"] in said
    assert ["file_missing", "3"] not in said

"""Contact sheets: the slices of a role, positive ones on the left, as they lie in the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.prepare import contact_sheets
from ich_ray.data.prepare.contact_sheets import SLICES_A_KIND, write_sheets
from ich_ray.storage import locate
from ich_ray.vocabulary import ROLES
from tests.prepared import make_dataset


def test_a_sheet_per_role_shows_its_slices(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=60, size=contact_sheets._TILE - 2)
    write_sheets(dataset)
    assert sorted(path.name for path in (tmp_path / "data" / "sheets").iterdir()) == sorted(f"{r}.png" for r in ROLES)
    page = np.asarray(Image.open(tmp_path / "data" / "sheets" / "train.png"))
    assert page.shape == (48 + 6 * (160 + 18 + 8), 2 * (3 * 160 + 8) + 8, 3)
    positive, negative = contact_sheets._chosen(dataset, "train")
    for rows, left, label in ((positive, 8, 1), (negative, 8 + 488, 0)):
        assert len(set(rows)) == SLICES_A_KIND
        assert set(dataset.label("any")[rows]) == {label}
        assert set(dataset.column("role")[rows]) == {"train"}
        tile = page[48 + 186 : 48 + 186 + 158, left + 160 : left + 160 + 158, 0]
        assert np.array_equal(tile, dataset.gather(rows[1:2])[0, 1])


def test_large_datasets_are_sampled_and_roles_without_slices_have_no_sheet(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", patients=60, size=8)
    read: list[int] = []

    class Counting(PreparedDataset):
        def gather(self, rows, out=None):  # type: ignore[no-untyped-def]
            read.extend(rows.tolist())
            return super().gather(rows, out)

        def role(self, role):  # type: ignore[no-untyped-def]
            found = super().role(role)
            return found if role != "test" else type(found)(self, found.rows[:0])

    write_sheets(Counting(dataset.files, dataset.manifest))
    assert len(read) == 3 * 2 * SLICES_A_KIND
    assert not dataset.files.sheet("test").exists()
    assert locate(tmp_path / "data" / "sheets" / "train.png").exists()

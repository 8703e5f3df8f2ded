"""Contact sheets: a few slices of each role as a network sees them, for a look at windows.

Positive slices on the left, negative ones on the right, the windows of a slice side by side. Knows a dataset and
Pillow; reads no more than 48 images, however large the dataset.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.storage import write_bytes
from ich_ray.vocabulary import ROLES, SUBTYPES, Role

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image, ImageDraw

    from ich_ray.data.dataset import PreparedDataset

__all__ = ["SLICES_A_KIND", "write_sheets"]

SLICES_A_KIND = 6  # positive and negative ones of four roles: 48 in all

_TILE = 160
_GAP, _LINE, _TOP = 8, 18, 48
_PAPER, _INK, _POSITIVE = (255, 255, 255), (40, 40, 40), (176, 32, 32)


def write_sheets(dataset: PreparedDataset) -> None:
    """Write `sheets/<role>.png` for every role that has slices."""
    for role in ROLES:
        slices = dataset.role(role)
        if len(slices):
            target = io.BytesIO()
            _sheet(dataset, role).save(target, "PNG")
            write_bytes(dataset.files.sheet(role), target.getvalue())


def _sheet(dataset: PreparedDataset, role: Role) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    windows = dataset.manifest.windows
    width = len(windows) * _TILE + _GAP
    page = Image.new("RGB", (2 * width + _GAP, _TOP + SLICES_A_KIND * (_TILE + _LINE + _GAP)), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.font = ImageFont.load_default(12)
    counts = dataset.manifest.roles[role]
    share = counts.positives / counts.slices
    draw.text((_GAP, _GAP), f"{role}: {counts.slices} slices of {counts.patients} patients, {share:.1%} positive", _INK)
    for side, rows in enumerate(_chosen(dataset, role)):
        left = _GAP + side * width
        for channel, window in enumerate(windows):
            text = f"{window.name} {window.center_hu:g}/{window.width_hu:g}"
            draw.text((left + channel * _TILE, _GAP + _LINE), text, _INK)
        _draw_column(page, draw, dataset, rows, left)
    return page


def _chosen(dataset: PreparedDataset, role: Role) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a few positive and a few negative slices, the same for the same dataset."""
    slices, rng = dataset.role(role), np.random.default_rng(dataset.manifest.seed)
    positive, negative = (
        np.sort(rng.permutation(slices.rows[slices.labels == label])[:SLICES_A_KIND]) for label in (1, 0)
    )
    return positive, negative


def _draw_column(
    page: Image.Image, draw: ImageDraw.ImageDraw, dataset: PreparedDataset, rows: NDArray[np.int64], left: int
) -> None:
    from PIL import Image

    table = dataset.slices.take(rows).to_pylist()
    for place, (image, facts) in enumerate(zip(dataset.gather(rows), table, strict=True)):
        top = _TOP + place * (_TILE + _LINE + _GAP)
        for channel, pixels in enumerate(image):
            tile = Image.fromarray(pixels).resize((_TILE - 2, _TILE - 2), Image.Resampling.LANCZOS)
            page.paste(tile, (left + channel * _TILE, top))
        labels = ", ".join(name for name in SUBTYPES if facts[name]) or ("any" if facts["any"] else "no haemorrhage")
        draw.text((left, top + _TILE), f"{facts['slice_id']}: {labels}", _POSITIVE if facts["any"] else _INK)

"""Lesions continue as blood in the next slice; bone that looks the same in one continues as bone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from ich_ray.ct.anatomy import Canvas, Head, HeadSection
from ich_ray.ct.bleeding import Bleed
from ich_ray.ct.lesions import BoneEdge, Slab, draw_bone_edge, draw_lesion, filling, is_labelled, lesions_into
from ich_ray.vocabulary import SUBTYPES

HEIGHT_MM = 145.0
THICKNESS = 5 / HEIGHT_MM
HEIGHTS = [THICKNESS * index for index in range(30)]


def canvas(seed: int) -> Canvas:
    rng = np.random.default_rng(seed)
    return Canvas(Head.draw(rng), 128, rng)


def slabs(seed: int) -> list[Slab]:
    drawn = canvas(seed)
    return [Slab(HeadSection(drawn, height), THICKNESS) for height in HEIGHTS]


def whole(slab: Slab, mask: np.ndarray) -> np.ndarray:
    """A mask of a section's pixels as an image, to be compared with other sections."""
    image = np.zeros((128, 128), np.float32)
    image.flat[slab.section.where] = mask
    return image


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subtype", SUBTYPES)
def test_a_lesion_overlaps_itself_in_neighboring_slices(subtype: str, seed: int) -> None:
    series = slabs(seed)
    lesion = draw_lesion(np.random.default_rng(seed), subtype, series[0].section.head, HEIGHT_MM)
    fillings = [filling(lesion, slab) for slab in series]
    cut = [index for index, filled in enumerate(fillings) if filled is not None]
    assert cut == list(range(cut[0], cut[-1] + 1))
    assert len(cut) == pytest.approx(1 + 2 * lesion.reach / THICKNESS, abs=1.2)
    images = [whole(series[index], fillings[index]) > 0.2 for index in cut]
    images = [image for image in images if image.sum() >= 10]
    assert len(images) >= 3
    for one, following in pairwise(images):
        # Sulci wander and the skull narrows: by a few millimeters from slice to slice.
        assert (one & following).any()
        smaller, larger = sorted((one, following), key=np.sum)
        assert (smaller & binary_dilation(larger, iterations=3)).sum() > 0.7 * smaller.sum()


def test_a_slice_is_positive_from_60_mm2_filled_to_one_half() -> None:
    filled = np.zeros(100, np.float32)
    filled[:15] = 0.5
    assert is_labelled(filled, pixel_mm=2.0)
    assert not is_labelled(filled[1:], pixel_mm=2.0)
    assert not is_labelled(filled - np.float32(0.01), pixel_mm=2.0)


def test_thin_caps_are_drawn_and_negative() -> None:
    """Of a blob 20 mm high: its ends fill two of the five levels of the outer slabs."""
    series = slabs(0)
    middle, reach = HEIGHTS[15], 10 / HEIGHT_MM
    lesion = Bleed("intraparenchymal", middle, reach, 0.0, (30.0, 0.0), 20, 20, hu=70)
    found = []
    for slab in series[12:19]:
        brain = slab.section.brain()
        before = brain.copy()
        seen = lesions_into(brain, slab, [lesion])
        found.append((round(float((brain - before).max())), seen))
    assert [bool(seen) for _, seen in found] == [False, False, True, True, True, False, False]
    assert 5 < found[1][0] < found[2][0]
    assert found[0] == (0, set())


def first_edges(side: int, count: int) -> list[tuple[BoneEdge, Canvas]]:
    drawn, rng, found = canvas(1), np.random.default_rng(9), []
    while len(found) < count:
        edge = draw_bone_edge(rng, drawn.head, HEIGHT_MM, HEIGHTS, THICKNESS)
        if edge.side == side:
            found.append((edge, drawn))
    return found


@pytest.mark.parametrize("side", [-1, 1])
def test_bone_looks_like_blood_in_one_slice_and_like_bone_in_the_next(side: int) -> None:
    compared = 0
    for edge, drawn in first_edges(side, 20):
        at = HEIGHTS.index(edge.shape.height)
        shown, bone, other = (Slab(HeadSection(drawn, HEIGHTS[at + step]), THICKNESS) for step in (0, side, -side))
        images = [slab.section.brain() for slab in (shown, bone, other)]
        untouched = images[2].copy()
        for image, slab in zip(images, (shown, bone, other), strict=True):
            edge.draw_into(image, slab)
        core = edge.shape.shape(shown.section, edge.cut) > 0.99
        assert np.array_equal(images[2], untouched)
        inner = edge.shape.shape(bone.section, 1.0) > 0.99
        if not core.any() or not inner.any():
            continue  # where the brain of one is the skull of the other
        compared += 1
        assert images[0][core] == pytest.approx(edge.shape.hu + 2 * shown.section.texture[core], abs=1)
        assert images[1][inner].min() > 400
    assert compared >= 12


def test_bone_has_the_densities_and_sizes_of_blood() -> None:
    """Quartiles of draws: nothing within a slice may tell which is which."""
    head, rng = canvas(1).head, np.random.default_rng(3)
    edges = [draw_bone_edge(rng, head, HEIGHT_MM, HEIGHTS, THICKNESS) for _ in range(1200)]
    blobs = [edge.shape for edge in edges if edge.shape.subtype == "intraparenchymal"]
    lesions = [draw_lesion(rng, "intraparenchymal", head, HEIGHT_MM) for _ in range(600)]
    for values, tolerance in (("hu", 2.5), ("length_mm", 1.5), ("thickness_mm", 1.5)):
        quartiles = [
            np.percentile([getattr(each, values) for each in group], (25, 50, 75)) for group in (blobs, lesions)
        ]
        assert quartiles[0] == pytest.approx(quartiles[1], abs=tolerance), values
    assert {edge.shape.subtype for edge in edges} == {"intraparenchymal", "epidural", "subdural"}


def test_bone_lies_at_the_skull_base_and_at_the_vertex() -> None:
    head, rng = canvas(2).head, np.random.default_rng(4)
    heights = {-1: [], 1: []}
    for _ in range(100):
        edge = draw_bone_edge(rng, head, HEIGHT_MM, HEIGHTS, THICKNESS)
        heights[edge.side].append(edge.shape.height)
    assert 0.13 < min(heights[-1]) < max(heights[-1]) < 0.35
    assert 0.69 < min(heights[1]) < max(heights[1]) < 0.96


@pytest.mark.parametrize(
    ("low", "high", "share"), [(0.0, 1.0, 1.0), (0.5, 0.9, 0.5), (0.4, 0.45, 0.25), (0.6, 0.9, 0.0)]
)
def test_the_share_of_a_slab_by_hand(low: float, high: float, share: float) -> None:
    slab = Slab(HeadSection(canvas(0), 0.5), 0.2)
    assert slab.share(low, high) == pytest.approx(share)

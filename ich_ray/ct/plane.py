"""What is an axial slice of a head, and what a reformat, localizer, projection or capture.

Geometry decides, then what the machine wrote in ImageType, and what people typed in SeriesDescription only where the
header does not say how the image lies: no axial slice is lost for a word that somebody typed. Knows the header of a
slice and of its series; knows no pixels. The limits and where they come from are in docs/what-is-a-slice.md.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ich_ray.ct.acquisition import Acquisition

__all__ = ["KEPT", "Judgment", "judge_field", "judge_series", "judge_slice", "judge_table"]

# Gantries tilt 30 degrees either way (genuine slices reach 30.0), reformats along the orbitomeatal line turn about as
# far. 45 degrees lies halfway to a coronal or sagittal plane.
_GANTRY_DEG, _AXIAL_DEG = 30.5, 45.0
# A newborn's head is 110 mm long; scanners extend their field of view to 850 mm at most.
_LEAST_FIELD_MM, _SMALL_FIELD_MM, _MOST_FIELD_MM = 80.0, 140.0, 850.0
_FINE_MM, _COARSE_MM = 0.2, 1.0
_LONGEST = 2.0  # a head is 1.3 times as long as it is wide, the bed of a localizer more
_LONG_OF_FEW = 1.5  # of a series of one or two images that does not say how they lie
_THIN_MM, _THICK_MM = 2.0, 5.5  # routine head CT is read in slices of 2.5 to 5 mm
_NOT_ISOTROPIC = 1.01
_UPRIGHT = math.cos(math.radians(45))
_FEWEST = 5  # images that make a series of which something can be said
_TURN_DEG, _SLIDE_MM = 10.0, 20.0
_FARTHEST_MM = 1e6

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kin, .7.1 to .7.4


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Z0-9])(?:{'|'.join(patterns)})(?![A-Z0-9])")


# Defined terms of PS3.3 C.8.2.1.1.1, C.8.3.1.1.1 and C.8.16.1, and what scanners add to them. VOLUME, MPR, REFORMATTED,
# RESAMPLED, AVERAGE, MEAN and DERIVED are not among them: axial slices are called so.
_IMAGE_TYPES = {
    "localizer": _words("LOCALI[SZ]ER", "SCOUT", "TOPOGRAM", "TOPO?", "SURVIEW", "SCANOGRAM", "SCANOSCOPE"),
    "projection": _words("MIP", "MAX[_ ]?IP", "MIN[_ ]?IP", "MAXIMUM", "MINIMUM", "PROJECTION IMAGE", "PROJECTION"),
    "secondary_capture": _words(
        "SCREEN[_ ]?(?:SAVE|SHOT|CAPTURE)", "VRT", "VOLUME[_ ]?RENDER(?:ED|ING)?", "VOLREND", "SSD",
        "DOSE[_ ](?:REPORT|INFO|SUMMARY|PAGE|SHEET|RECORD)", "PROT", "PATIENT[_ ]PROTOCOL",
    ),
}  # fmt: skip
_DESCRIPTIONS = {
    "localizer": _words("LOCALI[SZ]ERS?", "SCOUTS?", "TOPOGRAMM?", "TOPO", "SURVIEW", "SCANOGRAMM?", "SCANOSCOPE"),
    "projection": _words("MIPS?", "MINIPS?", "(?:MAX|MIN)(?:IMUM)?[ _-]?(?:IP|INTENSITY PROJECTION)"),
    "secondary_capture": _words(
        "DOSE[ _-]?(?:REPORT|INFO|INFORMATION|SUMMARY|PAGE|SHEET|RECORD)", "PATIENT PROTOCOL", "PATIENTENPROTOKOLL",
        "PROTOCOLE PATIENT", "SCREEN[ _-]?(?:SAVES?|SHOTS?|CAPTURES?)", "VRT", "VR", "VOLUME RENDER(?:ED|ING)", "SSD",
    ),
}  # fmt: skip
_OTHER_PLANE = _words("COR", "[CK]ORONALE?", "KORONAR", "SAG", "SAGITTALE?")
_AXIAL_PLANE = _words("AX", "AXIAL[ES]?", "TRA", "TRANS", "TRANSVERS(?:E|AL|ALE)")
_RENDERED = _words("3-?D")
_DETAILS = {
    "localizer": "the header calls it a localizer",
    "projection": "the header calls it a maximum or minimum projection",
    "secondary_capture": "the header calls it a capture, a rendering or a page of text",
}


@dataclass(frozen=True)
class Judgment:
    """Whether an image is an axial slice of a head, and what is odd about it.

    Attributes:
        reason: why it is no axial slice of a head, of `ct.dicom.EXCLUSIONS`; empty if it may be one.
        flags: keys of `ct.dicom.FLAGS`.
    """

    reason: str = ""
    detail: str = ""
    flags: tuple[str, ...] = ()


KEPT = Judgment()


def judge_slice(acquisition: Acquisition) -> Judgment:
    """Judge how an image lies, and what its header calls it."""
    said, described = _said(acquisition.image_type), _described(acquisition.series_description)
    if said:
        return Judgment(said, _DETAILS[said])
    if acquisition.tilt_deg > _AXIAL_DEG:
        angle = f"{acquisition.tilt_deg:.0f} degrees off the axial plane; a slice may be {_AXIAL_DEG:.0f}"
        return Judgment(described or "not_axial", angle)
    if not acquisition.normal and (found := _without_plane(acquisition, described)).reason:
        return found
    return Judgment(flags=tuple(sorted(_flags(acquisition, described))))


def judge_field(acquisition: Acquisition, rows: int, columns: int) -> Judgment:
    """Judge the sides of an image of this size.

    A spacing alone excludes nothing: who makes images smaller or larger may leave it as it was. So the field of view
    and the pixels must both be none of a head.
    """
    height_mm, width_mm = acquisition.spacing_mm or (1.0, 1.0)
    least, most = sorted((rows * height_mm, columns * width_mm))
    if most > _LONGEST * least:
        times = (
            f"{most / max(least, 1e-9):.1f} times as long as wide; a slice of a head is at most {_LONGEST:.0f} times"
        )
        return Judgment("not_head", times)
    if not acquisition.spacing_mm:
        return KEPT
    pixel_mm = acquisition.pixel_mm
    if (most < _LEAST_FIELD_MM and pixel_mm < _FINE_MM) or (most > _MOST_FIELD_MM and pixel_mm > _COARSE_MM):
        limits = f"a head has {_LEAST_FIELD_MM:.0f} to {_MOST_FIELD_MM:.0f} mm"
        return Judgment("not_head", f"a field of view of {most:.0f} mm; {limits}")
    return Judgment(flags=("small_field",)) if most < _SMALL_FIELD_MM else KEPT


def judge_series(acquisitions: Sequence[Acquisition], sizes: Sequence[tuple[int, int]]) -> list[Judgment]:
    """Judge the images of one series by each other; what the header of one says is not said again.

    Args:
        acquisitions: of all images of the series that `judge_slice` does not exclude, at least.
        sizes: rows and columns of each.

    Returns:
        A judgment for each, in their order.
    """
    unknown = (math.nan,) * 3
    return list(
        judge_table(
            np.zeros(len(acquisitions), np.int64),
            np.array([one.position or unknown for one in acquisitions], np.float64).reshape(-1, 3),
            np.array([one.normal or unknown for one in acquisitions], np.float64).reshape(-1, 3),
            np.array(sizes, np.int64).reshape(-1, 2),
        )
    )


def judge_table(
    series: NDArray[np.int64],
    positions: NDArray[np.float64],
    normals: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> NDArray[np.object_]:
    """Judge the images of many series, each by the others of its own.

    Args:
        series: a number for each, `[n]`; negative where it is not known, and then nothing is found.
        positions: in mm, NaN where not known, `[n, 3]`.
        normals: of unit length, NaN where not known, `[n, 3]`.
        sizes: rows and columns, `[n, 2]`.

    Returns:
        A judgment for each, `[n]`.
    """
    found = np.full(len(series), KEPT, object)
    rows = np.flatnonzero(series >= 0)
    if not len(rows):
        return found
    _, group = np.unique(series[rows], return_inverse=True)
    places, directions = _possible(positions[rows]), _one_sided(normals[rows])
    placed, oriented = ~np.isnan(places).any(1), ~np.isnan(directions).any(1)
    long = (np.bincount(group)[group] <= 2) & ~oriented & _longer(sizes[rows], _LONG_OF_FEW)
    both = placed & oriented
    for finding, members in (
        (_REPEATED, placed & _repeated(group, places, directions)),
        (_LONG, long),
        (_SLIDING, both & np.isin(group, _sliding(group[both], places[both], directions[both]))),
        (_TURNING, oriented & np.isin(group, _turning(group[oriented], directions[oriented]))),
    ):
        found[rows[members]] = finding
    return found


_REPEATED = Judgment(flags=("repeated_position",))
_LONG = Judgment("not_head", "one of one or two long images, which do not say how they lie")
_SLIDING = Judgment("not_axial", "the images of its series do not lie one behind the other along their normal")
_TURNING = Judgment("not_axial", "its series turns from image to image")


def _possible(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions within a kilometer; others are as good as none, and would overflow."""
    return np.where(np.abs(positions) < _FARTHEST_MM, positions, np.nan)


def _one_sided(normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normals that all point to the head: the two of a plane are the same here."""
    return np.where(normals[:, 2:] < 0, -normals, normals)


def _longer(sizes: NDArray[np.int64], ratio: float) -> NDArray[np.bool_]:
    return np.asarray(sizes.max(1) > ratio * sizes.min(1), bool)


def _numbered(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each distinct row of these columns, `[n]`."""
    order = np.lexsort(columns)
    changes = np.zeros(len(order), bool)
    for column in columns:
        changes[1:] |= np.diff(column[order]) != 0
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(changes)
    return numbers


def _rounded(vectors: NDArray[np.float64], step: float) -> list[NDArray[np.int64]]:
    """The columns of `[n, 3]` in whole steps; unknown ones are alike."""
    return list(np.rint(np.nan_to_num(vectors / step, nan=-1e9)).astype(np.int64).T)


def _repeated(
    group: NDArray[np.int64], places: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether another image of the group lies at the same place: perfusion, or one slice sent twice."""
    numbers = _numbered(*_rounded(places, 0.01), *_rounded(directions, 0.02), group)
    return np.asarray(np.bincount(numbers)[numbers] > 1)


def _distinct(group: NDArray[np.int64], *columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many distinct rows each group has."""
    _, first = np.unique(_numbered(*columns, group), return_index=True)
    return np.bincount(group[first], minlength=int(group.max(initial=-1)) + 1)


def _ranges(group: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest less the smallest value of each group, by column."""
    shape = (int(group.max(initial=-1)) + 1, values.shape[1])
    largest, smallest = np.full(shape, -np.inf), np.full(shape, np.inf)
    np.maximum.at(largest, group, values)
    np.minimum.at(smallest, group, values)
    return np.where(largest >= smallest, largest - smallest, 0)


def _turning(group: NDArray[np.int64], directions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Groups whose images turn: a rendering that rotates, or planes fanned around an axis.

    A localizer among axial slices and a change of the gantry's tilt make two or three directions, not one an image.
    """
    distinct = _distinct(group, *_rounded(directions, 0.02))
    spread = np.linalg.norm(_ranges(group, directions), axis=1)
    many = (distinct >= _FEWEST) & (2 * distinct >= np.bincount(group, minlength=len(distinct)))
    return np.flatnonzero(many & (spread > math.sin(math.radians(_TURN_DEG))))


def _sliding(
    group: NDArray[np.int64], places: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Groups of parallel images that move within their plane alone, as those do whose orientation is not their own."""
    distinct = _distinct(group, *_rounded(places, 0.1))
    parallel = np.linalg.norm(_ranges(group, directions), axis=1) < 0.02
    along = _ranges(group, np.einsum("ij,ij->i", places, directions)[:, None])[:, 0]
    moved_mm = np.linalg.norm(_ranges(group, places), axis=1)
    many = (distinct >= _FEWEST) & (2 * distinct >= np.bincount(group, minlength=len(distinct)))
    return np.flatnonzero(many & parallel & (moved_mm > _SLIDE_MM) & (along < 0.1 * moved_mm))


@lru_cache(maxsize=1024)  # all slices of a series say the same
def _said(image_type: tuple[str, ...]) -> str:
    return _kind(image_type, _IMAGE_TYPES)


@lru_cache(maxsize=1024)
def _described(series_description: str) -> str:
    return _kind((series_description.upper(),), _DESCRIPTIONS)


def _kind(texts: Sequence[str], kinds: dict[str, re.Pattern[str]]) -> str:
    """Of what else than a slice these texts, in capitals, speak; empty if of nothing."""
    text = "\\".join(texts)
    return next((kind for kind, words in kinds.items() if words.search(text)), "") if text else ""


def _without_plane(acquisition: Acquisition, described: str) -> Judgment:
    """What the words say of an image whose header does not say how it lies."""
    if described:
        return Judgment(described, _DETAILS[described])
    if acquisition.sop_class.startswith(_SECONDARY_CAPTURE):
        return Judgment("secondary_capture", "a Secondary Capture Image that does not say how it lies")
    text = "\\".join((*acquisition.image_type, acquisition.series_description.upper()))
    if acquisition.image_type[:1] == ("DERIVED",) and _RENDERED.search(text):
        return Judgment("secondary_capture", "a derived image called 3D that does not say how it lies")
    if _is_other_plane(text):
        return Judgment("not_axial", "the header calls it coronal or sagittal, and does not say how it lies")
    return KEPT


def _is_other_plane(text: str) -> bool:
    return bool(_OTHER_PLANE.search(text)) and not _AXIAL_PLANE.search(text)


def _flags(acquisition: Acquisition, described: str) -> list[str]:
    spacing, orientation = acquisition.spacing_mm, acquisition.orientation
    found = {
        "contrast": acquisition.contrast,
        "described_otherwise": bool(described) or _is_other_plane(acquisition.series_description.upper()),
        "not_isotropic": bool(spacing) and max(spacing) > _NOT_ISOTROPIC * min(spacing),
        "plane_unknown": not acquisition.normal,
        "rotated": bool(acquisition.normal) and (orientation[0] < _UPRIGHT or orientation[4] <= 0),
        "thick": acquisition.thickness_mm > _THICK_MM,
        "thin": 0 < acquisition.thickness_mm < _THIN_MM,
        "tilt": acquisition.tilt_deg > _GANTRY_DEG,
    }
    return [flag for flag, holds in found.items() if holds]

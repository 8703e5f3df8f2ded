"""Enhanced CT files for tests: classic slices put into one file, as PS3.3 A.38 and A.70 have it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from typing import Any

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, LegacyConvertedEnhancedCTImageStorage

from tests.ct.files import dataset_of, save, unchecked

# Sequence of a functional group -> elements that a classic file has at its top.
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTImageFrameTypeSequence": ("ImageType",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
}
EVERY = frozenset(GROUPS)
UID = "1.2.826.0.1.3680043.8.498.1"


def enhanced(
    slices: Sequence[bytes],
    *,
    shared: Collection[str] = (),
    legacy: bool = False,
    syntax: str = ExplicitVRLittleEndian,
    frames: Sequence[bytes] | None = None,
    offsets: str = "basic",
    edit: Callable[[Dataset], None] | None = None,
) -> bytes:
    """One file of native classic ones.

    Args:
        slices: the files.
        shared: the groups that the first file has for all.
        legacy: as if it were converted: frames name the files they were.
        syntax: what it is encoded as.
        frames: encapsulated in place of the words.
        offsets: of these: `none`, `basic` or `extended`.
        edit: changes the data set last of all.
    """
    classic = [dataset_of(data) for data in slices]
    with unchecked():
        file = Dataset()
        file.update({element.tag: deepcopy(element) for element in classic[0] if element.keyword not in _moved()})
        file.SOPClassUID = LegacyConvertedEnhancedCTImageStorage if legacy else EnhancedCTImageStorage
        file.SOPInstanceUID, file.NumberOfFrames = UID, len(classic)
        file.SharedFunctionalGroupsSequence = Items([_groups(classic[0], shared)])
        file.PerFrameFunctionalGroupsSequence = Items([_groups(one, EVERY - {*shared}) for one in classic])
        for group, one in zip(file.PerFrameFunctionalGroupsSequence, classic, strict=True):
            if legacy:
                group.ConversionSourceAttributesSequence = Items([_reference(one)])
        file.PixelData = b"".join(one.PixelData for one in classic)
        file["PixelData"].VR = "OW"
        if frames is not None:
            _encapsulate(file, frames, offsets)
        if edit:
            edit(file)
    return save(file, syntax)


def _moved() -> set[str]:
    return {name for names in GROUPS.values() for name in names}


def _groups(classic: Dataset, sequences: Collection[str]) -> Dataset:
    item = Dataset()
    for sequence in sequences:
        group = Dataset()
        for name in GROUPS[sequence]:
            if name in classic:
                setattr(group, "FrameType" if name == "ImageType" else name, classic[name].value)
        if len(group):
            setattr(item, sequence, Items([group]))
    return item


def _reference(classic: Dataset) -> Dataset:
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = classic.SOPClassUID, classic.SOPInstanceUID
    return source


def _encapsulate(file: Dataset, frames: Sequence[bytes], offsets: str) -> None:
    if offsets == "extended":
        file.PixelData, file.ExtendedOffsetTable, file.ExtendedOffsetTableLengths = encapsulate_extended([*frames])
    else:
        file.PixelData = encapsulate([*frames], has_bot=offsets == "basic")
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True


def frame_changed(number: int, sequence: str, **values: Any) -> Callable[[Dataset], None]:
    """An edit that gives a frame, counted from 1, other values in a functional group; `None` removes one."""

    def edit(file: Dataset) -> None:
        group = getattr(file.PerFrameFunctionalGroupsSequence[number - 1], sequence)[0]
        for name, value in values.items():
            if value is None:
                delattr(group, name)
            else:
                setattr(group, name, value)

    return edit

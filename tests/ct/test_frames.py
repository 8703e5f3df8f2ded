"""Each frame of an enhanced CT file is the slice that its classic file is."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from ich_ray.ct import elements, frames
from ich_ray.ct.dicom import CTSlice, SliceHeader, read_slice
from ich_ray.ct.elements import parse
from ich_ray.ct.slice_file import SliceFile, read_headers
from ich_ray.errors import Rejection
from tests.ct.enhanced import EVERY, GROUPS, UID, enhanced, frame_changed
from tests.ct.files import (
    SYNTAXES,
    compressed_image,
    dataset_of,
    head,
    lossless_jpeg,
    make,
    plant,
    save,
)

Edit = Callable[[Dataset], None]
FRAMES = 3
ALL_BUT_POSITION = EVERY - {"PlanePositionSequence"}


def series(**tags: Any) -> list[bytes]:
    """Classic slices 5 mm apart that differ in every element which a functional group holds."""
    return [one_slice(number, **tags) for number in range(FRAMES)]


def one_slice(number: int, **tags: Any) -> bytes:
    tilt = math.radians(5 * number)
    facts = {
        "SOPInstanceUID": f"1.2.3.{number + 1}",
        "ImagePositionPatient": [-125.0, -100.0, 40.0 + 5 * number],
        "ImageOrientationPatient": [1, 0, 0, 0, round(math.cos(tilt), 6), round(-math.sin(tilt), 6)],
        "PixelSpacing": [0.4 + number / 100, 0.5],
        "SliceThickness": 5.0 + number,
        "RescaleIntercept": -1024 - number,
        "RescaleType": "HU",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", f"V{number}"],
        "ConvolutionKernel": f"H{number}0s",
    }
    return make(head(seed=number), **{**facts, **tags})


def slices(data: bytes | Path) -> list[CTSlice]:
    file = SliceFile(data)
    return [file.read(frame) for frame in file.frames]


def outcomes(data: bytes) -> list[str]:
    """The reason of each frame, empty where it is read."""
    file, found = SliceFile(data), []
    for frame in file.frames:
        try:
            file.read(frame)
            found.append("")
        except Rejection as rejection:
            found.append(rejection.reason)
    return found


def refusal(data: bytes) -> Rejection:
    with pytest.raises(Rejection) as caught:
        SliceFile(data)
    return caught.value


def assert_equal(found: list[CTSlice], classic: list[bytes]) -> None:
    for one, data in zip(found, classic, strict=True):
        expected = read_slice(data)
        assert np.array_equal(one.hu(), expected.hu())
        sop_class = one.header.acquisition.sop_class
        assert one.header.acquisition == replace(expected.header.acquisition, sop_class=sop_class)
        assert one.header.flags == expected.header.flags
        assert (one.header.slope, one.header.intercept) == (expected.header.slope, expected.header.intercept)
        assert (one.header.patient, one.header.study, one.header.series) == ("P1", "ID_study", "ID_series")


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("legacy", [False, True])
def test_each_frame_is_its_classic_slice(syntax: str, legacy: bool) -> None:
    # pydicom turns the words of big endian only if they are to be compressed.
    classic = series(syntax="big") if syntax == "big" else series()
    assert_equal(slices(enhanced(classic, legacy=legacy, syntax=SYNTAXES[syntax])), classic)


@pytest.mark.parametrize("sequence", GROUPS)
def test_a_group_may_be_shared(sequence: str) -> None:
    first = dataset_of(one_slice(0))
    same = {name: first[name].value for name in GROUPS[sequence]}
    classic = series(**same)
    assert_equal(slices(enhanced(classic, shared=[sequence])), classic)


def test_a_file_of_one_frame_is_one_slice() -> None:
    data = enhanced([one_slice(0)])
    assert SliceFile(data).frames == (0,)
    assert_equal([read_slice(data)], [one_slice(0)])
    assert read_slice(data).header.slice_id == UID


def test_headers_alone_are_those_of_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    flat = frame_changed(2, "PixelValueTransformationSequence", RescaleSlope=None)
    path.write_bytes(enhanced(series(), edit=flat))
    headers = dict(read_headers(path))
    whole = SliceFile(path)
    assert list(headers) == [1, 2, 3]
    for frame in (1, 3):
        header = headers[frame]
        assert isinstance(header, SliceHeader)
        assert header == replace(whole.read(frame).header, flags=header.flags)
    assert str(headers[2]) == "rescale_missing: RescaleSlope and RescaleIntercept must be there"
    path.write_bytes(one_slice(1))
    ((frame, one),) = read_headers(path)
    assert isinstance(one, SliceHeader)
    assert (frame, one) == (0, replace(read_slice(path).header, flags=one.flags))


def test_words_at_the_top_do_not_exclude_frames_that_lie_as_slices() -> None:
    found = slices(enhanced(series(SeriesDescription="MIP 5 mm")))
    assert [ct.header.slice_id for ct in found] == [f"{UID}#1", f"{UID}#2", f"{UID}#3"]
    assert all("described_otherwise" in ct.header.flags for ct in found)


def test_a_frame_that_is_no_axial_slice_is_excluded() -> None:
    coronal = frame_changed(2, "PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    assert outcomes(enhanced(series(), edit=coronal)) == ["", "not_axial", ""]


def test_a_file_of_several_frames_is_not_one_slice() -> None:
    with pytest.raises(Rejection, match="multiframe: one slice must be there, got 3 frames"):
        read_slice(enhanced(series()))


def test_frames_go_by_the_uid_of_their_file_and_their_number() -> None:
    assert [ct.header.slice_id for ct in slices(enhanced(series()))] == [f"{UID}#1", f"{UID}#2", f"{UID}#3"]


def test_converted_frames_go_by_the_uid_that_they_had() -> None:
    found = slices(enhanced(series(), legacy=True))
    assert [ct.header.slice_id for ct in found] == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]


def source(number: int, **values: Any) -> Edit:
    return frame_changed(number, "ConversionSourceAttributesSequence", **values)


@pytest.mark.parametrize(
    ("edit", "ids"),
    [
        (source(2, ReferencedSOPInstanceUID="1.2.3.1"), [f"{UID}#1", f"{UID}#2", f"{UID}#3"]),
        (source(2, ReferencedSOPInstanceUID="../x"), ["1.2.3.1", f"{UID}#2", "1.2.3.3"]),
        (source(2, ReferencedFrameNumber=7), ["1.2.3.1", f"{UID}#2", "1.2.3.3"]),
    ],
    ids=["told twice", "no identifier", "a frame"],
)
def test_a_source_that_names_no_slice_of_its_own_is_not_used(edit: Edit, ids: list[str]) -> None:
    assert [ct.header.slice_id for ct in slices(enhanced(series(), legacy=True, edit=edit))] == ids


@pytest.mark.parametrize("used", [["YES", "NO"], ["NO", "NO"], None])
def test_contrast_agent_of_a_frame(used: list[str] | None) -> None:
    def edit(file: Dataset) -> None:
        file.ContrastBolusAgentSequence = Items([Dataset()])
        for group in file.PerFrameFunctionalGroupsSequence if used else ():
            group.ContrastBolusUsageSequence = Items([Dataset() for _ in used or ()])
            for item, value in zip(group.ContrastBolusUsageSequence, used or (), strict=True):
                item.ContrastBolusAgentAdministered = value

    found = [ct.header.acquisition.contrast for ct in slices(enhanced(series(), edit=edit))]
    assert found == [used != ["NO", "NO"]] * FRAMES
    assert not slices(enhanced(series()))[0].header.acquisition.contrast


def test_a_position_at_the_top_is_that_of_no_frame() -> None:
    def edit(file: Dataset) -> None:
        file.ImagePositionPatient = [0, 0, 0]
        for group in file.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    assert [ct.header.acquisition.position for ct in slices(enhanced(series(), edit=edit))] == [()] * FRAMES


def encoded(syntax: str) -> tuple[list[bytes], list[bytes]]:
    """Classic slices, and the frame of each compressed."""
    if syntax == JPEGLosslessSV1:
        classic = series(PixelRepresentation=0)
        words = [np.frombuffer(dataset_of(data).PixelData, np.uint16).reshape(64, 64) for data in classic]
        return classic, [lossless_jpeg(one) for one in words]
    classic = series()
    files = [compressed_image(syntax, head(seed=number), **_rescale(number)) for number in range(FRAMES)]
    return classic, [next(generate_frames(dataset_of(data).PixelData, number_of_frames=1)) for data in files]


def _rescale(number: int) -> dict[str, Any]:
    return {"RescaleIntercept": -1024 - number}


@pytest.mark.parametrize("offsets", ["none", "basic", "extended"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_compressed_frames(syntax: str, offsets: str) -> None:
    classic, coded = encoded(syntax)
    data = enhanced(classic, syntax=syntax, frames=coded, offsets=offsets)
    found = slices(data)
    for one, expected in zip(found, classic, strict=True):
        assert np.array_equal(one.hu(), read_slice(expected).hu())


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_frames_in_several_fragments(syntax: str, has_table: bool) -> None:
    classic, coded = encoded(syntax)

    def edit(file: Dataset) -> None:
        file.PixelData = encapsulate(coded, fragments_per_frame=3, has_bot=has_table)

    data = enhanced(classic, syntax=syntax, frames=coded, edit=edit)
    assert len(parse(memoryview(data)).fragments) == 1 + 3 * FRAMES
    for one, expected in zip(slices(data), classic, strict=True):
        assert np.array_equal(one.hu(), read_slice(expected).hu())


def test_frames_of_rle_in_several_fragments_cannot_be_told_apart() -> None:
    classic, coded = encoded(RLELossless)

    def edit(file: Dataset) -> None:
        file.PixelData = encapsulate(coded, fragments_per_frame=2, has_bot=False)

    assert refusal(enhanced(classic, syntax=RLELossless, frames=coded, edit=edit)).reason == "decode_error"


def test_a_file_of_one_frame_may_say_all_at_its_top() -> None:
    data = make(SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=1)
    assert np.array_equal(read_slice(data).hu(), head())


@pytest.mark.parametrize("change", [1, -1, 1000])
def test_an_offset_table_that_leads_elsewhere_is_refused(change: int) -> None:
    classic, coded = encoded(RLELossless)
    data = bytearray(enhanced(classic, syntax=RLELossless, frames=coded))
    start, _ = parse(memoryview(data)).fragments[0]
    second = int.from_bytes(data[start + 4 : start + 8], "little")
    data[start + 4 : start + 8] = (second + 2 * change).to_bytes(4, "little")
    assert refusal(bytes(data)).reason == "decode_error"


def test_one_bad_frame_is_one_rejection() -> None:
    classic, coded = encoded(JPEGLosslessSV1)
    coded[1] = coded[1][:60] + b"\xff\xd9" + bytes(len(coded[1]) % 2)
    assert outcomes(enhanced(classic, syntax=JPEGLosslessSV1, frames=coded)) == ["", "decode_error", ""]
    empty = [*series()]
    empty[2] = make(np.full((64, 64), -1000), SOPInstanceUID="1.2.3.3")
    assert outcomes(enhanced(empty)) == ["", "", "hu_implausible"]


def group_gone(sequence: str) -> Edit:
    def edit(file: Dataset) -> None:
        delattr(file.PerFrameFunctionalGroupsSequence[1], sequence)

    return edit


def group_twice(file: Dataset) -> None:
    group = file.PerFrameFunctionalGroupsSequence[1]
    group.PlanePositionSequence = Items([group.PlanePositionSequence[0]] * 2)


def shared_too(file: Dataset) -> None:
    group = Dataset()
    group.RescaleIntercept, group.RescaleSlope = -1025, 1
    group.RescaleType = "HU"
    file.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = Items([group])


@pytest.mark.parametrize(
    ("edit", "reasons"),
    [
        (frame_changed(2, "PixelValueTransformationSequence", RescaleType="US"), ["", "rescale_type", ""]),
        (frame_changed(2, "PixelValueTransformationSequence", RescaleSlope=None), ["", "rescale_missing", ""]),
        (group_gone("PixelValueTransformationSequence"), ["", "rescale_missing", ""]),
        (group_gone("PlanePositionSequence"), ["", "", ""]),
        (frame_changed(2, "CTImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
         ["", "localizer", ""]),
        (group_twice, ["", "frames_invalid", ""]),
        (shared_too, ["frames_invalid", "", "frames_invalid"]),
        (lambda file: setattr(file, "RescaleIntercept", "-1024.0"), ["", "rescale_invalid", "rescale_invalid"]),
    ],
)  # fmt: skip
def test_what_a_group_lacks_is_the_reason_of_its_frame(edit: Edit, reasons: list[str]) -> None:
    assert outcomes(enhanced(series(), edit=edit)) == reasons


def a_group_fewer(file: Dataset) -> None:
    file.PerFrameFunctionalGroupsSequence.pop()


def fewer_frames_than_words(file: Dataset) -> None:
    a_group_fewer(file)
    file.NumberOfFrames = FRAMES - 1


def a_frame_less(file: Dataset) -> None:
    file.PixelData = file.PixelData[: -64 * 64 * 2]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (a_group_fewer, "frames_invalid: functional groups of 3 frames must be there, got 2"),
        (fewer_frames_than_words, "pixel_excess: 16384 bytes must be there for 2 frames"),
        (lambda file: setattr(file, "NumberOfFrames", 2),
         "frames_invalid: functional groups of 2 frames must be there, got more"),
        (lambda file: delattr(file, "PerFrameFunctionalGroupsSequence"),
         "frames_invalid: functional groups of 3 frames must be there, got 0"),
        (a_frame_less, "pixel_short: 24576 bytes must be there for 3 frames, got 16384"),
        (lambda file: setattr(file, "NumberOfFrames", 2**14 + 1), "size_limit: a file may have 16384 frames"),
        (lambda file: setattr(file, "NumberOfFrames", -1), "frames_invalid: NumberOfFrames must be a count"),
        (lambda file: setattr(file, "SOPInstanceUID", ""), "uid_missing"),
        (lambda file: delattr(file, "PixelData"), "no_pixel"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_its_reason(edit: Edit, said: str) -> None:
    assert str(refusal(enhanced(series(), edit=edit))).startswith(said)


def test_several_frames_of_another_class_are_refused() -> None:
    with pytest.raises(Rejection, match="multiframe: one frame must be there, or enhanced CT, got 3"):
        read_slice(make(NumberOfFrames=3))
    assert outcomes(make(NumberOfFrames=3)) == ["multiframe"]
    assert outcomes(enhanced(series(), edit=lambda file: setattr(file, "Modality", "MR"))) == ["not_ct"]


def test_spare_bytes_go_with_the_last_frame() -> None:
    def edit(file: Dataset) -> None:
        file.PixelData += b"\0\0"

    found = slices(enhanced(series(), edit=edit))
    assert ["pixel_padding" in ct.header.flags for ct in found] == [False, False, True]


def test_groups_of_unknown_vr_are_read() -> None:
    """As a system that does not know the sequences passes them on: implicit inside (PS3.5 6.2.2)."""
    classic = series()
    implicit = enhanced(classic, syntax=SYNTAXES["implicit"])
    spans = parse(memoryview(implicit)).spans
    whole = dataset_of(enhanced(classic))
    del whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence
    start, end = spans[0x52009230]
    group = b"\x00\x52\x30\x92UN\0\0" + (end - start).to_bytes(4, "little") + implicit[start:end]
    assert_equal(slices(plant(save(whole, SYNTAXES["explicit"]), group)), classic)


def test_an_element_twice_in_a_group_is_refused() -> None:
    data = enhanced(series())
    whole = parse(memoryview(data))
    group = next(next(whole.items(0x52009230)).items(0x00289145))
    at = group.spans[0x00281053][0] - 8
    assert data[at : at + 6] == b"\x28\x00\x53\x10DS"
    changed = data[:at] + b"\x28\x00\x52\x10DS" + data[at + 6 :]
    assert outcomes(changed) == ["duplicate_tag", "", ""]


def test_a_large_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, classic = tmp_path / "large.dcm", series()
    path.write_bytes(enhanced(classic))
    monkeypatch.setattr("ich_ray.ct.source.FILE_LIMIT_BYTES", 10_000)
    monkeypatch.setattr(frames, "FILE_LIMIT_BYTES", 10_000)
    assert path.stat().st_size > 10_000
    found = slices(path)
    path.unlink()
    assert_equal(found, classic)
    path.write_bytes(make())
    assert read_slice(path).header.slice_id == "ID_0001"


def test_functional_groups_behind_the_limit_of_a_slice_are_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = enhanced(series())
    monkeypatch.setattr(elements, "FILE_LIMIT_BYTES", 1000)
    assert str(refusal(data)) == "size_limit: sequences may lie in the first 1000 bytes"


def test_fragments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    classic, coded = encoded(RLELossless)
    monkeypatch.setattr(elements, "FRAGMENT_LIMIT", FRAMES)
    data = enhanced(classic, syntax=RLELossless, frames=coded)
    assert str(refusal(data)) == "decode_error: PixelData may have 3 fragments"


def test_words_equal_those_of_pydicom() -> None:
    data = enhanced(series())
    whole = dcmread(io.BytesIO(data)).pixel_array
    assert np.array_equal(whole, np.stack([ct.stored for ct in slices(data)]))

"""Every reading of one file: what is accepted, repaired and flagged, and which reason each bad file gets."""

from __future__ import annotations

import itertools
import math
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ich_ray.ct import elements, frames
from ich_ray.ct.dicom import EXCLUSIONS, FLAGS, read_slice
from ich_ray.errors import Rejection
from tests.ct.files import (
    ABSENT,
    IDENTIFIERS,
    INTERCEPT,
    PIXEL_HEAD,
    SYNTAXES,
    compressed,
    compressed_image,
    dataset_of,
    element,
    head,
    lossless_jpeg,
    make,
    plant,
    save,
)
from tests.data.real import real_slices


def reason(data: bytes | Path) -> str:
    with pytest.raises(Rejection) as caught:
        read_slice(data)
    return caught.value.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("names", IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_every_native_syntax_gives_the_same_hu(syntax: str, signed: bool, names: dict[str, str]) -> None:
    ct = read_slice(make(syntax=syntax, signed=signed, **names))
    assert np.array_equal(ct.hu(), head())
    assert ct.header.flags == ("not_512",)
    assert (ct.header.slice_id, ct.header.study, ct.header.series) == tuple(names.values())
    assert ct.hu().dtype == np.float32
    assert ct.header.signed is signed
    assert not ct.stored.flags.writeable


def test_native_words_are_a_view_of_the_bytes() -> None:
    data = make()
    assert np.shares_memory(read_slice(data).stored, np.frombuffer(data, np.uint8))


def test_header_facts() -> None:
    header = read_slice(make()).header
    assert (header.slice_id, header.patient, header.study, header.series) == ("ID_0001", "P1", "ID_study", "ID_series")
    assert (header.rows, header.columns, header.bits_stored, header.slope, header.intercept) == (64, 64, 16, 1.0, -1024)
    assert header.acquisition.position_mm == 40.0
    assert header.flags == ("not_512",)


def test_position_is_along_the_normal_of_a_tilted_slice() -> None:
    tilt = math.radians(20)
    ct = read_slice(make(ImageOrientationPatient=[1, 0, 0, 0, round(math.cos(tilt), 6), round(-math.sin(tilt), 6)]))
    assert ct.header.acquisition.position_mm == pytest.approx(40 * math.cos(tilt) - 100 * math.sin(tilt), abs=1e-3)
    assert math.isnan(read_slice(make(ImagePositionPatient=ABSENT)).header.acquisition.position_mm)


COMPRESSED = {"rle": RLELossless, "j2k": JPEG2000Lossless, "jpegls": JPEGLSLossless}


@pytest.mark.parametrize("syntax", COMPRESSED.values(), ids=COMPRESSED)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("names", IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_every_lossless_syntax_gives_the_same_hu(syntax: str, signed: bool, names: dict[str, str]) -> None:
    ct = read_slice(compressed_image(syntax, signed=signed, **names))
    assert np.array_equal(ct.hu(), head())
    assert ct.header.flags == ("not_512",)
    assert ct.header.slice_id == names["SOPInstanceUID"]


WORDS = (head().astype(np.int32) - INTERCEPT).astype(np.uint16)


@pytest.mark.parametrize("names", IDENTIFIERS.values(), ids=IDENTIFIERS)
def test_lossless_jpeg(names: dict[str, str]) -> None:
    ct = read_slice(compressed(lossless_jpeg(WORDS), JPEGLosslessSV1, PixelRepresentation=0, **names))
    assert np.array_equal(ct.hu(), head())
    assert ct.header.slice_id == names["SOPInstanceUID"]


BAD_TAGS: dict[str, tuple[dict[str, Any], str]] = {
    "no pixels": ({"PixelData": ABSENT}, "no_pixel"),
    "empty pixels": ({"pixels": b""}, "no_pixel"),
    "pixels too short": ({"pixels": b"\0" * 8000}, "pixel_short"),
    "twice the pixels": ({"pixels": b"\0" * 64 * 64 * 4}, "pixel_excess"),
    "8 bits on 16-bit data": ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "pixel_excess"),
    "12 allocated": ({"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11}, "bits_invalid"),
    "32 allocated": ({"BitsAllocated": 32}, "bits_invalid"),
    "stored above allocated": ({"BitsStored": 17, "HighBit": 16}, "bits_invalid"),
    "stored missing": ({"BitsStored": ABSENT}, "bits_invalid"),
    "high bit": ({"HighBit": 14}, "bits_inconsistent"),
    "sign missing": ({"PixelRepresentation": ABSENT}, "pixrep_invalid"),
    "sign 2": ({"PixelRepresentation": 2}, "pixrep_invalid"),
    "rows missing": ({"Rows": ABSENT}, "dims_invalid"),
    "columns 0": ({"Columns": 0}, "dims_invalid"),
    "65,535 rows": ({"Rows": 65535}, "dims_limit"),
    "65,535 rows and columns": ({"Rows": 65535, "Columns": 65535}, "dims_limit"),
    "frames 2^31-1": ({"NumberOfFrames": "2147483647"}, "frames_invalid"),
    "frames -1": ({"NumberOfFrames": "-1"}, "frames_invalid"),
    "frames 3": ({"NumberOfFrames": "3"}, "multiframe"),
    "color": ({"SamplesPerPixel": 3}, "not_grayscale"),
    "samples missing": ({"SamplesPerPixel": ABSENT}, "not_grayscale"),
    "inverted": ({"PhotometricInterpretation": "MONOCHROME1"}, "photometric"),
    "slope missing": ({"RescaleSlope": ABSENT}, "rescale_missing"),
    "intercept missing": ({"RescaleIntercept": ABSENT}, "rescale_missing"),
    "slope empty": ({"RescaleSlope": ""}, "rescale_invalid"),
    "slope 0": ({"RescaleSlope": 0}, "rescale_invalid"),
    "slope -1": ({"RescaleSlope": -1}, "rescale_invalid"),
    "two slopes": ({"RescaleSlope": [1, 1]}, "rescale_invalid"),
    "huge intercept": ({"RescaleIntercept": "1e300"}, "rescale_invalid"),
    "not HU": ({"RescaleType": "US"}, "rescale_type"),
    "uid missing": ({"SOPInstanceUID": ABSENT}, "uid_missing"),
    "uid blank": ({"SOPInstanceUID": ""}, "uid_missing"),
    "uid is a path": ({"SOPInstanceUID": "../../etc/passwd"}, "uid_invalid"),
    "uid with dots": ({"SOPInstanceUID": "ID..x"}, "uid_invalid"),
    "study is a formula": ({"StudyInstanceUID": "=1+1"}, "uid_invalid"),
    "study steers a terminal": ({"StudyInstanceUID": "1.2\x1b]0;x\x07"}, "uid_invalid"),
    "two studies": ({"StudyInstanceUID": ["1.2", "1.3"]}, "uid_invalid"),
    "study of 65 characters": ({"StudyInstanceUID": "1." * 32 + "1"}, "uid_invalid"),
    "series is a path": ({"SeriesInstanceUID": "../x"}, "uid_invalid"),
    "MR": ({"Modality": "MR"}, "not_ct"),
    "no modality": ({"Modality": ABSENT}, "not_ct"),
    "structured report": ({"Modality": "SR", "Rows": ABSENT, "PixelData": ABSENT}, "not_ct"),
    "raw data": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66", "PixelData": ABSENT}, "not_image"),
    "no image": ({"SOPClassUID": "1.3.12.2.1107.5.9.1", "PixelData": ABSENT}, "not_image"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "localizer in lower case": ({"ImageType": ["original", "primary", "localizer"]}, "localizer"),
    "constant": ({"hu": np.full((64, 64), 35)}, "hu_implausible"),
    "lost sign": ({"hu": np.where(head() < -900, -3024, head()), "PixelRepresentation": 0}, "hu_implausible"),
    "unknown syntax": ({"declared": "1.2.840.10008.1.2.9"}, "syntax_unsupported"),
}


@pytest.mark.parametrize(("changes", "expected"), BAD_TAGS.values(), ids=BAD_TAGS)
def test_a_bad_tag_is_rejected_with_its_reason(changes: dict[str, Any], expected: str) -> None:
    assert reason(make(**changes)) == expected


@pytest.mark.parametrize(
    ("uid", "read"),
    [
        ("1.2.840.113619.2.30.1", "1.2.840.113619.2.30.1"),
        ("ID_0123", "ID_0123"),
        ("ID_8a9ceb066 ", "ID_8a9ceb066"),
        (" 1.2.3\0", "1.2.3"),
        ("1." * 31 + "11", "1." * 31 + "11"),
        ("", ""),
        ("  ", ""),
    ],
)
@pytest.mark.parametrize(("tag", "keyword"), [(0x0020000D, "StudyInstanceUID"), (0x0020000E, "SeriesInstanceUID")])
def test_identifiers_of_studies_and_series_lose_their_padding_only(tag: int, keyword: str, uid: str, read: str) -> None:
    data = plant(make(**{keyword: ABSENT}), element(tag, b"UI", uid.encode()))
    header = read_slice(data).header
    assert (header.study if tag == 0x0020000D else header.series) == read
    assert ("study_missing" in header.flags) == (read == "")


@pytest.mark.parametrize("value", ["-1,024", "NaN", "1e999", "abc", "1 2"])
@pytest.mark.parametrize("tag", [0x00281052, 0x00281053])
def test_a_rescale_that_is_no_number_is_rejected_without_being_quoted(tag: int, value: str) -> None:
    absent = {0x00281052: "RescaleIntercept", 0x00281053: "RescaleSlope"}[tag]
    data = plant(make(**{absent: ABSENT}), element(tag, b"DS", value.encode().ljust(8)))
    with pytest.raises(Rejection, match="rescale_invalid") as caught:
        read_slice(data)
    assert value not in str(caught.value)


def test_frames_that_are_no_number() -> None:
    assert reason(plant(make(), element(0x00280008, b"IS", b"abc "))) == "frames_invalid"
    assert read_slice(plant(make(), element(0x00280008, b"IS", b"0 "))).header.rows == 64


def test_float_pixels_and_a_modality_lut() -> None:
    def with_float(dataset: Dataset) -> None:
        del dataset.PixelData
        dataset.FloatPixelData = head().astype(np.float32).tobytes()

    def with_lut(dataset: Dataset) -> None:
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4096, 0, 16], "HU", b"\0" * 8192
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
        dataset.ModalityLUTSequence = Sequence([item])

    assert reason(make(edit=with_float)) == "float_pixel"
    assert reason(make(edit=with_lut)) == "modality_lut"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", random.Random(0).randbytes(2000), b"<html><body>404</body></html>" * 20, b"PK\x03\x04" + b"\0" * 400],
    ids=["0 bytes", "1 byte", "random", "html", "zip"],
)
def test_what_is_no_dicom(data: bytes) -> None:
    assert reason(data) == "not_dicom"


def test_without_a_preamble() -> None:
    assert reason(make()[132:]) == "not_dicom"


@pytest.mark.parametrize("magic", [b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"#!/bin/sh"])
def test_a_program_in_the_preamble(magic: bytes) -> None:
    assert reason(magic + make()[len(magic) :]) == "preamble_executable"


def test_cut_anywhere() -> None:
    data = make()
    pixels = data.index(PIXEL_HEAD) + 12
    for end in range(132, pixels):
        assert reason(data[:end]) in {"truncated_header", "no_pixel", "not_ct", "pixel_short"}, end
    assert reason(data[:170]) == reason(data[: data.index(b"P1")]) == "truncated_header"
    assert reason(data[:pixels]) == reason(data[: pixels + 1000]) == reason(data[:-1]) == "pixel_short"


def test_one_or_two_spare_bytes_are_accepted() -> None:
    words = (head().astype(np.int32) - INTERCEPT).astype("<i2").tobytes()
    ct = read_slice(make(pixels=words + b"\0\0"))
    assert "pixel_padding" in ct.header.flags
    assert np.array_equal(ct.hu(), head())
    assert np.array_equal(read_slice(make() + b"\0" * 100).hu(), head())


def test_a_tag_that_stands_twice() -> None:
    assert reason(plant(make(), element(0x00280010, b"US", b"\x20\0"))) == "duplicate_tag"


def test_a_length_that_swallows_the_rest() -> None:
    swallowing = b"\x29\x00\x10\x00UN\0\0\xf0\xff\xff\xff"
    assert reason(plant(make(), swallowing)) == "truncated_header"


@pytest.mark.parametrize("is_defined", [True, False])
def test_deep_nesting(is_defined: bool) -> None:
    def nested(depth: int) -> bytes:
        inside = b""
        for _ in range(depth):
            if is_defined:
                item = b"\xfe\xff\x00\xe0" + len(inside).to_bytes(4, "little") + inside
                inside = b"\x40\x00\x60\xa7SQ\0\0" + len(item).to_bytes(4, "little") + item
            else:
                item = b"\xfe\xff\x00\xe0" + b"\xff" * 4 + inside + b"\xfe\xff\x0d\xe0" + b"\0" * 4
                inside = b"\x40\x00\x60\xa7SQ\0\0" + b"\xff" * 4 + item + b"\xfe\xff\xdd\xe0" + b"\0" * 4
        return inside

    assert reason(plant(make(), nested(5000))) == "nesting_limit"
    assert np.array_equal(read_slice(plant(make(), nested(30))).hu(), head())


def test_bits_above_bits_stored_are_ignored_and_flagged() -> None:
    words = (head().astype(np.int32) - INTERCEPT).astype(np.uint16)
    ct = read_slice(make(signed=False, pixels=(words | 0x7000).tobytes()))
    assert np.array_equal(ct.hu(), head())
    assert "high_bits" in ct.header.flags
    shifted = read_slice(make(pixels=(words & 0x0FFF).tobytes(), BitsStored=12, HighBit=11, RescaleIntercept=0))
    expected = np.where(words >= 2048, words.astype(np.int32) - 4096, words)
    assert np.array_equal(shifted.hu(), expected)


def test_the_rsna_repair_is_for_its_signature_only() -> None:
    words = np.tile(np.array([0, 35, 3095, 3096, 4095], np.uint16), (5, 1))
    repaired = read_slice(make(words, pixels=words.tobytes(), signed=False, RescaleIntercept=0))
    assert repaired.hu()[0].tolist() == [0, 35, 3095, -1000, -1]
    assert "rsna_repair" in repaired.header.flags
    assert (repaired.header.intercept, repaired.intercept) == (0, 0)
    for other in ({"RescaleIntercept": -1024}, {"BitsStored": 16, "HighBit": 15}, {"RescaleSlope": 2}):
        kept = read_slice(make(words, pixels=words.tobytes(), signed=False, **{"RescaleIntercept": 0, **other}))
        assert "rsna_repair" not in kept.header.flags


def test_unsigned_words_with_a_negative_intercept_do_not_overflow() -> None:
    assert read_slice(make(signed=False)).hu().min() == head().min()


def test_padding_becomes_air() -> None:
    hu = head()
    hu[:3] = 3000
    ct = read_slice(make(hu, PixelPaddingValue=3000 - INTERCEPT))
    assert ct.hu()[0, 0] == -1024
    assert np.array_equal(ct.hu()[3:], head()[3:])
    assert "padding" in ct.header.flags
    unsigned = read_slice(make(hu, signed=False, PixelPaddingValue=3000 - INTERCEPT, RescaleIntercept=0, BitsStored=16,
                               HighBit=15))  # fmt: skip
    assert unsigned.hu()[0, 0] == -1024
    assert "padding" not in read_slice(make(PixelPaddingValue=3000 - INTERCEPT)).header.flags


def test_the_usual_padding_without_a_tag_is_flagged_and_kept() -> None:
    hu = head()
    hu[:3] = -3024
    ct = read_slice(make(hu))
    assert "padding" in ct.header.flags
    assert ct.hu()[0, 0] == -3024


@pytest.mark.parametrize(
    ("hu", "flag"),
    [
        (np.where(head() > 850, 31_000, head()), "extreme_hu"),
        (np.where(head() > 850, -31_000, head()), "extreme_hu"),
        (head(64, 48), "not_square"),
        (np.where(head() > -100, -990, head()), "near_empty"),
    ],
)
def test_oddities_are_flagged(hu: np.ndarray, flag: str) -> None:
    ct = read_slice(make(hu))
    assert flag in ct.header.flags
    assert np.array_equal(ct.hu(), hu)
    assert set(ct.header.flags) <= set(FLAGS)


def test_a_plain_512_slice_has_no_flags_and_missing_study_is_one() -> None:
    assert read_slice(make(head(512, 512))).header.flags == ()
    assert "study_missing" in read_slice(make(StudyInstanceUID=ABSENT)).header.flags


def test_uid_of_the_meta_header() -> None:
    deidentified = make().replace(b"\x03\x00UI\x08\x00ID_0001\0", b"\x03\x00UI\x08\x001.2.345\0", 1)
    assert read_slice(deidentified).header.slice_id == "ID_0001"
    assert "meta_uid" not in read_slice(deidentified).header.flags
    differing = make(SOPInstanceUID="1.2.346").replace(b"1.2.346\0", b"1.2.345\0", 1)
    assert read_slice(differing).header.slice_id == "1.2.346"
    assert "meta_uid" in read_slice(differing).header.flags


@pytest.mark.parametrize("patient", [ABSENT, "", "  "])
def test_a_slice_without_a_patient_is_read_and_flagged(patient: object) -> None:
    ct = read_slice(make(PatientID=patient))
    assert ct.header.patient == ""
    assert "patient_blank" in ct.header.flags
    assert np.array_equal(ct.hu(), head())


@pytest.mark.parametrize(
    ("keyword", "value"), [("Modality", "ct"), ("PhotometricInterpretation", "Monochrome2"), ("RescaleType", "hu")]
)
def test_codes_in_lower_case_are_read_and_flagged(keyword: str, value: str) -> None:
    ct = read_slice(make(**{keyword: value}))
    assert np.array_equal(ct.hu(), head())
    assert ct.header.flags == ("lower_case", "not_512")


def test_implicit_and_explicit_mixed_up() -> None:
    dataset = dataset_of(make())
    data = save(dataset, ExplicitVRLittleEndian, declared=ImplicitVRLittleEndian)
    ct = read_slice(data)
    assert np.array_equal(ct.hu(), head())
    assert "vr_encoding" in ct.header.flags


def test_compressed_frames_that_are_not_what_they_say() -> None:
    words = (head(32, 32).astype(np.int32) - INTERCEPT).astype(np.uint16)
    assert reason(compressed(lossless_jpeg(words), JPEGLosslessSV1)) == "dims_mismatch"
    bomb = lossless_jpeg(words).replace(b"\x10\0\x20\0\x20", b"\x10\xff\xff\xff\xff")
    assert reason(compressed(bomb, JPEGLosslessSV1)) == "size_limit"
    assert reason(compressed(b"no codestream", JPEG2000Lossless)) == "decode_error"
    assert reason(make(declared=JPEGBaseline8Bit)) == "decode_error"
    assert reason(make(declared=RLELossless)) == "decode_error"


def test_rle_cut_corrupt_and_too_large() -> None:
    dataset = dataset_of(make())
    dataset.compress(RLELossless)
    data = save(dataset, RLELossless)
    assert reason(data[:-500]) == "truncated_pixel"
    at = data.index(b"\x02\0\0\0\x40\0\0\0")
    assert reason(data[: at + 80] + b"\x80" * 500 + data[at + 580 :]) == "truncated_pixel"
    dataset.Rows = dataset.Columns = 20_000
    assert reason(save(dataset, RLELossless)) == "size_limit"


def test_inflating_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def pile(dataset: Dataset) -> None:
        dataset.ImageComments = ""
        dataset.add_new(0x00291010, "UN", b"\0" * 70 * 2**20)

    data = make(syntax="deflated", edit=pile)
    assert len(data) < 2**20
    assert reason(data) == "inflate_limit"
    assert reason(make(syntax="deflated")[:-200]) == "truncated_header"


def test_a_file_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.dcm"
    path.write_bytes(make())
    os.truncate(path, 64 * 2**20 + 1)
    assert reason(path) == "size_limit"
    os.truncate(path, 2**31 + 1)
    assert reason(path) == "size_limit"
    monkeypatch.setattr(frames, "FILE_LIMIT_BYTES", 1000)
    assert reason(make()) == "size_limit"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.dcm")
    (tmp_path / "folder.dcm").mkdir()
    assert reason(tmp_path / "fifo.dcm") == "not_regular"
    assert reason(tmp_path / "folder.dcm") in {"not_regular", "io_error"}
    assert reason(tmp_path / "absent.dcm") == "io_error"
    (tmp_path / "slice.dcm").write_bytes(make())
    assert read_slice(str(tmp_path / "slice.dcm")).header.slice_id == "ID_0001"


def test_reading_leaves_no_trace_of_the_file(capfd: pytest.CaptureFixture[str], caplog: Any, recwarn: Any) -> None:
    canary = "CANARY7"
    read_slice(make(PatientID=canary, SOPInstanceUID=f"ID_{canary}", PatientName=canary))
    for data in (make(PatientID=canary, Rows=0), make(SOPInstanceUID=f"{canary}//", PatientID=canary)):
        with pytest.raises(Rejection) as caught:
            read_slice(data)
        assert canary not in str(caught.value)
    out, err = capfd.readouterr()
    assert canary not in out + err + caplog.text + "".join(str(w.message) for w in recwarn)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutants_end_as_a_slice_or_a_typed_rejection(data: st.DataObject) -> None:
    file = bytearray(make(syntax=data.draw(st.sampled_from(["explicit", "implicit", "big"]))))
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(132, 900))] = data.draw(st.integers(0, 255))
    with suppress(Rejection):  # any other exception is a failure
        ct = read_slice(bytes(file))
        assert ct.stored.shape == (ct.header.rows, ct.header.columns)


def test_elements_agree_with_pydicom() -> None:
    for syntax, names in itertools.product(SYNTAXES, IDENTIFIERS.values()):
        data = make(syntax=syntax, **names)
        found = elements.parse(memoryview(data))
        dataset = dataset_of(data)
        assert set(found.spans) == {*map(int, dataset.keys()), *map(int, dataset.file_meta.keys())}
        for element_ in (*dataset.file_meta, *dataset):
            if isinstance(element_.value, str):
                assert found.text(int(element_.tag)) == element_.value


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_slices_read_as_pydicom_reads_them() -> None:
    for path in real_slices():
        ct, dataset = read_slice(path), pydicom.dcmread(path)
        assert (ct.header.slice_id, ct.header.patient) == (dataset.SOPInstanceUID, dataset.PatientID)
        assert np.array_equal(ct.stored, dataset.pixel_array)
        assert set(ct.header.flags) <= {"padding", "near_empty", "extreme_hu"}


def test_exclusions_are_reasons() -> None:
    assert {"dicomdir", "localizer", "not_axial", "not_ct", "not_head", "not_image"} <= EXCLUSIONS
    assert {"projection", "secondary_capture"} <= EXCLUSIONS

"""The cases of bad input, numbered as in their contract: one folder with a file of each goes through `ich-ray prepare`.

Cases 1 to 41 are about files, 42 to 46 about the label table and the roles. Files that a test must hold in its hand,
such as one that vanishes, follow one by one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ich_ray import cli
from ich_ray.ct import pixels
from ich_ray.ct.decoder import is_available
from ich_ray.ct.dicom import read_slice
from ich_ray.ct.source import read_file
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows, window_slice
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.prepare.label_table import read_labels
from ich_ray.data.prepare.run import prepare
from ich_ray.errors import LabelError, Rejection, RoleError
from ich_ray.runtime import connected
from ich_ray.storage import locate
from tests.ct.files import (
    ABSENT,
    INTERCEPT,
    PIXEL_HEAD,
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
from tests.data.folders import PATIENTS, SLICES, paths, refusals, write_cohort

WINDOWS = parse_windows(DEFAULT_WINDOWS)
WORDS = head().astype(np.int32) - INTERCEPT
JPEG = lossless_jpeg(WORDS.astype(np.uint16))
STALE = "1.2.346"  # the one slice here whose identifier is a UID


@dataclass(frozen=True)
class Case:
    """`make` is given the tags that tell its slice from the others; `expected` is a reason, a flag, or `accepted`.

    Attributes:
        shows: HU of the accepted image.
    """

    number: int
    what: str
    make: Callable[[dict[str, str]], bytes]
    expected: str
    shows: np.ndarray | None = None

    @property
    def name(self) -> str:
        return f"{self.number:02d}-{self.what.replace(' ', '-')}"

    @property
    def slice_id(self) -> str:
        return "ID_" + re.sub(r"[^0-9A-Za-z]+", "-", self.name)


def of(number: int, what: str, expected: str, shows: np.ndarray | None = None, **changes: Any) -> Case:
    """A case that is a change of tags or of an argument of `make`."""
    return Case(number, what, lambda tags: make(**{**tags, **changes}), expected, shows)


def edited(number: int, what: str, expected: str, edit: Callable[[bytes], bytes], **changes: Any) -> Case:
    """A case that is a change of the bytes of a good file."""
    return Case(number, what, lambda tags: edit(make(**{**tags, **changes})), expected, head())


def upto(data: bytes, offset: int) -> bytes:
    return data[: data.index(PIXEL_HEAD) + 12 + offset]


def replanted(keyword: str, tag: int, vr: bytes, value: bytes) -> Callable[[dict[str, str]], bytes]:
    """A file with an element that pydicom would not write."""
    return lambda tags: plant(make(**{**tags, keyword: ABSENT}), element(tag, vr, value))


def with_float(tags: dict[str, str]) -> bytes:
    def edit(dataset: Dataset) -> None:
        del dataset.PixelData
        dataset.FloatPixelData = head().astype(np.float32).tobytes()

    return make(edit=edit, **tags)


def with_lut(tags: dict[str, str]) -> bytes:
    def edit(dataset: Dataset) -> None:
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4096, 0, 16], "HU", b"\0" * 8192
        item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
        dataset.ModalityLUTSequence = Sequence([item])

    return make(edit=edit, **tags)


def deflated_bomb(tags: dict[str, str]) -> bytes:
    return make(syntax="deflated", edit=lambda ds: ds.add_new(0x00291010, "UN", b"\0" * 70 * 2**20), **tags)


def nested(depth: int) -> bytes:
    inside = b""
    for _ in range(depth):
        item = b"\xfe\xff\x00\xe0" + len(inside).to_bytes(4, "little") + inside
        inside = b"\x40\x00\x60\xa7SQ\0\0" + len(item).to_bytes(4, "little") + item
    return inside


def rle_bomb(tags: dict[str, str]) -> bytes:
    dataset = dataset_of(compressed_image(RLELossless, **tags))
    dataset.Rows = dataset.Columns = 20_000
    return save(dataset, RLELossless)


def other_meta_uid(tags: dict[str, str]) -> bytes:
    return make(**{**tags, "SOPInstanceUID": STALE}).replace(STALE.encode(), b"1.2.345", 1)


def directory(_: dict[str, str]) -> bytes:
    dataset = Dataset()
    dataset.FileSetID, dataset.DirectoryRecordSequence = "CD", Sequence([])
    storage, medium = CTImageStorage.encode() + b"\0", b"1.2.840.10008.1.3.10".ljust(26, b"\0")
    return save(dataset, ExplicitVRLittleEndian).replace(storage, medium)


def j2k_corrupt(tags: dict[str, str]) -> bytes:
    data = compressed_image(JPEG2000Lossless, **tags)
    at = data.index(b"\xff\x4f\xff\x51") + 60
    return data[:at] + b"\0" * 600 + data[at + 600 :]


def one_frame(frame: bytes, syntax: str, **changes: Any) -> Callable[[dict[str, str]], bytes]:
    return lambda tags: compressed(frame, syntax, **{**tags, **changes})


def padded() -> np.ndarray:
    hu = head()
    hu[:3] = -3024
    return hu


SHIFTED = np.tile(np.array([0, 35, 3095, 3096, 4095], np.uint16), (5, 1))

CASES = [
    Case(1, "no byte", lambda _: b"", "not_dicom"),
    Case(1, "one byte", lambda _: b"\0", "not_dicom"),
    Case(1, "random", lambda _: np.random.default_rng(0).bytes(2000), "not_dicom"),
    Case(1, "html", lambda _: b"<html><body>404</body></html>" * 20, "not_dicom"),
    Case(1, "zip", lambda _: b"PK\x03\x04" + b"\0" * 400, "not_dicom"),
    edited(2, "no preamble", "not_dicom", lambda data: data[132:]),
    edited(3, "cut in the meta header", "truncated_header", lambda data: data[:170]),
    edited(3, "cut in the header", "truncated_header", lambda data: data[: data.index(b"\x10\0\x20\0LO") + 10]),
    edited(4, "cut in the pixels", "pixel_short", lambda data: upto(data, 5000)),
    edited(4, "one byte short", "pixel_short", lambda data: data[:-1]),
    of(5, "no pixels", "no_pixel", PixelData=ABSENT),
    of(5, "empty pixels", "no_pixel", pixels=b""),
    of(6, "one byte of padding", "pixel_padding", head(), pixels=WORDS.astype("<i2").tobytes() + b"\0\0"),
    of(7, "twice the bytes", "pixel_excess", pixels=b"\0" * 64 * 64 * 4),
    of(7, "8 bits on 16-bit data", "pixel_excess", BitsAllocated=8, BitsStored=8, HighBit=7),
    of(8, "12 bits allocated", "bits_invalid", BitsAllocated=12, BitsStored=12, HighBit=11),
    of(8, "32 bits allocated", "bits_invalid", BitsAllocated=32),
    of(8, "more stored than allocated", "bits_invalid", BitsStored=17, HighBit=16),
    of(9, "high bit", "bits_inconsistent", HighBit=14),
    of(10, "bits above", "high_bits", head(), signed=False, pixels=(WORDS.astype("<u2") | 0x7000).tobytes()),
    of(11, "sign lost", "hu_implausible", hu=np.where(head() < -900, -3024, head()), PixelRepresentation=0),
    of(12, "sign missing", "pixrep_invalid", PixelRepresentation=ABSENT),
    of(12, "sign 2", "pixrep_invalid", PixelRepresentation=2),
    of(13, "rows missing", "dims_invalid", Rows=ABSENT),
    of(13, "no columns", "dims_invalid", Columns=0),
    of(13, "65535 rows", "dims_limit", Rows=65535),
    edited(13, "rows twice", "duplicate_tag", lambda data: plant(data, element(0x00280010, b"US", b"\x20\0"))),
    of(14, "2^31-1 frames", "frames_invalid", NumberOfFrames="2147483647"),
    of(14, "-1 frames", "frames_invalid", NumberOfFrames="-1"),
    edited(14, "abc frames", "frames_invalid", lambda data: plant(data, element(0x00280008, b"IS", b"abc "))),
    edited(14, "0 frames", "accepted", lambda data: plant(data, element(0x00280008, b"IS", b"0 "))),
    of(14, "3 frames", "multiframe", NumberOfFrames="3"),
    of(15, "color", "not_grayscale", SamplesPerPixel=3),
    of(16, "inverted", "photometric", PhotometricInterpretation="MONOCHROME1"),
    of(17, "no slope", "rescale_missing", RescaleSlope=ABSENT),
    of(17, "no intercept", "rescale_missing", RescaleIntercept=ABSENT),
    of(18, "empty slope", "rescale_invalid", RescaleSlope=""),
    of(18, "two slopes", "rescale_invalid", RescaleSlope=[1, 1]),
    of(18, "slope 0", "rescale_invalid", RescaleSlope=0),
    *(
        Case(18, f"intercept {value}", replanted("RescaleIntercept", 0x00281052, b"DS", value.encode().ljust(6)),
             "rescale_invalid")
        for value in ("-1,024", "NaN", "1e999")
    ),
    of(19, "not HU", "rescale_type", RescaleType="US"),
    Case(19, "modality lut", with_lut, "modality_lut"),
    of(20, "rsna repair", "rsna_repair", np.tile([0, 35, 3095, -1000, -1], (5, 1)), hu=SHIFTED,
       pixels=SHIFTED.tobytes(), signed=False, RescaleIntercept=0),
    of(21, "padding", "padding", padded(), hu=padded()),
    of(21, "padding value", "padding", np.where(padded() == -3024, -1024, padded()), hu=padded(),
       PixelPaddingValue=-3024 - INTERCEPT),
    Case(22, "rle", lambda tags: compressed_image(RLELossless, **tags), "accepted", head()),
    Case(22, "rle cut", lambda tags: compressed_image(RLELossless, **tags)[:-500], "truncated_pixel"),
    Case(22, "rle bomb", rle_bomb, "size_limit"),
    of(23, "deflated", "accepted", head(), syntax="deflated"),
    Case(23, "deflated bomb", deflated_bomb, "inflate_limit"),
    Case(24, "jpeg bomb", one_frame(JPEG.replace(b"\x10\0\x40\0\x40", b"\x10\xff\xff\xff\xff"), JPEGLosslessSV1),
         "size_limit"),
    Case(24, "jpeg of another size", one_frame(JPEG, JPEGLosslessSV1, Rows=32), "dims_mismatch"),
    Case(24, "jpeg corrupt", one_frame(JPEG[:60] + b"\xff\xd9", JPEGLosslessSV1, PixelRepresentation=0),
         "decode_error"),
    Case(24, "j2k corrupt", j2k_corrupt, "decode_error"),
    Case(25, "jpeg-ls", lambda tags: compressed_image(JPEGLSLossless, **tags), "accepted", head()),
    Case(25, "lossless jpeg", one_frame(JPEG, JPEGLosslessSV1, PixelRepresentation=0), "accepted", head()),
    Case(25, "j2k", lambda tags: compressed_image(JPEG2000Lossless, **tags), "accepted", head()),
    of(26, "unknown syntax", "syntax_unsupported", declared="1.2.840.10008.1.2.9"),
    of(26, "jpeg declared on native", "decode_error", declared=JPEGBaseline8Bit),
    Case(27, "implicit declared", lambda tags: save(dataset_of(make(**tags)), ExplicitVRLittleEndian,
         declared=ImplicitVRLittleEndian), "vr_encoding", head()),
    of(27, "big endian", "accepted", head(), syntax="big"),
    Case(28, "float pixels", with_float, "float_pixel"),
    edited(29, "5000 sequences", "nesting_limit", lambda data: plant(data, nested(5000))),
    edited(29, "length fffffff0", "truncated_header",
           lambda data: plant(data, b"\x29\x00\x10\x00UN\0\0\xf0\xff\xff\xff")),
    edited(30, "windows program", "preamble_executable", lambda data: b"MZ" + data[2:]),
    edited(30, "linux program", "preamble_executable", lambda data: b"\x7fELF" + data[4:]),
    of(31, "uid is a path", "uid_invalid", SOPInstanceUID="../../etc/passwd"),
    of(31, "study is a formula", "uid_invalid", StudyInstanceUID="=1+1"),
    of(31, "series is a path", "uid_invalid", SeriesInstanceUID="../../etc/passwd"),
    of(32, "no uid", "uid_missing", SOPInstanceUID=ABSENT),
    Case(32, "other uid in the meta header", other_meta_uid, "meta_uid", head()),
    of(33, "same uid same bytes a", "accepted", head(), SOPInstanceUID="ID_33-twice"),
    of(33, "same uid same bytes b", "duplicate", SOPInstanceUID="ID_33-twice", PatientID="P33-same-uid-same-bytes-a",
       StudyInstanceUID="S33-same-uid-same-bytes-a"),
    of(33, "same uid other pixels a", "uid_conflict", SOPInstanceUID="ID_33-conflict"),
    of(33, "same uid other pixels b", "uid_conflict", hu=head(seed=1), SOPInstanceUID="ID_33-conflict"),
    of(34, "same pixels other patient a", "pixels_shared", head(seed=34), hu=head(seed=34)),
    of(34, "same pixels other patient b", "pixels_shared", head(seed=34), hu=head(seed=34)),
    of(35, "no patient", "patient_missing", PatientID=ABSENT),
    of(35, "blank patient", "patient_missing", PatientID="  "),
    of(36, "one study two patients a", "patient_conflict", StudyInstanceUID="ID_36"),
    of(36, "one study two patients b", "patient_conflict", StudyInstanceUID="ID_36"),
    of(37, "mr", "not_ct", Modality="MR"),
    of(37, "raw data", "not_image", SOPClassUID="1.2.840.10008.5.1.4.1.1.66", PixelData=ABSENT),
    Case(37, "directory of a medium", directory, "dicomdir"),
    of(37, "localizer", "localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    of(40, "constant", "hu_implausible", hu=np.full((64, 64), 35)),
    of(40, "near empty", "near_empty", np.where(head() > -100, -990, head()),
       hu=np.where(head() > -100, -990, head())),
    of(41, "no label", "label_missing"),
]  # fmt: skip

BY_NAME = {
    "38-escape": "path_escape", "38-fifo": "not_regular", "38-folder": "not_regular", "38-broken": "not_regular",
    "39-large": "size_limit", "ID_41-no-file": "file_missing",
}  # fmt: skip


def write_cases(folder: Path, table: Path) -> None:
    """Every case as a file, and labels that put their patients into the role of training."""
    rows = []
    for case in CASES:
        # Other reasons than the one that is tested must not be there: each case has its patient and study.
        tags = {"SOPInstanceUID": case.slice_id, "PatientID": f"P{case.name}", "StudyInstanceUID": f"S{case.name}"}
        (folder / f"{case.name}.dcm").write_bytes(case.make(tags))
        rows += [f"{case.slice_id},0,train"] if case.what != "no label" else []
    rows += [f"{slice_id},0,train" for slice_id in (STALE, "ID_33-twice", "ID_33-conflict", "ID_41-no-file")]
    outside = folder.parent / "outside.dcm"
    outside.write_bytes(make())
    os.symlink(outside, folder / "38-escape.dcm")
    os.symlink("nothing", folder / "38-broken.dcm")
    os.mkfifo(folder / "38-fifo.dcm")
    (folder / "38-folder.dcm").mkdir()
    (folder / "39-large.dcm").write_bytes(make(SOPInstanceUID="ID_39"))
    os.truncate(folder / "39-large.dcm", 64 * 2**20 + 1)
    roles = [role for role in ("train", "validation", "calibration", "test") for _ in range(2)]
    for patient in range(PATIENTS):
        for number in range(SLICES):
            positive = int(patient % 2 == 0 and number == SLICES - 1)
            rows.append(f"ID_{patient:02d}{number},{positive},{roles[patient % len(roles)]}")
    table.write_text("\n".join(["slice_id,any,role", *rows]))


@dataclass(frozen=True)
class Outcome:
    """What `ich-ray prepare` made of the folder."""

    code: int
    dataset: PreparedDataset
    paths: list[str]
    reasons: dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bad")
    patch = pytest.MonkeyPatch()
    patch.setenv("ICH_RAY_KEY_FILE", str(folder / "key"))
    with connected(cpus=2):
        yield folder
    patch.undo()


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    write_cohort(folder / "images")
    write_cases(folder / "images", folder / "wide.csv")
    arguments = ["prepare", str(folder / "images"), "--labels", str(folder / "wide.csv"), "--out", str(folder / "out")]
    code = cli.call([*arguments, "--size", "32", "--limit-rejected", "100%"])
    dataset = PreparedDataset.open(folder / "out", verify=True)
    reasons = {name.removesuffix(".dcm"): reason for name, (reason, _) in refusals(dataset).items()}
    return Outcome(code, dataset, paths(dataset), reasons)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_the_row_that_its_case_says(outcome: Outcome, case: Case) -> None:
    row = outcome.paths.index(f"{case.name}.dcm") if f"{case.name}.dcm" in outcome.paths else None
    if row is None:
        assert outcome.reasons[case.name] == case.expected
        return
    assert case.name not in outcome.reasons
    flags = outcome.dataset.column("flags")[row].split(",")
    assert case.expected == "accepted" or case.expected in flags
    assert case.shows is not None
    image = outcome.dataset.gather(np.array([row]))[0]
    expected = make(case.shows, BitsStored=16, HighBit=15)
    assert np.array_equal(image, window_slice(read_slice(expected), WINDOWS, 32))


@pytest.mark.parametrize(("name", "reason"), BY_NAME.items())
def test_a_name_is_the_row_that_its_case_says(outcome: Outcome, name: str, reason: str) -> None:
    assert outcome.reasons[name] == reason


def test_nothing_is_lost_and_the_exit_code_says_that_some_were_rejected(outcome: Outcome) -> None:
    manifest = outcome.dataset.manifest
    assert outcome.code == 3
    files = len(CASES) + len(BY_NAME) - 1
    assert manifest.listed == PATIENTS * SLICES + files
    assert manifest.listed == manifest.accepted + manifest.rejected + manifest.duplicate + manifest.excluded
    assert (manifest.duplicate, manifest.excluded) == (1, 4)
    assert {case.number for case in CASES} | {38, 39} == set(range(1, 42))


def test_exit_codes_of_prepare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write_cohort(folder / "few")
    arguments = ["prepare", str(folder / "few"), "--labels", str(labels), "--size", "16", "--out"]
    assert cli.call([*arguments, str(folder / "clean"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == 0
    assert cli.call([*arguments, str(folder / "few" / "inside")]) == 2
    (folder / "few" / "x.dcm").write_text("no")
    assert cli.call([*arguments, str(folder / "some")]) == 3
    assert cli.call([*arguments, str(folder / "over"), "--limit-rejected", "1%"]) == 4
    said = capsys.readouterr()
    assert "got 1 of 25 (not_dicom 1)" in said.err
    assert f"\nwhich files: ich-ray identify {folder / 'some'}\n" in said.out
    assert len(PreparedDataset.open(folder / "over")) == PATIENTS * SLICES
    labels.write_text(labels.read_text() + "ID_000_any,1\nID_010_any,2\n")
    assert cli.call([*arguments, str(folder / "wrong")]) == 2
    assert "row 147: Label must be 0 or 1, got '2'" in capsys.readouterr().err


def test_02_files_without_preamble_are_read_and_recorded_when_asked(folder: Path) -> None:
    labels = write_cohort(folder / "bare")
    for path in (folder / "bare").iterdir():
        path.write_bytes(path.read_bytes()[132:])
    arguments = ["prepare", str(folder / "bare"), "--labels", str(labels), "--size", "16", "--out"]
    assert cli.call([*arguments, str(folder / "bare-no"), "--limit-rejected", "100%"]) != 0
    assert cli.call([*arguments, str(folder / "bare-yes"), "--without-preamble"]) == 0
    dataset = PreparedDataset.open(folder / "bare-yes")
    assert len(dataset) == PATIENTS * SLICES
    assert {flag for flags in dataset.column("flags") for flag in flags.split(",")} >= {"no_preamble"}
    assert f"{PATIENTS * SLICES} accepted slices are flagged no_preamble" in dataset.manifest.notes
    assert cli.call([*arguments, str(folder / "bare-yes")]) == 2  # another plan
    data = (folder / "bare" / "ID_000.dcm").read_bytes()
    without_meta = data[12 + int.from_bytes(data[8:12], "little") :]
    with pytest.raises(Rejection, match="not_dicom"):  # its encoding would be a guess
        read_slice(without_meta, without_preamble=True)


def test_38_a_device_is_not_read() -> None:
    with pytest.raises(Rejection, match="not_regular"):
        read_file(locate("/dev/zero"))


def test_39_a_file_that_vanishes_changes_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refused(path: str, *_: object) -> int:
        tries.append(path)
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "x.dcm"
    with pytest.raises(Rejection, match="io_error"):
        read_file(locate(path))
    path.write_bytes(make())
    size = path.stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(Rejection, match="io_error: Permission denied") as caught:
            read_file(locate(path))
    assert len(tries) == 3
    assert str(tmp_path) not in str(caught.value)
    with monkeypatch.context() as patch:
        facts = os.stat_result((33188, 1, 1, 1, 0, 0, size + 1, 0, 0, 0))
        patch.setattr(os, "fstat", lambda _: facts)
        with pytest.raises(Rejection, match="io_error"):
            read_file(locate(path))
    assert len(read_file(locate(path))) == size


@pytest.mark.parametrize("syntax", sorted(pixels.COMPRESSED))
def test_25_a_decoder_for_every_syntax_is_shipped(syntax: str) -> None:
    assert is_available(syntax)


def test_25_a_missing_decoder_is_said_once_and_before_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ich_ray.ct.decoder.is_available", lambda syntax, bits=0: syntax != RLELossless and bits != 12)
    monkeypatch.setattr(
        "ich_ray.data.prepare.run._rows_of_all_files", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    monkeypatch.setattr("ich_ray.progress.say", print)
    labels = write_cohort(folder / "plain")
    with pytest.raises(KeyboardInterrupt):
        prepare(folder / "plain", labels, folder / "plain-out", size=16)
    assert capsys.readouterr().out == (
        "no decoder is installed for transfer syntax 1.2.840.10008.1.2.5, 1.2.840.10008.1.2.4.51 with 12 bits: its "
        "files will be rejected as syntax_unsupported\n"
    )


LONG = "ID,Label\n" + "".join(f"x_{name},0\n" for name in ("epidural", "intraparenchymal", "intraventricular",
                                                         "subarachnoid", "subdural", "any"))  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text", "expected"),
    [
        (42, LONG + "x_any,0\n", ""),
        (42, LONG + "x_any,1\n", "label_conflict"),
        *((43, LONG + f"y_any,{value}\n", f"row 8: Label must be 0 or 1, got '{value}'") for value in
          ("2", "-1", "", "NaN", "0.5")),
        (44, LONG.replace("any,0", "any,1"), "label_inconsistent"),
        (44, LONG.replace("subdural,0", "subdural,1"), "label_inconsistent"),
        (45, LONG.replace("x_subdural,0\n", ""), "label_incomplete without any"),
        (45, "\ufeff" + LONG, ""),
        (45, LONG.replace("\n", "\r\n"), ""),
        (45, LONG.replace(",", ";"), ""),
        (45, " " + LONG, ""),
        (45, LONG.replace("ID,Label", "ID"), "the columns must be"),
    ],
)  # fmt: skip
def test_a_label_table_is_what_its_case_says(tmp_path: Path, number: int, text: str, expected: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, newline="")
    if expected.startswith(("row", "the")):
        with pytest.raises(LabelError, match=expected):
            read_labels(path)
        return
    if expected == "label_incomplete without any":  # a missing subtype is unknown, a missing `any` too
        assert read_labels(path).values.tolist() == [[0, 0, 0, 0, -1, 0]]
        path.write_text(text.replace("x_any,0\n", ""))
        expected = "label_incomplete"
    assert read_labels(path).reasons.tolist() == [expected]


def test_46_roles_that_cannot_be(folder: Path) -> None:
    labels = write_cohort(folder / "six", patients=6)
    with pytest.raises(RoleError, match="each of train, validation, calibration, test needs a patient with a positive"):
        prepare(folder / "six", labels, folder / "six-out", size=16)
    rows = [f"ID_{patient:02d}{n},{int(patient % 2 == 0)},{'test' if patient == 1 else 'train'}"
            for patient in range(6) for n in range(SLICES)]  # fmt: skip
    labels.write_text("\n".join(["id,any,role", *rows]))
    with pytest.raises(RoleError, match="validation needs patients with and without a positive slice, got 0"):
        prepare(folder / "six", labels, folder / "six-out", size=16)
    assert not (folder / "six-out" / "dataset.json").exists()

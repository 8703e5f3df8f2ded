"""The tables of docs/rejections.md: every reason with a file that gets it, and what other readers say of that file.

`python -m tests.rejections` writes them anew, with DCMTK's programs installed. A new reason is one entry of `OF_FILES`,
or of `OF_NAMES` where no file of bytes has it; a new flag is one of `ich_ray.ct.dicom.FLAGS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ich_ray.ct.dicom import EXCLUSIONS, FLAGS
from tests.ct import spoiled
from tests.ct.files import IDENTIFIERS, make
from tests.ct.other_readers import READERS, versions

PAGE = Path(__file__).parents[1] / "docs" / "rejections.md"
_BEGIN, _END = "<!-- tables -->\n\n", "\n<!-- /tables -->"
_BY = "`image`, `header` (and no image) or `nothing`, by "


@dataclass(frozen=True)
class Code:
    """A reason: the rule that its file breaks, and why that is refused where others read it.

    Attributes:
        files: by a few words each, files that get the reason.
    """

    rule: str
    although: str = ""
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)


def tags(**changes: Any) -> Callable[[], bytes]:
    """A file with other tags, with UIDs as in an archive."""
    return lambda: make(**{**IDENTIFIERS["uid"], **changes})


GUESS = "what the words mean would be a guess"

OF_FILES: dict[str, Code] = {
    "bits_inconsistent": Code(
        "HighBit must be BitsStored - 1.", f"Others ignore HighBit: {GUESS}.", {"HighBit 14 of 16": tags(HighBit=14)}
    ),
    "bits_invalid": Code(
        "8 or 16 bits must be allocated for a sample, and no more may be stored.",
        "Some mask the words by their own rule.",
        {
            "12 bits allocated": tags(BitsAllocated=12, BitsStored=12, HighBit=11),
            "17 of 16 stored": tags(BitsStored=17, HighBit=16),
        },
    ),
    "decode_error": Code(
        "PixelData must hold what the transfer syntax says, and be whole.",
        "Others take words for native ones, or make up the rest of a JPEG image.",
        {
            "native words, JPEG declared": spoiled.jpeg_declared,
            "no codestream": spoiled.no_codestream,
            "damaged JPEG 2000": spoiled.damaged_jpeg_2000,
            "lossless JPEG with half of its coded data": spoiled.half_a_jpeg,
            "a deflated set that cannot be inflated": spoiled.not_deflated,
        },
    ),
    "dicomdir": Code(
        "The file is the directory of a medium (Media Storage Directory).", files={"DICOMDIR": spoiled.directory}
    ),
    "dims_invalid": Code("Rows and Columns must be positive.", files={"no columns": tags(Columns=0)}),
    "dims_limit": Code(
        "The square that a slice is padded to must fit into 64 MiB.",
        "Others make up the words that are missing.",
        {"65,535 rows": tags(Rows=65535)},
    ),
    "dims_mismatch": Code(
        "Rows and Columns must be those of the codestream.",
        "Others trust one of the two.",
        {"32 of 64 rows in the header": spoiled.other_size},
    ),
    "duplicate_tag": Code(
        "An element stands once in a data set.",
        "Others take the last one, or the first.",
        {"Rows twice": spoiled.rows_twice},
    ),
    "float_pixel": Code(
        "Pixels must be integer words.",
        "Others read them as what they are, not as CT words.",
        {"floating-point pixels": spoiled.float_pixels},
    ),
    "frames_invalid": Code(
        "NumberOfFrames must be a count, or absent; enhanced CT has functional groups of so many frames.",
        "Others take it for one frame, or do not look at the groups: where the frame lies would be a guess.",
        {"-1 frames": tags(NumberOfFrames="-1"), "groups of 2 frames of 3": spoiled.a_group_fewer},
    ),
    "header_invalid": Code(
        "Elements and items must be as PS3.5 says; what decides a pixel, a patient or a label has a VR of its kind.",
        "Others guess the VR.",
        {
            "RescaleIntercept of VR ??": spoiled.unknown_vr,
            "no transfer syntax": spoiled.no_transfer_syntax,
        },
    ),
    "hu_implausible": Code(
        "Not all pixels may be equal, and they lie between -34,024 and 33,000 HU.",
        "It is a file without fault that shows no slice.",
        {"one value": spoiled.constant, "a lost sign": spoiled.lost_sign},
    ),
    "inflate_limit": Code(
        "A deflated data set may inflate to 64 MiB.",
        "Others inflate it, whatever its size.",
        {"70 MB of zeros": spoiled.deflated_bomb},
    ),
    "localizer": Code(
        "ImageType says LOCALIZER, SCOUT or the like; or SeriesDescription does, and no orientation says that it is a "
        "slice.",
        "It is a good image, and no axial slice.",
        {"localizer": tags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])},
    ),
    "modality_lut": Code(
        "A rescale gives HU, no Modality LUT.",
        "Others leave it to their caller.",
        {"Modality LUT": spoiled.modality_lut},
    ),
    "multiframe": Code(
        "A file holds one frame, or is enhanced CT.",
        "Others give all frames; nothing says where each lies, and what its words mean.",
        {"3 frames": spoiled.three_frames},
    ),
    "nesting_limit": Code(
        "Sequences nest up to 32 deep.", "Others follow them until their stack ends.", {"40 deep": spoiled.nested}
    ),
    "no_pixel": Code(
        "PixelData must be there.",
        files={"no pixels": tags(PixelData=spoiled.ABSENT), "no byte of pixels": tags(pixels=b"")},
    ),
    "not_axial": Code(
        "The image lies within 45 degrees of the axial plane; its series does not turn from image to image, and moves "
        "along its normal.",
        "It is a good image, of another plane.",
        {"coronal": tags(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])},
    ),
    "not_ct": Code("Modality does not say CT.", "It is a good image of another kind.", {"MR": tags(Modality="MR")}),
    "not_dicom": Code(
        "DICM follows a preamble of 128 bytes; --without-preamble reads files that begin with their meta information.",
        "Others guess.",
        {"a page": spoiled.page, "no preamble": spoiled.no_preamble},
    ),
    "not_grayscale": Code(
        "SamplesPerPixel must be 1.",
        "Others take it for 1.",
        {"no SamplesPerPixel": tags(SamplesPerPixel=spoiled.ABSENT)},
    ),
    "not_head": Code(
        "A slice of a head is at most twice as long as wide, and has a field of view of 80 to 850 mm.",
        "It is a good image, of something else.",
        {"a strip": spoiled.strip},
    ),
    "not_image": Code(
        "SOPClassUID is not of CT images, and there is no PixelData.",
        files={"raw data": tags(SOPClassUID="1.2.840.10008.5.1.4.1.1.66", PixelData=spoiled.ABSENT)},
    ),
    "patient_missing": Code(
        "PatientID must be there to prepare, as roles are drawn by patient; `predict` reads the file.",
        "It is a good image.",
        {"blank PatientID": tags(PatientID="")},
    ),
    "photometric": Code(
        "PhotometricInterpretation must be MONOCHROME2.",
        f"Others read the words: {GUESS}.",
        {"MONOCHROME1": tags(PhotometricInterpretation="MONOCHROME1")},
    ),
    "pixel_excess": Code(
        "Native PixelData has at most two bytes to spare, a codestream no second one behind it.",
        "Others read the first words: the header may be wrong as well.",
        {"twice the bytes": tags(pixels=b"\0\1" * 64 * 64 * 2), "two codestreams": spoiled.two_codestreams},
    ),
    "pixel_short": Code(
        "PixelData must hold rows x columns words.",
        "Others make up the words that are missing.",
        {"one byte cut off": spoiled.cut_off, "half of the words": tags(pixels=b"\0\1" * 64 * 32)},
    ),
    "pixrep_invalid": Code(
        "PixelRepresentation must be 0 or 1.",
        f"Others take it for unsigned: {GUESS}.",
        {"none": tags(PixelRepresentation=spoiled.ABSENT), "2": tags(PixelRepresentation=2)},
    ),
    "preamble_executable": Code(
        "The preamble must not be the start of a program.",
        "The file is both, and some system may run it.",
        {"MZ": spoiled.program},
    ),
    "projection": Code(
        "ImageType says that it is a maximum or minimum intensity projection; or SeriesDescription does, and no "
        "orientation says that it is a slice.",
        "It is a good image, and no slice.",
        {"MIP": tags(ImageType=["DERIVED", "SECONDARY", "MIP"])},
    ),
    "rescale_invalid": Code(
        "One slope of 0.001 to 1,000 and one intercept within 100,000 must be there.",
        "Others leave it to their caller.",
        {"slope 0": tags(RescaleSlope=0), "two slopes": tags(RescaleSlope=[1, 1])},
    ),
    "rescale_missing": Code(
        "RescaleSlope and RescaleIntercept must be there.",
        f"Others take 1 and 0: {GUESS}.",
        {"no intercept": tags(RescaleIntercept=spoiled.ABSENT)},
    ),
    "rescale_type": Code(
        "RescaleType must be HU, or absent.", "Others leave it to their caller.", {"US": tags(RescaleType="US")}
    ),
    "secondary_capture": Code(
        "ImageType, or SOPClassUID, says that it is a capture, a rendering or a page of text.",
        "It is a good image, and no slice.",
        {"screen save": tags(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])},
    ),
    "size_limit": Code(
        "A file may have 64 MiB, enhanced CT 64 MiB a frame and 2 GiB; what a codestream holds 64 MiB.",
        files={"a codestream of 65,535 x 65,535": spoiled.jpeg_bomb},
    ),
    "syntax_unsupported": Code(
        "The transfer syntax must be one that is read, and pydicom must have a decoder for it.",
        "pydicom uses none of the decoders here for 12 bits.",
        {"unknown syntax": spoiled.unknown_syntax, "12-bit lossy JPEG": spoiled.twelve_bits},
    ),
    "truncated_header": Code(
        "The file must not end inside an element, nor before its data set.",
        files={"cut in the header": spoiled.cut_in_header, "an element longer than the file": spoiled.too_long},
    ),
    "truncated_pixel": Code(
        "Encapsulated PixelData must end with its delimiter, a codestream with its end marker, RLE with its last row.",
        files={"cut RLE": spoiled.cut_rle, "no end marker": spoiled.no_end_marker},
    ),
    "uid_invalid": Code(
        "UIDs, or identifiers in their place, hold letters, digits and single . _ - between them.",
        "It could be a path, or run in a table.",
        {"=1+1": tags(StudyInstanceUID="=1+1")},
    ),
    "uid_missing": Code(
        "SOPInstanceUID must be there: labels are joined by it.", "It is a good image.", {"none": spoiled.no_uid}
    ),
}

OF_NAMES: dict[str, str] = {
    "decoder_crash": "The decoder's process died of the frame, or was not done in 10 s.",
    "duplicate": "The same slice of the same patient with the same words stands in another file, which is kept.",
    "file_missing": "A row of the label table has no file.",
    "io_error": "The file could not be read in three tries.",
    "label_conflict": "Rows of the label table disagree about the slice.",
    "label_incomplete": "The label table does not say `any`.",
    "label_inconsistent": "`any` is not the OR of the subtypes.",
    "label_missing": "The label table has no row for the slice.",
    "name_invalid": "The name holds a control, a line break, an order of direction or bytes that are no text.",
    "not_finite": "`predict`: the network or the card gives no number.",
    "not_regular": "The name is of no regular file: a folder with a suffix, a pipe, a device, a link to nothing.",
    "out_of_memory": "The slice did not fit into memory.",
    "path_escape": "A link leads out of the folder.",
    "patient_conflict": "The study stands under two patients.",
    "uid_conflict": "The same SOPInstanceUID stands in files of other pixels or patients; none is kept.",
}


Answers = dict[tuple[str, str], list[str]]


def answers() -> Answers:
    """What each of `READERS` says of each file, by reason and words."""
    return {
        (code, words): [read(data) for read in READERS.values()]
        for code, entry in OF_FILES.items()
        for words, data in ((words, build()) for words, build in entry.files.items())
    }


def tables(said: Answers, by: str) -> str:
    """All that stands between the marks of the page.

    Args:
        said: as `answers` has it.
        by: as `versions` has it.
    """
    rules = ["| reason | rule | why, where others read it |", "|---|---|---|"]
    files = [f"| reason | file | {' | '.join(READERS)} |", "|---|---|" + "---|" * len(READERS)]
    for code, entry in OF_FILES.items():
        mark = " (excluded)" if code in EXCLUSIONS else ""
        rules.append(f"| `{code}`{mark} | {entry.rule} | {entry.although} |")
        files += [f"| `{code}` | {words} | {' | '.join(said.get((code, words), []))} |" for words in entry.files]
    names = ["| reason | rule |", "|---|---|", *(f"| `{code}` | {rule} |" for code, rule in OF_NAMES.items())]
    flags = ["| flag | meaning |", "|---|---|", *(f"| `{flag}` | {text}. |" for flag, text in FLAGS.items())]
    parts = {
        "Reasons of files": rules,
        "What other readers say of such files": [f"{_BY}{by}.", "", *files],
        "Reasons of names, of repeats and of labels": names,
        "Flags": flags,
    }
    return "\n".join(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts.items())


def written() -> str:
    """The tables that the page holds."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]


def written_answers() -> tuple[Answers, str]:
    """What the page says that the readers say, and by which versions."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (\w+) \| (\w+) \| (\w+) \|$", written(), re.MULTILINE)
    by = re.search(rf"^{re.escape(_BY)}(.*)\.$", written(), re.MULTILINE)
    return {(code, words): cells for code, words, *cells in rows}, by[1] if by else ""


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(before + _BEGIN + tables(answers(), versions()) + _END + rest.partition(_END)[2])

"""docs/rejections.md has every reason of the source, each with files that get it and why it is refused."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ich_ray.ct.dicom import EXCLUSIONS, FLAGS
from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.prepare.decode_chunk import ChunkJob
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.errors import Rejection
from ich_ray.storage import locate
from tests import rejections
from tests.ct.other_readers import dcmtk_version, versions
from tests.test_house import PACKAGE

FILES = {
    f"{code}: {words}": (code, build)
    for code, entry in rejections.OF_FILES.items()
    for words, build in entry.files.items()
}
_LISTED = {"path_escape", "not_regular", "name_invalid", "size_limit"}


def codes_of(node: ast.AST) -> Iterator[object]:
    """Constants that a statement gives to a file as its reason."""
    match node:
        case ast.Call(func=ast.Name(id="Rejection"), args=[ast.Constant(value=code), *_]):
            yield code
        case ast.Call(keywords=[*keywords]):
            yield from (
                key.value.value for key in keywords if key.arg == "reason" and isinstance(key.value, ast.Constant)
            )
        case ast.Assign(targets=[ast.Subscript(value=ast.Name(id="reasons"))], value=ast.Constant(value=code)):
            yield code
        case ast.Dict(keys=[ast.Constant(value="reason"), *_], values=[ast.Constant(value=code), *_]):
            yield code
        case ast.BinOp(left=ast.List(elts=[ast.Constant(value=code)]), op=ast.Mult()):
            yield code


def raised() -> set[object]:
    """Every reason in the source of reading, preparing and predicting."""
    modules = [
        *(PACKAGE / "ct").glob("*.py"),
        *(PACKAGE / "data/prepare").glob("*.py"),
        PACKAGE / "bundle/prediction.py",
    ]
    found = {code for path in modules for node in ast.walk(ast.parse(path.read_text())) for code in codes_of(node)}
    return {code for code in found | EXCLUSIONS if re.fullmatch(r"[a-z_]+", str(code))} - FLAGS.keys()


def test_every_reason_of_the_source_has_an_entry_and_every_entry_is_in_the_source() -> None:
    listed = {
        node.value
        for node in ast.walk(ast.parse((PACKAGE / "data/prepare/list_files.py").read_text()))
        if isinstance(node, ast.Constant) and node.value in _LISTED
    }
    assert listed == _LISTED
    assert raised() | listed == rejections.OF_FILES.keys() | rejections.OF_NAMES.keys()
    assert not rejections.OF_FILES.keys() & rejections.OF_NAMES.keys()
    assert all(entry.files for entry in rejections.OF_FILES.values())


def first_slice(job: ChunkJob) -> None:
    file = job.open("file")
    job.read(file, file.frames[0])


@pytest.mark.parametrize(("code", "build"), FILES.values(), ids=FILES)
def test_a_file_gets_its_reason(
    code: str, build: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICH_RAY_KEY_FILE", str(tmp_path / "key"))
    folder = locate(tmp_path)
    job = ChunkJob(folder, folder, parse_windows(DEFAULT_WINDOWS), 32, Pseudonyms.load(), "")
    (tmp_path / "file").write_bytes(build())
    with pytest.raises(Rejection) as caught:
        first_slice(job)
    assert caught.value.reason == code


def test_the_page_has_the_entries_and_the_flags() -> None:
    said, by = rejections.written_answers()
    assert rejections.written() == rejections.tables(said, by), "run `python -m tests.rejections`"


@pytest.mark.parametrize("code", rejections.OF_FILES)
def test_why_stands_where_another_reader_has_an_image_and_only_there(code: str) -> None:
    said, _ = rejections.written_answers()
    others = [said[code, words] for words in rejections.OF_FILES[code].files]
    assert bool(rejections.OF_FILES[code].although) == any("image" in cells for cells in others)


@pytest.mark.slow
@pytest.mark.skipif(not dcmtk_version(), reason="DCMTK is not installed")
def test_other_readers_say_what_the_page_says() -> None:
    said, by = rejections.written_answers()
    if by != versions():
        pytest.skip(f"the page is by {by}")
    assert rejections.answers() == said

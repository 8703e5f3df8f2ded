"""The page of several searches: what each reached, what differs, and what nobody can compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

import ich_ray
from ich_ray.cli import call
from ich_ray.errors import ConfigError
from ich_ray.html_report.side_by_side_page import page
from ich_ray.results import open_search
from ich_ray.side_by_side import side_by_side
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from ich_ray.vocabulary import LEAK
from tests.html_report.fake_search import SPACE, build_search
from tests.html_report.test_report import Page
from tests.records import make_confirmation
from tests.search.test_chances import ledger_of, trained


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> UPath:
    return build_search(tmp_path_factory.mktemp("evaluated"), patients=60, trials=6)


def copied(search: UPath, place: Path, **record: Any) -> SearchFiles:
    """The same search in another folder, with other fields of search.json."""
    shutil.copytree(str(search), place)
    files = SearchFiles(locate(place))
    write_json(files.search, {**read_json(files.search), **record})
    return files


def shown(*searches: SearchFiles) -> Page:
    found = [open_search(files.root) for files in searches]
    return Page(page(found, side_by_side(found)))


def test_the_command_writes_one_page_of_both(
    evaluated: UPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {**SPACE, "parameters": {**SPACE["parameters"], "dropout": {"uniform": [0.0, 0.3]}}}
    one, other = copied(evaluated, tmp_path / "a" / "s"), copied(evaluated, tmp_path / "b" / "s", space=space, seed=8)
    write_json(one.confirmation, make_confirmation(0, 0))
    assert call(["report", str(one.root), str(other.root)]) == 0
    written = tmp_path / "a" / "s" / "final" / "side_by_side.html"
    assert capsys.readouterr().out == f"report  {written}\n"
    found = Page(written.read_text(encoding="utf-8"))
    best = open_search(one.root).best()
    assert f"1 · a/s 1 of 6 {best.value:.4f} (trial {best.number}) 0.4000 (n = 1) 0.790 [" in found.text
    assert "By their best trials, against search 1 (a/s): 1 cannot be told apart from noise." in found.text
    said = "cannot be told apart from noise: the logits of trial {} of search 2 were not kept"
    assert f"Search 2 the same {said.format(best.number)} cannot be told apart" in found.text
    assert "they say the same of every test slice" in found.text
    assert "parameters.dropout.uniform [0.0, 0.6] [0.0, 0.3]" in found.text
    assert "seed 7 8" in found.text
    assert str(tmp_path) not in found.text, "a page is passed on"
    assert found.ids == ["reached", "course", "noise", "asked", "best", "cost", "figures"]
    figures = json.loads(found.scripts[0])
    assert sorted(figures) == sorted(found.figures) == ["course-0", "course-1"]
    assert [line["name"] for line in figures["course-0"]["data"]] == ["1 · a/s", "2 · b/s"]
    assert figures["course-0"]["data"][0]["line"]["color"] != figures["course-0"]["data"][1]["line"]["color"]
    assert found.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert {target for target in found.targets if not target.startswith("#")} == {"data:,"}


def test_patients_tell_the_best_trials_apart(evaluated: UPath, tmp_path: Path) -> None:
    dataset = open_search(evaluated).record.dataset_folder
    good, weak = (ledger_of(tmp_path / name, ich_ray.PreparedDataset.open(dataset)) for name in ("good", "weak"))
    for ledger, skill in ((good, 6.0), (weak, 0.1)):
        trained(ledger, ich_ray.PreparedDataset.open(dataset), skill)
    found = shown(good.files, weak.files)
    assert "against search 1 (good): 1 worse beyond noise." in found.text
    assert "Search 2 the same worse beyond noise (better in 0.0% of draws" in found.text
    assert "not tested in both" in found.text
    assert "They were asked the same: space, seed and budget." in found.text
    assert "Search 1 has not ended, 1 of 4 trials have begun: its figures will change." in found.text


@pytest.mark.parametrize(
    ("changes", "warning", "plots"),
    [
        ({"fingerprint": "e" * 32}, "Search 2 is of another dataset than search 1: their figures are not", 2),
        (
            {"space": {**SPACE, "objective": {"metric": "log_loss", "mode": "min"}}},
            "Search 2 judged its trials otherwise than search 1: by log loss on the validation patients, not by "
            "average precision (AP) on the validation patients.",
            4,
        ),
        ({"folds": 5}, "by average precision (AP) by 5 folds of the train and validation patients, not by", 2),
        ({"split": "slice"}, f"Search 2: {LEAK}", 2),
        ({"trials": 9}, "Search 2 has not ended, 6 of 9 trials have begun: its figures will change.", 2),
    ],
)
def test_what_makes_figures_unlike_is_said_first(
    changes: dict[str, Any], warning: str, plots: int, evaluated: UPath, tmp_path: Path
) -> None:
    found = shown(SearchFiles(evaluated), copied(evaluated, tmp_path / "s", **changes))
    assert warning in found.text[: found.text.index("Figures")]
    assert len(found.figures) == plots, "values of two objectives share no axis"


def test_searches_without_anything_to_show_have_a_row(evaluated: UPath, tmp_path: Path) -> None:
    """One that has not begun, one whose trials all failed, and one for a sequence model."""
    empty, failed = copied(evaluated, tmp_path / "empty"), copied(evaluated, tmp_path / "failed")
    sequence = copied(evaluated, tmp_path / "sequence", space={**SPACE, "searches": "sequence"})
    for files in (empty, failed, sequence):
        shutil.rmtree(str(files.final))
    shutil.rmtree(str(empty.trials))
    for path in failed.records():
        write_json(path, {**read_json(path), "state": "failed", "reason": "error"})
    found = shown(empty, failed, SearchFiles(evaluated), sequence)
    assert "1 · empty 0 of 0 – – – 0 0.00 2 · failed 0 of 6 – – –" in found.text
    assert "searches nothing nothing nothing sequence" in found.text
    assert [line["name"] for line in json.loads(found.scripts[0])["course-0"]["data"]] == ["3 · search", "4 · sequence"]
    nothing = shown(empty, failed)
    assert nothing.figures == []
    assert "No trial has reported a value." in nothing.text
    assert "No trial has completed." in nothing.text


def test_a_received_ledger_is_only_text_and_no_longer_than_a_page(evaluated: UPath, tmp_path: Path) -> None:
    harm = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    space = {**SPACE, "name": harm} | {f"{harm}{key}": harm * 10 for key in range(150)}
    files = copied(evaluated, tmp_path / f"{'s' * 100}<img src=x onerror=alert(3)>", name=harm, space=space)
    for path in files.records():
        told = read_json(path)
        write_json(path, {**told, "parameters": {harm: harm, **told["parameters"]}})
    text = page(found := [open_search(one) for one in (evaluated, files.root)], side_by_side(found))
    read, harmless = Page(text), shown(SearchFiles(evaluated), copied(evaluated, tmp_path / "harmless"))
    assert len(read.scripts) == len(harmless.scripts) == 3
    assert read.handlers == []
    assert read.images == []
    assert f"name demo {harm}" in read.text, "it is shown as it is"
    assert f"2 · …{'s' * 11}<img src=x" in read.text
    assert "more keys differ; `ich-ray results --json` has all." in read.text
    assert len(text.encode()) < 8_000_000
    assert "&lt;img src=x onerror" in json.loads(read.scripts[0])["course-0"]["data"][1]["name"]


def test_no_address_that_only_a_record_names_is_contacted(
    evaluated: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (copied(evaluated, tmp_path / name, dataset="http://127.0.0.1:9/x") for name in ("a", "b"))
    opened: list[str] = []
    monkeypatch.setattr(UPath, "fs", property(lambda path: opened.append(str(path))))
    assert "only search.json of search 2 names its dataset" in shown(one, other).text
    assert opened == []


def test_up_to_eight_searches_are_shown(evaluated: UPath, tmp_path: Path) -> None:
    places = [str(copied(evaluated, tmp_path / f"run{at}").root) for at in range(9)]
    written = ich_ray.report(places[:8], out=tmp_path / "eight.html")
    found = Page(written.read_text(encoding="utf-8"))
    assert "8 searches side by side" in found.text
    assert len(json.loads(found.scripts[0])["course-0"]["data"]) == 8
    with pytest.raises(
        ConfigError, match=r"^report: must be of 1 to 8 searches, got 9; name others, or use `ich-ray re"
    ):
        ich_ray.report(places)
    for refused in (places, []):
        with pytest.raises(ConfigError, match=rf"^report: must be of 1 to 8 searches, got {len(refused)}; name others"):
            ich_ray.report(refused)


def test_one_search_given_as_a_list_has_its_own_page(evaluated: UPath, tmp_path: Path) -> None:
    files = copied(evaluated, tmp_path / "s")
    shutil.rmtree(str(files.final))
    assert ich_ray.report([files.root]) == ich_ray.report(str(files.root)) == files.report
    elsewhere = ich_ray.report(files.root, out=tmp_path / "new" / "page.html")
    assert elsewhere == locate(tmp_path / "new" / "page.html")
    assert "Provenance" in Page(elsewhere.read_text(encoding="utf-8")).text
    assert not files.side_by_side.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}", "{a}"], "each search must be given once, got {a} twice; leave one out"),
        (["{a}", "{link}"], "each search must be given once, got {a} twice; leave one out"),
        (["{a}", "{a}/final/bundle"], "{a}/final/bundle: a search holds search.json, got none; check the path"),
        (["{a}/final/bundle", "{b}/final/bundle"], "{a}/final/bundle: a search holds search.json, got none"),
        (["{a}", "{b}", "--out", "{a}/search.json"], "--out {a}/search.json: must be a file that ends in .html"),
        (["{a}", "--out", "{a}/page.txt"], "--out {a}/page.txt: must be a file that ends in .html, got another name"),
        (["{a}", "{b}", "--out", "{here}/folder.html"], "--out {here}/folder.html: must be a file, got a folder"),
        (["{a}", "{b}", "--dataset", "{here}"], "{here}: a prepared dataset holds dataset.json, got none"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    words: list[str], said: str, evaluated: UPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: str(copied(evaluated, tmp_path / name).root) for name in ("a", "b")}
    names |= {"link": str(tmp_path / "link"), "here": str(tmp_path)}
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "folder.html").mkdir()
    before = sorted(tmp_path.rglob("*.html"))
    assert call(["report", *(word.format(**names) for word in words)]) == 2
    told = capsys.readouterr().err.strip()
    assert said.format(**names) in told
    assert len(told.splitlines()) == 1
    assert sorted(tmp_path.rglob("*.html")) == before

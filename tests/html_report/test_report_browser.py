"""The page in a real browser: it draws, logs nothing, asks nobody, and fits a phone."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from ich_ray.assess import evaluate as evaluation
from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.data.dataset import PreparedDataset
from ich_ray.html_report.page import report
from ich_ray.results import open_search
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from tests.html_report.chromium import EXECUTABLE, Visit, visit
from tests.html_report.fake_search import build_search
from tests.searched import make_bundle

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]

# Screenshots stay here when a folder is named, for people to look at.
PICTURES = os.environ.get("ICH_RAY_SCREENSHOTS")

FACTS = """({
  places: document.querySelectorAll(".plot").length,
  drawn: [...document.querySelectorAll(".plot")].filter((plot) => {
    const drawing = plot.querySelector("svg.main-svg");
    return plot.classList.contains("js-plotly-plot") && drawing && drawing.getBoundingClientRect().height > 100
      && plot.querySelector(".trace, .heatmaplayer image");
  }).length,
  pictures: [...document.images].every((image) => image.complete && image.naturalWidth > 0),
  slices: document.querySelectorAll(".example img:first-of-type").length,
  heat: document.querySelectorAll(".example img[alt*='heat map']").length,
  tables: ["confirmation", "seeds"].filter((name) => document.getElementById(name)).length,
  scroll: document.documentElement.scrollWidth,
  width: document.documentElement.clientWidth,
  panel: getComputedStyle(document.querySelector("figure")).backgroundColor,
  plot: getComputedStyle(document.querySelector(".plot svg.main-svg")).backgroundColor,
  text: getComputedStyle(document.querySelector(".plot .xtick text")).fill,
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a page can hold: seeds, a confirmation, and heat maps of a network that was really trained."""
    folder = tmp_path_factory.mktemp("page")
    files = SearchFiles(build_search(folder, "retrained", trials=30, size=64))
    first, second = (trial.number for trial in open_search(files.root).ranked()[:2])
    runs = [{"seed": seed, "value": 0.8 - seed / 100, "best_images_seen": 9000} for seed in range(3)]
    write_json(files.retraining, {**read_json(files.retraining), "seed": 0, "images": 18_000, "runs": runs})
    (files.bundle / "card.json").unlink()  # a made-up one
    make_bundle(files, PreparedDataset.open(folder / "dataset"))
    candidates = [
        {"trial": trial, "selection_value": 0.8, "values": [0.7, 0.6], "mean": 0.65, "spread": 0.07}
        for trial in (first, second)
    ]
    confirmed = {"kind": "folds", "parts": 2, "objective": {}, "chosen": first, "candidates": candidates,
                 "images": 36_000, "cost_gpu_s": 0.0, "created": 0.0}  # fmt: skip
    write_json(files.confirmation, confirmed)
    calibrate(files.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "RESAMPLES", 50)
        evaluate(files.root, prevalence=0.02)
    return Path(str(report(files.root)))


def look(page: Path, name: str, width: int = 1280, dark: bool = False) -> Visit:
    pictures = Path(PICTURES) if PICTURES else page.parent
    return asyncio.run(visit(page, FACTS, width=width, dark=dark, picture=pictures / f"report-{name}.png"))


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1280, False), ("dark", 1280, True), ("phone", 390, False)]
)
def test_it_draws_logs_nothing_asks_nobody_and_fits(page: Path, name: str, width: int, dark: bool) -> None:
    found = look(page, name, width, dark)
    assert found.errors == []
    assert found.requests == []
    assert found.facts["places"] == found.facts["drawn"] == 19
    assert found.facts["pictures"]
    assert found.facts["slices"] == found.facts["heat"] >= 8
    assert found.facts["tables"] == 2
    assert found.facts["width"] == width
    assert found.facts["scroll"] <= width
    assert found.facts["plot"] == found.facts["panel"] == ("rgb(27, 30, 35)" if dark else "rgb(255, 255, 255)")
    assert found.facts["text"] == ("rgb(229, 228, 224)" if dark else "rgb(30, 34, 39)")


def test_the_whole_page_is_one_small_file(page: Path) -> None:
    assert page.stat().st_size < 8_000_000
    assert sorted(path.name for path in page.parent.iterdir() if path.suffix in {".js", ".css", ".html"}) == [page.name]


def test_the_browser_reports_what_it_must(tmp_path: Path) -> None:
    """The driver sees an error, a request and a breach of a policy: planted, so that silence means something."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('planted'); missing();</script>")
    found = asyncio.run(visit(bad, "document.title"))
    assert any("planted" in error for error in found.errors)
    assert any("missing is not defined" in error for error in found.errors)
    assert found.requests == ["http://127.0.0.1:9/x.png"]
    bad.write_text(
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'"><script>alert(1)</script>"""
    )
    assert any("Content Security Policy" in error for error in asyncio.run(visit(bad, "document.title")).errors)


def test_it_prints_in_light_colors(page: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    printing = f"(dispatchEvent(new Event('beforeprint')), {FACTS})"
    found = asyncio.run(visit(page, printing, dark=True, print_to=out))
    assert found.errors == []
    assert found.facts["plot"] == found.facts["panel"] == "rgb(255, 255, 255)"
    assert found.facts["text"] == "rgb(30, 34, 39)"
    assert out.read_bytes().startswith(b"%PDF")
    assert out.stat().st_size > 50_000


@pytest.fixture(scope="module")
def beside(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight searches side by side: as many as a page shows."""
    search, folder = page.parent.parent, tmp_path_factory.mktemp("beside")
    others = [folder / f"a-search-with-a-long-name-{number}" for number in range(7)]
    for number, other in enumerate(others):
        shutil.copytree(search, other, ignore=shutil.ignore_patterns("bundle", "logits"))
        record = read_json(SearchFiles(locate(other)).search)
        space = {**record["space"], "parameters": {"dropout": {"uniform": [0.0, number / 20]}}}
        write_json(SearchFiles(locate(other)).search, {**record, "space": space})
    return Path(str(report([search, *others], out=folder / "beside.html")))


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("beside-light", 1280, False), ("beside-dark", 1280, True), ("beside-phone", 390, False)],
)
def test_searches_side_by_side_draw_and_fit(beside: Path, name: str, width: int, dark: bool) -> None:
    found = look(beside, name, width, dark)
    assert found.errors == []
    assert found.requests == []
    assert found.facts["places"] == found.facts["drawn"] == 2
    assert found.facts["width"] == width
    assert found.facts["scroll"] <= width
    assert found.facts["plot"] == found.facts["panel"] == ("rgb(27, 30, 35)" if dark else "rgb(255, 255, 255)")
    assert found.facts["text"] == ("rgb(229, 228, 224)" if dark else "rgb(30, 34, 39)")


def test_searches_side_by_side_print_within_the_sheet(beside: Path, tmp_path: Path) -> None:
    tables = """[...document.querySelectorAll(".scroll")].map((held) =>
      held.querySelector("table").scrollWidth <= held.clientWidth)"""
    printing = f"(dispatchEvent(new Event('beforeprint')), {tables})"
    out = tmp_path / "beside.pdf"
    found = asyncio.run(visit(beside, printing, width=680, media="print", print_to=out))
    assert found.errors == []
    assert found.facts == [True] * 5
    assert out.read_bytes().startswith(b"%PDF")

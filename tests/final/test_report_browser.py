"""The page in a real browser: it draws, logs nothing, asks nobody, and fits a phone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from ich_ray.final.report.page import report
from tests.final.chromium import EXECUTABLE, Visit, visit
from tests.final.fake_search import build_search

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
  scroll: document.documentElement.scrollWidth,
  width: document.documentElement.clientWidth,
  panel: getComputedStyle(document.querySelector("figure")).backgroundColor,
  plot: getComputedStyle(document.querySelector(".plot svg.main-svg")).backgroundColor,
  text: getComputedStyle(document.querySelector(".plot .xtick text")).fill,
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(str(report(build_search(tmp_path_factory.mktemp("page"), trials=30))))


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
    assert found.facts["places"] == found.facts["drawn"] == 15
    assert found.facts["pictures"]
    assert found.facts["width"] == width
    assert found.facts["scroll"] <= width
    assert found.facts["plot"] == found.facts["panel"] == ("rgb(27, 30, 35)" if dark else "rgb(255, 255, 255)")
    assert found.facts["text"] == ("rgb(229, 228, 224)" if dark else "rgb(30, 34, 39)")


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

"""The pictures of docs/, out of the folder that `make demo` has left: `make pictures DEMO=demo`.

The report and the page of `ich-ray watch` are photographed in Chromium; the table is drawn by what draws it in a
terminal, as it stood after two thirds of the search's reports.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from PIL import Image
from rich.console import Console

from ich_ray.results import SearchResult, open_search
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.search.stopping import STOPPING_RULES
from ich_ray.search.tune.search_counts import SearchCounts
from tests.html_report.chromium import Tab, navigate, tab
from tests.watch.browser import becomes, open_page
from tests.watch.planted import served

if TYPE_CHECKING:
    from ich_ray.search.progress_table import SearchStatus
    from ich_ray.trial_records import TrialResult

__all__ = ["as_of", "drawn", "standing", "write_pictures"]

FOLDER = Path(__file__).parents[1] / "docs/pictures"
_WIDTH, _HEIGHT = 1200, 1000
_COLORS = 128
_COLUMNS = 100


def write_pictures(search: Path, folder: Path = FOLDER) -> list[Path]:
    """Write report-top.png, report.png, watch.png and live-table.svg of a finished search."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("report-top.png", "report.png", "watch.png", "live-table.svg")
    top, report, page, table = (folder / name for name in names)
    asyncio.run(_photograph_report(search / "final/report.html", top, report))
    with served(search) as watch:
        asyncio.run(_photograph_watch(watch.address, page))
    found = open_search(search)
    times = sorted(report.time for trial in found.trials for report in trial.reports)
    table.write_text(drawn(standing(found, times[len(times) * 2 // 3])))
    return [top, report, page, table]


def drawn(status: SearchStatus) -> str:
    """A table as SVG, in whatever font of equal widths its reader has: none is fetched."""
    console = Console(record=True, width=_COLUMNS, height=24, file=io.StringIO())
    console.print(status)
    made = console.export_svg(title=f"ich-ray search, {status.name}", unique_id="table")
    return re.sub(r"@font-face {.*?}\s*", "", made, flags=re.DOTALL)


def standing(found: SearchResult, now: float) -> SearchStatus:
    """A search as its table stood at a time, UNIX seconds."""
    space, wanted = parse_space(found.record.space, "search.json"), found.record.wanted
    trials = {trial.number: as_of(trial, now) for trial in found.trials if trial.started <= now}
    rule = STOPPING_RULES[space.budget.rule].rebuilt(space.budget, space.objective, trials.values())
    ledger, scheduler = SimpleNamespace(trials={}), SimpleNamespace(rule=rule, race=None)
    counts = SearchCounts(space, cast("Any", ledger), cast("Any", scheduler), wanted, deadline=math.inf)
    ledger.trials = trials  # of this run, and not of one before it
    for trial in trials.values():
        counts.images += trial.images_seen
        counts.count(trial)
        counts.compare(trial.number, trial.value)
    running = [trial for trial in trials.values() if trial.state == "running"]
    begun = min(trial.started for trial in trials.values())
    return counts.status(running, wanted, now - begun, gpu_hours=None, gpus=0)


def as_of(trial: TrialResult, now: float) -> TrialResult:
    """A trial as its file stood at a time."""
    if trial.ended is not None and trial.ended <= now:
        return trial
    reports = tuple(report for report in trial.reports if report.time <= now)
    return trial.model_copy(update={"state": "running", "reason": "", "reports": reports, "ended": None})


async def _photograph_report(page: Path, top: Path, figures: Path) -> None:
    async with tab() as opened:
        await navigate(opened, page.resolve().as_uri(), _WIDTH, dark=False)
        await becomes(opened, "document.readyState === 'complete' && document.querySelector('svg.main-svg')")
        await _photograph(opened, top)
        await _photograph(opened, figures, "scrollY + document.querySelector('h2').getBoundingClientRect().top - 40")


async def _photograph_watch(address: str, picture: Path) -> None:
    async with tab() as opened:
        await open_page(opened, address, _WIDTH)
        await _photograph(opened, picture)


async def _photograph(opened: Tab, picture: Path, below: str = "0") -> None:
    """A part of a page from a height on, in few colors so that the file is small."""
    clip = {"x": 0, "y": await opened.evaluate(below), "width": _WIDTH, "height": _HEIGHT, "scale": 1}
    shot = await opened.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(_COLORS, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    for written in write_pictures(Path(sys.argv[1]) / "search"):
        sys.stdout.write(f"{written.name}: {written.stat().st_size:,} bytes\n")

"""The page in a real browser: what it shows, how it goes on, its keys, and text that would like to be more."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ich_ray.search.trial_output import write_output
from ich_ray.storage import SearchFiles
from ich_ray.watch.server import Watch
from tests.html_report.chromium import EXECUTABLE, Tab, errors, photograph, requests, tab
from tests.watch.browser import CLICK_FIRST, DETAIL, SHOWN, becomes, filtered, open_page, press
from tests.watch.planted import plant_search, served, write_trial

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]

PICTURES = os.environ.get("ICH_RAY_SCREENSHOTS")
CHOSEN = "+document.querySelector('tr.chosen').getAttribute('aria-rowindex')"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture
def files(tmp_path: Path) -> SearchFiles:
    return plant_search(tmp_path / "search", trials=60, running=3, wanted=80)


@pytest.fixture
def watch(files: SearchFiles) -> Iterator[Watch]:
    with served(files.root, price=2.5) as found:
        yield found


def asked_for(opened: Tab) -> set[str]:
    """Where the page has sent requests, without their queries."""
    return {address.partition("?")[0] for address in requests(opened)}


FACTS = """({
  title: document.title,
  address: location.href,
  heading: document.getElementById("name").textContent,
  standing: document.getElementById("standing").textContent,
  steps: document.querySelectorAll("#best polyline").length,
  curves: document.querySelectorAll("#curves polyline.running").length,
  rungs: document.querySelectorAll("#curves .upright").length,
  rows: document.querySelectorAll("#rows tr:not(.space)").length,
  best: document.querySelector("#rows tr.best td").textContent,
  machines: document.querySelectorAll("#machine-table tbody tr").length,
  failures: document.querySelector("#failure-table tbody").textContent,
  axes: [...document.querySelectorAll("#axis button")].map((button) => button.textContent),
  scroll: document.documentElement.scrollWidth,
  paper: getComputedStyle(document.body).backgroundColor,
})"""


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1280, False), ("dark", 1280, True), ("phone", 390, False)]
)
def test_it_shows_the_search_and_asks_nobody_else(
    watch: Watch, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    async def look() -> tuple[dict[str, Any], list[str], set[str], bool]:
        async with tab() as opened:
            await open_page(opened, watch.address, width, dark)
            found = await opened.evaluate(FACTS)
            await opened.evaluate("document.getElementById('compute').click()")
            await becomes(opened, "document.querySelector('#parallel polyline')")
            await photograph(opened, Path(PICTURES or tmp_path) / f"watch-{name}.png", width)
            wide = await opened.evaluate("document.documentElement.scrollWidth")
            return found, errors(opened), asked_for(opened), wide <= width

    found, said, asked, fits = asyncio.run(look())
    home = f"http://127.0.0.1:{watch.port}/"
    assert said == []
    assert asked == {home, f"{home}data", f"{home}parameters"}
    assert found["title"] == "demo · interrupted · 57/80"
    assert found["address"] == home
    assert found["heading"] == "demo"
    assert "57 of 80 trials ended" in found["standing"]
    assert (found["steps"], found["curves"], found["rungs"], found["machines"]) == (1, 3, 2, 2)
    assert 20 <= found["rows"] < 60
    assert found["best"] == str(watch.board.as_result().best().number)
    assert "diverged" in found["failures"]
    assert found["axes"] == ["images", "hours", "GPU hours", "money"]
    assert found["scroll"] <= width
    assert fits
    assert found["paper"] == ("rgb(21, 23, 27)" if dark else "rgb(251, 250, 247)")


def test_it_goes_on_by_itself_and_opens_again_without_the_key(watch: Watch, files: SearchFiles) -> None:
    trial = watch.board.as_result().trials[59]

    async def look() -> tuple[str, str, list[str]]:
        async with tab() as opened:
            await open_page(opened, watch.address)
            write_trial(
                files, trial.model_copy(update={"state": "failed", "reason": "oom", "ended": trial.started + 99})
            )
            await becomes(opened, "document.title.includes('58/80')")
            failures = await opened.evaluate("document.getElementById('failure-table').textContent")
            await opened.evaluate("delete document.documentElement.dataset.version")
            await opened.command("Page.navigate", url=f"http://127.0.0.1:{watch.port}/")
            await becomes(opened, SHOWN)
            return failures, await opened.evaluate("document.title"), errors(opened)

    failures, title, said = asyncio.run(look())
    assert "oom" in failures
    assert title == "demo · interrupted · 58/80"
    assert said == []


def test_a_trial_that_is_looked_at_goes_on_too(watch: Watch, files: SearchFiles) -> None:
    trial = watch.board.as_result().trials[59]
    assert trial.state == "running"
    write_output(str(files.root), 59, "the first line\n")
    title = "document.getElementById('detail-title').textContent"

    async def look() -> tuple[str, str, str, list[str]]:
        async with tab() as opened:
            await open_page(opened, watch.address)
            await opened.evaluate(filtered("number=59", CLICK_FIRST))
            await becomes(opened, "document.getElementById('detail').open")
            first = await opened.evaluate(title)
            write_output(str(files.root), 59, "the first line\nthe last line\n")
            ended = {"state": "failed", "reason": "oom", "ended": trial.started + 99}
            write_trial(files, trial.model_copy(update=ended))
            await becomes(opened, f"{title}.includes('failed')")
            found = await opened.evaluate(DETAIL)
            await press(opened, "Escape")
            await becomes(opened, "!document.getElementById('detail').open")
            before = await opened.evaluate("document.documentElement.dataset.version")
            write_trial(files, trial.model_copy(update={**ended, "detail": "once more"}))
            await becomes(opened, f"document.documentElement.dataset.version !== '{before}'")
            assert not await opened.evaluate("document.getElementById('detail').open")
            return first, found, await opened.evaluate(title), errors(opened)

    first, found, title_then, said = asyncio.run(look())
    assert (first, title_then) == ("Trial 59: running", "Trial 59: failed, oom")
    assert "the last line" in found
    assert said == []


def test_keys_filter_choose_open_and_close(watch: Watch) -> None:
    async def look() -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with tab() as opened:
            await open_page(opened, watch.address)
            await press(opened, "/", *"state=failed")
            found["filtered"] = await opened.evaluate("document.getElementById('shown').textContent")
            await opened.evaluate("document.getElementById('grid').focus()")
            await press(opened, "Enter")
            await becomes(opened, "document.getElementById('detail').open")
            found["error"] = await opened.evaluate("document.querySelector('#detail pre').textContent")
            await press(opened, "Escape")
            await becomes(opened, "!document.getElementById('detail').open")
            await opened.evaluate(filtered("images>=9000 optimizer=adam", "document.getElementById('grid').focus()"))
            found["both"] = await opened.evaluate("document.getElementById('shown').textContent")
            await press(opened, "End")
            found["last"] = await opened.evaluate(CHOSEN)
            await press(opened, "Home", "ArrowDown")
            found["second"] = await opened.evaluate(CHOSEN)
            await opened.evaluate("document.querySelector('#heads button[title=trial]').click()")
            found["sorted"] = await opened.evaluate("document.querySelector('#heads th').getAttribute('aria-sort')")
            found["said"] = errors(opened)
        return found

    found = asyncio.run(look())
    trials = watch.board.as_result().trials
    both = sum(trial.images_seen >= 9000 and trial.parameters["optimizer"] == "adam" for trial in trials)
    assert found == {
        "filtered": "1 of 60 trials", "error": "loss is NaN after 12 batches",
        "both": f"{both} of 60 trials", "last": both + 1, "second": 3, "sorted": "ascending", "said": [],
    }  # fmt: skip


def test_text_of_the_ledger_is_text(watch: Watch, files: SearchFiles) -> None:
    trial = watch.board.as_result().trials[2]
    names = {"__proto__": HOSTILE, "constructor": "</script><script>document.title='taken'</script>", HOSTILE: "x"}
    change = {
        "parameters": {**trial.parameters, **names},
        "detail": HOSTILE,
        "reason": HOSTILE,
        "where": f"{HOSTILE}:1",
    }
    write_trial(files, trial.model_copy(update=change))
    write_output(str(files.root), 2, f"{HOSTILE}\nof its process\n")
    write_output(str(files.root), 2, f"{HOSTILE}\n", lost=True)
    watch.read()

    async def look() -> tuple[dict[str, Any], list[str]]:
        async with tab() as opened:
            await open_page(opened, watch.address)
            await opened.evaluate(filtered("state=failed", CLICK_FIRST))
            await becomes(opened, "document.getElementById('detail').open")
            await opened.evaluate("document.getElementById('compute').click()")
            await becomes(opened, "!document.getElementById('compute').disabled")
            found = await opened.evaluate(
                "({ title: document.title, images: document.images.length, scripts: document.scripts.length,"
                " shown: document.body.textContent.split('<img src=x').length - 1,"
                " heads: document.getElementById('heads').textContent,"
                f" log: {DETAIL} }})"
            )
            return found, errors(opened)

    found, said = asyncio.run(look())
    assert found["title"] == "demo · interrupted · 57/80"
    assert (found["images"], found["scripts"]) == (0, 1)
    assert found["shown"] >= 7
    assert "of its process" in found["log"]
    assert "__proto__" in found["heads"]
    assert "constructor" in found["heads"]
    assert said == []


def test_it_prints_in_light_colors_with_more_rows_than_can_be_seen(watch: Watch, tmp_path: Path) -> None:
    async def look() -> tuple[int, str, list[str], bytes]:
        async with tab() as opened:
            await open_page(opened, watch.address, dark=True)
            rows = await opened.evaluate(
                "(dispatchEvent(new Event('beforeprint')), document.querySelectorAll('#rows tr:not(.space)').length)"
            )
            paper = await opened.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
            printed = await opened.command("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
            return rows, paper, errors(opened), base64.b64decode(printed["data"])

    rows, paper, said, printed = asyncio.run(look())
    (tmp_path / "watch.pdf").write_bytes(printed)
    assert (rows, paper, said) == (60, "rgb(255, 255, 255)", [])
    assert printed.startswith(b"%PDF")

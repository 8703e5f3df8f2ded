"""The site opened from disk in a real browser: it draws, finds words, and asks no host for anything."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.html_report.chromium import EXECUTABLE, Tab, errors, navigate, photograph, requests, tab
from tests.test_house import REPOSITORY
from tests.watch.browser import becomes, press

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]

# Screenshots stay here when a folder is named, for people to look at.
PICTURES = os.environ.get("ICH_RAY_SCREENSHOTS")
FOUND = "document.querySelectorAll('.md-search-result__item').length"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


async def opened(page: Tab, address: Path, width: int = 1280) -> None:
    """Open a page of the site with every request refused that is not for a file of it."""
    await page.command("Network.enable")
    await page.command("Network.setBlockedURLs", urls=["http://*", "https://*", "ws://*", "wss://*"])
    await navigate(page, address.as_uri(), width, dark=False)
    await becomes(page, "document.readyState === 'complete' && document.querySelector('article h1')")


async def facts(address: Path, expression: str, width: int = 1280) -> tuple[list[str], list[str], Any]:
    """What a page logs, what it asks of others, and the value of an expression on it."""
    async with tab() as page:
        await opened(page, address, width)
        found = await page.evaluate(expression)
        if PICTURES is not None:
            await photograph(page, Path(PICTURES) / f"site_{address.stem}_{width}.png", width)
        return errors(page), [asked for asked in requests(page) if not asked.startswith("file:")], found


@pytest.mark.parametrize("name", ["index.html", "reference/commands.html", "reference/api.html"])
def test_a_page_opens_from_disk_and_asks_nobody(name: str, site: Path) -> None:
    told, asked, links = asyncio.run(facts(site / name, "document.querySelectorAll('article a[href]').length"))
    assert (told, asked) == ([], [])
    assert links > 3


def test_a_page_fits_a_phone(site: Path) -> None:
    scrolled = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert asyncio.run(facts(site / "reference/formats.html", scrolled, width=390)) == ([], [], 0)


@pytest.mark.parametrize(("word", "where"), [("quarantine", ""), ("dropout", "reference/search-space.html")])
def test_the_search_finds_a_word_in_the_reference_first_and_asks_nobody(word: str, where: str, site: Path) -> None:
    async def searched() -> tuple[list[str], list[str], str]:
        async with tab() as page:
            await opened(page, site / "index.html")
            await page.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
            await press(page, *word)
            await becomes(page, f"{FOUND} > 0")
            best = await page.evaluate("document.querySelector('.md-search-result__link').href")
            return errors(page), [asked for asked in requests(page) if not asked.startswith("file:")], best

    told, asked, best = asyncio.run(searched())
    assert (told, asked) == ([], [])
    assert best.startswith(f"{site.as_uri()}/{where}")

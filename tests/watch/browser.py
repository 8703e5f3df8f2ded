"""The page of `ich-ray watch` in Chromium: opened, waited for, asked."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from tests.html_report.chromium import Tab, navigate

_PATIENCE_S = 120
# The first trial that the filter leaves, and all that stands in fixed width where one is looked at.
CLICK_FIRST = "document.querySelector('#rows tr:not(.space)').click()"
DETAIL = "[...document.querySelectorAll('#detail pre')].map((one) => one.textContent).join('|')"
SHOWN = "+(document.documentElement?.dataset.version ?? 0) >= 1"


async def open_page(tab: Tab, address: str, width: int = 1280, dark: bool = False) -> None:
    """Open the address as a screen of `width` pixels does, and wait until the search is shown."""
    await navigate(tab, address, width, dark)
    await becomes(tab, SHOWN)


async def becomes(tab: Tab, expression: str) -> None:
    """Wait until an expression is true, whatever page is there meanwhile."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        with suppress(AssertionError):  # between two pages there is none to ask
            if await tab.evaluate(f"Boolean({expression})"):
                return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"the page must come to {expression} within {_PATIENCE_S} s")


def filtered(text: str, then: str) -> str:
    """A script that writes into the filter of trials, and then does another thing."""
    typed = "const box = document.getElementById('filter'); box.value = "
    return f"{{ {typed}'{text}'; box.dispatchEvent(new Event('input')); {then} }}"


async def press(tab: Tab, *keys: str) -> None:
    """Keys by their names in the DOM; a single sign is typed."""
    for key in keys:
        typed = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        codes = {"Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowUp": 38, "ArrowDown": 40}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        await tab.command("Input.dispatchKeyEvent", type="keyDown", key=key, **typed, **code)
        await tab.command("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

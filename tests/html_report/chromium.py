"""Chromium, driven over its own DevTools protocol: what a page logs, asks for and draws, and how it looks.

Needs only the browser and aiohttp, which Ray's dashboard brings.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE_S = 60


@dataclass(frozen=True)
class Visit:
    """What happened when a page was opened.

    Attributes:
        errors: console errors and warnings, uncaught exceptions, breaches of the content security policy.
        requests: addresses asked for, other than the page itself and data inside it.
        facts: the value of the expression that was asked.
    """

    errors: list[str]
    requests: list[str]
    facts: Any


class Tab:
    """One page target."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.events: list[dict[str, Any]] = []

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=_PATIENCE_S)
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self.events.append(message)

    async def evaluate(self, expression: str) -> Any:
        found = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@asynccontextmanager
async def tab() -> AsyncIterator[Tab]:
    """A fresh browser with one empty page, ended with the block."""
    assert EXECUTABLE is not None
    with tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            EXECUTABLE, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run",
            "--hide-scrollbars", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
            *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [target for target in await answer.json() if target["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            process.kill()
            await process.wait()


async def _port(file: Path) -> str:
    for _ in range(_PATIENCE_S * 10):
        if file.exists() and (lines := file.read_text().splitlines()):
            return lines[0]
        await asyncio.sleep(0.1)
    raise TimeoutError("Chromium must open its DevTools port within a minute")


async def navigate(opened: Tab, address: str, width: int, dark: bool, media: str = "") -> None:
    """Go to an address as a screen of `width` pixels does, and have its events told."""
    for domain in ("Page", "Runtime", "Log", "Network"):
        await opened.command(f"{domain}.enable")
    await opened.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await opened.command("Emulation.setEmulatedMedia", media=media, features=[scheme])
    await opened.command("Page.navigate", url=address)


async def visit(
    page: Path,
    facts: str,
    *,
    width: int = 1280,
    dark: bool = False,
    media: str = "",
    picture: Path | None = None,
    print_to: Path | None = None,
) -> Visit:
    """Open a file as a screen of `width` pixels does, wait until it has drawn, and ask it for `facts`.

    Args:
        facts: a JavaScript expression.
        media: `print` for the styles of paper; those of a screen if empty.
        picture: where a PNG of the whole page goes.
        print_to: where the printed page goes, as PDF.
    """
    async with tab() as opened:
        await navigate(opened, page.as_uri(), width, dark, media)
        loaded = "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        await opened.evaluate(loaded)
        await opened.evaluate("new Promise(done => setTimeout(done, 500))")
        found = await opened.evaluate(facts)
        if picture is not None:
            await photograph(opened, picture, width)
        if print_to is not None:
            printed = await opened.command("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
            print_to.write_bytes(base64.b64decode(printed["data"]))
        asked = [address for address in requests(opened) if address != page.as_uri()]
        return Visit(errors(opened), asked, found)


async def photograph(opened: Tab, picture: Path, width: int) -> None:
    height = await opened.evaluate("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = await opened.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(base64.b64decode(shot["data"]))


def errors(opened: Tab) -> list[str]:
    """Console errors and warnings, uncaught exceptions, breaches of the content security policy."""
    return [error for error in map(_error, opened.events) if error]


def _error(event: dict[str, Any]) -> str | None:
    method, found = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return str(found["exceptionDetails"])
    if method == "Runtime.consoleAPICalled" and found["type"] in {"error", "warning", "assert"}:
        return str(found["args"])
    if method == "Log.entryAdded" and found["entry"]["level"] in {"error", "warning"}:
        return str(found["entry"])
    return None


def requests(opened: Tab) -> list[str]:
    """Addresses asked for, other than data inside the page."""
    asked = [
        event["params"]["request"]["url"]
        for event in opened.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    return [address for address in asked if not address.startswith(("data:", "blob:"))]

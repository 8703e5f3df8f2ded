"""The page of `ich-ray watch`, put together of its files, and the policy that a browser holds it to."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

__all__ = ["page_source"]

_HERE = Path(__file__).parent


def page_source() -> tuple[bytes, str]:
    """The page, and its policy: one script and one style by their hashes, and nothing else.

    Its colors and tables are those of the report.
    """
    style = (_HERE.parent / "html_report" / "page.css").read_text(encoding="utf-8")
    style += (_HERE / "watch.css").read_text(encoding="utf-8")
    script = (_HERE / "watch.js").read_text(encoding="utf-8")
    page = (_HERE / "watch.html").read_text(encoding="utf-8")
    page = page.replace("/* style */", style).replace("/* script */", script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page.encode(), "; ".join(f"{name} {allowed}" for name, allowed in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""Text that tries to steer a terminal, for tests that plant it wherever somebody else's text can stand."""

from __future__ import annotations

import re

# A title, an overwritten line, a clipboard, an order that is not there, a line of ours, a C1 code, a null.
HOSTILE = "a\x1b]0;owned\x07\rich-ray: fine\x1b]52;c;eA==\x07\u202etxt\u2066\nich-ray: done\x9b2J\0\u200b\u2028z"
PLANTED = r"a\x1b]0;owned\x07\rich-ray: fine\x1b]52;c;eA==\x07\u202etxt\u2066\nich-ray: done\x9b2J\x00\u200b\u2028z"
_STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def steers(text: str) -> bool:
    """Whether a text holds a control character other than a line break, or one that changes what is seen."""
    return _STEERS.search(text) is not None

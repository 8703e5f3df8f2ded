"""Text in CSV files that a spreadsheet would take for a formula, and run.

The list is OWASP's (CSV injection): a cell that begins with = + - @, as in ASCII or in full width, a tab or a carriage
return. Spaces and quotes before one of them are skipped, because importers skip them.
"""

from __future__ import annotations

import re

__all__ = ["inert"]

# What matches does so behind a quote, too, so that a quoted text is never what another one looks like.
_FORMULA = re.compile(r"""['"\s]*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r]""")


def inert(cell: object) -> object:
    """A cell that stands for itself: text that would be computed gets a single quote in front.

    Numbers stay numbers, and identifiers that were checked (letters and digits first) stay as they are.
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell

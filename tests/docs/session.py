"""One Python for all blocks of a page, as a reader has: what a block defines, the next ones know.

Reads from stdin, a line each, the files to run; answers on stdout 0 or 1. What they print goes to stderr.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[0] = ""
    names: dict[str, object] = {"__name__": "__main__"}
    for line in sys.stdin:
        name = line.strip()
        try:
            exec(compile(Path(name).read_text("utf-8"), name, "exec"), names)  # noqa: S102  (a page of ours)
            code = 0
        except BaseException:  # noqa: BLE001  (told to whoever runs the page)
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        print(code, file=answers, flush=True)


if __name__ == "__main__":
    main()

"""The long run: `python -m tests.ct.fuzz --count 20000 --seed 0` changes, reads and judges, then prints every kind."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.ct.fuzz.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ct.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="changed files")
    parser.add_argument("--seed", type=int, default=0, help="the files that a seed makes are always the same")
    parser.add_argument("--keep", type=Path, help="a folder for files that no rule explains")
    chosen = parser.parse_args()
    started = time.perf_counter()
    kinds, found = run(range(chosen.count), chosen.seed)
    for kind, count in kinds.most_common():
        sys.stdout.write(f"{count:7}  {kind}\n")
    for one in found:
        sys.stdout.write(f"UNJUDGED {one.name}, number {one.number}: {'; '.join(one.unjudged)}\n")
        if chosen.keep:
            chosen.keep.mkdir(parents=True, exist_ok=True)
            (chosen.keep / f"{one.number}.dcm").write_bytes(one.data)
    seconds = time.perf_counter() - started
    sys.stdout.write(f"{chosen.count} files, seed {chosen.seed}, {seconds:.0f} s: {len(found)} differ without a rule\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

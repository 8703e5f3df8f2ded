"""What a search costs where networks differ tenfold in speed, by rules that look at the cost of a trial.

Problems, slots and tables are those of `search_efficiency.py contest --kind paced`: cost is the seconds of all slots
together until a report's value without noise is 95 % of the best possible one, in whole trainings of the fastest
network. A search is given up at 260 of them, as many as 60 trainings of a network of mean speed. Rules are tried on
quick searches (efficiency/quick.py); what became of them in the product, `budget: {unit: cost}`, runs for itself with
`--real`. Searches are kept in a file, one a line, and those that are there are not run again.

    python benchmarks/search_cost.py FILE [--seeds 24] [--searches 2] [--slots 1 8 64] [--rules ours "per cost" ...]
                                          [--real] [--by cost]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.efficiency.contest import kept, keys, print_contest, search_all
from benchmarks.efficiency.cost_rules import RULES
from benchmarks.efficiency.rivals import CONTESTANTS

AT_MOST = 260.0
REAL = {name: CONTESTANTS[name] for name in ("ours", "ours, unit: cost")}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--seeds", type=int, default=24, help="problems")
    arguments.add_argument("--searches", type=int, default=2, help="of each problem")
    arguments.add_argument("--slots", type=int, nargs="+", default=[1, 8, 64])
    arguments.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    arguments.add_argument("--real", action="store_true", help="the product's own search, without rules that it lacks")
    arguments.add_argument("--noise", type=float, default=0.02)
    arguments.add_argument("--by", choices=["images", "seconds", "cost"], default="cost")
    asked = arguments.parse_args()
    warnings.simplefilter("ignore")
    contestants = REAL if asked.real else {name: RULES[name] for name in asked.rules}
    wanted = keys("paced", asked.seeds, range(asked.searches), asked.slots, list(contestants))
    search_all(wanted, asked.noise, AT_MOST, asked.file, "cost", contestants)
    print_contest(kept(asked.file), AT_MOST, asked.by, "cost")


if __name__ == "__main__":
    main()

"""Searches under one fault after another, on machines that are processes of this one: what each fault costs.

Every few seconds one of: a worker killed, a machine killed, drained or stopped, a disk filled, a device poisoned, a
storage slowed, the driver killed, in an order that the seed decides, all kinds equally often. Machines are replaced,
the driver is started again, and nobody looks. When a search has ended it is compared with one without faults: I1 to I8
of `ich-ray audit`, every value of every trial, the images that were computed and not kept, and what the output says.
Then the next one begins, until there were so many faults. Lines of JSON go into FOLDER/chaos.jsonl, and the same
command goes on from them.

    nice python -m benchmarks.chaos FOLDER --faults 300 --every 10 --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.faults import KINDS, Fault, Planter
from benchmarks.chaos.judging import as_line, judge
from benchmarks.chaos.machines import Fleet
from benchmarks.chaos.supervised import Supervised
from benchmarks.chaos.survival import table
from benchmarks.chaos.training import ChainTrainer
from tests.prepared import make_dataset
from tests.search.fakes import SPACE

BUDGET = {"images": 3000, "report_every": 100}
MACHINES = 3
# A search that takes so long is stuck, whatever is planted.
STUCK_S = 1800.0


def order(seed: int, first: int) -> Any:
    """Kinds without end, all equally often, from the fault with this number on."""
    moments, kinds, number = random.Random(seed), list(KINDS), 0
    while True:
        moments.shuffle(kinds)
        for kind in kinds:
            if number >= first:
                yield kind
            number += 1


def run(folder: Path, *, faults: int, every_s: float, seed: int, trials: int, step_s: float) -> list[dict[str, Any]]:
    """Plant faults until there were so many in all runs with this folder; what each of them has cost.

    Raises:
        RuntimeError: a search is stuck, or its driver ends again and again.
    """
    written = folder / "chaos.jsonl"
    lines = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    if len(lines) >= faults:
        return lines
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "attempts").mkdir(parents=True)
    make_dataset(work / "data", patients=12, size=16)
    old = "budget: {images: 900, report_every: 100, first_rung: 100, reduction: 3, min_peers: 2}"
    assert old in SPACE
    new = f"budget: {{images: {BUDGET['images']}, report_every: 100, first_rung: 1000, reduction: 3, min_peers: 2}}"
    (work / "space.yaml").write_text(SPACE.replace(old, new))
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "120"}
    started = time.time()
    fleet = Fleet(work, MACHINES)
    kinds = order(seed, len(lines))
    planter = Planter(fleet, work / "attempts", random.Random(f"{seed} {len(lines)}"))
    trainer = ChainTrainer(str(work), step_s)
    try:
        while len(lines) < faults:
            out = work / f"s{len(lines):04d}"
            arguments = [str(work / "data"), "--space", str(work / "space.yaml"), "--trials", str(trials)]
            arguments += ["--seed", str(len(lines)), "--address", fleet.address]
            (work / f"{out.name}.txt").write_text("")
            driver = Supervised(arguments, out, work / f"{out.name}.txt", trainer)
            planted = _disturb(driver, planter, kinds, len(lines), faults, every_s)
            found = judge(out, work / "attempts", planted, driver.said.read_text(), BUDGET)
            new_lines = [as_line(fault, found.costs[fault.number], found) for fault in planted]
            _tell(out.name, found.problems, new_lines, driver, found.attempts, started)
            with written.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in new_lines)
            lines += new_lines
    finally:
        fleet.end()
    return lines


def _disturb(driver: Supervised, planter: Planter, kinds: Any, first: int, faults: int, every_s: float) -> list[Fault]:
    """Plant one fault after the other while a search runs, and see to it that it goes on."""
    planted: list[Fault] = []
    deadline = time.monotonic() + STUCK_S
    due, kind = time.monotonic() + every_s, ""
    while not driver.over:
        if time.monotonic() > deadline:
            raise RuntimeError(f"a search is stuck: {driver.said}")
        driver.look()
        planter.look()
        if time.monotonic() >= due and first + len(planted) < faults and (driver.out / "search.json").exists():
            kind = kind or next(kinds)
            if fault := planter.plant(first + len(planted), kind, driver):
                planted.append(fault)
                print(f"fault {fault.number}: {fault.kind}{fault.way and f' ({fault.way})'}", flush=True)
                due, kind = max(due + every_s, time.monotonic() + every_s / 2), ""
        time.sleep(0.1)
    driver.process.join()
    return planted


def _tell(
    name: str, problems: list[str], lines: list[dict[str, Any]], driver: Supervised, attempts: int, started: float
) -> None:
    told = [
        *problems,
        *(f"fault {line['number']} ({line['kind']}): {one}" for line in lines for one in line["problems"]),
    ]
    print(
        f"{name}: {len(lines)} faults, {attempts} attempts, {len(driver.pids)} drivers, {len(driver.ends)} of which "
        f"ended by themselves; {len(told)} problems; {time.time() - started:.0f} s in all",
        flush=True,
    )
    for one in told:
        print(f"  {one}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--every", type=float, default=10.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=9, help="of each search")
    parser.add_argument("--step", type=float, default=0.1, help="seconds of ten images; there are 300 in a trial")
    given = parser.parse_args()
    lines = run(
        given.folder.absolute(),
        faults=given.faults,
        every_s=given.every,
        seed=given.seed,
        trials=given.trials,
        step_s=given.step,
    )
    print(table(lines))
    return 0 if all(line["survived"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The script of one trial of Syne Tune."""

from __future__ import annotations

import argparse
from pathlib import Path

from syne_tune import Reporter

from benchmarks.searchers.task import METRIC, PARAMETERS, Task, named, trained


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, told in PARAMETERS.items():
        ((_, values),) = told.items()
        parser.add_argument(f"--{name}", type=type(values[0]))
    parser.add_argument("--task")
    parser.add_argument("--st_checkpoint_dir")
    given = vars(parser.parse_args())
    task, number = Task.read(Path(given.pop("task"))), Path(given.pop("st_checkpoint_dir")).parent.name
    report = Reporter()
    for progress in trained(task, given, named(number, given)):
        report(**{METRIC: progress.metrics[METRIC], "reports": progress.images_seen // task.report_every})


if __name__ == "__main__":
    main()

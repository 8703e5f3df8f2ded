"""What preparing and searching the full RSNA set takes: hours, money, and what would become the bottleneck.

Arithmetic on rates, each of them a flag; docs/sizing.md says where the defaults come from. Runs and measures nothing.

The sizes are that of a first search and twice as many pixels a side, one row below the other. The other tables are of
the first size, each the course of the same search by growing_course.py: with trials that stay as they are and with some
that grow onto free slots, at several parallel efficiencies; with a confirmation after it; and with trials that grow
onto other machines, over networks of several speeds.

    python benchmarks/sizing.py [--gpus 1 8 64] [--trials 100] [--images-per-s 1500] [--gpu-hour 0.48] ...
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.growing_course import Confirming, Costs, course_s
from ich_ray.data.roles import DEFAULT_FRACTIONS
from ich_ray.search.plan.expected import expected_course
from ich_ray.search.plan.growth import SWITCH_S
from ich_ray.search.space.yaml_file import load_space

if TYPE_CHECKING:
    from collections.abc import Callable

SPACE = Path(__file__).parents[1] / "search_spaces" / "default.yaml"
SIZES = (128, 256, 384, 512)
# GPUs, those of a node, and GB of its memory that can hold images.
CLUSTERS = ((8, 8, 150), (64, 1, 24), (64, 8, 150), (512, 8, 150))
EFFICIENCIES = (1.0, 0.8, 0.5)
# Of two CPU processes that train a ResNet50, by processor time: growth_efficiency.py, 2026-11-30.
MEASURED = 0.28
# For what is told at one alone.
EFFICIENCY = 0.8
# Gbit/s between machines; MB of all gradients and images of a batch.
NETWORKS = (10, 25, 100)
STEPS = ((100, 64), (100, 128), (25, 128))
# Of a step, in which gradients are sent while others are still computed: nothing is before the backward pass.
BACKWARD = 2 / 3
# Searches, of other qualities of trials, whose mean is told.
COURSES = 4


@dataclass(frozen=True)
class Rates:
    """What is measured or assumed.

    Attributes:
        slices: of the whole set, `dicom_mb` each; prepared they have three windows of `size` pixels a side.
        decode_per_s: slices a second that one core prepares, of `decode_cores`.
        images_per_s: trained a second on one GPU, the mean over the space's architectures; evaluating is `evaluate`
            times as fast.
        start_s: from the start of a trial to its first batch.
        state_mb: what a trial saves at each report after which it goes on.
        report_ms: the driver's processor time for a report and the new trial that follows some of them.
        storage_gbit: network of the shared storage, for all nodes together; GPUs of one node share its file cache.
        cache_gb: of a node's memory that can hold images; what it does not hold is read again in each epoch.
        gpu_hour, head_hour, core_hour: prices in dollars.
    """

    slices: float = 752_803
    dicom_mb: float = 0.53
    size: float = 128
    decode_per_s: float = 880
    decode_cores: float = 16
    images_per_s: float = 1500
    evaluate: float = 3
    start_s: float = 5
    state_mb: float = 200
    report_ms: float = 20
    storage_gbit: float = 10
    cache_gb: float = 24
    gpus_per_node: float = 1
    gpu_hour: float = 0.48
    head_hour: float = 0.38
    core_hour: float = 0.034

    @property
    def image_bytes(self) -> float:
        return 3 * self.size**2

    @property
    def prepared_gb(self) -> float:
        return self.slices * self.image_bytes / 1e9


@dataclass(frozen=True)
class Sized:
    """A search on so many GPUs.

    Attributes:
        fetch_s: until every node has the images of train and validation in its file cache, or as many as it holds, all
            nodes at once.
        again_gbit: of the shared network, for images that no file cache holds; trials wait where it is all of it.
        states_gbit: of the shared network, for the states that trials save.
        reports_per_s: that the driver hears; `driver_share` of one core is busy with them.
    """

    gpus: int
    hours: float
    dollars: float
    fetch_s: float
    again_gbit: float
    states_gbit: float
    reports_per_s: float
    driver_share: float


def sized(rates: Rates, trials: int, gpus: int) -> Sized:
    """A search of `trials` trials that fare as `--plan` expects.

    Its length is at most an even share of the work and the longest trial once more (Graham 1969, list scheduling); all
    GPUs are paid to the end. Nothing is gained from training while images still come.
    """
    budget = load_space(SPACE).budget
    images = expected_course(budget, trials).images
    validated = rates.slices * DEFAULT_FRACTIONS["validation"]
    report_s = (budget.report_every + validated / rates.evaluate) / rates.images_per_s
    used = min(gpus, trials)
    seen_gb = rates.prepared_gb * (DEFAULT_FRACTIONS["train"] + DEFAULT_FRACTIONS["validation"])
    missing = max(0.0, 1 - rates.cache_gb / seen_gb)
    again_gbit = used * missing * (budget.report_every + validated) / report_s * rates.image_bytes * 8e-9
    report_s *= max(1.0, again_gbit / rates.storage_gbit)
    work_s = trials * rates.start_s + images / budget.report_every * report_s
    longest_s = rates.start_s + budget.images / budget.report_every * report_s
    nodes = math.ceil(used / rates.gpus_per_node)
    fetch_s = nodes * min(seen_gb, rates.cache_gb) * 8 / rates.storage_gbit
    hours = (fetch_s + work_s / used + longest_s * (1 - 1 / used)) / 3600
    return Sized(
        gpus=gpus,
        hours=hours,
        dollars=hours * (used * rates.gpu_hour + rates.head_hour),
        fetch_s=fetch_s,
        again_gbit=min(again_gbit, rates.storage_gbit),
        states_gbit=used / report_s * (1 - trials * budget.report_every / images) * rates.state_mb * 8 / 1000,
        reports_per_s=used / report_s,
        driver_share=used / report_s * rates.report_ms / 1000,
    )


def preparing(rates: Rates) -> str:
    """What `prepare` takes, and which of its two limits it is."""
    decode_s = rates.slices / (rates.decode_per_s * rates.decode_cores)
    read_s = rates.slices * rates.dicom_mb * 8 / (rates.storage_gbit * 1000)
    hours = max(decode_s, read_s) / 3600
    return (
        f"prepare: {rates.slices:,.0f} slices, {decode_s / 60:.0f} min of decoding on {rates.decode_cores:g} cores, "
        f"{read_s / 60:.0f} min of reading {rates.slices * rates.dicom_mb / 1000:,.0f} GB over "
        f"{rates.storage_gbit:g} Gbit/s, whichever is longer; "
        f"${hours * (rates.decode_cores * rates.core_hour + rates.head_hour):.2f}"
    )


def prepared(rates: Rates) -> str:
    """What the images take on the disk, at some sizes."""
    told = (f"{replace(rates, size=size).prepared_gb:,.0f} GB at {size}" for size in SIZES)
    return f"prepared: three windows of {rates.slices:,.0f} slices are {', '.join(told)} pixels a side"


def table(several: list[Rates], trials: int, gpus: list[int]) -> list[str]:
    """Rows of Markdown, for each number of GPUs one of each size."""
    head = (
        "| GPUs | pixels | hours | dollars | images to all nodes, min | read again, Gbit/s | states, Gbit/s "
        "| reports/s | driver, % of a core |"
    )
    rows = (
        f"| {found.gpus} | {rates.size:g} | {found.hours:.1f} | {found.dollars:.0f} | {found.fetch_s / 60:.1f} "
        f"| {found.again_gbit:.1f} | {found.states_gbit:.2f} | {found.reports_per_s:.2f} "
        f"| {found.driver_share * 100:.1f} |"
        for count in gpus
        for rates, found in ((rates, sized(rates, trials, count)) for rates in several)
    )
    return [head, "|---|---|---|---|---|---|---|---|---|", *rows]


def costs_of(rates: Rates) -> Costs:
    """What things take in a course."""
    train, validation = (rates.slices * DEFAULT_FRACTIONS[role] for role in ("train", "validation"))
    return Costs(
        image_s=1 / rates.images_per_s,
        validation_s=validation / rates.evaluate / rates.images_per_s,
        train=train,
        validation=validation,
        image_bytes=rates.image_bytes,
        held=min(1.0, rates.cache_gb * 1e9 / (rates.image_bytes * (train + validation))),
        storage_bytes_s=rates.storage_gbit * 1e9 / 8,
        start_s=rates.start_s,
        switch_s=SWITCH_S,
    )


def mean_hours(
    rates: Rates,
    trials: int,
    gpus: int,
    efficiency: float | Callable[[int], float] | None,
    confirming: Confirming | None = None,
    *,
    across: bool = False,
) -> float:
    """Of courses of a search."""
    course = partial(course_s, load_space(SPACE).budget, costs_of(rates), trials=trials, slots=gpus)
    course = partial(course, slots_a_node=int(rates.gpus_per_node), efficiency=efficiency, confirming=confirming)
    return sum(course(seed=seed, across=across) for seed in range(COURSES)) / COURSES / 3600


def row(rates: Rates, gpus: int, named: str, several: list[float]) -> str:
    """A row of Markdown: hours and dollars."""
    price = gpus * rates.gpu_hour + rates.head_hour
    cells = (f"{hours:.2f} h, ${hours * price:.0f}" for hours in several)
    return f"| {named} | {' | '.join(cells)} |"


def titles(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def growth_table(rates: Rates, trials: int) -> list[str]:
    """Searches whose trials stay as they are, and those that grow; where a node has one GPU nothing does."""
    at_each = [f"efficiency {efficiency:g}" for efficiency in EFFICIENCIES]
    rows = titles("GPUs", "on a node", "no growth", *at_each, f"measured, {MEASURED:g}")
    for gpus, a_node, cache_gb in CLUSTERS:
        at = replace(rates, gpus_per_node=a_node, cache_gb=cache_gb)
        several = [mean_hours(at, trials, gpus, efficiency) for efficiency in (None, *EFFICIENCIES, MEASURED)]
        rows.append(row(rates, gpus, f"{gpus} | {a_node}", several))
    return rows


def confirmation_table(rates: Rates, trials: int) -> list[str]:
    """A search and its confirmation as `run` has it, one after the other and side by side."""
    ways = {
        "no growth": (None, Confirming()),
        "the search grows": (EFFICIENCY, Confirming(grows=False)),
        "both grow": (EFFICIENCY, Confirming()),
        "begun when completed": (EFFICIENCY, Confirming(after=1.0)),
        "begun at a third": (EFFICIENCY, Confirming(after=1 / 3)),
    }
    rows = titles("GPUs", "on a node", *ways)
    for gpus, a_node, cache_gb in CLUSTERS:
        at = replace(rates, gpus_per_node=a_node, cache_gb=cache_gb)
        several = [mean_hours(at, trials, gpus, *way) for way in ways.values()]
        rows.append(row(rates, gpus, f"{gpus} | {a_node}", several))
    return rows


def over_network(rates: Rates, gbit: float, gradients_mb: float, batch: int) -> Callable[[int], float]:
    """How many times as fast a step is on so many machines.

    A ring sends 2 (n - 1) / n of the gradients through the network of each (Patarasu & Yuan 2009), the more the later
    in the backward pass; machines wait for what is not sent by its end.
    """

    def speed(machines: int) -> float:
        alone_s = batch / rates.images_per_s
        sent_s = 2 * (machines - 1) / machines * gradients_mb * 8e-3 / gbit
        step_s = alone_s / machines
        return alone_s / (step_s + max(0.0, sent_s - BACKWARD * step_s))

    return speed


def across_table(rates: Rates, trials: int, gpus: int = 64) -> list[str]:
    """Searches on nodes of one GPU whose trials grow onto other nodes, as none does yet."""
    rows = titles("Gbit/s between nodes", *(f"{mb} MB of gradients, batch {batch}" for mb, batch in STEPS))
    for gbit in NETWORKS:
        ways = (over_network(rates, gbit, *step) for step in STEPS)
        rows.append(row(rates, gpus, str(gbit), [mean_hours(rates, trials, gpus, way, across=True) for way in ways]))
    flat = [mean_hours(rates, trials, gpus, efficiency, across=True) for efficiency in (0.5, 0.2, 0.1)]
    return [*rows, row(rates, gpus, "efficiency 0.5, 0.2, 0.1", flat)]


def twice_as_fine(rates: Rates) -> Rates:
    """The same with images of twice the side: four times the pixels to keep, to send and to compute."""
    return replace(rates, size=2 * rates.size, images_per_s=rates.images_per_s / 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--trials", type=int, default=100)
    for field in fields(Rates):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    given = vars(parser.parse_args())
    gpus, trials = given.pop("gpus"), given.pop("trials")
    several = [Rates(**given), twice_as_fine(Rates(**given))]
    print(prepared(several[0]))
    print(preparing(several[0]))
    print(*(f"{at.size:g} pixels a side: {at.images_per_s:,.0f} images a second and GPU" for at in several), sep="\n")
    print("\n".join(table(several, trials, gpus)))
    for made in (growth_table, confirmation_table, across_table):
        print("\n".join(["", *made(several[0], trials)]))


if __name__ == "__main__":
    main()

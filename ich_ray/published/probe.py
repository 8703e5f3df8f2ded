"""Probe a learning rate for each setting of a grid by overfitting minibatches, as report A did.

Every combination of a grid is fitted to ten minibatches; among those that differ in learning rate and decay alone, the
lowest loss of the last pass wins. Writes a table, a plot and the same space with the winners as its first points. One
process and no Ray: a combination takes seconds, and an interrupted probe goes on where it was.
"""

from __future__ import annotations

import csv
import io
import math
import time
from typing import TYPE_CHECKING, Literal

import yaml

from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import ConfigError
from ich_ray.html_report.html_page import Plot, Section, Table, sheet
from ich_ray.html_report.style import REFERENCE, STATE_COLORS, blank, count, number, plain, setting
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.progress import bar, say
from ich_ray.search.space.yaml_file import load_space
from ich_ray.spreadsheet import inert
from ich_ray.storage import (
    Count,
    Fingerprint,
    JsonValue,
    Line,
    Location,
    Record,
    Seconds,
    Seed,
    Text,
    file_lock,
    locate,
    read_record,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import plotly.graph_objects as go
    from upath import UPath

    from ich_ray.data.dataset import SliceSet
    from ich_ray.data.feature_store import FeaturesInMemory
    from ich_ray.search.space.space import SearchSpace
    from ich_ray.trial_records import Parameter

__all__ = ["MINIBATCHES", "PROBED", "Probe", "ProbeCandidate", "probe"]

PROBED = ("learning_rate", "decay")
MINIBATCHES = 10
PASSES = 10
# The mean weighted loss of an output of one half whatever the slice: nothing was learned.
_UNTRAINED = math.log(2)


class ProbeCandidate(Record):
    """One combination: the weighted loss of each pass, and why it ended early if it did."""

    parameters: dict[Line, JsonValue]
    losses: tuple[float, ...]
    average_precision: float | None
    failure: Text = ""
    seconds: Seconds

    @property
    def loss(self) -> float | None:
        """Of the last pass; None if it was not reached."""
        return self.losses[-1] if self.losses and not self.failure else None

    @property
    def setting(self) -> tuple[Hashable, ...]:
        """All but what is probed: candidates of one setting compete with each other."""
        return tuple(sorted((name, value) for name, value in self.parameters.items() if name not in PROBED))


class Probe(Record):
    """probe.json: what was fitted to what, and how it went."""

    format: Literal[1] = 1
    space: dict[Line, JsonValue]
    fingerprint: Fingerprint
    minibatches: Count
    passes: Count
    seed: Seed
    candidates: tuple[ProbeCandidate, ...] = ()

    @property
    def failed(self) -> int:
        """Candidates that diverged or failed otherwise."""
        return sum(bool(candidate.failure) for candidate in self.candidates)

    def winners(self) -> list[ProbeCandidate]:
        """The candidate with the lowest last loss of each setting that has any, in the order they were tried."""
        best: dict[tuple[Hashable, ...], ProbeCandidate] = {}
        for candidate in self.candidates:
            found = best.get(candidate.setting)
            if candidate.loss is not None and (found is None or candidate.loss < (found.loss or 0.0)):
                best[candidate.setting] = candidate
        return list(best.values())


def probe(
    dataset: Location,
    space: Location,
    out: Location,
    *,
    minibatches: int = MINIBATCHES,
    passes: int = PASSES,
    seed: int = 0,
) -> Probe:
    """Overfit every combination of a grid and write probe.csv, probe.html and space.yaml to `out`.

    Args:
        dataset: a prepared dataset; only training slices are read.
        space: a search space with `sampler: grid`.
        out: a folder of its own; a probe that was interrupted there goes on.
        minibatches: how many are fitted, of the batch size of each combination.
        passes: over them.
        seed: of the minibatches, weights and order; equal for all.

    Raises:
        ConfigError: no grid, weights that are not there, or another probe in `out`.
    """
    checked, data, folder = load_space(space, "network"), PreparedDataset.open(dataset), locate(out)
    if checked.listed is None or checked.source.get("sampler") != "grid":
        raise ConfigError(
            f"{space}: a probe tries every combination of a grid, got a space that is none; list the values as "
            "choices and add sampler: grid"
        )
    from ich_ray.search.preflight import check_roles, check_trials
    from ich_ray.search.space.space import sampled

    check_roles(data)
    check_trials(data, sampled(checked))
    asked = Probe(
        space=checked.source,
        fingerprint=data.manifest.fingerprint,
        minibatches=minibatches,
        passes=passes,
        seed=seed,
    )
    with file_lock(folder / ".lock", "a probe"):
        done = _fitted(_begun(folder / "probe.json", asked), checked.listed, data, folder / "probe.json")
        _write(folder, done, checked)
    return done


def _begun(file: UPath, asked: Probe) -> Probe:
    """What an earlier run of the same probe has done."""
    if not file.exists():
        return asked
    there = read_record(file, Probe, "remove the folder to probe again")
    if there.model_copy(update={"candidates": ()}) != asked:
        raise ConfigError(
            f"{file.parent}: --out holds a probe of another space, dataset or setting; choose another folder"
        )
    return there


def _fitted(begun: Probe, listed: Sequence[Mapping[str, Parameter]], data: PreparedDataset, file: UPath) -> Probe:
    import torch

    from ich_ray.published.overfit import frozen_features, minibatches, overfit

    device, train, done = ("cuda" if torch.cuda.is_available() else "cpu"), data.role("train"), begun
    taken: dict[int, SliceSet] = {}
    frozen: dict[tuple[object, ...], FeaturesInMemory | None] = {}
    with bar("Probing", len(listed), "combinations") as advance:
        for parameters in listed[len(begun.candidates) :]:
            drawn = Hyperparameters.model_validate(parameters)
            if drawn.batch_size not in taken:
                taken[drawn.batch_size] = minibatches(train, drawn.batch_size, begun.minibatches, begun.seed)
                if (there := len(taken[drawn.batch_size])) < begun.minibatches * drawn.batch_size:
                    say(f"  {begun.minibatches} minibatches of {drawn.batch_size} need more slices than {there:,}")
            started, slices = time.monotonic(), taken[drawn.batch_size]
            trunk = (*drawn.network.items(), drawn.batch_size)
            if trunk not in frozen:
                frozen.clear()  # one at a time: those of 2,560 slices may take half a gigabyte
                frozen[trunk] = frozen_features(drawn, slices, seed=begun.seed, device=device)
            found = overfit(drawn, slices, passes=begun.passes, seed=begun.seed, device=device, features=frozen[trunk])
            tried = ProbeCandidate(parameters={**parameters}, **vars(found), seconds=time.monotonic() - started)
            done = done.model_copy(update={"candidates": (*done.candidates, tried)})
            write_json(file, done.model_dump(mode="json"))
            advance(len(done.candidates), f"loss {number(tried.loss)}")
    return done


def _write(folder: UPath, done: Probe, space: SearchSpace) -> None:
    winners = done.winners()
    write_bytes(folder / "probe.csv", _csv(done, winners).encode())
    points = [winner.parameters for winner in winners]
    source = {**done.space, "points": [*points, *(point for point in space.points if point not in points)]}
    text = yaml.safe_dump(source, sort_keys=False, default_flow_style=None, width=120)
    head = f"# By `ich-ray probe`: first {len(points)} winners, each with the rate that fitted its minibatches best.\n"
    write_bytes(folder / "space.yaml", (head + text).encode())
    write_bytes(folder / "probe.html", page(done).encode())


def _csv(done: Probe, winners: Sequence[ProbeCandidate]) -> str:
    names = list(dict.fromkeys(name for candidate in done.candidates for name in candidate.parameters))
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow([*map(inert, names), "first_loss", "last_loss", "average_precision", "failure", "seconds", "winner"])
    for candidate in done.candidates:
        first = candidate.losses[0] if candidate.losses else None
        figures = (first, candidate.loss, candidate.average_precision)
        table.writerow(
            [
                *(inert(candidate.parameters.get(name, "")) for name in names),
                *("" if value is None else f"{value:.6g}" for value in figures),
                inert(candidate.failure),
                f"{candidate.seconds:.2f}",
                int(any(candidate is winner for winner in winners)),
            ]
        )
    return lines.getvalue()


def page(done: Probe) -> str:
    """The probe as one HTML file: the losses of every setting over the rate, and the winners."""
    winners = done.winners()
    lead = [
        f"{count(len(done.candidates))} combinations were fitted to the same {done.minibatches} minibatches, "
        f"{done.passes} times over. A rate at which even these are not learned is no rate for all slices; one that "
        "learns them best need not be the best for all of them.",
        f"{count(done.failed)} diverged or failed. Losses are those that training minimizes, weighted by class.",
    ]
    sections = [
        Section("rates", "Losses by learning rate", plots=_plots(done.candidates)),
        Section("winners", "Winners", tables=[_winners(winners)]),
    ]
    return sheet(str(done.space["name"]), "Learning-rate probe on minibatches of head-CT slices", lead, sections)


def _winners(winners: Sequence[ProbeCandidate]) -> Table:
    names = list(dict.fromkeys(name for winner in winners for name in winner.parameters))
    varied = [name for name in names if len({winner.parameters.get(name) for winner in winners}) > 1]
    rows = [
        [
            setting(winner.parameters.get("learning_rate", "")),
            *(setting(winner.parameters.get(name, "")) for name in varied if name != "learning_rate"),
            number(winner.losses[0]),
            number(winner.loss),
            number(winner.average_precision),
        ]
        for winner in winners
    ]
    head = ["learning_rate", *(name for name in varied if name != "learning_rate")]
    return Table(
        "The rate that each setting goes on with",
        [*head, "first loss", "last loss", "AP on them"],
        rows,
        numbers=range(len(head), len(head) + 3),
    )


def _plots(candidates: Sequence[ProbeCandidate]) -> list[Plot]:
    """One plot for each architecture and optimizer; a line for each of their other settings and decay."""
    groups: dict[str, list[ProbeCandidate]] = {}
    for candidate in candidates:
        name = ", ".join(str(candidate.parameters.get(key, "")) for key in ("architecture", "optimizer"))
        groups.setdefault(name.strip(", ") or "all", []).append(candidate)
    caption = (
        "Weighted loss of the last pass; dotted: that of an output of one half, of nothing learned. Rates that diverge "
        "have no point."
    )
    return [Plot(name, caption, _lines(group)) for name, group in groups.items()]


def _lines(group: Sequence[ProbeCandidate]) -> go.Figure:
    figure = blank("learning rate", "weighted loss")
    figure.update_xaxes(type="log", exponentformat="power")
    lines: dict[str, list[ProbeCandidate]] = {}
    for candidate in group:
        shown = ("batch_size", "dropout", "decay")
        name = ", ".join(f"{key} {setting(candidate.parameters[key])}" for key in shown if key in candidate.parameters)
        lines.setdefault(name, []).append(candidate)
    for name, line in lines.items():
        ordered = sorted(line, key=lambda candidate: float(candidate.parameters.get("learning_rate", 0)))
        figure.add_scatter(
            x=[candidate.parameters.get("learning_rate") for candidate in ordered],
            y=[candidate.loss for candidate in ordered],
            mode="lines+markers",
            line={"width": 1, "color": STATE_COLORS["completed"]},
            marker={"size": 6},
            name=plain(name),
            showlegend=False,
        )
    figure.add_hline(y=_UNTRAINED, line={"color": REFERENCE, "dash": "dot"})
    return figure

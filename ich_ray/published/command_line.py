"""Add two verbs, and flags of `results` and `retrain`, for the published systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ich_ray import display
from ich_ray.errors import ConfigError
from ich_ray.results import open_search
from ich_ray.search.progress_table import format_parameters
from ich_ray.terminal import print_json, print_line, print_table
from ich_ray.verbs.options import (
    Address,
    DatasetOfSearch,
    Images,
    Json,
    LimitRejected,
    OtherSearches,
    Out,
    SearchFolder,
    Seed,
    Space,
    Tta,
    share,
)
from ich_ray.verbs.plugins import Flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.published.fixed_threshold import QuickRow
    from ich_ray.published.probe import Probe

__all__ = ["AT_HALF", "SAMPLE", "probe", "reproduce"]


def reproduce(
    out: Out,
    images: Annotated[
        str | None, typer.Argument(metavar="[DICOM_DIR]", help="Folder of DICOM files; if none, a phantom's.")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Label table of the folder.")] = None,
    scale: Annotated[
        Literal["small", "full"], typer.Option("--scale", help="As they were, or in minutes on two cores.")
    ] = "small",
    weights: Annotated[
        str | None, typer.Option("--weights", help="Of report A's ResNet50: imagenet, a safetensors file, or none.")
    ] = None,
    seed: Seed = 0,
    limit_rejected: LimitRejected = "5%",
    address: Address = None,
) -> None:
    """Run two published systems again, beside ours, on one page."""
    from ich_ray.published.reproduce import reproduce as run_again

    keys: dict[str, Any] = {"scale": scale, "weights": weights, "seed": seed, "address": address}
    page = run_again(images, labels, out, limit_rejected=share(limit_rejected), **keys)
    print_line(f"page  {page}")


def probe(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder that `ich-ray prepare` wrote.")],
    space: Space,
    out: Out,
    minibatches: Annotated[int, typer.Option("--minibatches", min=1, help="How many are fitted.")] = 10,
    passes: Annotated[int, typer.Option("--passes", min=1, help="How often.")] = 10,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find learning rates by overfitting a few minibatches."""
    from ich_ray.published.probe import probe as probe_rates

    _print_probe(probe_rates(dataset, space, out, minibatches=minibatches, passes=passes, seed=seed), out, as_json)


def _decisions_at_half(
    folder: SearchFolder,
    others: OtherSearches = None,
    at_half: Annotated[
        bool, typer.Option("--at-half", help="What each decides by itself at its end: F2, specificity, PPV.")
    ] = False,
    dataset: DatasetOfSearch = None,
    as_json: Json = False,
) -> None:
    from ich_ray.published.fixed_threshold import quick_evaluation

    if not at_half:
        raise ConfigError(f"--dataset: only --at-half reads it, got {dataset} without; add --at-half or leave it out")
    if others:
        raise ConfigError(f"--at-half: tells of one search, got {1 + len(others)}; give one")
    _print_quick(quick_evaluation(open_search(folder), dataset), as_json)


def _retrain_on_a_sample(
    folder: SearchFolder,
    workers: int,
    patients: Literal["train", "train+validation"],
    seeds: int,
    tta: Tta,
    placement: Images,
    address: Address,
    slices: Annotated[
        int | None, typer.Option("--slices", min=1, help="Train on a stratified sample, measured after each pass.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the sample at most.")] = None,
) -> None:
    from ich_ray.published.sampled_retraining import sampled_course
    from ich_ray.refit.retrain import retrain

    if patients != "train":
        raise ConfigError(f"--slices: a sample needs validation patients to stop by, got --patients {patients}")
    course = sampled_course(folder, slices=slices, epochs=epochs)
    keys: dict[str, Any] = {"workers": workers, "seeds": seeds, "placement": placement, "address": address}
    card = retrain(folder, course=course, **keys, tta=tta or ()).card
    display.print_retrained(card, seeds, str(open_search(folder).files.bundle))


AT_HALF = Flags("results", _decisions_at_half)
SAMPLE = Flags("retrain", _retrain_on_a_sample)


def _print_probe(done: Probe, out: str, as_json: bool) -> None:
    """The winners of a probe, and the files that it wrote."""
    if as_json:
        print_json(done)
        return
    winners = done.winners()
    print_line(f"{len(done.candidates)} combinations fitted, {done.failed} of them failed; {len(winners)} winners")
    rows = []
    for winner in winners:
        figures = (winner.losses[0], winner.loss, winner.average_precision)
        rows.append((*map(_plain, figures), format_parameters(winner.parameters)))
    print_table(("first loss", "last loss", "AP", "parameters"), rows, left=("parameters",))
    for what, file in (("table", "probe.csv"), ("plot", "probe.html"), ("space", "space.yaml")):
        print_line(f"{what:7}{out}/{file}")


def _print_quick(rows: Sequence[QuickRow], as_json: bool) -> None:
    """What the trials of a search decide at one half, in the order they were tried."""
    if as_json:
        print_json([row.figures() for row in rows])
        return
    names = ("f2", "accuracy", "sensitivity", "specificity", "ppv")
    lines = []
    for row in rows:
        figures = row.figures()
        shown = (_plain(figures[name]) for name in (*names, "average_precision"))
        lines.append((row.trial, *shown, row.images, format_parameters(row.parameters)))
    print_table(("trial", *names, "AP", "images", "parameters"), lines, left=("parameters",))


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

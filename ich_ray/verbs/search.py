"""Searches: begun, looked at, checked."""

from __future__ import annotations

from typing import Annotated

import typer

from ich_ray import display
from ich_ray.errors import ConfigError
from ich_ray.notify.given_address import asked_for
from ich_ray.progress import say
from ich_ray.results import open_search
from ich_ray.search.request import SearchRequest
from ich_ray.terminal import print_line
from ich_ray.verbs.options import (
    BROKEN,
    Address,
    CpusPerTrial,
    DatasetOfSearch,
    GpusPerTrial,
    Grow,
    Images,
    Json,
    Notify,
    OtherSearches,
    Out,
    SearchFolder,
    Space,
    Trials,
    WorkersPerTrial,
)

__all__ = ["VERBS"]

# Beside Ray's dashboard, 8265.
_WATCH_PORT = 8266


def search(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder that `ich-ray prepare` wrote.")],
    space: Space,
    out: Out,
    trials: Trials = None,
    gpus_per_trial: GpusPerTrial = None,
    cpus_per_trial: CpusPerTrial = None,
    workers_per_trial: WorkersPerTrial = None,
    hours: Annotated[float | None, typer.Option("--hours", min=0, help="End it after this long.")] = None,
    gpu_hours: Annotated[
        float | None, typer.Option("--gpu-hours", min=0, help="End it after so many GPU hours of all trials together.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", min=1, help="Trials at a time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, and run nothing.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Same seed, same result; default 0, or that of the search.")
    ] = None,
    warm_start: Annotated[
        list[str] | None, typer.Option("--warm-start", help="Learn from another search; repeat it for several.")
    ] = None,
    placement: Images = "auto",
    share_trunks: Annotated[
        bool, typer.Option("--share-trunks", help="Compute what frozen layers make of each slice once, for all trials.")
    ] = False,
    grow: Grow = True,
    address: Address = None,
    as_json: Json = False,
    notify: Notify = None,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", help="Also write it to tensorboard=DIR, mlflow=URI, ... while it runs; repeatable."),
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", help="End it once a completed trial is surely worth so much.")
    ] = None,
    patience: Annotated[
        str | None,
        typer.Option(
            "--patience", help="End it once 20 (trials), '500000 images', '6 hours' or '10 gpu-hours' bring no more."
        ),
    ] = None,
) -> None:
    """Search hyperparameters; safe to kill and resume."""
    request = SearchRequest(
        dataset,
        space,
        out,
        trials=trials,
        gpus_per_trial=gpus_per_trial,
        cpus_per_trial=cpus_per_trial,
        workers_per_trial=workers_per_trial,
        concurrent=concurrent,
        hours=hours,
        gpu_hours=gpu_hours,
        resume=resume,
        seed=seed,
        warm_start=warm_start,
        placement=placement,
        share_trunks=share_trunks,
        grow=grow,
        address=address,
        notify=asked_for(notify),
        export=export,
        target=target,
        patience=patience,
    )
    if plan:
        from ich_ray.search.plan.plan_report import plan_request

        display.print_plan(plan_request(request), as_json)
        return
    from ich_ray.search.run import run_request

    found = run_request(request)
    display.print_search(found, None, as_json)
    if found.trials and found.count("failed") == len(found.trials):  # they say why, and nothing can be made of them
        raise typer.Exit(1)


def results(
    folder: SearchFolder,
    others: OtherSearches = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Best trials to show; 10, or all as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """The trials of a search, best first, at any time; or several searches side by side."""
    if not others:
        display.print_search(open_search(folder), top, as_json)
        return
    if top is not None:
        raise ConfigError(f"--top: trials are shown of one search, got {top} with {1 + len(others)}; leave it out")
    from ich_ray.side_by_side import side_by_side

    display.print_side_by_side(side_by_side([open_search(one) for one in (folder, *others)]), as_json)


def control(
    folder: SearchFolder,
    stop_trial: Annotated[
        int | None, typer.Option("--stop-trial", min=0, help="End a trial at its next report.")
    ] = None,
    add: Annotated[
        str | None, typer.Option("--add", help="Parameters of a trial to run next, as JSON; the others are drawn.")
    ] = None,
    trials: Trials = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", min=1, help="Trials at a time.")] = None,
    pause: Annotated[
        bool | None, typer.Option("--pause/--unpause", help="Start no new trial; running ones go on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask something of a search that runs; without a flag, what was asked of it."""
    from ich_ray.search import control as controls

    if all(asked is None for asked in (stop_trial, add, trials, concurrent, pause)):
        display.print_requests(open_search(folder).record.requests, controls.waiting(folder), as_json)
        return
    point = None if add is None else controls.parse_point(add)
    reply = controls.control_search(
        folder, stop_trial=stop_trial, add=point, trials=trials, concurrent=concurrent, pause=pause
    )
    display.print_request(reply, as_json)


def confirm(
    folder: SearchFolder,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="So many of the best trials, all equally often; else a race.")
    ] = None,
    folds: Annotated[int | None, typer.Option("--folds", min=2, help="Folds to hold out in turn; default 5.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="New seeds, in place of folds.")] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", help="Of the search's images, what a race may spend; default 0.15.")
    ] = None,
    gpus_per_trial: GpusPerTrial = None,
    cpus_per_trial: CpusPerTrial = None,
    workers_per_trial: WorkersPerTrial = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", min=1, help="Trainings at a time.")] = None,
    address: Address = None,
    as_json: Json = False,
    notify: Notify = None,
    grow: Grow = True,
) -> None:
    """Train the best trials again, and choose among them."""
    from ich_ray.notify.stage import telling
    from ich_ray.refit.confirm import confirm as confirm_best

    with telling("confirm", asked_for(notify)):
        confirmation = confirm_best(
            folder,
            top=top,
            folds=folds,
            seeds=seeds,
            budget=budget,
            gpus_per_trial=gpus_per_trial,
            cpus_per_trial=cpus_per_trial,
            workers_per_trial=workers_per_trial,
            concurrent=concurrent,
            grow=grow,
            address=address,
        )
    display.print_confirmation(confirmation, as_json)


def export(
    folder: SearchFolder,
    tensorboard: Annotated[str | None, typer.Option("--tensorboard", help="A new folder for event files.")] = None,
    optuna: Annotated[str | None, typer.Option("--optuna", help="A new SQLite file, for optuna-dashboard.")] = None,
    mlflow: Annotated[str | None, typer.Option("--mlflow", help="A tracking URI, such as sqlite:///runs.db.")] = None,
    candidates: Annotated[
        str | None, typer.Option("--candidates", help="A new YAML file: a space that lists these very trials.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="Add what tensorboard=DIR, optuna=FILE, mlflow=URI or wandb=PROJECT lacks."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the search has ended.")] = False,
) -> None:
    """Write a search for TensorBoard, MLflow, Optuna or W&B, or to draw it again."""
    from ich_ray.search.export import export as export_search

    commands = export_search(
        folder, tensorboard=tensorboard, optuna=optuna, mlflow=mlflow, candidates=candidates, to=to, follow=follow
    )
    for command in commands:
        print_line(command)


def watch(
    folder: SearchFolder,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of 127.0.0.1; 0 for any that is free.")
    ] = _WATCH_PORT,
    gpu_price: Annotated[
        float | None, typer.Option("--gpu-price", min=0, help="Of a GPU hour in dollars, to show what was spent.")
    ] = None,
) -> None:
    """Show a search on a page of this machine, while it runs and after it."""
    from ich_ray.watch.server import Watch

    shown = Watch(folder, port, gpu_price)
    try:
        shown.read()
        print_line(shown.address)
        say("open this address in a browser; who has it sees the search. Ctrl-C ends the page, the search goes on")
        shown.serve()
    except KeyboardInterrupt:
        say("the page has ended")
    finally:
        shown.close()


def audit(
    where: Annotated[str, typer.Argument(metavar="PATH", help="A search or a prepared dataset.")],
    dataset: DatasetOfSearch = None,
    as_json: Json = False,
) -> None:
    """Check that nothing was lost; exit code 5 if something was."""
    from ich_ray.search.audit.search_audit import audit as audit_files

    found = audit_files(where, dataset)
    display.print_audit(found, as_json)
    if found.breached:
        raise typer.Exit(BROKEN)


VERBS = (search, results, watch, control, confirm, export, audit)

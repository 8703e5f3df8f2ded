"""The whole road at once."""

from __future__ import annotations

from typing import Annotated

import typer

from ich_ray import display
from ich_ray.ct.windowing import DEFAULT_WINDOWS
from ich_ray.notify.given_address import asked_for
from ich_ray.verbs.options import (
    REJECTED_SOME,
    Address,
    Column,
    Columns,
    CpusPerTrial,
    Examinations,
    GpusPerTrial,
    Grow,
    Json,
    Labels,
    LimitRejected,
    Notify,
    Out,
    Seed,
    Size,
    SlabMm,
    Space,
    Trials,
    Tta,
    Windows,
    WorkersPerTrial,
    share,
)

__all__ = ["VERBS"]


_Sequence = Annotated[
    int, typer.Option("--sequence", min=0, help="Trials of the search for a model over whole series; 0 for none.")
]


def demo(out: Out = "demo", sequence: _Sequence = 3, as_json: Json = False) -> None:
    """The whole road on synthetic patients, in minutes."""
    from ich_ray.pipeline import demo as make_demo

    display.print_run(make_demo(out, sequence=sequence), as_json)


def run(
    images: Annotated[str, typer.Argument(metavar="DICOM_DIR", help="Folder of DICOM files, read recursively.")],
    labels: Labels,
    space: Space,
    out: Out,
    size: Size = 128,
    windows: Windows = DEFAULT_WINDOWS,
    trials: Trials = None,
    gpus_per_trial: GpusPerTrial = None,
    cpus_per_trial: CpusPerTrial = None,
    workers_per_trial: WorkersPerTrial = None,
    confirm: Annotated[
        int,
        typer.Option("--confirm", min=0, help="Train so many of the best trials again on two folds; 0 takes the best."),
    ] = 3,
    tta: Tta = None,
    sequence: _Sequence = 8,
    seed: Seed = 0,
    slab_mm: SlabMm = 0,
    limit_rejected: LimitRejected = "5%",
    column: Column = None,
    columns: Columns = None,
    examinations: Examinations = None,
    address: Address = None,
    as_json: Json = False,
    notify: Notify = None,
    grow: Grow = True,
) -> None:
    """From DICOM to a report; finished stages are skipped."""
    from ich_ray.data.prepare.label_columns import read_columns
    from ich_ray.notify.stage import telling
    from ich_ray.pipeline import run as run_all

    told = asked_for(notify)
    with telling("run", told):
        result = run_all(
            images,
            labels,
            space,
            out,
            size=size,
            windows=windows,
            trials=trials,
            gpus_per_trial=gpus_per_trial,
            cpus_per_trial=cpus_per_trial,
            workers_per_trial=workers_per_trial,
            grow=grow,
            confirm=confirm,
            tta=tta or (),
            sequence=sequence,
            seed=seed,
            slab_mm=slab_mm,
            limit_rejected=share(limit_rejected),
            columns=read_columns(column or (), columns),
            examinations=examinations,
            address=address,
            notify=told,
        )
    display.print_run(result, as_json)
    if result.dataset.manifest.rejected:
        raise typer.Exit(REJECTED_SOME)


VERBS = (demo, run)

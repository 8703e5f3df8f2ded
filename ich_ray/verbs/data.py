"""From patients to a prepared dataset."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ich_ray import display
from ich_ray.ct.windowing import DEFAULT_WINDOWS
from ich_ray.storage import check_file, locate
from ich_ray.terminal import print_json, print_line
from ich_ray.verbs.options import (
    REJECTED_SOME,
    Address,
    Column,
    Columns,
    Examinations,
    Json,
    Labels,
    LimitRejected,
    Out,
    Seed,
    Size,
    SlabMm,
    TableLevel,
    Windows,
    WithoutPreamble,
    share,
)
from ich_ray.vocabulary import Split

__all__ = ["VERBS"]


def phantom(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    patients: Annotated[int, typer.Option("--patients", min=1, help="How many patients.")] = 160,
    kind: Annotated[
        Literal["sparse", "continuous"],
        typer.Option("--kind", help="A few slices of each head, or whole series whose slices have neighbors."),
    ] = "sparse",
    size: Annotated[int, typer.Option("--size", min=64, max=1024, help="Rows and columns, an even number.")] = 512,
    seed: Seed = 0,
) -> None:
    """Write synthetic patients as DICOM with labels."""
    from ich_ray.ct.continuous_phantom import write_continuous_phantom
    from ich_ray.ct.phantom import write_phantom

    write = write_continuous_phantom if kind == "continuous" else write_phantom
    written = write(out, patients=patients, seed=seed, size=size)
    print_line(f"images  {written.images}")
    print_line(f"labels  {written.labels}")


def prepare(
    images: Annotated[str, typer.Argument(metavar="DICOM_DIR", help="Folder of DICOM files, read recursively.")],
    labels: Labels,
    out: Out,
    size: Size = 128,
    windows: Windows = DEFAULT_WINDOWS,
    seed: Seed = 0,
    split: Annotated[
        Split,
        typer.Option("--split", help="What roles are drawn by; slice leaks, and only reproduces systems split so."),
    ] = "patient",
    slab_mm: SlabMm = 0,
    without_preamble: WithoutPreamble = False,
    limit_rejected: LimitRejected = "5%",
    column: Column = None,
    columns: Columns = None,
    level: TableLevel = None,
    examinations: Examinations = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Decode and window DICOM files, once for all trials."""
    from ich_ray.data.prepare.label_columns import read_columns
    from ich_ray.data.prepare.run import prepare as prepare_dataset

    dataset = prepare_dataset(
        images,
        labels,
        out,
        size=size,
        windows=windows,
        seed=seed,
        split=split,
        slab_mm=slab_mm,
        without_preamble=without_preamble,
        limit_rejected=share(limit_rejected),
        columns=read_columns(column or (), columns),
        level=level,
        examinations=examinations,
        address=address,
    )
    if as_json:
        print_json(dataset.manifest)
    else:
        display.print_dataset(dataset.manifest, str(dataset.files.root))
    if dataset.manifest.rejected:
        raise typer.Exit(REJECTED_SOME)


def identify(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder that `prepare` wrote, with this key.")],
    pseudonyms: Annotated[
        list[str] | None, typer.Argument(metavar="[PSEUDONYM]...", help="A slice_id or file of its tables.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Table to write: .csv, .json or .parquet.")] = None,
    as_json: Json = False,
) -> None:
    """Files behind pseudonyms; without any, those not accepted, or with --out all."""
    from ich_ray.bundle.table_writer import check_suffix, writing_rows
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.data.identities import FileIdentity, read_identities

    target = None if out is None else locate(out)
    if target is not None:
        check_suffix(target)
        check_file(target, "--out")
    rows = read_identities(PreparedDataset.open(dataset), pseudonyms or ())
    if target is None:
        shown = rows if pseudonyms else [row for row in rows if row.reason]
        display.print_identities(shown, asked=bool(pseudonyms), as_json=as_json)
        return
    with writing_rows(target, FileIdentity) as append:
        append(rows)
    print_line(f"{len(rows)} files  {target}")


VERBS = (phantom, prepare, identify)

"""Options and arguments shared by several verbs, and exit codes of incomplete success."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from ich_ray.errors import ConfigError
from ich_ray.vocabulary import Level, Placement

__all__ = [
    "BROKEN",
    "REJECTED_SOME",
    "Address",
    "Beta",
    "BundleFolder",
    "CalibrationMethod",
    "Column",
    "Columns",
    "Conservative",
    "CpusPerTrial",
    "Examinations",
    "GpusPerTrial",
    "Grow",
    "Images",
    "Json",
    "Labels",
    "LimitRejected",
    "Notify",
    "OtherSearches",
    "Out",
    "Points",
    "Prevalence",
    "SearchFolder",
    "Seed",
    "Sensitivity",
    "SiteDataset",
    "Size",
    "SlabMm",
    "Space",
    "StudyPrevalence",
    "TableLevel",
    "Trials",
    "Tta",
    "Windows",
    "WithoutPreamble",
    "WorkersPerTrial",
    "share",
]

REJECTED_SOME = 3
BROKEN = 5

Out = Annotated[str, typer.Option("--out", help="Folder to write; created if missing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
Labels = Annotated[
    str,
    typer.Option("--labels", help="Label table: RSNA long format or a row a slice; `prepare` also takes examinations."),
]
Column = Annotated[
    list[str] | None,
    typer.Option("--column", help="What a column means: any=hemorrhage, any=not healthy, any=R1,R2,R3, id=file."),
]
Columns = Annotated[str | None, typer.Option("--columns", help="The same as a YAML file: any: hemorrhage.")]
TableLevel = Annotated[
    Level | None, typer.Option("--level", help="What a row of labels is about, if its columns do not tell.")
]
Examinations = Annotated[
    str | None, typer.Option("--examinations", help="Labels of series, studies or patients beside those of slices.")
]
SlabMm = Annotated[
    float,
    typer.Option(
        "--slab-mm", help="Average series finer than half of it in HU, to slabs of it around each slice, such as 5."
    ),
]
Space = Annotated[str, typer.Option("--space", help="Search space, a YAML file.")]
Size = Annotated[int, typer.Option("--size", min=16, max=1024, help="Rows and columns of the prepared images.")]
Windows = Annotated[str, typer.Option("--windows", help="Windows by name, or name=center/width in HU.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same result.")]
Trials = Annotated[
    int | None,
    typer.Option("--trials", min=1, help="How many trials in all; default as begun, as listed, or 20 (sequence: 8)."),
]


def _gpus(text: str) -> float | Literal["auto"]:
    """What `--gpus-per-trial` says."""
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--gpus-per-trial: must be a number or auto, got {text!r}; leave it out for 1 where there are GPUs"
        ) from None


GpusPerTrial = Annotated[
    Any,
    typer.Option(
        "--gpus-per-trial",
        parser=_gpus,
        metavar="NUMBER|auto",
        help="May be a fraction; auto, in a search: as each trial's memory needs; default 1 where there are GPUs.",
    ),
]
CpusPerTrial = Annotated[
    int | None, typer.Option("--cpus-per-trial", min=1, help="CPUs, and threads, of a trial; default 1 a worker.")
]
WorkersPerTrial = Annotated[
    int | None,
    typer.Option("--workers-per-trial", min=1, help="Processes that train one network; default one a GPU."),
]
Grow = Annotated[
    bool, typer.Option("--grow/--no-grow", help="At its end, let running trials take slots that stand free.")
]
Images = Annotated[
    Placement,
    typer.Option(
        "--placement", help="Where training images lie; auto: in GPU memory if half of a trial's part holds all."
    ),
]
LimitRejected = Annotated[
    str, typer.Option("--limit-rejected", help="Largest share of files that may be rejected, such as 5% or 0.05.")
]
WithoutPreamble = Annotated[
    bool, typer.Option("--without-preamble", help="Read files that lack the DICOM preamble too, and flag them.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster; default RAY_ADDRESS, else this machine alone.")
]
Notify = Annotated[
    str | None,
    typer.Option(
        "--notify", help="Tell how it ends: webhook, mailto:MAILBOX, or @FILE with either; default ICH_RAY_NOTIFY."
    ),
]
CalibrationMethod = Annotated[
    Literal["temperature", "platt"], typer.Option("--method", help="Platt's also moves the probabilities.")
]
Beta = Annotated[float | None, typer.Option("--beta", help="Also the threshold with the highest F-beta of this beta.")]
Sensitivity = Annotated[
    float | None, typer.Option("--sensitivity", help="Also a threshold of at least this sensitivity.")
]
Conservative = Annotated[
    bool, typer.Option("--conservative", help="Sensitivities must be reached by their lower 95 % bound.")
]
Points = Annotated[
    list[str] | None, typer.Option("--point", help="Also one by a registered rule, such as sensitivity=0.93.")
]
Tta = Annotated[list[str] | None, typer.Option("--tta", help="View averaged with the slice's own: hflip, depth_flip.")]
BundleFolder = Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder with model.safetensors and card.json.")]
SiteDataset = Annotated[str, typer.Argument(metavar="DATASET", help="The site's patients, prepared like the bundle's.")]
Prevalence = Annotated[
    float | None, typer.Option("--prevalence", help="Give PPV and NPV for this share of positive slices, too.")
]
StudyPrevalence = Annotated[
    float | None, typer.Option("--study-prevalence", help="The same for this share of positive studies, by study.")
]
DatasetOfSearch = Annotated[
    str | None, typer.Option("--dataset", help="Where its dataset lies; needed for an address only search.json names.")
]
SearchFolder = Annotated[str, typer.Argument(metavar="SEARCH", help="Folder that `ich-ray search` wrote.")]
OtherSearches = Annotated[list[str] | None, typer.Argument(metavar="[SEARCH]...", help="Others, to set beside it.")]


def share(text: str) -> float:
    """`5%` or `0.05` as 0.05.

    Raises:
        ConfigError: it is no share.
    """
    try:
        part = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        part = -1.0
    if not 0 <= part <= 1:
        raise ConfigError(f"--limit-rejected: a share from 0 to 1 or a percentage must be given, got {text!r}")
    return part

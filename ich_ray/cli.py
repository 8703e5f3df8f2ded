"""The command line: verbs only. Each calls one public function; display.py prints what it returns.

Results go to stdout, progress and errors to stderr. Exit codes: 0 all good, 1 failure, 2 usage or configuration,
3 done but some inputs were rejected, 4 over the limit of rejected inputs, 5 integrity broken.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import TyperException

from ich_ray import __version__, cluster_verbs, display, progress
from ich_ray.ct.windowing import DEFAULT_WINDOWS
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.results import open_search

if TYPE_CHECKING:
    from ich_ray.data.dataset import DatasetManifest

__all__ = ["app", "main"]

REJECTED_SOME = 3
BROKEN = 5


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ich-ray {__version__}")
        raise typer.Exit


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find, train, calibrate and check the best intracranial-haemorrhage detector for your head-CT slices.",
)

Out = Annotated[str, typer.Option("--out", help="Folder to write; created if missing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
Labels = Annotated[str, typer.Option("--labels", help="Label table: RSNA long format or one row a slice.")]
Space = Annotated[str, typer.Option("--space", help="Search space, a YAML file.")]
Size = Annotated[int, typer.Option("--size", min=16, max=1024, help="Rows and columns of the prepared images.")]
Windows = Annotated[str, typer.Option("--windows", help="Windows by name, or name=center/width in HU.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same result.")]
Trials = Annotated[int | None, typer.Option("--trials", min=1, help="How many trials in all.")]
GpusPerTrial = Annotated[
    float | None, typer.Option("--gpus-per-trial", min=0, help="May be a fraction; default 1 where there are GPUs.")
]
CpusPerTrial = Annotated[
    int | None, typer.Option("--cpus-per-trial", min=1, help="CPUs, and threads, of a trial; default 1 a worker.")
]
WorkersPerTrial = Annotated[
    int | None,
    typer.Option("--workers-per-trial", min=1, help="Processes that train one network; default one a GPU."),
]
Images = Annotated[
    Literal["auto", "device", "host"],
    typer.Option(
        "--placement", help="Where training images lie; auto: in GPU memory if half of a trial's part holds all."
    ),
]
LimitRejected = Annotated[
    str, typer.Option("--limit-rejected", help="Largest share of files that may be rejected, such as 5% or 0.05.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster; default RAY_ADDRESS, else this machine alone.")
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
BundleFolder = Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder with model.safetensors and card.json.")]
SiteDataset = Annotated[str, typer.Argument(metavar="DATASET", help="The site's patients, prepared like the bundle's.")]
Prevalence = Annotated[
    float | None, typer.Option("--prevalence", help="Give PPV and NPV for this share of positive slices, too.")
]
SearchFolder = Annotated[str, typer.Argument(metavar="SEARCH", help="Folder that `ich-ray search` wrote.")]


@app.callback(epilog="Add --debug to see where an unexpected error came from.")
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def demo(out: Out = "demo", as_json: Json = False) -> None:
    """The whole road on synthetic patients, in minutes."""
    from ich_ray.pipeline import demo as make_demo

    display.print_run(make_demo(out), as_json)


@app.command()
def phantom(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    patients: Annotated[int, typer.Option("--patients", min=1)] = 160,
    seed: Seed = 0,
    faint: Annotated[
        float, typer.Option("--faint", min=0, max=1, help="Share of bleeds that are small and hardly dense.")
    ] = 0.3,
) -> None:
    """Write synthetic patients as DICOM with labels."""
    from ich_ray.ct.phantom import write_phantom

    written = write_phantom(out, patients=patients, seed=seed, faint=faint)
    print(f"images  {written.images}\nlabels  {written.labels}")


@app.command()
def prepare(
    images: Annotated[str, typer.Argument(metavar="DICOM_DIR", help="Folder of DICOM files, read recursively.")],
    labels: Labels,
    out: Out,
    size: Size = 128,
    windows: Windows = DEFAULT_WINDOWS,
    seed: Seed = 0,
    split: Annotated[
        Literal["patient", "slice"],
        typer.Option("--split", help="What roles are drawn by; slice leaks, and only reproduces systems split so."),
    ] = "patient",
    without_preamble: Annotated[
        bool, typer.Option("--without-preamble", help="Read files that lack the DICOM preamble too, and flag them.")
    ] = False,
    limit_rejected: LimitRejected = "5%",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Decode and window DICOM files, once for all trials."""
    from ich_ray.data.prepare import prepare as prepare_dataset

    dataset = prepare_dataset(
        images,
        labels,
        out,
        size=size,
        windows=windows,
        seed=seed,
        split=split,
        without_preamble=without_preamble,
        limit_rejected=_share(limit_rejected),
        address=address,
    )
    if as_json:
        print(dataset.manifest.model_dump_json(indent=1))
    else:
        display.print_dataset(dataset.manifest, str(dataset.files.root))
    _exit_with_rejected(dataset.manifest)


@app.command()
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
    from ich_ray.recipes.probe import probe as probe_rates

    display.print_probe(
        probe_rates(dataset, space, out, minibatches=minibatches, passes=passes, seed=seed), out, as_json
    )


@app.command()
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
    warm_start: Annotated[str | None, typer.Option("--warm-start", help="Learn from another search first.")] = None,
    placement: Images = "auto",
    share_trunks: Annotated[
        bool, typer.Option("--share-trunks", help="Compute what frozen layers make of each slice once, for all trials.")
    ] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Search hyperparameters; safe to kill and resume."""
    asked: dict[str, Any] = {
        "trials": trials,
        "gpus_per_trial": gpus_per_trial,
        "cpus_per_trial": cpus_per_trial,
        "workers_per_trial": workers_per_trial,
        "concurrent": concurrent,
        "resume": resume,
        "seed": seed,
        "warm_start": warm_start,
        "address": address,
    }
    if plan:
        from ich_ray.search.outlook import plan_search

        display.print_outlook(plan_search(dataset, space, out, **asked), as_json)
        return
    from ich_ray.search.run import run_search

    found = run_search(
        dataset, space, out, **asked, hours=hours, gpu_hours=gpu_hours, placement=placement, share_trunks=share_trunks
    )
    display.print_search(found, None, as_json)


@app.command()
def results(
    folder: SearchFolder,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Best trials to show; 10, or all as JSON.")] = None,
    at_half: Annotated[
        bool,
        typer.Option("--at-half", help="What each decides by itself at its end: F2, specificity, PPV."),
    ] = False,
    as_json: Json = False,
) -> None:
    """The trials of a search, best first, at any time."""
    if at_half:
        from ich_ray.recipes.quick import quick_evaluation

        display.print_quick(quick_evaluation(open_search(folder)), as_json)
    else:
        display.print_search(open_search(folder), top, as_json)


@app.command()
def confirm(
    folder: SearchFolder,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of the best trials.")] = 3,
    folds: Annotated[int | None, typer.Option("--folds", min=2, help="Folds to hold out in turn; default 5.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="New seeds, in place of folds.")] = None,
    gpus_per_trial: GpusPerTrial = None,
    cpus_per_trial: CpusPerTrial = None,
    workers_per_trial: WorkersPerTrial = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", min=1, help="Trainings at a time.")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train the best trials again; choose by their mean."""
    from ich_ray.final.confirm import confirm as confirm_best

    confirmation = confirm_best(
        folder,
        top=top,
        folds=folds,
        seeds=seeds,
        gpus_per_trial=gpus_per_trial,
        cpus_per_trial=cpus_per_trial,
        workers_per_trial=workers_per_trial,
        concurrent=concurrent,
        address=address,
    )
    display.print_confirmation(confirmation, as_json)


@app.command()
def export(
    folder: SearchFolder,
    tensorboard: Annotated[str | None, typer.Option("--tensorboard", help="A new folder for event files.")] = None,
    optuna: Annotated[str | None, typer.Option("--optuna", help="A new SQLite file, for optuna-dashboard.")] = None,
    mlflow: Annotated[str | None, typer.Option("--mlflow", help="A tracking URI, such as sqlite:///runs.db.")] = None,
) -> None:
    """Write a search for TensorBoard, Optuna or MLflow."""
    from ich_ray.search.export import export as export_search

    print("\n".join(export_search(folder, tensorboard=tensorboard, optuna=optuna, mlflow=mlflow)))


@app.command()
def audit(
    where: Annotated[str, typer.Argument(metavar="PATH", help="A search or a prepared dataset.")], as_json: Json = False
) -> None:
    """Check that nothing was lost; exit code 5 if something was."""
    from ich_ray.search.audit import audit as audit_files

    found = audit_files(where)
    display.print_audit(found, as_json)
    if found.breached:
        raise typer.Exit(BROKEN)


@app.command()
def retrain(
    folder: SearchFolder,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Data-parallel workers.")] = 1,
    patients: Annotated[
        Literal["train", "train+validation"],
        typer.Option("--patients", help="Who trains; with validation patients, as long as was best without them."),
    ] = "train",
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Train so often; the best on validation is the bundle.")
    ] = 1,
    slices: Annotated[
        int | None, typer.Option("--slices", min=1, help="Train on a stratified sample, measured after each pass.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the sample at most.")] = None,
    placement: Images = "auto",
    address: Address = None,
) -> None:
    """Train the chosen trial again, longer: the bundle."""
    from ich_ray.final.retrain import retrain as retrain_best

    bundle = retrain_best(
        folder,
        workers=workers,
        patients=patients,
        seeds=seeds,
        slices=slices,
        epochs=epochs,
        placement=placement,
        address=address,
    )
    card = bundle.card
    if seeds > 1 and card.retraining is not None:
        print(f"seeds   validation {card.search.objective}: {card.retraining.validation}")
    print(f"bundle  {open_search(folder).files.bundle}")


@app.command()
def calibrate(
    folder: SearchFolder,
    method: CalibrationMethod = "temperature",
    beta: Beta = None,
    sensitivity: Sensitivity = None,
    conservative: Conservative = False,
) -> None:
    """Fit probabilities and thresholds, on their own patients."""
    from ich_ray.final.calibration import calibrate as calibrate_bundle

    calibrate_bundle(folder, method=method, beta=beta, sensitivity=sensitivity, conservative=conservative)
    print(open_search(folder).files.calibration.read_text(), end="")


@app.command()
def recalibrate(
    bundle: BundleFolder,
    dataset: SiteDataset,
    out: Out,
    method: CalibrationMethod = "platt",
    beta: Beta = None,
    sensitivity: Sensitivity = None,
    conservative: Conservative = False,
) -> None:
    """Fit a bundle to the labelled patients of another site."""
    from ich_ray.final.recalibration import recalibrate as recalibrate_bundle

    wishes: dict[str, Any] = {"beta": beta, "sensitivity": sensitivity, "conservative": conservative}
    found = recalibrate_bundle(bundle, dataset, out, method=method, **wishes)
    print(found.model_dump_json(indent=1))


@app.command()
def evaluate(
    folder: SearchFolder,
    prevalence: Prevalence = None,
) -> None:
    """Open the test patients and write down the figures."""
    from ich_ray.final.evaluate import evaluate as evaluate_bundle

    evaluate_bundle(folder, prevalence=prevalence)
    print(open_search(folder).files.evaluation.read_text(), end="")


@app.command()
def evaluate_site(
    bundle: BundleFolder,
    dataset: SiteDataset,
    out: Out,
    prevalence: Prevalence = None,
) -> None:
    """Open the test patients of another site for a bundle."""
    from ich_ray.final.evaluate import evaluate_site as evaluate_elsewhere

    print(evaluate_elsewhere(bundle, dataset, out, prevalence=prevalence).model_dump_json(indent=1))


@app.command()
def report(folder: SearchFolder) -> None:
    """Write one HTML page about the search and the bundle."""
    from ich_ray.final.report.page import report as write_report

    print(f"report  {write_report(folder)}")


@app.command()
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
        int, typer.Option("--confirm", min=0, help="Train so many of the best trials again on two folds; 0 does not.")
    ] = 3,
    seed: Seed = 0,
    limit_rejected: LimitRejected = "5%",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """From DICOM to a report; finished stages are skipped."""
    from ich_ray.pipeline import run as run_all

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
        confirm=confirm,
        seed=seed,
        limit_rejected=_share(limit_rejected),
        address=address,
    )
    display.print_run(result, as_json)
    _exit_with_rejected(result.dataset.manifest)


@app.command()
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
    from ich_ray.recipes.reproduce import reproduce as run_again

    keys: dict[str, Any] = {"scale": scale, "weights": weights, "seed": seed, "address": address}
    page = run_again(images, labels, out, limit_rejected=_share(limit_rejected), **keys)
    print(f"page  {page}")


@app.command()
def predict(
    bundle: BundleFolder,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="DICOM files or folders of them.")],
    out: Annotated[str, typer.Option("--out", help="Table to write: .csv, .json or .parquet.")],
    point: Annotated[str, typer.Option("--point", help="Operating point that decides, such as sensitivity_95.")] = "f2",
    by: Annotated[Literal["slice", "study"], typer.Option("--by", help="A row for each.")] = "slice",
    heatmaps: Annotated[
        str | None, typer.Option("--heatmaps", help="Folder for a Grad-CAM picture of each slice.")
    ] = None,
    address: Address = None,
) -> None:
    """Probability and decision for each file or study."""
    from ich_ray.final.archive import predict as predict_files

    found = predict_files(bundle, [*paths], out, point=point, by=by, heatmaps=heatmaps, address=address)
    cases = f"{found.positive} of {found.cases} {'slices' if by == 'slice' else 'studies'} positive"
    print(f"{found.inputs} inputs: {cases}, {found.rejected} rejected  {out}")
    if found.rejected:
        raise typer.Exit(REJECTED_SOME)


@app.command()
def export_onnx(
    bundle: BundleFolder,
    out: Annotated[str, typer.Argument(metavar="FILE", help="ONNX file to write.")],
) -> None:
    """Write a bundle as ONNX, checked with ONNX Runtime."""
    from ich_ray.final.export import export_onnx as write_onnx

    print(f"onnx  {write_onnx(bundle, out)}")


for _verb in cluster_verbs.VERBS:
    app.command(**_verb.settings)(_verb.function)


def main() -> None:
    """Entry point: every mistake of a user ends as one line on stderr and an exit code."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    progress.show()
    sys.exit(call([argument for argument in arguments if argument != "--debug"], debug))


def call(arguments: list[str], debug: bool = False) -> int:
    """Run one command line and return its exit code; with `debug`, errors are raised."""
    try:
        return int(app(args=arguments, prog_name="ich-ray", standalone_mode=False) or 0)
    except IchRayError as error:
        if debug:
            raise
        return _complain(str(error), error.exit_code)
    except TyperException as error:
        return _complain(error.format_message(), 2)
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted; nothing finished is lost, run the same command again to go on", 130)
    except Exception as error:
        # The last line of defense: a traceback is for --debug.
        if debug:
            raise
        return _complain(f"unexpected {type(error).__name__}: {error}; add --debug for the traceback", 1)


def _complain(message: str, code: int) -> int:
    print(f"ich-ray: {message}", file=sys.stderr)
    return code


def _share(text: str) -> float:
    """`5%` or `0.05` as 0.05."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--limit-rejected: a share from 0 to 1 or a percentage must be given, got {text!r}")
    return share


def _exit_with_rejected(manifest: DatasetManifest) -> None:
    if manifest.rejected:
        raise typer.Exit(REJECTED_SOME)


if __name__ == "__main__":
    main()

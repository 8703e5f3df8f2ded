"""From the chosen trial to a bundle and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ich_ray import display
from ich_ray.display_figures import print_calibration, print_evaluation
from ich_ray.errors import ConfigError
from ich_ray.notify.given_address import asked_for
from ich_ray.results import open_search
from ich_ray.storage import read_json
from ich_ray.terminal import print_json, print_line
from ich_ray.verbs.options import (
    REJECTED_SOME,
    Address,
    Beta,
    BundleFolder,
    CalibrationMethod,
    Conservative,
    DatasetOfSearch,
    Images,
    Json,
    Notify,
    OtherSearches,
    Out,
    Points,
    Prevalence,
    SearchFolder,
    Sensitivity,
    SiteDataset,
    StudyPrevalence,
    Trials,
    Tta,
    WithoutPreamble,
)
from ich_ray.vocabulary import Patients

if TYPE_CHECKING:
    from collections import Counter

__all__ = ["VERBS"]


def retrain(
    folder: SearchFolder,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Data-parallel workers.")] = 1,
    patients: Annotated[
        Patients,
        typer.Option("--patients", help="Who trains; with validation patients, as long as was best without them."),
    ] = "train",
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Train so often; the best on validation is the bundle.")
    ] = 1,
    ensemble: Annotated[
        int, typer.Option("--ensemble", min=1, help="Average so many networks: the best trials, or best seeds.")
    ] = 1,
    from_confirmation: Annotated[
        bool, typer.Option("--from-confirmation", help="Average the networks that confirm trained; trains nothing.")
    ] = False,
    tta: Tta = None,
    placement: Images = "auto",
    address: Address = None,
    notify: Notify = None,
) -> None:
    """Train the chosen trial again, longer: the bundle."""
    from ich_ray.notify.stage import telling

    if from_confirmation:
        if (workers, patients, seeds, ensemble, placement) != (1, "train", 1, 1, "auto"):
            raise ConfigError(
                "--from-confirmation: trains nothing, so it must stand alone or with --tta; leave out the others"
            )
        from ich_ray.refit.confirmed_ensemble import bundle_confirmed

        with telling("retrain", asked_for(notify)):
            card = bundle_confirmed(folder, tta=tta or ()).card
        display.print_retrained(card, 1, str(open_search(folder).files.bundle))
        return
    from ich_ray.refit.retrain import retrain as retrain_best

    keys: dict[str, Any] = {"workers": workers, "patients": patients, "seeds": seeds, "ensemble": ensemble}
    with telling("retrain", asked_for(notify)):
        card = retrain_best(folder, **keys, tta=tta or (), placement=placement, address=address).card
    display.print_retrained(card, seeds, str(open_search(folder).files.bundle))


def sequence(
    folder: SearchFolder,
    space: Annotated[
        str | None,
        typer.Option(
            "--space", help="Space with `searches: sequence`; one of ours, by size, if not given, or that to --resume."
        ),
    ] = None,
    trials: Trials = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search that is there.")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Search a model over the slices of a series, for the bundle."""
    from ich_ray.refit.sequence import sequence as search_sequence

    found = open_search(folder)
    note = search_sequence(folder, space=space, trials=trials, resume=resume, address=address)
    display.print_sequence(note, str(found.files.bundle), as_json)


def calibrate(
    folder: SearchFolder,
    method: CalibrationMethod = "temperature",
    beta: Beta = None,
    sensitivity: Sensitivity = None,
    conservative: Conservative = False,
    points: Points = None,
    as_json: Json = False,
) -> None:
    """Fit probabilities and thresholds, on their own patients."""
    from ich_ray.assess.calibration import calibrate as calibrate_bundle

    wishes: dict[str, Any] = {"beta": beta, "sensitivity": sensitivity, "conservative": conservative}
    calibrate_bundle(folder, method=method, **wishes, points=points or ())
    where = open_search(folder).files.calibration
    print_calibration(read_json(where), str(where), as_json)


def recalibrate(
    bundle: BundleFolder,
    dataset: SiteDataset,
    out: Out,
    method: CalibrationMethod = "platt",
    beta: Beta = None,
    sensitivity: Sensitivity = None,
    conservative: Conservative = False,
    points: Points = None,
    as_json: Json = False,
) -> None:
    """Fit a bundle to the labelled patients of another site."""
    from ich_ray.assess.recalibration import recalibrate as recalibrate_bundle

    wishes: dict[str, Any] = {"beta": beta, "sensitivity": sensitivity, "conservative": conservative}
    found = recalibrate_bundle(bundle, dataset, out, method=method, **wishes, points=points or ())
    print_calibration(found.model_dump(mode="json"), out, as_json)


def adapt(bundle: BundleFolder, dataset: SiteDataset, out: Out, address: Address = None) -> None:
    """Fit the sequence model of a bundle to a site's own labels."""
    from ich_ray.refit.adapt import adapt as adapt_bundle

    print_json(adapt_bundle(bundle, dataset, out, address=address))


def evaluate(
    folder: SearchFolder,
    prevalence: Prevalence = None,
    study_prevalence: StudyPrevalence = None,
    as_json: Json = False,
) -> None:
    """Open the test patients and write down the figures."""
    from ich_ray.assess.evaluate import evaluate as evaluate_bundle

    evaluate_bundle(folder, prevalence=prevalence, study_prevalence=study_prevalence)
    where = open_search(folder).files.evaluation
    print_evaluation(read_json(where), str(where), as_json)


def evaluate_site(
    bundle: BundleFolder,
    dataset: SiteDataset,
    out: Out,
    prevalence: Prevalence = None,
    study_prevalence: StudyPrevalence = None,
    as_json: Json = False,
) -> None:
    """Open the test patients of another site for a bundle."""
    from ich_ray.assess.evaluate import evaluate_site as evaluate_elsewhere

    stated = {"prevalence": prevalence, "study_prevalence": study_prevalence}
    found = evaluate_elsewhere(bundle, dataset, out, **stated)
    print_evaluation(found.model_dump(mode="json"), out, as_json)


def report(
    folder: SearchFolder,
    others: OtherSearches = None,
    dataset: DatasetOfSearch = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="HTML file to write, in place of one in final/."),
    ] = None,
) -> None:
    """Write one HTML page about the search and the bundle, or of several side by side."""
    from ich_ray.html_report.page import report as write_report

    print_line(f"report  {write_report([folder, *(others or ())], dataset, out)}")


def predict(
    bundle: BundleFolder,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="DICOM files or folders of them.")],
    out: Annotated[str, typer.Option("--out", help="Table to write: .csv, .json or .parquet.")],
    point: Annotated[str, typer.Option("--point", help="Operating point that decides, such as sensitivity_95.")] = "f2",
    by: Annotated[Literal["slice", "study"], typer.Option("--by", help="A row for each.")] = "slice",
    heatmaps: Annotated[
        str | None, typer.Option("--heatmaps", help="Folder for a Grad-CAM picture of each slice.")
    ] = None,
    dicom_sr: Annotated[
        str | None,
        typer.Option("--dicom-sr", help="Folder for a DICOM Structured Report of each study; names its patient."),
    ] = None,
    no_slabs: Annotated[
        bool,
        typer.Option("--no-slabs", help="Do not average series finer than those that trained the bundle."),
    ] = False,
    without_preamble: WithoutPreamble = False,
    address: Address = None,
) -> None:
    """Probability and decision for each file or study."""
    from ich_ray.bundle.batch_predict import predict as predict_files

    found = predict_files(
        bundle,
        [*paths],
        out,
        point=point,
        by=by,
        heatmaps=heatmaps,
        dicom_sr=dicom_sr,
        slabs=not no_slabs,
        without_preamble=without_preamble,
        address=address,
    )
    cases = f"{found.positive} of {found.cases} {'slices' if by == 'slice' else 'studies'} positive"
    left_out = f"{found.rejected} rejected" + (f", {found.excluded} excluded" if found.excluded else "")
    reasons = f" ({_most_common(found.reasons)})" if found.reasons else ""
    flagged = f", {found.flagged} flagged: {_most_common(found.flags)}" if found.flags else ""
    print_line(f"{found.inputs} inputs: {cases}, {left_out}{reasons}{flagged}  {out}")
    if dicom_sr is not None:
        without = f", {found.unreported.total()} studies without ({_most_common(found.unreported)})"
        print_line(f"{found.reports} reports{without if found.unreported else ''}  {dicom_sr}")
    if found.rejected or not found.cases or found.unreported:
        raise typer.Exit(REJECTED_SOME)


def _most_common(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def export_onnx(
    bundle: BundleFolder,
    out: Annotated[str, typer.Argument(metavar="FILE", help="ONNX file to write.")],
) -> None:
    """Write a bundle as ONNX, checked with ONNX Runtime."""
    from ich_ray.bundle.onnx_export import export_onnx as write_onnx

    print_line(f"onnx  {write_onnx(bundle, out)}")


VERBS = (retrain, sequence, calibrate, recalibrate, adapt, evaluate, evaluate_site, report, predict, export_onnx)

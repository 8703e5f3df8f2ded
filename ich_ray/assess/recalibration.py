"""An existing bundle, calibrated again on the labelled patients of another site.

Knows a bundle and a prepared dataset; no search, and not the data that trained the network. It fits on the train,
validation and calibration roles together, as none of these patients trained this network, and leaves the test role
closed, so that the site can still measure what it got (`evaluate_site`). Of a site to which the bundle was adapted the
calibration role alone is new to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.calibration import (
    Calibration,
    check_method,
    fit_calibration,
    with_calibration,
    with_gains,
    with_studies,
    with_subtypes,
)
from ich_ray.assess.operating_points import OperatingPointSpec
from ich_ray.assess.own_scaling import with_own_scaling
from ich_ray.assess.study_fitting import calibrate_studies, why_not_by_study
from ich_ray.bundle.card_file import check_no_bundle
from ich_ray.bundle.training_data import site_note
from ich_ray.bundle.training_patients import check_site, copy_known
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.data.study_labels import studies_of
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.statistics.aggregation import patients_by_label
from ich_ray.statistics.metrics import POSITIVE_PATIENTS_OF_A_LABEL
from ich_ray.storage import Location, check_folder, locate
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from upath import UPath

    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.logit_scaling import Method
    from ich_ray.bundle.study_calibration import StudyCalibration
    from ich_ray.vocabulary import Role

__all__ = ["check_patients", "fit_to_site", "recalibrate"]

# Ten events for each number that is fitted: Peduzzi et al., "A simulation study of the number of events per variable in
# logistic regression analysis" (1996). Slices of one patient are one event.
_PATIENTS_PER_NUMBER = 10
_NUMBERS: dict[Method, int] = {"temperature": 1, "platt": 2}


def recalibrate(
    bundle: Location,
    dataset: Location,
    out: Location,
    *,
    method: Method = "platt",
    beta: float | None = None,
    sensitivity: float | None = None,
    conservative: bool = False,
    points: Sequence[str] = (),
) -> Calibration | StudyCalibration:
    """Fit probabilities and operating points of a bundle to a site's own patients; write another bundle.

    Where the site has labels of studies alone, those of studies are fitted, and those of slices are as before. The
    network stays as it is. The new card keeps the calibrations before and the fingerprints of all their datasets;
    figures of the old test patients are taken out, as they belong to the calibration before.

    Args:
        bundle: what to calibrate; it is not changed.
        dataset: of the site, prepared with the windows and the size of the bundle.
        out: folder of the new bundle.
        method: `platt` moves the probabilities to the prevalence of the site, which a `temperature` cannot.
        beta: also find the threshold with the highest F-beta of this beta.
        sensitivity: also find one of at least this sensitivity.
        conservative: targets of sensitivity hold for its lower 95 % bound.
        points: also find these, each by a registered rule: `youden`, or `sensitivity=0.93` where it takes a number.

    Returns:
        What was fitted: of slices and of studies, or of studies alone.

    Raises:
        ConfigError: no bundle or dataset, other windows or size, patients of the dataset that made the bundle, too few
            patients, or no place to write.
        SensitivityError: no threshold reaches `sensitivity`.
        IntegrityError: the bundle or the dataset is damaged.
    """
    from ich_ray.bundle.bundle import load_bundle  # loads PyTorch

    wanted = OperatingPointSpec(beta, sensitivity, conservative, tuple(points))
    check_method(method)
    target = locate(out)
    check_folder(target, "--out")
    loaded, site = load_bundle(bundle), PreparedDataset.open(dataset)
    check_no_bundle(target, locate(bundle))
    check_site(locate(bundle), loaded.card, site)
    if note := site_note(loaded.card.training_data, site, ("train", "validation", "calibration")):
        say(f"  slices of this site are unlike those that trained the bundle: {note}")
    adapted = loaded.card.sequence is not None and loaded.card.sequence.adapted_to(site.manifest.fingerprint)
    roles: tuple[Role, ...] = ("calibration",) if adapted else ("train", "validation", "calibration")
    slices = SliceSet(site, np.flatnonzero(np.isin(site.column("role"), roles)))
    where = "in the calibration role, as the bundle was adapted to the others," if adapted else "outside the test role"
    if site.manifest.level == "slice":
        _check_slices(slices, method, where)
    else:
        _check_studies(slices, method, where)
    site.verify(*roles)
    found = fit_to_site(loaded, slices, method, wanted)
    copy_known(locate(bundle), target)
    loaded.save(target)
    return found


def fit_to_site(
    bundle: Bundle, slices: SliceSet, method: Method, wanted: OperatingPointSpec
) -> Calibration | StudyCalibration:
    """Fit what labels of a site can fit, and put it into the card, without figures of test patients.

    Args:
        bundle: whose card is replaced.
        slices: of patients who trained nothing; what has no label here stays as it is.
        method: of slices; studies have their own.
        wanted: operating points: of slices, or where they have no labels of studies.
    """
    card = bundle.card
    if slices.dataset.manifest.level != "slice":
        of_studies = _by_studies(bundle, slices, wanted)
        bundle.card = card.model_copy(update={"studies": of_studies, "test": None, "site_tests": {}})
        return of_studies
    logits = bundle.slice_label_logits(slices)
    found = fit_calibration(slices, logits[:, -1], card.scaling, method, card.prior_shift, wanted)
    if card.parameters.labels == "all":
        before = dict(zip(SUBTYPES, card.scalings, strict=False))
        shifts = {name: scaling.prior_shift for name, scaling in before.items()}
        found = with_subtypes(found, slices, logits, shifts, before, conservative=wanted.conservative)
    found = with_studies(found, bundle, slices, logits, wanted, card.studies)
    found = with_gains(found, bundle, slices, logits[:, -1])
    bundle.card = with_calibration(with_own_scaling(card, bundle, slices, method), found)
    return found


def _by_studies(bundle: Bundle, slices: SliceSet, wanted: OperatingPointSpec) -> StudyCalibration:
    """What labels of studies alone can fit."""
    card = bundle.card
    of_slices = dict(zip(card.parameters.predicted_labels, card.scalings, strict=True))
    found = calibrate_studies(bundle, slices, bundle.slice_label_logits(slices), of_slices, card.studies, wanted)
    assert found is not None  # noqa: S101  (there are studies)
    say("  slices have no labels here: their probabilities and operating points are as before")
    return found


def _check_studies(slices: SliceSet, method: Method, role: str) -> None:
    where = slices.dataset.files.root
    if method != "platt":
        raise ConfigError(f"--method: studies are fitted by platt alone, got {method} for labels of studies")
    studies = studies_of(slices)
    if reason := why_not_by_study(slices, studies):
        raise ConfigError(
            f"{where}: studies must be there to fit them, got none ({reason}); prepare files that name theirs"
        )
    held = patients_by_label(studies.label("any"), studies.patients)
    check_patients(where, held, "study", f"there {role}", "label more patients")


def check_patients(where: UPath, held: Mapping[int, int], what: str, place: str, hint: str) -> None:
    """Enough patients must have a slice or study with haemorrhage, and enough one without.

    Args:
        where: the dataset.
        held: patients by label.
        what: a slice or a study.
        place: where they must be.
        hint: what to do.

    Raises:
        ConfigError: they are too few.
    """
    for label, kind in ((1, "with"), (0, "without")):
        if held[label] < POSITIVE_PATIENTS_OF_A_LABEL:
            raise ConfigError(
                f"{where}: at least {POSITIVE_PATIENTS_OF_A_LABEL} patients with a {what} {kind} haemorrhage must be "
                f"{place}, got {held[label]}; {hint}"
            )


def _check_slices(slices: SliceSet, method: Method, role: str) -> None:
    needed = _PATIENTS_PER_NUMBER * _NUMBERS[method]
    by_label = patients_by_label(slices.labels, slices.patients)
    for held, what in ((by_label[1], "with"), (by_label[0], "without")):
        if held < needed:
            hint = "use --method temperature, which needs 10, or label" if method == "platt" and held >= 10 else "label"
            raise ConfigError(
                f"{slices.dataset.files.root}: at least {needed} patients with a slice {what} haemorrhage must be "
                f"there {role} to fit by {method}, got {held}; {hint} more patients"
            )

"""An existing bundle, calibrated again on the labelled patients of another site.

Knows a bundle and a prepared dataset; no search, and not the data that trained the network. It fits on the train,
validation and calibration roles together, as none of these patients trained this network, and leaves the test role
closed, so that the site can still measure what it got (`evaluate_site`).
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
    with_subtypes,
)
from ich_ray.assess.operating_points import OperatingPointSpec
from ich_ray.bundle.card_file import has_card
from ich_ray.bundle.training_data import site_note
from ich_ray.bundle.training_patients import check_site, copy_known
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.storage import Location, check_folder, locate
from ich_ray.vocabulary import SUBTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ich_ray.bundle.logit_scaling import Method

__all__ = ["recalibrate"]

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
) -> Calibration:
    """Fit probabilities and operating points of a bundle to a site's own patients; write another bundle.

    The network stays as it is. The new card keeps the calibrations before and the fingerprints of all their datasets;
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
    if target == locate(bundle) or has_card(target):
        raise ConfigError(
            f"--out {target}: a folder without a bundle must be given, got one with a bundle; name another"
        )
    check_site(locate(bundle), loaded.card, site)
    if note := site_note(loaded.card.training_data, site, ("train", "validation", "calibration")):
        say(f"  slices of this site are unlike those that trained the bundle: {note}")
    slices = SliceSet(site, np.flatnonzero(site.column("role") != "test"))
    _check_patients(slices, method)
    site.verify("train", "validation", "calibration")
    card = loaded.card
    logits = loaded.slice_label_logits(slices)
    found = fit_calibration(slices, logits[:, -1], card.scaling, method, card.prior_shift, wanted)
    if card.parameters.labels == "all":
        before = dict(zip(SUBTYPES, card.scalings, strict=False))
        shifts = {name: scaling.prior_shift for name, scaling in before.items()}
        found = with_subtypes(found, slices, logits, shifts, before, conservative=conservative)
    found = with_gains(found, loaded, slices, logits[:, -1])
    loaded.card = with_calibration(card, found)
    copy_known(locate(bundle), target)
    loaded.save(target)
    return found


def _check_patients(slices: SliceSet, method: Method) -> None:
    needed = _PATIENTS_PER_NUMBER * _NUMBERS[method]
    for label, what in ((1, "with"), (0, "without")):
        held = len(set(slices.patients[slices.labels == label]))
        if held < needed:
            hint = "use --method temperature, which needs 10, or label" if method == "platt" and held >= 10 else "label"
            raise ConfigError(
                f"{slices.dataset.files.root}: at least {needed} patients with a slice {what} haemorrhage must be "
                f"there outside the test role to fit by {method}, got {held}; {hint} more patients"
            )

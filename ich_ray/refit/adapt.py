"""The sequence model of a bundle, fitted to a site's own labels; those of studies are enough.

Who sees whom: the site's training patients teach, its validation patients choose among the reports, its calibration
patients weigh, calibrate and say, cross-fitted, what it changed. Its test patients stay closed, so that the site can
measure what it got (`evaluate_site`). The network of the bundle stays as it is, and so do its features, which are
computed once, below `--out`, and removed when the bundle is there.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ich_ray.assess.operating_points import OperatingPointSpec
from ich_ray.assess.recalibration import check_patients, fit_to_site
from ich_ray.assess.study_fitting import why_not_by_study
from ich_ray.bundle.adaptation_note import AdaptationNote, AdaptedPatients
from ich_ray.bundle.answering_series import answering_series
from ich_ray.bundle.card_file import check_no_bundle, read_card
from ich_ray.bundle.sequence_note import Blend
from ich_ray.bundle.study_logits import study_logits
from ich_ray.bundle.training_data import site_note
from ich_ray.bundle.training_patients import check_site, copy_known_with
from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.study_labels import studies_of
from ich_ray.errors import ConfigError
from ich_ray.progress import say
from ich_ray.refit.adaptation_figures import changed_figures, format_figures
from ich_ray.refit.bundle_features import check_features, compute_features, feature_files, open_features, read_set
from ich_ray.refit.sequence import read_slices
from ich_ray.refit.sequence_figures import fit_blends
from ich_ray.runtime import connected
from ich_ray.statistics.aggregation import patients_by_label
from ich_ray.storage import Location, SearchFiles, check_folder, file_lock, is_local, locate, remove

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from upath import UPath

    from ich_ray.bundle.adaptation_note import AdaptationFigure
    from ich_ray.bundle.bundle import Bundle
    from ich_ray.bundle.card import Card
    from ich_ray.bundle.sequence_note import SequenceNote
    from ich_ray.data.dataset import SliceSet
    from ich_ray.data.sequence_features import SequenceFeatures
    from ich_ray.refit.adaptation_training import Adapted
    from ich_ray.refit.sequence_figures import ReadSlices
    from ich_ray.training.sequence_set import SequenceSet
    from ich_ray.vocabulary import Role

__all__ = ["adapt"]

_ROLES: tuple[Role, ...] = ("train", "validation", "calibration")


def adapt(bundle: Location, dataset: Location, out: Location, *, address: str | None = None) -> AdaptationNote:
    """Fit the sequence model of a bundle to a site's own patients; write another bundle.

    By labels of studies alone the study head is fitted, and slices are as before; by labels of slices all of the
    model, its blend with the network, and the calibrations of both. It may end as it was, and the note says so.

    Args:
        bundle: with a sequence model; it is not changed.
        dataset: of the site, prepared with the windows and the size of the bundle.
        out: folder of the new bundle, which all machines of a cluster see.
        address: a Ray cluster; this machine if not given.

    Raises:
        ConfigError: it cannot be done as asked; nothing was written.
        IntegrityError: the bundle or the dataset is damaged.
        IchRayError: features could not be computed; run again, whole parts are kept.
    """
    from ich_ray.bundle.bundle import load_bundle  # loads PyTorch

    folder, target, site = locate(bundle), locate(out), PreparedDataset.open(dataset)
    card = read_card(folder)
    _check_bundle(folder, card, site)
    _check_out(folder, target)
    check_site(folder, card, site)
    _check_labels(site)
    files = SearchFiles(target / "adaptation")
    features = feature_files(files, site, card)
    check_features(files, features, "remove the folder, or name another --out")
    loaded = load_bundle(folder)
    if note := site_note(card.training_data, site, _ROLES):
        say(f"  slices of this site are unlike those that trained the bundle: {note}")
    site.verify(*_ROLES)
    with file_lock(files.root / ".lock", "an adaptation"):
        with connected(address):
            compute_features(features, folder, site, files)
        made, found = _adapted(loaded, site, open_features(files, site, features.key))
        copy_known_with(folder, target, card, site)
        made.save(target)
    remove(files.root)
    return found


def _check_bundle(folder: UPath, card: Card, site: PreparedDataset) -> None:
    if card.members:
        raise ConfigError(
            f"{folder}: a bundle of one network and its sequence model must be given, got an ensemble; retrain "
            "without --ensemble, then run `ich-ray sequence`"
        )
    if card.sequence is None:
        raise ConfigError(
            f"{folder}: a bundle with a sequence model must be given, got one without; run `ich-ray sequence` on its "
            "search, or `ich-ray recalibrate`, which needs none"
        )
    if site.manifest.level != "slice" and not card.operating_points:
        raise ConfigError(
            f"{folder}: a calibrated bundle must be given where labels are of a {site.manifest.level} each, as "
            "slices are left as they are, got one that is not; run `ich-ray calibrate` on its search"
        )


def _check_out(folder: UPath, target: UPath) -> None:
    check_folder(target, "--out")
    check_no_bundle(target, folder)
    if not is_local(target):
        raise ConfigError(
            f"--out {target}: features of slices are mapped from a folder that all machines see, got object storage; "
            "name such a folder, and copy the bundle"
        )


def _check_labels(site: PreparedDataset) -> None:
    """Each role that fits or chooses something must be able to.

    Raises:
        ConfigError: studies have no names where only they have labels, or patients are few.
    """
    where, level = site.files.root, site.manifest.level
    what = "slice" if level == "slice" else "study"
    for role in _ROLES:
        slices = site.role(role)
        if level != "slice" and (reason := why_not_by_study(slices, studies_of(slices))):
            raise ConfigError(
                f"{where}: studies must be there to be learned from, got none in the {role} role ({reason}); prepare "
                "files that name theirs"
            )
        held, hint = patients_by_label(*_labels(slices)), "label more patients, or use `ich-ray recalibrate`"
        check_patients(where, held, what, f"in the {role} role", hint)


def _labels(slices: SliceSet) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
    """What teaches, of `any`: labels of slices or, where these have none, of studies; and of whom."""
    if slices.dataset.manifest.level == "slice":
        return slices.labels, slices.patients
    studies = studies_of(slices)
    return studies.label("any"), studies.patients


def _adapted(bundle: Bundle, site: PreparedDataset, features: SequenceFeatures) -> tuple[Bundle, AdaptationNote]:
    """The bundle after it, calibrated, and what its card says."""
    from ich_ray.bundle.bundle import Bundle
    from ich_ray.model.sequence_networks import build_sequence_network
    from ich_ray.refit.adaptation_training import fit_to_labels

    before, card = bundle.sequence, bundle.card
    assert before is not None  # noqa: S101  (looked at in the card)
    assert card.sequence is not None  # noqa: S101
    labels, study_alone = card.parameters.predicted_labels, site.manifest.level != "slice"
    train, validation = (read_set(site.role(role), features, labels) for role in ("train", "validation"))
    own = features.logits(site.role("validation").rows)
    ended = fit_to_labels(before, train, validation, own, study_alone=study_alone, device=bundle.device)
    after = build_sequence_network(card.sequence.parameters, before.features, before.labels)
    after.load_state_dict(ended.weights)
    calibration = site.role("calibration")
    reads = [read_slices(bundle, network.eval(), calibration, features) for network in (before, after)]
    found = _note(site, ended, card.sequence, (train, validation), reads, card)
    _say(found)
    noted = _renewed(card.sequence, found, None if study_alone else reads[1], labels)
    renewed = card.model_copy(update={"sequence": noted, "test": None, "site_tests": {}})
    made = Bundle(bundle.network, renewed, after.to(bundle.device))
    # A blend has a bias: a temperature on top of it needs no more patients than were asked for.
    fit_to_site(made, calibration, "platt" if study_alone else "temperature", OperatingPointSpec())
    return made, found


def _note(
    site: PreparedDataset,
    ended: Adapted,
    note: SequenceNote,
    given: tuple[SequenceSet, SequenceSet],
    reads: list[ReadSlices],
    card: Card,
) -> AdaptationNote:
    from ich_ray.refit.adaptation_training import adapted_parameters, budget_of

    study_alone = site.manifest.level != "slice"
    drawn = adapted_parameters(note.parameters, study_alone)
    series = (*map(len, given), len(np.unique(reads[0].series)))
    train, validation, calibration = (
        _patients(site.role(role), count) for role, count in zip(_ROLES, series, strict=True)
    )
    return AdaptationNote(
        dataset=site.manifest.fingerprint,
        labels="studies" if study_alone else "slices",
        train=train,
        validation=validation,
        calibration=calibration,
        budget=budget_of(len(given[0])),
        best=ended.best,
        learning_rate=drawn.learning_rate,
        batch_size=drawn.batch_size,
        loss_before=ended.losses[0],
        loss_after=min(ended.losses),
        figures=_changes(site.role("calibration"), reads, card) if ended.best else {},
        created=time.time(),
    )


def _patients(slices: SliceSet, series: int) -> AdaptedPatients:
    positives = patients_by_label(*_labels(slices))[1]
    return AdaptedPatients(patients=len(set(slices.patients)), positives=positives, series=series)


def _changes(slices: SliceSet, reads: list[ReadSlices], card: Card) -> dict[str, AdaptationFigure]:
    """What changed on the calibration patients: of slices, where they have labels, and of studies."""
    studies, answering = studies_of(slices), answering_series(slices, card.training_data)
    both = [np.stack([read.own[:, -1], read.sequence[:, -1]], 1) for read in reads]
    found = changed_figures(reads[0].targets[:, -1], both[0], both[1], slices.patients)
    told = [study_logits(slices, answering, read.head, "study head") for read in reads]
    heads = [one.logits[one.of_slice[studies.first], -1:] for one in told]
    return found | changed_figures(studies.label("any"), heads[0], heads[1], studies.patients, "study_")


def _renewed(
    note: SequenceNote, found: AdaptationNote, blended: ReadSlices | None, labels: tuple[str, ...]
) -> SequenceNote:
    """What the card says of the sequence model; `blended` are the slices that weigh it anew, if any do."""
    changes: dict[str, object] = {"adaptations": (*note.adaptations, found)}
    if blended is not None:
        weights = zip(labels, fit_blends(blended), strict=True)
        changes["blend"] = {
            name: Blend(own=one.weights[0], sequence=one.weights[1], bias=one.bias) for name, one in weights
        }
    if found.changed or blended is not None:
        changes["figures"] = {}
    return note.model_copy(update=changes)


def _say(found: AdaptationNote) -> None:
    fitted = "the study head" if found.labels == "studies" else "the sequence model"
    taught = f"{found.train.series:,} series of {found.train.patients:,} patients by labels of {found.labels}"
    if not found.changed:
        say(
            f"  {fitted} stays as it was: on the validation patients no report was better than the start, scaled log "
            f"loss {found.loss_before:.4f} ({taught})"
        )
        return
    say(
        f"  {fitted} fitted to {taught}; scaled log loss on the validation patients, who chose, "
        f"{found.loss_before:.4f} -> {found.loss_after:.4f} at {found.best:,} of {found.budget:,} series"
    )
    for line in format_figures(found.figures):
        say(f"  calibration patients, cross-fitted: {line}")

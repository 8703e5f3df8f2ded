"""Marks of all patients of the dataset that made a bundle, kept beside its card.

What another site measures must not hold them, and a dataset that was prepared again, with another seed or a few more
files, has another fingerprint. A mark is a hash of the pseudonym, which is keyed: only datasets prepared with the same
key can be told to share patients, and nobody can be found by a mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ich_ray.errors import ConfigError
from ich_ray.storage import Fingerprint, PatientHash, Record, read_record, sha256, write_json
from ich_ray.training.network_inputs import check_inputs, check_whole_series

if TYPE_CHECKING:
    from upath import UPath

    from ich_ray.bundle.card import Card
    from ich_ray.data.dataset import PreparedDataset

__all__ = ["check_site", "copy_known", "copy_known_with", "write_known"]

_FILE = "patients.json"


class SitePatients(Record):
    """Patients of a site to whose labels the bundle was fitted: of `dataset` all but its test role."""

    dataset: Fingerprint
    marks: tuple[PatientHash, ...]


class Known(Record):
    """patients.json.

    Attributes:
        dataset: the fingerprint of the dataset whose patients these are.
        marks: sorted.
        sites: to which the bundle was adapted; left out where there are none, as older versions wrote and read it.
    """

    format: Literal[1] = 1
    dataset: Fingerprint
    marks: tuple[PatientHash, ...]
    sites: tuple[SitePatients, ...] = Field(default=(), exclude_if=lambda sites: not sites)


def write_known(bundle: UPath, dataset: PreparedDataset) -> None:
    """Note the patients of the dataset that made the bundle in this folder."""
    _write(bundle, Known(dataset=dataset.manifest.fingerprint, marks=tuple(sorted(_marks(dataset)))))


def copy_known(bundle: UPath, other: UPath) -> None:
    """For a bundle of the same weights."""
    if (known := _read(bundle)) is not None:
        _write(other, known)


def copy_known_with(bundle: UPath, other: UPath, card: Card, site: PreparedDataset) -> None:
    """For a bundle that was adapted to a site, whose patients are known then, too, but its test patients."""
    known = _read(bundle) or Known(dataset=card.dataset.fingerprint, marks=())
    fitted = site.column("patient")[site.column("role") != "test"]
    found = SitePatients(dataset=site.manifest.fingerprint, marks=tuple(sorted(map(_mark, {*fitted}))))
    others = tuple(one for one in known.sites if one.dataset != found.dataset)
    _write(other, known.model_copy(update={"sites": (*others, found)}))


def check_site(bundle: UPath, card: Card, site: PreparedDataset) -> None:
    """Refuse a dataset that the model cannot see, or with patients that made it.

    Bundles of older versions know the fingerprint of their dataset and not its patients. The very dataset of a site to
    which it was adapted is taken, as its roles say who was fitted to; another one with these patients is not.

    Raises:
        ConfigError: other windows or size, no neighbors or heads for a network that sees them, roles drawn by slice
            for a sequence model, or the same patients.
        IntegrityError: the file of marks is damaged.
    """
    manifest = site.manifest
    if (manifest.windows, manifest.size) != (card.windows, card.size):
        windows = ",".join(f"{window.name}={window.center_hu:g}/{window.width_hu:g}" for window in card.windows)
        raise ConfigError(
            f"{site.files.root}: windows and size must be those of the bundle, got "
            f"{','.join(window.name for window in manifest.windows)} at {manifest.size} px; prepare it with --size "
            f"{card.size} --windows {windows}"
        )
    check_inputs(card.parameters, site)
    if card.sequence is not None:
        check_whole_series(site)
    rule = f"{site.files.root}: patients of another site must be given"
    if manifest.fingerprint == card.dataset.fingerprint:
        raise ConfigError(f"{rule}, got the dataset that trained the bundle; run `ich-ray calibrate` on its search")
    known, found = _read(bundle), _marks(site)
    if known is not None and (shared := len(found & {*known.marks})):
        raise ConfigError(
            f"{rule}, got {shared} of {len(found)} who are in the dataset that made the bundle; prepare it without them"
        )
    for one in known.sites if known is not None else ():
        if one.dataset != manifest.fingerprint and (shared := len(found & {*one.marks})):
            raise ConfigError(
                f"{rule}, got {shared} of {len(found)} to whose labels the bundle was adapted; give the dataset of the "
                "adaptation, or prepare one without them"
            )


def _read(bundle: UPath) -> Known | None:
    try:
        return read_record(bundle / _FILE, Known, "restore the file or retrain")
    except FileNotFoundError:
        return None


def _write(bundle: UPath, known: Known) -> None:
    write_json(bundle / _FILE, known.model_dump(mode="json"))


def _marks(dataset: PreparedDataset) -> set[str]:
    return {*map(_mark, {*dataset.column("patient")})}


def _mark(patient: str) -> str:
    return sha256(patient.encode())[:12]

"""Notes of an evaluation: what a reader must know before reading its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.assess.point_rules import effective_positives
from ich_ray.data.folds import ranking_roles, ranking_slices
from ich_ray.statistics.aggregation import patients_by_label
from ich_ray.statistics.bootstrap import FEWEST_PATIENTS
from ich_ray.statistics.metrics import chance_bound, ranking_note

if TYPE_CHECKING:
    from ich_ray.assess.interval_estimates import GroupFigures
    from ich_ray.bundle.card import Card
    from ich_ray.data.dataset import PreparedDataset, SliceSet

__all__ = ["dataset_ranking_note", "notes_of_data", "notes_of_figures", "notes_of_patients"]

# With a hundred positives the 95 % interval of a sensitivity of one half is 0.2 wide, even if they were independent.
_FEW_POSITIVES = 100


def dataset_ranking_note(dataset: PreparedDataset, pooled: bool = False) -> str | None:
    """`ranking_note` of a dataset; `pooled` where folds of train and validation patients ranked."""
    roles, counts = ranking_roles(pooled), dataset.manifest.roles
    ranking = ranking_slices(dataset, pooled)
    return ranking_note(
        sum(one.positives for one in counts.values()),
        sum(counts[role].positives for role in roles),
        effective_positives(ranking.labels, ranking.patients),
        where=" and ".join(roles),
    )


def notes_of_data(dataset: PreparedDataset, card: Card, opened: int) -> tuple[str, ...]:
    """What the data, and how often they were looked at, say of any figure."""
    manifest, roles = dataset.manifest, dataset.manifest.roles
    notes = [manifest.leak] if manifest.leak else []
    if manifest.fingerprint == card.dataset.fingerprint:  # it ranked the trials
        ranked = dataset_ranking_note(dataset, pooled=card.search.folds > 0)
        notes += [ranked] if ranked else []
    if manifest.level != "slice":
        notes.append("Slices have no labels here: figures are of studies alone.")
    elif roles["test"].positives < _FEW_POSITIVES:
        notes.append(f"{roles['test'].positives} test positives: read the intervals, not the figures.")
    if opened > 1:
        notes.append(
            f"The test patients were opened {opened} times with this bundle: whatever was changed in between "
            "was chosen with knowledge of them."
        )
    return tuple(notes)


def notes_of_patients(slices: SliceSet) -> list[str]:
    """What to say when too few patients have a slice of either kind for them to be drawn again."""
    held = patients_by_label(slices.labels, slices.patients)
    return [
        f"{patients} test {'patient has' if patients == 1 else 'patients have'} a slice {what} haemorrhage, and fewer "
        f"than {FEWEST_PATIENTS} cannot say what the next one would change: shares have exact intervals, which count "
        "the slices of a patient as one, and other figures have none."
        for what, patients in (("with", held[1]), ("without", held[0]))
        if patients < FEWEST_PATIENTS
    ]


def notes_of_figures(whole: GroupFigures, null_high: float) -> list[str]:
    """What the figures themselves give to think."""
    bound = f"{chance_bound(whole.prevalence):.3f} at a prevalence of {whole.prevalence:.3f}"
    notes = [f"At chance: average precision is not above {bound}."] if whole.at_chance else []
    error = whole.metrics["ece"].value
    if error is not None and error > null_high:
        notes.append(
            f"The expected calibration error of {error:.3f} is more than a perfect model would show by chance "
            f"(up to {null_high:.3f}): the probabilities do not quite mean what they say."
        )
    return notes

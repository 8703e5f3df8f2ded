"""The topics that guidelines ask of a model, answered from its card or "not available".

Topics are those of CLAIM 2024 (Tejani et al., "Checklist for artificial intelligence in medical imaging: 2024 update",
10.1148/ryai.240300) and TRIPOD+AI (Collins et al., 2024, 10.1136/bmj-2023-078378) that concern a model; those of a
paper (title, abstract, discussion) are left out. What only the people behind the data can know is never guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ich_ray.data.shown_rectangles import FIELD_MM

if TYPE_CHECKING:
    from ich_ray.bundle.card import Card

__all__ = ["NOT_AVAILABLE", "checklist"]

NOT_AVAILABLE = "not available"

_ACQUISITION = "Image acquisition: scanners, protocols, reconstruction"
# Nobody but the people behind the data and the project knows these.
_UNKNOWN = (
    "Study design, prospective or retrospective",
    "Data sources, sites and dates of acquisition",
    "Eligibility criteria of patients",
    _ACQUISITION,
    "Demographics: age, sex, ethnicity",
    "Reference standard: who annotated, how, with what agreement",
    "Rationale of the sample size",
    "Performance by age, sex and ethnicity",
    "Ethics approval and consent",
    "Involvement of patients and the public",
    "Protocol and registration",
    "Funding and conflicts of interest",
)


def checklist(card: Card) -> dict[str, str]:
    """Each topic and its answer, in a fixed order."""
    unknown = dict.fromkeys(_UNKNOWN, NOT_AVAILABLE)
    if card.training_data is not None:
        taken = (
            f"slices that trained it, median (5 to 95 %): {card.training_data}; scanners, protocols: {NOT_AVAILABLE}"
        )
        unknown[_ACQUISITION] = taken
    return {**_data(card), **_model(card), **_performance(card), **unknown}


def _data(card: Card) -> dict[str, str]:
    windows = ", ".join(f"{w.name} ({w.center_hu:g}/{w.width_hu:g} HU)" for w in card.windows)
    roles = "; ".join(
        f"{name}: {counts.patients:,} patients, {counts.slices:,} slices, {counts.positives:,} positive"
        for name, counts in card.dataset.roles.items()
    )
    side = card.parameters.resolution
    reduced = f", reduced to {side} x {side} pixels by the network" if side else ""
    drawn = "disjoint by patient" if card.dataset.split == "patient" else f"drawn by {card.dataset.split}: they leak"
    return {
        "Intended use": card.intended_use,
        "Outcome that is predicted": f"the label `{card.label}` of a single slice{_subtypes(card)}{_of_series(card)}",
        "Data": f"the prepared dataset with fingerprint {card.dataset.fingerprint}",
        "Data partitions, and their size": f"{drawn}; {roles}",
        "Preprocessing": (
            f"{_slabs(card)}windows {windows}, area-averaged to {card.size} x {card.size} pixels{_part(card)}{reduced}"
        ),
        "Missing data": "nothing is imputed: a file without a readable slice or a label is left out, with a reason",
        "De-identification": "identifiers are replaced by keyed pseudonyms when the dataset is prepared",
    }


def _model(card: Card) -> dict[str, str]:
    settings = ", ".join(f"{name} {value}" for name, value in card.parameters.model_dump().items())
    chosen, how = card.search, f"{card.search.objective} {card.search.judged}"
    return {
        "Model, its input and output": (
            f"{card.architecture}: uint8 images {list(card.input_shape)}{_neighbors(card)} to {_outputs(card)}"
            f"{_views(card)}{_members(card)}{_sequence(card)}; probability of `any` = "
            f"sigmoid((logit + {card.prior_shift:.4g}) / {card.temperature:.4g} + {card.bias:.4g})"
        ),
        "Initial weights": "random" if card.parameters.weights == "none" else card.parameters.weights,
        "Training": f"{settings}{_sequence_settings(card)}",
        "Final training": f"{_retrained(card)}{_adapted(card)}",
        "Selection of the model": (
            f"trial {chosen.trial} of {chosen.trials} in search {chosen.name}, "
            + (f"among the best by {how}; {chosen.confirmed}" if chosen.confirmed else f"by {how}")
            + _sequence_selected(card)
            + (f"; of networks within {chosen.constraints}" if chosen.constraints else "")
        ),
        "Software": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        "Explanations": (
            f"Grad-CAM heat maps{' of the network alone' if card.sequence else ''} on request; they show where, not "
            "why, and have not been validated"
        ),
        "Limitations": " ".join(card.limitations),
    }


def _slabs(card: Card) -> str:
    """What is averaged before it is windowed, as in the dataset that trained it."""
    slab_mm = card.training_data.slab_mm if card.training_data is not None else 0
    return f"series finer than half of {slab_mm:g} mm averaged in HU to slabs of {slab_mm:g} mm; " if slab_mm else ""


def _part(card: Card) -> str:
    """What is shown of an image, where it is not all of it."""
    parameters = card.parameters
    if not parameters.shows_part:
        return ""
    around = "the largest body above -500 HU in all slices of its series" if parameters.crop == "head" else "its middle"
    return f", cut to a square{f' of {FIELD_MM:g} mm' if parameters.scale == 'mm' else ''} around {around}"


def _views(card: Card) -> str:
    return f", the mean over the image as it is and {', '.join(card.tta)}" if card.tta else ""


def _members(card: Card) -> str:
    """Whose logits are averaged, where there are several networks."""
    if not card.members:
        return ""
    others = ", ".join(
        f"{one.parameters.architecture} of trial {one.trial} with seed {one.seed}" for one in card.members
    )
    return f"; an ensemble: the mean logits of it and of {others}"


def _of_series(card: Card) -> str:
    return ", in its series, and of the series" if card.sequence else ""


def _sequence(card: Card) -> str:
    """What comes behind the network, where there is a sequence model."""
    note = card.sequence
    if note is None:
        return ""
    blend = note.blend["any"]
    return (
        f"; {note.parameters.model} over {note.features} features of each slice of a series, in order along their "
        f"normal, to a logit of each slice and one of the series; logit of `any` = {blend.own:.4g} x the network's + "
        f"{blend.sequence:.4g} x the sequence model's {blend.bias:+.4g}, of other labels likewise"
    )


def _sequence_settings(card: Card) -> str:
    if card.sequence is None:
        return ""
    told = ", ".join(f"{name} {value}" for name, value in card.sequence.parameters.model_dump().items())
    return f"; sequence model, on features of the network, which stays as it is: {told}"


def _sequence_selected(card: Card) -> str:
    note = card.sequence
    if note is None or not note.trials:
        return ""
    return f"; sequence model: trial {note.trial} of {note.trials} by {note.objective} on the validation patients"


def _adapted(card: Card) -> str:
    """To whose labels the sequence model was fitted since, and what that changed."""
    return "".join(
        f"; the sequence model {'fitted' if one.changed else 'left as it was: no better when fitted'} to labels of "
        f"{one.labels} of {one.train.patients:,} patients of dataset {one.dataset}"
        for one in (card.sequence.adaptations if card.sequence else ())
    )


def _subtypes(card: Card) -> str:
    *subtypes, _ = card.parameters.predicted_labels
    return f", and beside it its subtypes {', '.join(subtypes)}" if subtypes else ""


def _outputs(card: Card) -> str:
    count = len(card.parameters.predicted_labels)
    return "one logit" if count == 1 else f"{count} logits"


def _neighbors(card: Card) -> str:
    neighbors, windows = card.parameters.neighbors, card.parameters.neighbor_windows
    if not neighbors:
        return ""
    seen = "all windows" if windows == "same" else f"the window {card.windows[0].name}"
    return (
        f" (from below to above the slice, which is in the middle: {neighbors} on either side with {seen}; where the "
        "series has none, the slice itself)"
    )


def _retrained(card: Card) -> str:
    note = card.retraining
    if note is None:
        return NOT_AVAILABLE
    trained = (
        f"on {' and '.join(card.trained_by)} patients; weights at {note.best_images_seen:,} images of {note.images:,}"
    )
    measured = f"; {card.search.objective} on the validation patients: {note.validation}" if note.validation else ""
    return f"{trained} ({note.budget}); seed {note.seed}, {note.rule}{measured}"


def _performance(card: Card) -> dict[str, str]:
    points = "; ".join(f"{name}: {point.threshold:.4f}, {point.rule}" for name, point in card.operating_points.items())
    fits = "; ".join(
        f"{note.method} on {note.patients:,} patients of dataset {note.dataset}, log loss {note.log_loss_before:.3f} "
        f"to {note.log_loss_after:.3f}"
        for note in card.calibrations
    )
    return {
        "Calibration": fits or NOT_AVAILABLE,
        "Operating points and how they were chosen": f"{points}{_of_studies(card)}" or NOT_AVAILABLE,
        "Performance and its uncertainty": _tested(card),
        "Performance in subgroups": (
            "by subtype and by scanner representation, under `test`" if card.test else NOT_AVAILABLE
        ),
        "Testing on data of other sites": _elsewhere(card),
        "Uses of the test patients": f"opened {card.openings} times" if card.openings else "not opened",
    }


def _of_studies(card: Card) -> str:
    """The operating points of studies, behind those of slices."""
    points = card.studies.operating_points if card.studies else {}
    told = "; ".join(f"{name}: {point.threshold:.4f}, {point.rule}" for name, point in points.items())
    return f"; by study {told}" if told else ""


def _elsewhere(card: Card) -> str:
    if not card.site_openings:
        return NOT_AVAILABLE
    held = "; ".join(f"dataset {name}, opened {times} times" for name, times in card.site_openings.items())
    return f"{held}; {'figures under `site_tests`' if card.site_tests else 'no figures of the present calibration'}"


def _tested(card: Card) -> str:
    if not card.test or "average_precision" not in card.test.get("metrics", {}):
        return NOT_AVAILABLE
    figure, test = card.test["metrics"]["average_precision"], card.test
    value = "undefined" if figure["value"] is None else f"{figure['value']:.3f}"
    known = figure["low"] is not None and figure["high"] is not None
    bounds = f"{figure['low']:.3f} to {figure['high']:.3f}" if known else "no interval"
    return (
        f"average precision {value} ({bounds}) on {test['patients']:,} test patients, where chance gives "
        f"{test['prevalence']:.3f}{_by_study(test.get('studies'))}; intervals draw patients; all other figures under "
        "`test`"
    )


def _by_study(studies: Any) -> str:
    """The same figure of studies, where they were measured."""
    figure = (studies or {}).get("metrics", {}).get("average_precision", {}).get("value")
    return f"; by study {figure:.3f} on {studies['cases']:,} studies" if figure is not None else ""

"""The page of a reproduction: published, corrected and measured figures side by side.

It says where each report went wrong. Arithmetic on published figures is in systems.py; here they are only put beside
what `reproduce` measured. Computes no model and opens no data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_ray.html_report.html_page import Plot, Section, Table, sheet
from ich_ray.html_report.style import MODEL, NEGATIVE, POSITIVE, REFERENCE, blank, count, duration, moment, number
from ich_ray.published.failure_analysis import gates
from ich_ray.published.fixed_threshold import spread_of
from ich_ray.published.scale import SCALES
from ich_ray.published.systems import REPORT_A, REPORT_B
from ich_ray.statistics.metrics import floors

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ich_ray.published.reproduction import Reproduction
    from ich_ray.published.system_results import Decided, System

__all__ = ["page"]


def page(done: Reproduction) -> str:
    """The whole page as text."""
    made = (
        f"{count(done.slices)} slices of {count(done.patients)} "
        + ("synthetic patients" if done.synthetic else "patients")
        + f" · {moment(done.created)}"
    )
    lead = [
        "Two published detectors, as they were published, as they are when their figures are read by the right names, "
        "and as they do when they are run again beside ours on the same patients.",
        f"Scale: {done.scale}. {_scale(done)}",
    ]
    warnings = ["Synthetic patients: nothing measured here says anything about real ones."] if done.synthetic else []
    if done.scale == "small":
        warnings.append(
            "Small scale: networks, images, samples and epochs are reduced, so measured figures compare with each "
            "other and not with the published ones."
        )
    sections = [_published(), _wrong(done), _again(done), _systems(done), _planned(done)]
    return sheet("Two published systems, reproduced", made, lead, sections, warnings)


def _scale(done: Reproduction) -> str:
    scale = SCALES[done.scale]
    return (
        f"Report A at {scale.size_a} pixels a side and ours at {scale.size_ours} in three windows, report B at "
        f"{scale.size_b} in one with {scale.filters_b} filters; {count(done.train)} training slices; ResNet50 began "
        f"with weights: {done.weights}. The command took {duration(done.seconds)}."
    )


def _published() -> Section:
    prevalence = REPORT_B.prevalence
    floor, holdout = floors(prevalence), REPORT_B.holdout
    mean, deviation = REPORT_B.cross_validated
    facts = Table(
        "What was claimed, and what it means",
        ["figure", "published", "corrected or floor", "so"],
        [
            ["report A, accuracy", number(REPORT_A.accuracy, 2), number(floor["accuracy"]), "that of calling nothing"],
            ["report A, precision", number(REPORT_A.precision, 2), number(floor["ppv"]), "that of calling everything"],
            [
                "report B, F2 of five folds",
                f"{number(mean)} ± {number(deviation)}",
                number(floor["f2"]),
                f"{number((mean - floor['f2']) / deviation, 2)} deviations above calling everything positive",
            ],
            ["report B, holdout F2", number(REPORT_B.holdout_f2), number(holdout.f_beta(), 4), "as its counts say"],
            ["report B, holdout specificity", "not given", number(holdout.specificity, 4), "from its counts"],
            ["report B, holdout PPV", "not given", number(holdout.ppv, 4), "from its counts"],
            ["report B, holdout sensitivity", "not given", number(holdout.sensitivity, 4), "from its counts"],
            ["log loss", "not given", number(floor["log_loss"]), "that of knowing the prevalence alone"],
        ],
        f"Floors at a prevalence of {number(prevalence, 4)}, that of report B's counts.",
        numbers=(1, 2),
    )
    return Section("published", "Published and corrected", tables=[facts, _table_1()])


def _table_1() -> Table:
    rows = []
    for candidate in REPORT_B.candidates:
        decisions = candidate.decisions
        rows.append(
            [
                candidate.name,
                number(candidate.printed),
                "under 1e-12" if abs(candidate.f2_of_printed - candidate.f2) < 1e-12 else "more",
                number(decisions.ppv),
                number(decisions.specificity),
                number(candidate.sensitivity),
                number(candidate.accuracy),
                number(candidate.f2),
            ]
        )
    return Table(
        "Report B's table 1 with its columns rightly named",
        ["candidate", "called specificity", "F2 off by", "PPV", "specificity", "sensitivity", "accuracy", "F2"],
        rows,
        "F2 is defined on the PPV. Computed from the column called specificity it is the published F2 but for "
        "rounding, so that column is the PPV; the specificity follows from accuracy, sensitivity and PPV.",
        numbers=range(1, 8),
    )


def _wrong(done: Reproduction) -> Section:
    rows = [[gate.report, gate.step, gate.what, gate.shown, gate.gate] for gate in gates(done)]
    table = Table("Step by step", ["report", "step", "what was done", "what shows it", "what catches it here"], rows)
    return Section("wrong", "Where each went wrong", tables=[table])


def _again(done: Reproduction) -> Section:
    fitted, failed = done.probed
    trials = Table(
        "Report A again: the winners of its probe",
        ["trial", "architecture", "optimizer", "rate", "accuracy", "PPV", "AP", "at chance"],
        [
            [
                str(row["trial"]),
                str(row["parameters"].get("architecture", "")),
                str(row["parameters"].get("optimizer", "")),
                f"{row['parameters'].get('learning_rate', float('nan')):g}",
                *(number(row[name]) for name in ("accuracy", "ppv", "average_precision")),
                "yes" if row["at_chance"] else "no",
            ]
            for row in done.trials_a
        ],
        f"The probe fitted {fitted} combinations to ten minibatches; {failed} of them failed. Validation patients, at "
        "one half of the weighted output.",
        numbers=range(3, 7),
    )
    return Section("again", "Run again", tables=[trials, _candidates(done), _folds(done)])


def _candidates(done: Reproduction) -> Table:
    rows = []
    for row, published in zip(done.candidates, REPORT_B.candidates, strict=True):
        chosen = " (went on)" if row["trial"] == done.chosen else ""
        figures = ("f2", "accuracy", "sensitivity", "specificity", "ppv", "average_precision")
        asked = row["parameters"]
        rows.append(
            [
                f"{published.name}{chosen}",
                f"{count(asked['training_slices'])} x {asked['epochs']}",
                *(number(row[name]) for name in figures),
                number(published.f2),
                number(published.decisions.specificity),
            ]
        )
    return Table(
        "Report B again: quick evaluation",
        ["candidate", "slices x epochs", "F2", "accuracy", "sensitivity", "specificity", "PPV", "AP",
         "published F2", "its specificity"],
        rows,
        "At one half of the weighted output, on the validation slices of the split by slice.",
        numbers=range(1, 10),
    )  # fmt: skip


def _folds(done: Reproduction) -> Table:
    found, exact = spread_of(done.folds, "f2"), spread_of(done.folds, "accuracy")
    rows = [
        ["published", _plus_minus(*REPORT_B.cross_validated), _plus_minus(*REPORT_B.cross_validated_accuracy), "5"],
        [
            "again",
            _plus_minus(found.mean, found.deviation) if found else "–",
            _plus_minus(exact.mean, exact.deviation) if exact else "–",
            str(len(done.folds)),
        ],
    ]
    return Table("Report B again: five folds of the best", ["", "F2", "accuracy", "folds"], rows, numbers=(1, 2, 3))


def _plus_minus(mean: float, deviation: float) -> str:
    return f"{number(mean)} ± {number(deviation)}"


def _systems(done: Reproduction) -> Section:
    rows = [*_as_published(), *(_system(system) for system in done.systems)]
    head = ["system", "test slices", "leaked patients", "AP [95 %]", "AP of chance", "log loss", "log loss of chance",
            "F2 of all positive", "sensitivity", "specificity", "PPV", "F2", "at chance"]  # fmt: skip
    figures = Table(
        "On their test patients, at the threshold from the calibration patients",
        head,
        rows,
        "Published rows are on the full set, at its prevalence, with report B's own threshold. The others share their "
        "test patients, but for the split by slice: there a patient's other slices were trained on, and those figures "
        "hold for no other patient.",
        numbers=range(1, 12),
    )
    thresholds = Table(
        "Its threshold and ours",
        ["system", "one half", "F2", "tuned on training slices", "F2", "tuned on calibration patients", "F2"],
        [
            [
                system.name,
                *(
                    text
                    for decided in (system.half, system.trained, system.ours)
                    for text in (number(decided.threshold), number(decided.confusion.f_beta()))
                ),
            ]
            for system in done.systems
        ],
        "The first two are on the weighted output, the last is on the calibrated probability; F2 on the test patients. "
        f"Report B's threshold was {number(REPORT_B.threshold)}.",
        numbers=range(1, 7),
    )
    plot = Plot("F2 on the test patients", "By what chose the threshold; dotted: all positive.", _f2(done.systems))
    return Section("systems", "Side by side", tables=[figures, thresholds], plots=[plot])


def _as_published() -> list[list[str]]:
    """What the reports themselves say or imply of their test slices, in the columns of `_system`."""
    floor, holdout = floors(REPORT_B.prevalence), REPORT_B.holdout
    chance = [number(floor[name]) for name in ("average_precision", "log_loss", "f2")]
    decided = [number(figure) for figure in (holdout.sensitivity, holdout.specificity, holdout.ppv, holdout.f_beta())]
    slices = count(round(holdout.tp + holdout.fp + holdout.fn + holdout.tn))
    flat, none = number(REPORT_A.precision), "–"
    return [
        ["report A, published", none, none, none, chance[0], none, *chance[1:], none, none, flat, none, none],
        ["report B, published", slices, "not counted", none, chance[0], none, *chance[1:], *decided, none],
    ]


def _system(system: System) -> list[str]:
    value, low, high = system.average_precision
    decisions = system.ours.confusion
    return [
        system.name,
        count(system.slices),
        count(system.leaked),
        f"{number(value)} [{number(low)}, {number(high)}]",
        number(system.floors["average_precision"]),
        f"{number(system.log_loss)} (uncorrected {number(system.uncorrected_log_loss)})",
        number(system.floors["log_loss"]),
        number(system.floors["f2"]),
        *(number(getattr(decisions, name)) for name in ("sensitivity", "specificity", "ppv")),
        number(decisions.f_beta()),
        "yes" if system.at_chance else "no",
    ]


def _f2(systems: tuple[System, ...]) -> go.Figure:
    figure = blank("", "F2")
    names = [system.name for system in systems]
    kinds: dict[str, tuple[str, list[Decided]]] = {
        "one half": (NEGATIVE, [system.half for system in systems]),
        "training slices": (POSITIVE, [system.trained for system in systems]),
        "calibration patients": (MODEL, [system.ours for system in systems]),
    }
    for name, (color, decided) in kinds.items():
        figure.add_bar(x=names, y=[each.confusion.f_beta() for each in decided], name=name, marker={"color": color})
    for index, system in enumerate(systems):
        figure.add_shape(
            type="line", x0=index - 0.45, x1=index + 0.45, y0=system.floors["f2"], y1=system.floors["f2"],
            line={"color": REFERENCE, "dash": "dot"},
        )  # fmt: skip
    return figure.update_layout(barmode="group")


def _planned(done: Reproduction) -> Section:
    rows = [
        [
            stage.stage,
            count(stage.images),
            f"{stage.images_per_s:,.3g}",
            f"{stage.hours:,.3g}",
            stage.rated,
            stage.device,
        ]
        for stage in done.planned
    ]
    hours = sum(stage.hours for stage in done.planned)
    table = Table(
        "Planned, not run",
        ["stage", "training images", "images/s", "hours", "rate of", "device"],
        rows,
        f"Planned: images by arithmetic from the spaces, hours on one such device at rates measured for a few steps on "
        f"noise while this page was made; {hours:,.0f} hours in all. Validation is not counted. Report B wrote of over "
        f"{REPORT_B.hours:.0f} hours for {REPORT_B.hours_epochs} epochs of all its slices.",
        numbers=range(1, 4),
    )
    return Section("planned", "At full size (planned)", tables=[table])

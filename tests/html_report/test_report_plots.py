"""The report's figures show the right data: checked by hand on small inputs, before any page is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_curve

from ich_ray.assess.interval_estimates import Counts, Estimate, PointFigures
from ich_ray.html_report import performance, style
from ich_ray.html_report.confidence_bands import perfect_shares, precision_recall_band, roc_band
from ich_ray.html_report.parallel_coordinates import axis, parallel_coordinates
from ich_ray.html_report.reliability_diagram import reliability, reliability_bins
from ich_ray.html_report.time_spent import spent_bars
from ich_ray.html_report.timeline import slots, timeline
from ich_ray.html_report.trials import (
    learning_curves,
    parameter_effects,
    retraining_curve,
    rungs,
    scale,
    varied,
)
from ich_ray.trial_records import Objective, Report, TrialResult
from ich_ray.usage import ReportUsage
from tests.html_report.fake_search import SPACE, fake_trials

# Six slices, two with equal probabilities: decided together.
LABELS = np.array([1, 1, 0, 1, 0, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.8, 0.4, 0.3, 0.1])
POINT = PointFigures(
    threshold=0.4,
    confusion=Counts(tp=3, fp=1, fn=0, tn=2),
    sensitivity=Estimate(value=1.0, low=0.6, high=1.0),
    specificity=Estimate(value=0.75, low=0.5, high=0.875),
    ppv=Estimate(value=0.75, low=0.5, high=1.0),
    npv=Estimate(value=1.0, low=0.6, high=1.0),
    f2=Estimate(value=0.94, low=0.7, high=1.0),
    accuracy=Estimate(value=0.83, low=0.5, high=1.0),
)


def trial(number: int, **fields: object) -> TrialResult:
    reports = [
        Report(images_seen=seen, metrics={"average_precision": value}, elapsed_s=seen / 10, time=100.0 + seen)
        for seen, value in fields.pop("reports", [])  # type: ignore[attr-defined]
    ]
    return TrialResult.model_validate({"number": number, "parameters": {}, "reports": reports, **fields})


def test_the_time_of_trials_is_stacked_by_number_in_a_readable_unit() -> None:
    fast = ReportUsage(images_per_s=10.0, data_wait_s=60.0, validation_s=120.0, device_use=0.5)
    slow = ReportUsage(images_per_s=5.0)
    found = [
        TrialResult(
            number=number,
            parameters={},
            reports=(Report(images_seen=1800, metrics={}, elapsed_s=1.0, time=0.0, usage=usage),),
        )
        for number, usage in ((7, slow), (2, fast), (3, None))
    ]
    bars = spent_bars(found)
    assert bars is not None
    assert bars.layout.yaxis.title.text == "minutes of all its reports"
    assert {bar.name: (list(bar.x), list(bar.y)) for bar in bars.data} == {
        "Training": ([2, 7], [2.0, 6.0]),
        "Waiting for data": ([2, 7], [1.0, 0.0]),
        "Validation": ([2, 7], [2.0, 0.0]),
    }
    assert bars.data[0].customdata[0] == (
        "<b>trial 2</b><br>Training: 2 min 0 s<br>10 images per second of training<br>Devices in use while training: "
        "50.0\u00a0%"
    )
    assert spent_bars(found[2:]) is None


class TestThresholdCurve:
    def test_by_hand(self) -> None:
        curve = performance.threshold_curve(LABELS, PROBABILITIES)
        assert curve.thresholds.tolist() == [0.9, 0.8, 0.4, 0.3, 0.1]
        assert curve.true_positives.tolist() == [1, 2, 3, 3, 3]
        assert curve.false_positives.tolist() == [0, 1, 1, 2, 3]
        assert (curve.positives, curve.negatives) == (3, 3)

    @given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])), min_size=1))
    def test_lowering_the_threshold_never_lowers_sensitivity(self, slices: list[tuple[bool, float]]) -> None:
        labels, probabilities = (np.array(column) for column in zip(*slices, strict=True))
        curve = performance.threshold_curve(labels.astype(int), probabilities)
        assert (np.diff(curve.thresholds) < 0).all()
        assert (np.diff(curve.sensitivity) >= 0).all()
        assert curve.true_positives[-1] + curve.false_positives[-1] == len(slices)


class TestPrecisionRecall:
    def test_the_area_under_the_line_is_average_precision(self) -> None:
        figure = performance.precision_recall(LABELS, PROBABILITIES, None)
        x, y = np.array(figure.data[0].x), np.array(figure.data[0].y)
        assert figure.data[0].line.shape == "vh"
        assert (np.diff(x) * y[1:]).sum() == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)

    def test_the_floor_is_the_prevalence(self) -> None:
        floor = performance.precision_recall(LABELS[1:], PROBABILITIES[1:], None).data[1]
        assert list(floor.y) == [0.4, 0.4]
        assert "prevalence 0.400" in floor.name

    def test_the_operating_point_has_both_intervals(self) -> None:
        point = performance.precision_recall(LABELS, PROBABILITIES, POINT).data[2]
        assert (point.x[0], point.y[0]) == (1.0, 0.75)
        assert (point.error_x.array[0], point.error_x.arrayminus[0]) == (0.0, 0.4)
        assert (point.error_y.array[0], point.error_y.arrayminus[0]) == (0.25, 0.25)

    def test_an_undefined_ppv_is_not_drawn(self) -> None:
        none_flagged = POINT.model_copy(update={"ppv": Estimate()})
        assert len(performance.precision_recall(LABELS, PROBABILITIES, none_flagged).data) == 2

    def test_long_curves_are_thinned_and_keep_their_ends(self) -> None:
        rng = np.random.default_rng(0)
        line = performance.precision_recall(rng.integers(0, 2, 50_000), rng.random(50_000), None).data[0]
        assert len(line.x) == performance.MOST_POINTS + 1
        assert (line.x[0], line.x[-1]) == (0.0, 1.0)


class TestRoc:
    def test_points(self) -> None:
        line = performance.roc(LABELS, PROBABILITIES, None).data[0]
        assert np.allclose(line.x, [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
        assert np.allclose(line.y, [0, 1 / 3, 2 / 3, 1, 1, 1])

    def test_the_operating_point_is_one_minus_specificity(self) -> None:
        point = performance.roc(LABELS, PROBABILITIES, POINT).data[2]
        assert (point.x[0], point.y[0]) == (0.25, 1.0)
        assert (point.error_x.array[0], point.error_x.arrayminus[0]) == (0.25, 0.125)


class TestReliability:
    def test_bins_by_hand(self) -> None:
        bins = reliability_bins(LABELS, np.array([0.95, 0.85, 0.85, 0.45, 0.35, 1.0]))
        assert bins.counts.tolist() == [1, 1, 2, 2]
        assert np.allclose(bins.predicted, [0.35, 0.45, 0.85, 0.975])
        assert np.allclose(bins.observed, [0, 1, 0.5, 0.5])
        assert np.allclose(bins.centers, [0.35, 0.45, 0.85, 0.95])

    def test_wilson_interval_of_five_in_ten(self) -> None:
        bins = reliability_bins(np.array([1, 0] * 5), np.full(10, 0.5))
        assert bins.low[0] == pytest.approx(0.2366, abs=1e-4)
        assert bins.high[0] == pytest.approx(0.7634, abs=1e-4)

    def test_counts_are_drawn_below(self) -> None:
        figure = reliability(LABELS, PROBABILITIES)
        assert [trace.type for trace in figure.data] == ["scatter", "scatter", "scatter", "bar"]
        assert sum(figure.data[3].y) == 6
        assert figure.data[3].yaxis == "y2"
        assert figure.layout.yaxis.title.text == "observed share of haemorrhage"
        assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]


class TestBands:
    def test_a_band_lies_around_its_line(self) -> None:
        rng = np.random.default_rng(0)
        labels = (rng.random(3000) < 0.2).astype(int)
        probabilities, patients = 1 / (1 + np.exp(-rng.normal(2 * labels, 1))), np.repeat(np.arange(300), 10)
        for band, curve, name in (
            (roc_band(labels, probabilities, patients), roc_curve(labels, probabilities), "roc"),
            (precision_recall_band(labels, probabilities, patients), None, "pr"),
        ):
            if curve is not None:
                line = np.interp(band.x, curve[0], curve[1])
            else:
                ppv, sensitivity, _ = precision_recall_curve(labels, probabilities)
                line = np.array([ppv[sensitivity >= x - 1e-12][-1] for x in band.x])
            assert (np.diff(band.x) > 0).all()
            inside = (band.low <= line + 0.01) & (line - 0.01 <= band.high)
            assert inside.mean() > 0.97, name
            assert 0.01 < (band.high - band.low)[20:80].mean() < 0.15, name

    def test_fewer_patients_give_a_wider_band(self) -> None:
        rng = np.random.default_rng(1)
        skill = rng.normal(0, 1.5, 40)[np.arange(800) // 20]  # slices of a patient resemble each other
        labels = (rng.random(800) < 0.3).astype(int)
        probabilities = 1 / (1 + np.exp(-(labels + skill)))
        wide, narrow = (
            roc_band(labels, probabilities, patients) for patients in (np.arange(800) // 20, np.arange(800))
        )
        assert (wide.high - wide.low).mean() > 1.2 * (narrow.high - narrow.low).mean()

    def test_shares_of_a_perfect_model(self) -> None:
        """Of ten slices at 0.5 two to eight are positive in 97.9 % of cases, three to seven in 89.1 %."""
        band = perfect_shares(np.array([0.5, 0.0]), np.array([10, 4]))
        assert (band.low.tolist(), band.high.tolist()) == ([0.2, 0.0], [0.8, 0.0])

    def test_bands_are_drawn(self) -> None:
        patients = np.arange(6)
        band = roc_band(LABELS, PROBABILITIES, patients)
        shade = performance.roc(LABELS, PROBABILITIES, POINT, band).data[3]
        assert (shade.fill, len(shade.x)) == ("toself", 2 * len(band.x))
        assert reliability(LABELS, PROBABILITIES).data[2].name == "a perfect model, 95 %"


def test_the_histogram_is_of_shares_of_each_truth() -> None:
    figure = performance.histogram(LABELS, PROBABILITIES, 0.4)
    negative, positive = figure.data[0], figure.data[1]
    assert sum(negative.y) == pytest.approx(1)
    assert sum(positive.customdata) == 3
    assert positive.name == "haemorrhage (3)"
    assert figure.layout.shapes[0].x0 == 0.4


def test_the_confusion_matrix_is_shaded_by_row() -> None:
    figure = performance.confusion_matrix(Counts(tp=17471, fp=30991, fn=4094, tn=97951))
    shares = figure.data[0].z
    assert [f"{share:.4f}" for share in (shares[0][0], shares[1][1])] == ["0.7597", "0.8102"]
    assert "<b>97,951</b>" in figure.data[0].text[0][0]
    assert list(figure.data[0].y) == ["no haemorrhage", "haemorrhage"]


class TestSpace:
    @pytest.mark.parametrize(
        ("budget", "expected"),
        [
            ({"images": 9000, "first_rung": 1000, "reduction": 3}, [1000, 3000]),
            ({"images": 4_000_000, "first_rung": 200_000, "reduction": 3}, [200_000, 600_000, 1_800_000]),
            ({"images": 1000, "first_rung": 1000, "reduction": 3}, []),
            ({"images": 1000}, []),
            ({"images": 1000, "first_rung": 200}, [200, 600]),
            ({"images": 1000, "first_rung": 10, "reduction": 1}, []),
        ],
    )
    def test_rungs(self, budget: dict[str, int], expected: list[int]) -> None:
        assert rungs({"budget": {"report_every": 100, **budget}}) == expected
        assert rungs({}) == []

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("learning_rate", "log"), ("dropout", "linear"), ("blocks", "linear"), ("batch_size", "choice"),
         ("x", "choice")],
    )  # fmt: skip
    def test_scale(self, name: str, expected: str) -> None:
        assert scale(SPACE, name) == expected

    def test_a_parameter_that_some_trials_lack_varies(self) -> None:
        trials = [trial(0, parameters={"a": 1, "b": 2}), trial(1, parameters={"a": 1})]
        assert varied(trials) == ["b"]


class TestLearningCurves:
    def test_one_line_per_trial_with_its_reports(self) -> None:
        trials = [
            trial(0, state="completed", reports=[(100, 0.3), (200, 0.5)]),
            trial(1, state="pruned", reason="rung_100", reports=[(100, None)]),
            trial(2, state="failed", reason="diverged"),
        ]
        figure = learning_curves(trials, Objective(), [100], best=0, chance=0.143)
        assert len(figure.data) == 3
        by_state = {line.name: line for line in figure.data}
        assert by_state["completed"].x.tolist() == [100, 200]
        assert np.allclose(by_state["completed"].y, [0.3, 0.5])
        assert np.isnan(by_state["pruned"].y).all()
        assert by_state["completed"].line.width > by_state["pruned"].line.width
        assert {line.line.color for line in figure.data} == {style.STATE_COLORS[state] for state in by_state}
        assert [annotation.text for annotation in figure.layout.annotations] == ["rung 100", "chance 0.143"]
        assert figure.layout.shapes[0].x0 == 100

    def test_each_state_stands_once_in_the_legend(self) -> None:
        figure = learning_curves(fake_trials(20, np.random.default_rng(0)), Objective(), [], None, None)
        assert len(figure.data) == 20
        shown = [line.name for line in figure.data if line.showlegend]
        assert sorted(shown) == ["completed", "failed", "pruned"]

    def test_text_from_data_is_escaped(self) -> None:
        hostile = trial(0, reason="<img src=x>", parameters={"<b>": "<script>"}, reports=[(1, 0.5)])
        template = learning_curves([hostile], Objective(), [], None, None).data[0].hovertemplate
        assert "<img" not in template
        assert "<script>" not in template
        assert "&lt;script&gt;" in template


class TestEffects:
    def test_axes_follow_the_space(self) -> None:
        figures = parameter_effects(fake_trials(30, np.random.default_rng(0)), SPACE, Objective())
        assert set(figures) == {"architecture", "blocks", "batch_size", "learning_rate", "dropout", "optimizer"}
        assert figures["learning_rate"].layout.xaxis.type == "log"
        assert figures["dropout"].layout.xaxis.type is None
        assert list(figures["batch_size"].layout.xaxis.ticktext) == ["32", "64", "128"]
        ranges = {figure.layout.yaxis.range for figure in figures.values()}
        assert len(ranges) == 1

    def test_values_by_hand(self) -> None:
        trials = [
            trial(0, state="completed", parameters={"optimizer": "sgd"}, reports=[(1, 0.5), (2, 0.4)]),
            trial(1, state="completed", parameters={"optimizer": "adam"}, reports=[(1, 0.2)]),
            trial(2, state="failed", parameters={"optimizer": "adamw"}),
        ]
        points = parameter_effects(trials, SPACE, Objective())["optimizer"].data
        assert len(points) == 1
        assert list(points[0].y) == [0.5, 0.2]
        assert [round(x) for x in points[0].x] == [0, 1]

    def test_nothing_varied_gives_no_figure(self) -> None:
        assert parameter_effects([trial(0, reports=[(1, 0.5)])], SPACE, Objective()) == {}
        assert parameter_effects([], SPACE, Objective()) == {}


class TestParallelCoordinates:
    def test_a_log_axis_by_hand(self) -> None:
        trials = [trial(n, parameters={"learning_rate": rate}) for n, rate in enumerate([1e-4, 1e-3, 1e-2])]
        found = axis("learning_rate", trials, "log", [])
        assert found.places == pytest.approx({0: 0.0, 1: 0.5, 2: 1.0})
        assert found.ticks[0][1] == "0.0001"
        assert found.ticks[-1] == (1.0, "0.01")

    def test_a_parameter_that_is_not_used_crosses_at_the_foot(self) -> None:
        found = axis(
            "blocks", [trial(0, parameters={"blocks": 2}), trial(1), trial(2, parameters={"blocks": 4})], "linear", []
        )
        assert found.places[1] == 0.0
        assert found.places[0] > 0.1
        assert found.ticks[0] == (0.0, "not used")
        assert [text for _, text in found.ticks] == ["not used", "2", "4"]

    def test_one_line_per_trial_with_a_value(self) -> None:
        trials = fake_trials(20, np.random.default_rng(0))
        figure = parallel_coordinates(trials, SPACE, Objective(), best=0)
        valued = [one for one in trials if one.value is not None]
        assert len(figure.data) == len(valued) == 19
        assert figure.layout.xaxis.ticktext[-1] == "<b>average_precision</b>"
        assert all(len(line.y) == len(figure.layout.xaxis.ticktext) for line in figure.data)
        assert all(-0.04 <= y <= 1.04 for line in figure.data for y in line.y)


class TestTimeline:
    TRIALS = (
        trial(0, where="a.example:10", state="completed", started=0.0, ended=10.0),
        trial(1, where="a.example:11", state="pruned", started=1.0, ended=4.0),
        trial(2, where="a.example:12", state="completed", started=4.0, ended=8.0),
        trial(3, where="a.example:13", state="running", started=9.0, reports=[(5, 0.1)]),
        trial(4, state="failed", started=2.0, ended=3.0, where="b.example:77"),
    )

    def test_slots_are_the_first_free_one_of_the_machine(self) -> None:
        assert slots(self.TRIALS) == {
            0: "node 1, slot 1", 1: "node 1, slot 2", 2: "node 1, slot 2", 3: "node 1, slot 2", 4: "node 2, slot 1"
        }  # fmt: skip

    def test_processes_that_follow_each_other_share_a_slot(self) -> None:
        trials = [trial(n, started=float(n), ended=n + 1.0, where=f"host:{100 + n}") for n in range(3)]
        assert set(slots(trials).values()) == {"slot 1"}

    def test_bars_run_from_start_to_end(self) -> None:
        bars = {bar.name: bar for bar in timeline(self.TRIALS).data}
        assert list(bars["completed"].base) == [0.0, 4.0]
        assert list(bars["completed"].x) == [10.0, 4.0]
        assert list(bars["running"].x) == [96.0]  # until its last report, at 105 s
        assert list(bars["pruned"].text) == ["1"]

    def test_many_bars_have_no_numbers(self) -> None:
        assert all(bar.text is None for bar in timeline(self.TRIALS, numbered=False).data)

    def test_no_trial_gives_an_empty_figure(self) -> None:
        assert len(timeline([]).data) == 0


def test_the_retraining_curve_marks_the_weights_kept() -> None:
    reports = [
        Report(images_seen=seen, metrics={"average_precision": value}, elapsed_s=1, time=1)
        for seen, value in ((10, 0.5), (20, 0.7), (30, 0.6))
    ]
    figure = retraining_curve(reports, "average_precision", kept=20)
    assert np.allclose(figure.data[0].y, [0.5, 0.7, 0.6])
    assert figure.layout.shapes[0].x0 == 20


class TestStyle:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [(None, "–"), (float("nan"), "–"), (0.14349, "0.143"), (0.0, "0.000"), (0.00123456, "0.00123"),
         (-0.62, "−0.620"), (12.3456, "12.346"), (123456.7, "123,457")],
    )  # fmt: skip
    def test_number(self, value: float | None, expected: str) -> None:
        assert style.number(value) == expected

    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [(None, "–"), (4.24, "4.2 s"), (42.4, "42 s"), (59.9, "60 s"), (125, "2 min 5 s"), (12_060, "3 h 21 min")],
    )
    def test_duration(self, seconds: float | None, expected: str) -> None:
        assert style.duration(seconds) == expected

    @pytest.mark.parametrize(
        "color",
        [
            *style.STATE_COLORS.values(),
            *style.SPENT_COLORS.values(),
            style.MODEL,
            style.POSITIVE,
            style.NEGATIVE,
            style.REFERENCE,
        ],
    )
    @pytest.mark.parametrize("panel", ["#ffffff", "#1b1e23"])
    def test_colors_read_on_light_and_dark(self, color: str, panel: str) -> None:
        """WCAG 2.2, 1.4.11: graphics need a contrast of 3."""

        def luminance(hexadecimal: str) -> float:
            channels = [int(hexadecimal[start : start + 2], 16) / 255 for start in (1, 3, 5)]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        lighter, darker = sorted((luminance(color), luminance(panel)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3

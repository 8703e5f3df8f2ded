"""The page: every section, honest about what is missing, one file that asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from upath import UPath

from ich_ray.assess.interval_estimates import Counts
from ich_ray.data.dataset import SliceSet
from ich_ray.errors import ConfigError, IntegrityError
from ich_ray.html_report import style, summary, tables
from ich_ray.html_report.gallery import examples, pick, small_png
from ich_ray.html_report.inputs import Inputs, gather
from ich_ray.html_report.page import MOST_TRIALS, _dataset_content, render, report
from ich_ray.html_report.time_spent import spent_facts
from ich_ray.results import SearchResult, open_search
from ich_ray.storage import SearchFiles, read_json, write_json
from ich_ray.vocabulary import LEAK
from tests.html_report.fake_search import SPACE, STAGES, Stage, build_search, fake_trials, note

SECTIONS = ("summary", "test", "performance", "search", "examples", "data", "provenance")
FIGURES = {"curves", "timeline", "parallel", "precision-recall", "roc", "reliability", "histogram", "confusion",
           "retraining", "spent"}  # fmt: skip


class Page(HTMLParser):
    """What a test asks of a page: its text, its identifiers, what its attributes point to, its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.handlers: list[str] = []
        self.figures: list[str] = []
        self.images: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.policy = ""
        self._words: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._inside = tag if tag in {"script", "style"} else ""
        if tag == "script":
            self.scripts.append("")
        self.ids += [found["id"]] if "id" in found else []
        self.figures += [found["data-figure"]] if "data-figure" in found else []
        self.images += [found["src"]] if tag == "img" else []
        names = ("src", "href", "action", "srcset", "poster", "data", "formaction", "background")
        self.targets += [found[name] for name in names if name in found]
        self.handlers += [name for name in found if name.startswith("on")]
        self.styles += [found["style"]] if "style" in found else []
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self._words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n\t]+", " ", " ".join(self._words))


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> dict[Stage, UPath]:
    return {stage: build_search(tmp_path_factory.mktemp(stage), stage) for stage in STAGES}


@pytest.fixture(scope="module")
def evaluated(searches: dict[Stage, UPath]) -> Inputs:
    return gather(searches["evaluated"])


@pytest.fixture(scope="module")
def page(searches: dict[Stage, UPath]) -> Page:
    path = report(searches["evaluated"])
    assert path == SearchFiles(searches["evaluated"]).report
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def changed(searches: dict[Stage, UPath], tmp_path: Path) -> UPath:
    """A copy of the evaluated search that a test may change."""
    shutil.copytree(searches["evaluated"], tmp_path / "search")
    return UPath(tmp_path / "search")


def edit(path: UPath, **values: Any) -> None:
    write_json(path, {**read_json(path), **values})


def test_slices_without_neighbors_are_told_where_trials_see_neighbors(
    evaluated: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, trial = evaluated.dataset, evaluated.search.trials[0]
    assert dataset is not None
    rows = np.repeat(np.arange(len(dataset))[:, None], 5, 1)
    rows[2:, 3] = 0
    monkeypatch.setitem(dataset.__dict__, "neighbors", rows)
    assert _dataset_content(evaluated)["data_notes"] == dataset.manifest.notes
    monkeypatch.setitem(trial.parameters, "neighbors", 1)  # type: ignore[arg-type]
    told = f"2 of {len(dataset):,} slices have no neighbors in their series"
    assert _dataset_content(evaluated)["data_notes"] == (*dataset.manifest.notes, told)


class TestWholePage:
    def test_every_section_and_figure_is_there(self, page: Page) -> None:
        assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
        assert {name for name in page.figures if not name.startswith("effect ")} == FIGURES
        assert sum(name.startswith("effect ") for name in page.figures) == 6
        assert "missing" not in page.ids

    def test_every_place_for_a_figure_has_its_figure(self, page: Page) -> None:
        figures = json.loads(page.scripts[0])
        assert sorted(figures) == sorted(page.figures)
        assert len(figures["curves"]["data"]) == 14

    def test_it_is_one_file_under_8_mb_that_asks_nobody(self, page: Page, evaluated: Inputs) -> None:
        assert evaluated.search.files.report.stat().st_size < 8_000_000
        assert [target for target in page.targets if not target.startswith(("#", "data:"))] == []
        ours = [*page.styles, page.scripts[0], page.scripts[2]]
        assert not re.findall(
            r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(", " ".join(ours)
        )
        assert page.handlers == []

    def test_the_policy_allows_only_the_two_scripts(self, page: Page) -> None:
        assert len(page.scripts) == 3
        for script in page.scripts[1:]:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in page.policy
        assert "default-src 'none'" in page.policy
        assert "unsafe-eval" not in page.policy
        assert "script-src 'unsafe-inline'" not in page.policy

    def test_the_summary_says_what_happened(self, page: Page) -> None:
        assert "This search tried 14 settings" in page.text
        assert "8 were stopped early, 1 failed" in page.text
        assert "On 72 slices of 18 test patients, of which 20 show haemorrhage (27.8\u00a0%)" in page.text
        assert "90.0\u00a0% (95\u00a0% interval 84.0 to 96.0) of the slices with haemorrhage" in page.text
        assert "average precision is 0.790 (0.730 to 0.850); a guess would reach 0.278" in page.text
        assert "Not a medical device" in page.text
        assert "146 positives are too few to rank models" in page.text

    def test_a_search_by_folds_is_said_to_be_judged_by_them_throughout(self, changed: UPath) -> None:
        copied = SearchFiles(changed)
        record = read_json(copied.search)
        record["space"]["objective"]["folds"] = 5
        write_json(copied.search, record)
        for missing in (copied.retraining, copied.calibration, copied.evaluation):
            missing.unlink()
        text, by = Page(render(gather(changed))).text, "by 5 folds of the train and validation patients"
        assert f"had the best average precision (AP) {by}; it has not been retrained" in text
        assert f"All figures of this section were measured {by}. These patients also decided" in text
        assert f"Selection score {by}, optimistic: " in text
        assert "of them lie in train and validation, worth " in text
        assert "on the validation patients" not in text

    def test_the_selection_score_is_apart_and_called_optimistic(self, page: Page, evaluated: Inputs) -> None:
        assert evaluated.best is not None
        value = f"{evaluated.best.value:.4f}"
        assert f"Selection score on the validation patients, optimistic: {value}" in page.text
        before_search = page.text[: page.text.index("Selection score")]
        assert value not in before_search

    def test_data_and_provenance(self, page: Page, evaluated: Inputs) -> None:
        assert evaluated.search.record.fingerprint in page.text
        assert "brain 0 to 80 HU, subdural −20 to 180 HU, bone −800 to 2000 HU" in page.text
        for words in ("Seed of the search 7", "Temperature 1.370", "−0.620", "ray 2.60.0",
                      "Log loss before, plain sigmoid 0.5512", "Weights kept at 10,500 images", "Trials asked for 14",
                      "ab" * 32):  # fmt: skip
            assert words in page.text

    def test_trials_are_a_table_best_first(self, page: Page, evaluated: Inputs) -> None:
        assert evaluated.best is not None
        table = page.text[page.text.index("The same in all of them: momentum 0.9.") :]
        assert f"{evaluated.best.number} completed best" in table
        assert table.index("completed") < table.index("pruned") < table.index("diverged: loss is NaN after 12 batches")

    def test_examples_are_pictures_inside_the_page(self, page: Page) -> None:
        assert len(page.images) >= 12
        for source in page.images:
            picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
            assert (picture.size, picture.mode) == ((32, 32), "L")
        assert "False alarms: flagged, no haemorrhage" in page.text

    def test_no_file_is_left_beside_it(self, page: Page, evaluated: Inputs) -> None:
        assert not [path.name for path in evaluated.search.files.final.iterdir() if path.name.endswith(".tmp")]


class TestMissingParts:
    @pytest.mark.parametrize(
        ("stage", "verbs"),
        [
            ("empty", ["search", "retrain", "calibrate", "evaluate", "report"]),
            ("searched", ["retrain", "calibrate", "evaluate", "report"]),
            ("retrained", ["calibrate", "evaluate", "report"]),
            ("calibrated", ["evaluate", "report"]),
        ],
    )
    def test_the_page_names_them_with_their_commands(
        self, searches: dict[Stage, UPath], stage: Stage, verbs: list[str]
    ) -> None:
        found = Page(report(searches[stage]).read_text(encoding="utf-8"))
        assert re.findall(r"ich-ray (\w+) /", found.text) == verbs
        assert [name for name in found.ids if name in SECTIONS] == list(SECTIONS)
        assert "there is no figure of its performance yet" in found.text
        assert "roc" not in found.figures
        assert ("curves" in found.figures) == (stage != "empty")

    @pytest.mark.parametrize(
        ("lost", "verbs"),
        [({"test": None}, ["evaluate", "report"]),
         ({"operating_points": {}, "test": None}, ["calibrate", "evaluate", "report"])],
    )  # fmt: skip
    def test_figures_of_the_bundle_before_are_not_shown(
        self, changed: UPath, lost: dict[str, Any], verbs: list[str]
    ) -> None:
        """A bundle that was calibrated or trained again says on its card that the files beside it are not its own."""
        note(SearchFiles(changed), **lost)
        found = Page(report(changed).read_text(encoding="utf-8"))
        assert re.findall(r"ich-ray (\w+) /", found.text) == verbs
        assert "there is no figure of its performance yet" in found.text
        assert "roc" not in found.figures

    def test_predictions_without_both_kinds_are_not_drawn(self, changed: UPath) -> None:
        SearchFiles(changed).predictions.unlink()
        found = Page(render(gather(changed)))
        assert "predictions.parquet" in found.text
        assert "roc" not in found.figures
        assert "0.790" in found.text

    def test_a_dataset_that_is_gone_costs_only_what_needs_it(self, changed: UPath) -> None:
        edit(SearchFiles(changed).search, dataset="/nowhere/at/all")
        found = Page(render(gather(changed)))
        assert found.images == []
        assert "The prepared dataset cannot be read" in found.text
        assert "146 positives are too few" in found.text, "the card remembers the counts"
        assert set(found.figures) >= FIGURES

    def test_another_dataset_at_its_place_is_not_shown(self, changed: UPath) -> None:
        edit(SearchFiles(changed).search, fingerprint="0123456789abcdef" * 2)
        found = Page(render(gather(changed)))
        assert found.images == []
        assert "the fingerprint must be 0123456789abcdef" in found.text

    def test_no_search_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"search\.json"):
            report(tmp_path)

    def test_a_damaged_file_is_named(self, changed: UPath) -> None:
        edit(SearchFiles(changed).calibration, temperature="warm")
        with pytest.raises(IntegrityError, match=r"calibration\.json.*temperature"):
            report(changed)


class TestWarnings:
    def test_a_model_at_chance_is_called_so(self, tmp_path: Path) -> None:
        inputs = gather(build_search(tmp_path, signal=0.0))
        assert summary.warnings(inputs)[0] == (
            "The model is at chance: average precision is 0.278 (0.218 to 0.338) where a guess gives 0.278. "
            "Do not use it."
        )
        assert "not cleared" in Page(render(inputs)).text

    @pytest.mark.parametrize(
        ("value", "low", "expected"),
        [(0.25, 0.2, "is at chance"), (0.375, 0.3, "is at chance"), (0.38, 0.25, "cannot be told"), (0.38, 0.26, None)],
    )
    def test_the_edge_is_one_and_a_half_times_the_prevalence(
        self, changed: UPath, value: float, low: float, expected: str | None
    ) -> None:
        path = SearchFiles(changed).evaluation
        metrics = {"average_precision": {"value": value, "low": low, "high": 0.5}}
        edit(path, prevalence=0.25, metrics=metrics)
        evaluation = gather(changed).evaluation
        assert evaluation is not None
        found = summary.at_chance(evaluation)
        assert (found is None) == (expected is None)
        assert expected is None or expected in str(found)

    def test_a_second_opening_is_said(self, changed: UPath) -> None:
        edit(SearchFiles(changed).evaluation, opened=2)
        assert any("opened 2 times" in warning for warning in summary.warnings(gather(changed)))

    def test_a_slice_level_split_is_a_banner(self, page: Page, changed: UPath) -> None:
        assert "LEAKS" not in page.text
        edit(changed / "search.json", split="slice")
        found = render(gather(changed))
        assert f'<p class="leaks" role="alert">{LEAK}</p>' in found
        assert found.index(LEAK) < found.index('class="lead"')
        assert "not patient-level figures" in found
        assert "patients whom no earlier step had seen" not in found

    def test_a_bundle_of_a_trial_that_is_no_longer_best_is_said(self, changed: UPath) -> None:
        edit(SearchFiles(changed).retraining, trial=1)
        assert any("comes from trial 1, but trial" in warning for warning in summary.warnings(gather(changed)))


class TestRetraining:
    RUNS = (
        {"seed": 5, "value": 0.81, "best_images_seen": 10_500, "images_seen": 12_000},
        {"seed": 6, "value": 0.77, "best_images_seen": 8_000, "images_seen": 10_500},
        {"seed": 7, "reason": "diverged"},
    )

    def test_seeds_are_told_with_their_spread(self, page: Page, changed: UPath) -> None:
        assert "seeds" not in page.ids
        edit(SearchFiles(changed).retraining, seed=5, images=18_000, budget="twice", runs=self.RUNS)
        found = Page(render(gather(changed)))
        assert "mean 0.7900, SD 0.0283, 0.7700 to 0.8100 over 2 seeds, 1 more failed" in found.text
        assert "5 the bundle 0.8100 10,500 6 0.7700 8,000 7 diverged – –" in found.text
        assert "Budget of a seed 18,000 images: twice" in found.text
        assert "measured on the validation patients" in found.text

    def test_validation_patients_who_train_leave_no_figure(self, changed: UPath) -> None:
        path = SearchFiles(changed).retraining
        reports = [{**one, "metrics": {"train_loss": 0.5}} for one in read_json(path)["reports"]]
        edit(path, patients="train+validation", seed=5, reports=reports, rehearsal=self.RUNS)
        html = render(gather(changed))
        found = Page(html)
        assert "Patients who trained train and validation" in found.text
        assert "Measured before the validation patients trained, too." in found.text
        assert "nobody is left to measure it" in found.text
        assert "<b>the bundle</b>" not in html
        values = json.loads(found.scripts[0])["retraining"]["data"][0]["y"]
        assert np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist() == [0.5] * len(reports)


class TestEscaping:
    def test_names_and_reasons_from_data_cannot_become_markup(self, tmp_path: Path) -> None:
        hostile = "</script><script>alert(1)</script>"
        space = {**SPACE, "name": hostile, "parameters": {**SPACE["parameters"], hostile: {"choice": ["<b>", "x"]}}}
        search = build_search(tmp_path, space=space)
        for number, value in ((0, hostile), (1, "<img src=x onerror=alert(1)>")):
            trial = read_json(SearchFiles(search).trial(number))
            edit(SearchFiles(search).trial(number), detail=value, parameters={**trial["parameters"], hostile: value})
        html = render(gather(search))
        found = Page(html)
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert (len(found.scripts), found.handlers) == (3, [])
        assert hostile in found.text
        figure = json.loads(found.scripts[0])[f"effect {hostile}"]
        assert "<script>" not in json.dumps(figure)


class TestSize:
    def test_thousands_of_trials_stay_under_8_mb_and_are_said_to_be_cut(self, evaluated: Inputs) -> None:
        small = evaluated.search
        trials = tuple(fake_trials(1200, np.random.default_rng(0)))
        html = render(replace(evaluated, search=SearchResult(small.files, small.record, trials)))
        assert len(html.encode()) < 8_000_000
        found = Page(html)
        assert f"the best {MOST_TRIALS} of 1,200 trials" in found.text
        assert len(json.loads(found.scripts[0])["curves"]["data"]) == MOST_TRIALS


class TestGroups:
    def test_groups_stand_beside_their_own_chance(self, page: Page) -> None:
        assert "By patient, at operating point f2" in page.text
        assert "patients 18 11 0.660 (0.600 to 0.720) 0.148 0.880 (0.820 to 0.940)" in page.text
        assert "subdural 61 9 0.660" in page.text
        assert "epidural at chance 3 0 0.660 (0.600 to 0.720) 0.148 –" in page.text
        assert "By scanner representation" in page.text

    def test_figures_of_the_probabilities(self, page: Page, evaluated: Inputs) -> None:
        assert evaluated.evaluation is not None
        rows = {row.name: row for row in tables.figures(evaluated.evaluation)}
        assert rows["ECE"].floor == "perfect: 0.031 to 0.102"
        assert (rows["ECE"].interval, rows["ECE"].clears) == ("–", None)
        assert rows["ECE"].at == {"value": 7.0}
        assert (rows["Calibration slope"].value, rows["Calibration slope"].at) == ("1.310", {})
        assert "ECE mean gap between probability and share of positives, in 15 bins 0.070" in page.text

    def test_ppv_at_a_stated_prevalence(self, page: Page, evaluated: Inputs) -> None:
        assert evaluated.evaluation is not None
        assert evaluated.evaluation.point is not None
        rows = {row.name: row for row in tables.operating_figures(evaluated.evaluation, evaluated.evaluation.point[1])}
        stated = rows["PPV at a prevalence of 0.020"]
        assert (stated.value, stated.floor, stated.clears) == ("0.270", "0.020", True)
        assert rows["NPV at a prevalence of 0.020"].floor == "0.980"

    def test_an_evaluation_without_groups_is_still_shown(self, changed: UPath) -> None:
        edit(SearchFiles(changed).evaluation, patient_level=None, subtypes={}, representations={}, ece_null=None)
        assert "By patient" not in Page(render(gather(changed))).text

    def test_the_checklist_is_on_the_page(self, page: Page) -> None:
        assert "What CLAIM 2024 and TRIPOD+AI ask to be said" in page.text
        assert "Demographics: age, sex, ethnicity not available" in page.text


class TestTables:
    def test_floors_of_an_operating_point(self, evaluated: Inputs) -> None:
        evaluation = evaluated.evaluation
        assert evaluation is not None
        assert evaluation.point is not None
        rows = {row.name: row for row in tables.operating_figures(evaluation, evaluation.point[1])}
        confusion = evaluation.point[1].confusion
        assert (confusion.tp, confusion.fp) == (18, 6)
        assert rows["Sensitivity"].floor == "0.333"  # 24 of 72 slices are flagged
        assert rows["Specificity"].floor == "0.667"
        assert rows["PPV"].floor == "0.278"
        assert rows["NPV"].floor == "0.722"
        assert rows["F2"].floor == "0.658"
        assert all(row.clears for name, row in rows.items() if "at a prevalence" not in name)

    def test_log_loss_clears_its_floor_from_below(self, evaluated: Inputs) -> None:
        assert evaluated.evaluation is not None
        rows = {row.name: row for row in tables.figures(evaluated.evaluation)}
        assert rows["Log loss"].clears
        assert rows["Log loss"].at["high"] < rows["Log loss"].at["floor"]

    def test_of_hundred_by_hand(self) -> None:
        found = tables.of_hundred(Counts(tp=17471, fp=30991, fn=4094, tn=97951))
        assert [(kind, whole) for kind, _, whole in found] == [
            ("haemorrhage, flagged", 12), ("haemorrhage, missed", 3), ("false alarm", 20), ("rightly not flagged", 65)
        ]  # fmt: skip

    @given(st.tuples(*[st.integers(0, 10**6)] * 4).filter(any))
    def test_of_hundred_adds_up(self, held: tuple[int, int, int, int]) -> None:
        tp, fp, fn, tn = held
        found = tables.of_hundred(Counts(tp=tp, fp=fp, fn=fn, tn=tn))
        assert sum(whole for _, _, whole in found) == 100

    def test_roles_end_with_the_total(self, evaluated: Inputs) -> None:
        assert evaluated.dataset is not None
        assert tables.roles(evaluated.dataset)[-1] == ("all", "480", "120", "146", "30.4\u00a0%")

    def test_amendments_change_the_trials_asked_for(self, changed: UPath) -> None:
        edit(SearchFiles(changed).search, amendments=[{"time": 1.0, "trials": 30}, {"time": 2.0, "dataset": "/moved"}])
        assert tables.asked(open_search(changed)) == 30

    def test_cost(self, evaluated: Inputs) -> None:
        facts = dict(tables.cost_facts(evaluated.search))
        images = sum(trial.images_seen for trial in evaluated.search.trials)
        assert facts["Images seen in all trials"] == f"{images:,}"
        assert facts["Images per second of training"] == "120"

    def test_where_the_time_went(self, page: Page, evaluated: Inputs) -> None:
        reports = sum(len(trial.reports) for trial in evaluated.search.trials)
        facts = dict(spent_facts(evaluated.search))
        assert facts == {
            "Training": f"{style.duration(2.0 * reports)} (47.1\u00a0%)",
            "Waiting for data": f"{style.duration(0.5 * reports)} (11.8\u00a0%)",
            "Validation": f"{style.duration(1.5 * reports)} (35.3\u00a0%)",
            "Saving": f"{style.duration(0.25 * reports)} (5.9\u00a0%)",
            "Devices in use while training": "80.0\u00a0%",
            "Memory of a trial, at most": "2 GB",
            "Written in states, weights and logits": f"{4 * reports} MB",
        }
        assert "Where the time of trials went" in page.text
        bars = json.loads(page.scripts[0])["spent"]["data"]
        assert [bar["name"] for bar in bars] == ["Training", "Waiting for data", "Validation", "Saving"]

    def test_a_search_of_version_0_1_0_does_not_say_where_its_time_went(self, evaluated: Inputs) -> None:
        unmeasured = [
            trial.model_copy(update={"reports": tuple(r.model_copy(update={"usage": None}) for r in trial.reports)})
            for trial in evaluated.search.trials
        ]
        old = SearchResult(evaluated.search.files, evaluated.search.record, tuple(unmeasured))
        found = Page(render(replace(evaluated, search=old)))
        assert "spent" not in found.figures
        assert "Where the time of trials went" not in found.text

    def test_a_trial_that_never_started_does_not_stretch_time(self, evaluated: Inputs) -> None:
        small = evaluated.search
        before = dict(tables.cost_facts(small))["From first start to last end"]
        never = small.trials[2].model_copy(update={"number": 99, "started": 0.0})
        longer = SearchResult(small.files, small.record, (*small.trials, never))
        assert dict(tables.cost_facts(longer))["From first start to last end"] == before
        figures = json.loads(Page(render(replace(evaluated, search=longer))).scripts[0])
        assert figures["timeline"]["layout"]["xaxis"]["title"]["text"].startswith("minutes")


class TestGallery:
    def test_the_most_confident_of_each_kind_one_per_patient(self) -> None:
        labels = np.array([1, 1, 1, 0, 0, 0, 1])
        probabilities = np.array([0.9, 0.95, 0.7, 0.8, 0.1, 0.05, 0.2])
        patients = np.array(["a", "a", "b", "c", "d", "d", "e"], object)
        assert pick(labels, probabilities, patients, threshold=0.5) == {
            "right positive": [1, 2], "false alarm": [3], "miss": [6], "right negative": [5]
        }  # fmt: skip
        assert pick(labels, probabilities, patients, threshold=0.5, each=1)["right positive"] == [1]

    def test_a_probability_at_the_threshold_is_flagged(self) -> None:
        found = pick(np.array([1]), np.array([0.5]), np.array(["a"], object), threshold=0.5)
        assert found["right positive"] == [0]

    def test_pictures_are_the_brain_channel_of_the_right_slice(self, evaluated: Inputs) -> None:
        assert evaluated.dataset is not None
        assert evaluated.predictions is not None
        example = examples(evaluated.dataset, evaluated.predictions, 0.3)["right positive"][0]
        row = int(example.row)
        here = list(evaluated.dataset.column("slice_id")).index(evaluated.predictions.slice_ids[row])
        expected = evaluated.dataset.gather(np.array([here]))[0, 0]
        drawn = Image.open(io.BytesIO(base64.b64decode(example.image.partition(",")[2])))
        assert np.array_equal(np.asarray(drawn), expected)
        assert evaluated.predictions.labels[row] == 1
        assert float(example.probability) == pytest.approx(evaluated.predictions.probabilities[row], abs=5e-4)

    def test_heat_lies_over_the_slice_and_fades_below_the_threshold(self, evaluated: Inputs) -> None:
        assert evaluated.dataset is not None
        assert evaluated.predictions is not None

        def everywhere(slices: SliceSet) -> np.ndarray:
            return np.ones((len(slices), 32, 32), np.float32)

        found = examples(evaluated.dataset, evaluated.predictions, 0.3, everywhere)
        for kind, example in (("right positive", found["right positive"][0]), ("miss", found["miss"][0])):
            grey, hot = (
                np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).astype(float)
                for uri in (example.image, example.heat)
            )
            share = min(1, float(example.probability) / 0.3)
            assert (share == 1) == (kind == "right positive")
            expected = grey * (1 - 0.65 * share) + 255 * 0.65 * share
            assert np.abs(hot[..., 0] - expected).max() < 1.2

    def test_why_there_are_no_heat_maps_is_said(self, page: Page) -> None:
        assert "Heat maps need the bundle, which is not there." in page.text

    def test_large_pictures_are_made_smaller(self) -> None:
        picture = Image.open(io.BytesIO(small_png(np.zeros((512, 512), np.uint8))))
        assert picture.size == (256, 256)

    def test_no_identifier_of_a_slice_reaches_the_page(self, page: Page, evaluated: Inputs) -> None:
        assert evaluated.predictions is not None
        assert not any(str(slice_id) in page.text for slice_id in evaluated.predictions.slice_ids)


class TestConfirmation:
    @pytest.fixture
    def confirmed(self, changed: UPath) -> Page:
        """The second best trial is confirmed; the model still comes from the best one."""
        found = open_search(changed)
        one, other = found.ranked()[:2]
        candidates = [
            {"trial": one.number, "selection_value": one.value, "values": [0.61, None], "mean": 0.61, "spread": None},
            {"trial": other.number, "selection_value": other.value, "values": [0.6, 0.7], "mean": 0.65,
             "spread": 0.0707},
        ]  # fmt: skip
        value = {"format": 1, "kind": "folds", "parts": 2, "objective": {}, "chosen": other.number,
                 "candidates": candidates, "images": 36000, "cost_gpu_s": 0, "created": 0}  # fmt: skip
        write_json(found.files.confirmation, value)
        return Page(render(gather(changed)))

    def test_selection_confirmation_and_test_figures_are_apart(self, confirmed: Page, changed: UPath) -> None:
        one, other = open_search(changed).ranked()[:2]
        table = confirmed.text[confirmed.text.index("Spread (SD)") :]
        assert f"{one.number} 1 failed 0.6100 – 1 {one.value:.4f}" in table
        assert f"{other.number} chosen 0.6500 0.0707 2 {other.value:.4f}" in table
        assert "trained again on 2 folds of the train and validation patients, without early stopping" in confirmed.text
        assert "36,000 images were seen for it" in table
        tests = confirmed.text[confirmed.text.index("Measured on patients") : confirmed.text.index("Selection score")]
        assert "0.6500" not in tests
        assert f"{other.value:.4f}" not in tests

    def test_what_was_chosen_is_said_and_asked_for(self, confirmed: Page, changed: UPath) -> None:
        one, other = open_search(changed).ranked()[:2]
        assert f"Trial {other.number}, a " in confirmed.text
        assert "had the best mean average precision (AP) of the 2 best trials when they were trained" in confirmed.text
        stale = f"The model comes from trial {one.number}, but trial {other.number} has become the confirmed one since"
        assert stale in confirmed.text
        assert f"; the model on this page is still that of trial {one.number}." in confirmed.text

    def test_a_race_and_how_probable_each_is_the_best_are_told(self, confirmed: Page, changed: UPath) -> None:
        assert "Is the best" not in confirmed.text
        files, found = SearchFiles(changed), open_search(changed)
        value = read_json(files.confirmation)
        other, chosen = value["candidates"]
        chosen |= {"estimate": 0.7123, "p_best": 0.91}
        dropped = {"trainings": 4, "chance": 0.03, "leader": chosen["trial"], "reason": ""}
        other |= {"estimate": 0.5, "p_best": 0.04, "dropped": dropped}
        race = {"share": 0.15, "allowed": 6, "trainings": 5, "level": 0.05}
        write_json(files.confirmation, {**value, "race": race})
        known = [{"trial": found.best().number, "p_best": 0.64}]
        chances = {"completed": found.count("completed"), "patients": 82, "positive": 39, "trials": known}
        write_json(files.chances, chances)
        page = Page(render(gather(changed)))
        assert "in a race of 5 trainings with folds of the train and validation patients" in page.text
        assert "had the best estimated average precision (AP) of the 2 best trials" in page.text
        for told in ("Out after trainings", "0.7123", "91%", "64%", "Is the best: the share of 500 draws"):
            assert told in page.text

    def test_a_better_trial_since_then_is_said(self, confirmed: Page, changed: UPath) -> None:
        assert "since the confirmation" not in confirmed.text
        best, path = open_search(changed).best(), SearchFiles(changed).confirmation
        others = [{**candidate, "trial": candidate["trial"] + 900} for candidate in read_json(path)["candidates"]]
        edit(path, candidates=others)
        since = f"Trial {best.number} has become the best of the search since the confirmation"
        assert since in " ".join(summary.warnings(gather(changed)))

    def test_without_one_the_page_has_no_such_part(self, page: Page) -> None:
        assert "confirmation" not in page.ids

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ich_ray.errors import ConfigError
from ich_ray.published.comparison import page
from ich_ray.published.full_size import PlannedStage
from ich_ray.published.reproduce import Reproduction, reproduce
from ich_ray.published.scale import FULL, SMALL, ours, report_a, report_b, retrained_slices
from ich_ray.published.system_results import Decided, System
from ich_ray.search.space.yaml_file import parse_space
from ich_ray.statistics.metrics import floors


def system(name: str, leaked: int, tp: int) -> System:
    decided = Decided(threshold=0.42, tuned_on="", tp=tp, fp=100 - tp, fn=50 - tp, tn=150 + tp)
    return System(
        name=name, split="slice" if leaked else "patient", patients=20, leaked=leaked, slices=300, prevalence=1 / 6,
        average_precision=(0.61, 0.5, 0.7), log_loss=0.3, uncorrected_log_loss=0.77, at_chance=False,
        floors=floors(1 / 6), half=decided, trained=decided, ours=decided, parameters={}, seconds=1.0,
    )  # fmt: skip


def reproduction() -> Reproduction:
    names = ("report A, again", "report B, again, split by slice", "report B, again, split by patient", "ours")
    row = {"state": "completed", "images": 10, "accuracy": 0.8, "sensitivity": 0.5, "specificity": 0.9, "ppv": 0.4,
           "f2": 0.47, "average_precision": 0.2, "at_chance": True}  # fmt: skip
    asked = {"training_slices": 50, "epochs": 5, "learning_rate": 0.05}
    rows = tuple({**row, "trial": number, "parameters": asked} for number in range(10))
    stage = PlannedStage(stage="folds", images=7_200_000, images_per_s=100.0, rated="a network", device="2 CPU threads")
    return Reproduction(
        scale="small", synthetic=True, weights="none", train=500, slices=800, patients=100, probed=(20, 3),
        trials_a=rows[:4], candidates=rows, chosen=7, folds=({**row, "f2": 0.4}, {**row, "f2": 0.6}),
        systems=tuple(system(name, 17 * (index == 1), 30 + index) for index, name in enumerate(names)),
        planned=(stage,), seconds=100.0, created=0.0,
    )  # fmt: skip


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split('<script type="application/json"', maxsplit=1)[0]))


def test_the_page_sets_published_corrected_and_measured_side_by_side() -> None:
    html = page(reproduction())
    text = text_of(html)
    assert "report A, accuracy 0.86 0.857 that of calling nothing" in text
    assert "report B, F2 of five folds 0.492 ± 0.232 0.456 0.16 deviations above calling everything positive" in text
    assert re.search(r"m10 0\.325 under 1e-12 0\.325 0\.722 0\.800 0\.733 0\.619", text)
    assert "report B, holdout F2 0.648 0.6484" in text
    assert "report B, holdout specificity not given 0.7597" in text
    assert "17 of 20 test patients were also trained on" in text
    assert "3 of 20 combinations failed on ten minibatches here, and 4 of 4 winners were at chance" in text
    assert "again 0.500 ± 0.141" in text
    assert "m8 (went on)" in text
    assert "report B, published 150,507 not counted – 0.143 – 0.411 0.456 0.810 0.760 0.361 0.648 –" in text
    assert "folds 7,200,000 100 20 a network 2 CPU threads" in text
    assert "Planned, not run" in text
    assert "Synthetic patients: nothing measured here says anything about real ones." in text


def test_a_network_without_room_costs_no_page() -> None:
    """On a GPU that others fill not one batch fits, after everything else of a reproduction is done."""
    done = reproduction()
    full = done.planned[0].model_copy(update={"images_per_s": 0.0})
    assert "0 inf" in text_of(page(done.model_copy(update={"planned": (full,)})))


def test_the_page_is_one_file() -> None:
    html = page(reproduction())
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", html.split("<script")[0])
    assert "default-src 'none'" in html


def test_what_went_wrong_follows_what_was_measured() -> None:
    done = reproduction()
    healed = done.model_copy(
        update={"trials_a": tuple({**row, "at_chance": False} for row in done.trials_a), "probed": (20, 0)}
    )
    assert "0 of 20 combinations failed on ten minibatches here, and 0 of 4 winners were at chance" in text_of(
        page(healed)
    )


@pytest.mark.parametrize("train", [60, 168, 451, 2_000])
def test_small_spaces_are_spaces(train: int) -> None:
    a, b = parse_space(report_a(SMALL, "none", train), "a"), parse_space(report_b(SMALL, train), "b")
    assert a.listed is not None
    assert b.listed is not None
    assert (len(a.listed), len(b.listed)) == (20, 10)
    sizes = [int(candidate["training_slices"]) for candidate in b.listed]
    assert sizes == sorted(sizes)
    assert max(sizes) <= 0.6 * train
    assert retrained_slices(SMALL, train) <= 0.75 * train
    assert parse_space(ours(SMALL), "ours").name == "demo"


def test_full_spaces_are_those_of_the_files() -> None:
    a, b = parse_space(report_a(FULL, "imagenet", 450_000), "a"), parse_space(report_b(FULL, 450_000), "b")
    assert a.listed is not None
    assert b.listed is not None
    assert (len(a.listed), len(b.listed)) == (240, 10)
    assert {candidate["filters"] for candidate in b.listed} == {64}
    assert retrained_slices(FULL, 450_000) == 300_000


def test_what_cannot_be_reproduced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--labels: must be given with a folder of images, and only then"):
        reproduce(tmp_path, None, tmp_path / "out")
    with pytest.raises(ConfigError, match="--scale: one of small, full must be given, got 'medium'"):
        reproduce(None, None, tmp_path / "out", scale="medium")
    with pytest.raises(ConfigError, match="weights: one of none, imagenet or a safetensors file must be given"):
        reproduce(None, None, tmp_path / "out", weights="absent.safetensors")
    assert not (tmp_path / "out").exists()

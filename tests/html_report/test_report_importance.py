"""Importances on computed objectives whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from upath import UPath

from ich_ray.html_report.importance import importance_bars, importances
from ich_ray.results import SearchResult
from ich_ray.storage import SearchFiles
from ich_ray.trial_records import Objective, Report, TrialResult
from tests.html_report.fake_search import SPACE
from tests.records import make_record


def search(
    score: Callable[[dict[str, Any]], float], trials: int = 60, images: int = 1000, **space: Any
) -> SearchResult:
    """Random draws of three parameters, one of them conditional; all trials end at the first rung."""
    rng = np.random.default_rng(1)
    objective = Objective.model_validate(space.get("objective", {}))
    found = []
    for number in range(trials):
        deep = bool(rng.random() < 0.5)
        parameters: dict[str, Any] = {
            "architecture": "plain_cnn" if deep else "resnet18",
            **({"blocks": int(rng.integers(2, 5))} if deep else {}),
            "batch_size": int(rng.choice([32, 64, 128])),
            "learning_rate": float(10 ** rng.uniform(-5, -1)),
            "dropout": float(rng.uniform(0, 0.6)),
            "optimizer": str(rng.choice(["sgd", "adam", "adamw"])),
            "momentum": 0.9,
        }
        report = Report(images_seen=images, metrics={objective.metric: score(parameters)}, elapsed_s=1, time=1)
        found.append(
            TrialResult(number=number, parameters=parameters, state="pruned", reports=(report,), objective=objective)
        )
    record = make_record(name="x", trials=trials).model_copy(update={"space": {**SPACE, **space}})
    return SearchResult(SearchFiles(UPath("nowhere")), record, tuple(found))


def test_the_parameter_that_decides_stands_out_and_luck_does_not() -> None:
    found = importances(search(lambda drawn: -abs(np.log10(drawn["learning_rate"]) + 3)), 1000)
    names = list(found.found)
    assert names[0] == "learning_rate"
    assert set(names) == {"architecture", "blocks", "batch_size", "learning_rate", "dropout", "optimizer"}
    assert found.found["learning_rate"] > 2
    assert max(found.found[name] for name in names[1:]) < found.found["learning_rate"] / 2
    assert (found.trials, found.images, found.problem) == (60, 1000, "")
    (bars,) = importance_bars(found).data
    assert bars.y[-1] == "learning_rate"
    assert bars.x[-1] == found.found["learning_rate"]
    assert bars.marker.color[-1] != bars.marker.color[0]


def test_where_less_is_better_the_low_values_are_the_good_ones() -> None:
    loss = {"objective": {"metric": "log_loss", "mode": "min"}}
    # The best tenth of these is sgd alone; of the worst tenth, adam and adamw are as many as among all others.
    scores = {"sgd": 0.0, "adam": 1.0, "adamw": 1.0}
    found = importances(search(lambda drawn: scores[drawn["optimizer"]] + 1e-3 * drawn["dropout"], **loss), 1000)
    highest = {"objective": {"metric": "average_precision", "mode": "max"}}
    other = importances(search(lambda drawn: scores[drawn["optimizer"]] + 1e-3 * drawn["dropout"], **highest), 1000)
    assert found.found["optimizer"] > 1 > other.found["optimizer"]


def test_too_few_trials_say_so() -> None:
    few = importances(search(lambda drawn: drawn["dropout"], trials=19), 1000)
    assert few.found == {}
    assert few.problem == (
        "How much each parameter mattered cannot be told from 19 trials that saw 1,000 images: it takes 20 at least."
    )
    assert "from 0 trials that saw 3,000 images" in importances(search(lambda drawn: drawn["dropout"]), 3000).problem


def test_a_space_that_this_version_cannot_read_says_so() -> None:
    foreign = search(lambda drawn: drawn["dropout"], parameters={"depth": {"choice": [1, 2]}})
    assert "cannot read the search space" in importances(foreign, 1000).problem

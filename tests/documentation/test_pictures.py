"""Pictures of docs/: a search as it stood at a time, and files that are small and ask nobody."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from documentation.pictures import FOLDER, as_of, drawn, standing
from ich_ray.results import open_search
from tests.test_house import REPOSITORY
from tests.watch.planted import plant_search

PICTURES = sorted(FOLDER.iterdir())


def test_the_table_shows_a_search_as_it_stood(tmp_path: Path) -> None:
    found = open_search(plant_search(tmp_path / "search", trials=12, running=2).root)
    times = sorted(report.time for trial in found.trials for report in trial.reports)
    for now in (times[0], times[len(times) // 2], times[-1]):
        status = standing(found, now)
        begun = [trial for trial in found.trials if trial.started <= now]
        ended = [trial for trial in begun if trial.ended is not None and trial.ended <= now]
        reports = [report for trial in begun for report in trial.reports if report.time <= now]
        assert sum(status.ended.values()) == len(ended)
        assert [trial.number for trial in status.running] == [one.number for one in begun if one not in ended]
        assert sum(len(as_of(trial, now).reports) for trial in begun) == len(reports)
        assert status.images == sum(as_of(trial, now).images_seen for trial in begun)
        assert [rung.reached for rung in status.rungs] == sorted((rung.reached for rung in status.rungs), reverse=True)
        assert f"{len(ended)}&#160;of&#160;20&#160;trials&#160;ended" in drawn(status)
    assert "://" not in re.sub(r"http://www.w3.org/2000/svg|https://www.textualize.io", "", drawn(status))


def test_there_are_these_pictures() -> None:
    assert [path.name for path in PICTURES] == ["live-table.svg", "report-top.png", "report.png", "watch.png"]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_small(path: Path) -> None:
    assert 1000 < path.stat().st_size < 150_000


def test_every_picture_that_is_shown_is_told_in_words() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    shown = [found for page in pages for found in re.findall(r"!\[(.*?)\]\(", page.read_text())]
    assert [words for words in shown if len(words.split()) < 4] == []

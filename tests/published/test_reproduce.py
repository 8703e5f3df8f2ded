"""The whole command on a few synthetic patients, as small as its stages allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ich_ray.cli import call
from ich_ray.published import full_size, reproduce, scale
from ich_ray.published.reproduce import Reproduction
from ich_ray.runtime import connected
from ich_ray.search.audit.search_audit import audit
from ich_ray.statistics.metrics import floors
from ich_ray.storage import locate, read_record

TINY = replace(
    scale.SMALL,
    patients=30,
    phantom_px=64,
    size_a=32,
    size_b=40,
    size_ours=48,
    filters_b=2,
    passes=1,
    epochs=2,
    trials=1,
)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_both_reports_and_ours_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "SCALES", {"small": TINY})
    monkeypatch.setattr("ich_ray.published.comparison.SCALES", {"small": TINY})
    monkeypatch.setattr(full_size, "rate", lambda *_: (100.0, "2 CPU threads"))
    source = scale._source

    def quick(name: str) -> dict[str, object]:
        """The demo's budget is meant for minutes."""
        found = source(name)
        short = {"images": 400, "report_every": 200, "first_rung": 400}
        return {**found, "budget": short} if name == "demo" else found

    monkeypatch.setattr(scale, "_source", quick)
    out = tmp_path / "out"
    with connected(cpus=2):
        assert call(["reproduce", "--out", str(out)], debug=True) == 0
        done = read_record(locate(out / "reproduction.json"), Reproduction, "")
        written = (out / "reproduction.html").stat().st_mtime_ns
        trials = sorted(path.stat().st_mtime_ns for path in out.rglob("trials/*.json"))
        assert call(["reproduce", "--out", str(out)], debug=True) == 0
    assert (out / "reproduction.html").stat().st_mtime_ns > written
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("trials/*.json")) == trials, "nothing runs twice"
    assert str(out / "reproduction.html") in capsys.readouterr().out

    again, by_slice, by_patient, own = done.systems
    assert [system.split for system in done.systems] == ["patient", "slice", "patient", "patient"]
    assert by_slice.leaked > 0
    assert again.leaked == by_patient.leaked == own.leaked == 0
    assert again.slices == by_patient.slices == own.slices, "the same test patients for all"
    for system in done.systems:
        for decided in (system.half, system.trained, system.ours):
            assert decided.tp + decided.fp + decided.fn + decided.tn == system.slices
        assert system.floors["f2"] == pytest.approx(floors(system.prevalence)["f2"])
    assert len(done.candidates) == 10
    assert {row["state"] for row in done.candidates} == {"completed"}
    assert [row["images"] for row in done.candidates] == [
        row["parameters"]["epochs"] * row["parameters"]["training_slices"] for row in done.candidates
    ]
    assert len(done.folds) == 5
    assert done.probed[0] == 20
    for name in ("report-a", "report-b-by-slice", "report-b-by-patient", "ours"):
        assert not audit(out / name).breached, name

"""docs/sizing.md says what benchmarks/sizing.py prints, and that adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.sizing import Rates, main, sized

REPOSITORY = Path(__file__).parents[1]


def test_the_page_has_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sizing.py"])
    main()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 14
    for line in printed.splitlines():
        assert line in (REPOSITORY / "docs" / "sizing.md").read_text().splitlines()


def test_one_trial_on_one_gpu_by_hand() -> None:
    """27 reports of 150,000 images at 1,000 a second, each with 100,000 evaluated at 2,000 a second: 200 s a report."""
    rates = Rates(
        slices=100_000 / 0.15, size=100, images_per_s=1000, evaluate=2, start_s=10, state_mb=250, report_ms=20,
        storage_gbit=8, gpu_hour=2, head_hour=1,
    )  # fmt: skip
    found = sized(rates, trials=1, gpus=4)
    fetched_s = 500_000 * 30_000 * 8 / 8e9
    assert found.fetch_s == pytest.approx(fetched_s)
    assert found.hours == pytest.approx((fetched_s + 10 + 27 * 200) / 3600)
    assert found.dollars == pytest.approx(found.hours * 3)  # a second GPU would have nothing to do
    assert found.reports_per_s == pytest.approx(1 / 200)
    assert found.states_gbit == pytest.approx(0.01)
    assert found.driver_share == pytest.approx(0.0001)

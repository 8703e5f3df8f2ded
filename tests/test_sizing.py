"""docs/sizing.md says what benchmarks/sizing.py prints, and that adds up."""

from __future__ import annotations

from dataclasses import replace
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
    assert printed.count("\n") == 33
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
    assert found.states_gbit == pytest.approx(0.01 * 26 / 27)  # the last report needs no state
    assert found.driver_share == pytest.approx(0.0001)


def test_images_that_no_file_cache_holds_are_read_again_by_hand() -> None:
    """15 GB are seen: a node holds 3, so that four of five images are read again.

    400 s a report on four GPUs, of 250,000 images of 30 kB: 75 MB/s, of which 60 are read again.
    """
    rates = Rates(
        slices=100_000 / 0.15, size=100, images_per_s=500, evaluate=2, start_s=10, cache_gb=3, storage_gbit=8,
    )  # fmt: skip
    found = sized(rates, trials=100, gpus=4)
    assert found.again_gbit == pytest.approx(4 * 0.8 * 250_000 * 30_000 / 400 * 8e-9)
    assert found.fetch_s == pytest.approx(4 * 3 * 8 / 8)
    held = sized(replace(rates, cache_gb=15), trials=100, gpus=4)
    assert held.again_gbit == pytest.approx(0)
    assert held.fetch_s == pytest.approx(4 * 15 * 8 / 8)
    assert held.hours - held.fetch_s / 3600 == pytest.approx(found.hours - found.fetch_s / 3600)


def test_trials_wait_for_a_storage_that_gives_images_too_slowly() -> None:
    rates = Rates(slices=100_000 / 0.15, size=100, images_per_s=500, evaluate=2, start_s=0, cache_gb=3, storage_gbit=8)
    fast = sized(rates, trials=1, gpus=1)
    slow = sized(replace(rates, storage_gbit=fast.again_gbit / 2), trials=1, gpus=1)
    assert slow.again_gbit == pytest.approx(fast.again_gbit / 2)
    assert slow.hours - slow.fetch_s / 3600 == pytest.approx(2 * (fast.hours - fast.fetch_s / 3600))
    assert slow.reports_per_s == pytest.approx(fast.reports_per_s / 2)

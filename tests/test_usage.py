from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from ich_ray.trial_records import Report, TrialResult
from ich_ray.usage import LEAST_RATE, ReportUsage, Usage, added

FIRST = ReportUsage(
    images_per_s=100.0, data_wait_s=0.5, validation_s=1.0, saving_s=0.25, device_use=0.9, peak_memory_bytes=700,
    bytes_written=10,
)  # fmt: skip


def test_a_sum_weighs_rates_by_time_and_keeps_the_highest_peak() -> None:
    second = ReportUsage(images_per_s=25.0, data_wait_s=1.5, validation_s=2.0, device_use=0.5, peak_memory_bytes=400)
    assert added([(200, FIRST), (150, second)]) == Usage(
        images_per_s=350 / 8,
        training_s=8.0,
        data_wait_s=2.0,
        validation_s=3.0,
        saving_s=0.25,
        device_use=pytest.approx((2 * 0.9 + 6 * 0.5) / 8),
        peak_memory_bytes=700,
        bytes_written=10,
    )


def test_what_no_report_measured_is_unknown_and_not_zero() -> None:
    assert added([]) == Usage()
    assert added([]).figures() == added([(100, ReportUsage())]).parts() == {}
    assert added([(100, ReportUsage(validation_s=2.0))]) == Usage(validation_s=2.0)


@pytest.mark.parametrize("rate", [5e-324, 0.0, 1e13, float("inf")])
def test_a_rate_of_which_no_time_follows_is_refused(rate: float) -> None:
    with pytest.raises(ValidationError, match="images_per_s"):
        ReportUsage(images_per_s=rate)


def test_the_slowest_and_the_most_images_take_a_time_that_is_finite() -> None:
    slowest = ReportUsage(images_per_s=LEAST_RATE, device_use=1.0)
    assert all(map(math.isfinite, added([(2**63 - 1, slowest)] * 1000).figures().values()))


def test_the_parts_of_the_time_add_up() -> None:
    assert added([(200, FIRST)]).parts() == {"training": 1.5, "data": 0.5, "validation": 1.0, "saving": 0.25}
    assert added([(200, ReportUsage(images_per_s=50.0))]).parts() == {"training": 4.0}


def test_a_trial_counts_the_images_of_each_report_that_was_measured() -> None:
    """Those before it were reported by version 0.1.0, say."""
    reports = [
        Report(images_seen=100, metrics={}, elapsed_s=1.0, time=0.0),
        Report(images_seen=300, metrics={}, elapsed_s=3.0, time=0.0, usage=FIRST),
    ]
    trial = TrialResult(number=0, parameters={}, reports=tuple(reports))
    assert [*trial.measured] == [(200, FIRST)]
    assert trial.usage.training_s == 2.0
    assert "usage" not in reports[0].model_dump(mode="json")

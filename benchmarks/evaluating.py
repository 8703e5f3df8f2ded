"""Every figure of 75,000 test slices with its interval, against drawing the slices again one resample at a time.

Prints the seconds for the overall group, then the ratio against the usual way (index the slices of the drawn patients,
call scikit-learn) for average precision, ROC AUC and log loss alone.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from ich_ray.assess.interval_estimates import Cases, measure
from ich_ray.bundle.operating_point import OperatingPoint
from ich_ray.statistics.bootstrap import PatientDraws
from ich_ray.statistics.calibration_error import ece_null_band

SLICES, PATIENTS, RESAMPLES, USUAL = 75_000, 1_900, 2_000, 10


def main() -> None:
    rng = np.random.default_rng(0)
    patients = np.sort(rng.integers(0, PATIENTS, SLICES))
    labels = (rng.random(SLICES) < 0.143).astype(float)
    probabilities = expit(-1.8 + 2 * rng.normal(labels, 1) - 2)
    points = {
        name: OperatingPoint(threshold=threshold, sensitivity=None, specificity=None, ppv=None, f2=None)
        for name, threshold in {"f2": 0.15, "s90": 0.1, "s95": 0.05, "s98": 0.02}.items()
    }
    started = time.perf_counter()
    draws = PatientDraws(patients, resamples=RESAMPLES)
    measure(Cases(labels, probabilities, np.arange(SLICES), calibrated=True), points, draws)
    ece_null_band(probabilities)
    ours = time.perf_counter() - started
    print(f"{RESAMPLES:,} resamples of {SLICES:,} slices, 7 figures, 4 thresholds, null band: {ours:.1f} s")
    rows = np.split(np.arange(SLICES), np.flatnonzero(np.diff(patients)) + 1)
    started = time.perf_counter()
    for _ in range(USUAL):
        drawn = np.concatenate([rows[number] for number in rng.integers(0, len(rows), len(rows))])
        for figure in ("average_precision_score", "roc_auc_score", "log_loss"):
            getattr(sklearn_metrics, figure)(labels[drawn], probabilities[drawn])
    usual = (time.perf_counter() - started) / USUAL * RESAMPLES
    print(f"three figures one by one / all of ours: {usual / ours:.1f}")


if __name__ == "__main__":
    main()

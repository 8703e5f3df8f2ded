from __future__ import annotations

from ich_ray.search.optuna_adapter import outcome, reached
from ich_ray.trial_records import FoldNote, LogitsReference, Report, TrialResult


def test_optuna_is_told_the_best_with_as_many_folds() -> None:
    logits = LogitsReference(file="logits/x", sha256="0" * 64)
    values = {100: 0.9, 200: 0.8, 300: 0.5, 400: 0.6, 500: 0.7}
    reports = []
    for images, value in values.items():
        fold, within = divmod(images - 1, 200)
        note = FoldNote(number=fold, images_seen=within + 1, whole=within == 199, value=None, logits=logits)
        metrics = {"average_precision": value}
        reports.append(Report(images_seen=images, metrics=metrics, elapsed_s=1, time=1, fold=note))
    trial = TrialResult(number=0, parameters={}, reports=tuple(reports), state="pruned", reason="hours")
    assert reached(trial, [100, 200, 400]) == {100: 0.9, 200: 0.9, 400: 0.6}
    assert outcome(trial, [100, 200, 400])[1:] == (None, {100: 0.9, 200: 0.9, 400: 0.6})
    whole = trial.model_copy(update={"state": "completed"})
    assert outcome(whole, [])[1] == 0.6  # two folds are whole; the third has begun

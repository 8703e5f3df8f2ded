"""A rule for an operating point from outside: the threshold with the highest Youden index.

Source: Youden, Index for rating diagnostic tests, Cancer 3 (1950): sensitivity + specificity - 1.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ich_ray.assess.point_rules import POINT_RULES, PointRule, ScoredSlices
from ich_ray.bundle.bundle import load_bundle
from ich_ray.cli import call
from ich_ray.statistics.metrics import Ranking
from ich_ray.storage import SearchFiles, locate
from tests.ct.files import head, make


class Youden(PointRule):
    def threshold(self, slices: ScoredSlices, number: float) -> float:
        ranking = Ranking(slices.labels, slices.probabilities)
        tp, fp = ranking.counts()
        return ranking.threshold(int(np.argmax(tp / tp[-1] - fp / fp[-1])))

    def words(self, number: float) -> str:
        return "highest Youden index"


def test_a_prediction_decides_by_it(
    retrained: SearchFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = ScoredSlices(np.array([1, 0, 1, 0, 0]), np.array([0.9, 0.7, 0.6, 0.3, 0.2]), np.arange(5))
    assert Youden().threshold(slices, 0) == pytest.approx((0.6 + 0.3) / 2)  # 2 of 2 found, 1 of 3 called in vain
    monkeypatch.setattr(POINT_RULES, "registered", {})  # for this test alone
    POINT_RULES.register("youden", Youden())
    files, scan = SearchFiles(locate(tmp_path / "search")), tmp_path / "scan.dcm"
    shutil.copytree(str(retrained.root), str(files.root))
    assert call(["calibrate", str(files.root), "--point", "youden", "--json"]) == 0
    point = json.loads(capsys.readouterr().out)["operating_points"]["youden"]
    assert point["rule"] == "highest Youden index"
    bundle = load_bundle(files.bundle)
    scan.write_bytes(make(hu=head(32, 32, seed=1)))
    (row,) = bundle.predict([scan], point="youden")
    assert (row.operating_point, row.threshold) == ("youden", point["threshold"])
    assert row.decision == "positive"
    assert row.probability > 0.5

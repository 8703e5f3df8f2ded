"""The page of a search that was really retrained, calibrated and evaluated, with heat maps of its own bundle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ich_ray.assess import evaluate as module
from ich_ray.assess.calibration import calibrate
from ich_ray.assess.evaluate import evaluate
from ich_ray.html_report.page import report
from tests.prepared import make_dataset
from tests.searched import make_bundle, make_search


@pytest.mark.slow
def test_a_real_evaluation_is_shown_with_heat_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 50)
    dataset = make_dataset(tmp_path / "dataset")
    files = make_search(tmp_path / "search", dataset)
    make_bundle(files, dataset)
    calibrate(files.root)
    evaluate(files.root, prevalence=0.02)
    html = report(files.root).read_text(encoding="utf-8")
    pictures = re.findall(r'<img src="data:image/png;base64,', html)
    assert len(pictures) == 2 * html.count("Head-CT slice, label") > 0
    assert html.count("The same slice under the heat map") == len(pictures) / 2
    for words in ("By patient, at operating point f2", "By scanner representation", "uint12", "sensitivity_95",
                  "PPV at a prevalence of 0.020", "calibration slope", "not available"):  # fmt: skip
        assert words.lower() in html.lower(), words

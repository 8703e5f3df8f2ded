"""A bundle with a sequence model as two ONNX graphs, whose outputs are those of `predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ich_ray import cli
from ich_ray.bundle import onnx_export
from ich_ray.bundle.bundle import load_bundle
from ich_ray.bundle.onnx_export import CARD_KEY, export_onnx, onnx_run
from ich_ray.bundle.sequence_onnx import LONGEST_KEY, OUTPUTS, bundle_outputs, example_series, exported_sequence
from ich_ray.errors import IchRayError
from tests.bundle.test_predict_series import make_bundle
from tests.sequence_bundles import add_sequence

pytestmark = pytest.mark.slow  # PyTorch takes seconds to export anything


def test_slices_go_through_the_first_graph_and_their_series_through_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    folder = add_sequence(make_bundle(tmp_path / "bundle", labels="all", crop="head"), layers=2)
    assert cli.call(["export-onnx", str(folder), str(tmp_path / "model.onnx")]) == 0
    graphs = [(tmp_path / name).read_bytes() for name in ("model.onnx", "model.sequence.onnx")]
    loaded, rng = load_bundle(folder), np.random.default_rng(0)
    for slices in (1, 2, 9):
        images = rng.integers(0, 256, (slices, 3, 32, 32), np.uint8)
        shown = rng.uniform(-0.3, 0.3, (slices, 4)).astype(np.float32) + np.float32([0, 0, 0.8, 0.8])
        places_mm = np.cumsum(rng.uniform(3, 6, slices)).astype(np.float32)
        own, features = onnx_run(graphs[0], ["network_logits", "features"], {"images": images, "rectangles": shown})
        second = {"network_logits": own[None], "features": features[None], "places_mm": places_mm[None]}
        found = onnx_run(graphs[1], ["label_logits", "label_probabilities", "study_logits"], second)
        own, features = loaded.seen(images, shown)
        told = loaded.of_series(own, features, np.zeros(slices, np.int64), places_mm.astype(np.float64))
        np.testing.assert_allclose(found[0][0], told.logits, atol=1e-4)
        np.testing.assert_allclose(found[1][0], loaded.label_calibrated(told.logits), atol=1e-5)
        np.testing.assert_allclose(found[2][0], told.series[0], atol=1e-4)
    for graph in graphs:
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model)
        card = json.loads({entry.key: entry.value for entry in model.metadata_props}[CARD_KEY])
        assert card["sequence"]["parameters"]["model"] == "bigru"

    monkeypatch.setattr(onnx_export, "_exported", lambda *_: graphs[0])
    monkeypatch.setattr(onnx_export, "exported_sequence", lambda *_: graphs[1])
    monkeypatch.setattr(onnx_export, "bundle_outputs", lambda *_: [np.full(1, 9.0)] * 3)
    with pytest.raises(IchRayError, match=r"other\.sequence\.onnx: ONNX Runtime must give the outputs of the bundle"):
        export_onnx(folder, tmp_path / "other.onnx")
    assert not [*tmp_path.glob("other*")]


@pytest.mark.parametrize("model", ["bilstm", "transformer", "dilated_conv"])
def test_the_second_graph_of_other_models(tmp_path: Path, model: str) -> None:
    import onnx

    loaded = load_bundle(add_sequence(make_bundle(tmp_path / "bundle"), model=model, position="mm", deltas=False))
    data = exported_sequence(loaded, {})
    for slices in (1, 12):
        given = example_series(loaded, slices)
        found = onnx_run(data, OUTPUTS, dict(zip(("features", "network_logits", "places_mm"), given, strict=True)))
        for one, other in zip(found, bundle_outputs(loaded, *given), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    told = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
    assert told == ({LONGEST_KEY: "1024"} if model == "transformer" else {})

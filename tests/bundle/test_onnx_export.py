from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_ray import cli
from ich_ray.assess.calibration import calibrate
from ich_ray.bundle import onnx_export
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.onnx_export import CARD_KEY, CHANNELS_KEY, export_onnx, onnx_label_outputs, onnx_outputs
from ich_ray.errors import ConfigError, IchRayError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.storage import SearchFiles
from tests.prepared import make_dataset
from tests.searched import PARAMETERS, make_bundle, make_search

WINDOWS = ("brain", "subdural", "bone")

pytestmark = pytest.mark.slow  # PyTorch takes seconds to export anything


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    folder = tmp_path_factory.mktemp("search")
    dataset = make_dataset(folder / "dataset")
    files = make_search(folder / "search", dataset)
    make_bundle(files, dataset)
    calibrate(files.root, method="platt")
    return files


def test_the_graph_of_a_network_that_sees_parts_cuts_them(search: SearchFiles, tmp_path: Path) -> None:
    parameters = PARAMETERS.model_copy(update={"crop": "head", "resolution": 12})
    card = load_bundle(search.bundle).card.model_copy(update={"parameters": parameters, "tta": ("hflip",)})
    torch.manual_seed(0)
    Bundle(build_network(parameters, card.image_shape), card).save(tmp_path / "bundle")
    data = export_onnx(tmp_path / "bundle", tmp_path / "model.onnx").read_bytes()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 3, 32, 32), np.uint8)
    rectangles = rng.uniform(-0.3, 0.3, (5, 4)).astype(np.float32) + np.float32([0, 0, 0.8, 0.8])
    bundle = load_bundle(tmp_path / "bundle")
    logits, probabilities = onnx_outputs(data, images, rectangles)
    np.testing.assert_allclose(logits, bundle.logits(images, rectangles), atol=1e-5)
    np.testing.assert_allclose(probabilities, bundle.probabilities(images, rectangles), atol=1e-6)
    assert not np.allclose(logits, bundle.logits(images, rectangles * np.float32(0.9)), atol=1e-5)


def test_onnx_runtime_gives_the_same_outputs(
    search: SearchFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.onnx"
    assert cli.call(["export-onnx", str(search.bundle), str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    bundle = load_bundle(search.bundle)
    for slices in (1, 17):
        images = np.random.default_rng(slices).integers(0, 256, (slices, 3, 32, 32), np.uint8)
        logits, probabilities = onnx_outputs(file.read_bytes(), images)
        np.testing.assert_allclose(logits, bundle.logits(images), atol=1e-5)
        np.testing.assert_allclose(probabilities, bundle.probabilities(images), atol=1e-6)
    import onnx

    model = onnx.load(str(file))
    onnx.checker.check_model(model)
    card = json.loads({entry.key: entry.value for entry in model.metadata_props}[CARD_KEY])
    assert card["operating_points"] == bundle.card.model_dump(mode="json")["operating_points"]
    assert card["not_a_medical_device"] is True

    monkeypatch.setattr(onnx_export, "onnx_label_outputs", lambda *_: (np.full((3, 1), 9.0), np.full((3, 1), 0.5)))
    with pytest.raises(IchRayError, match=r"must give the outputs of the bundle within 0.0001, got a difference of"):
        export_onnx(search.bundle, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(("resolution", "neighbors", "channels"), [(24, 0, 3), (13, 1, 9)])
def test_the_graph_takes_images_as_prepared_and_reduces_them(
    tmp_path: Path, resolution: int, neighbors: int, channels: int
) -> None:
    dataset = make_dataset(tmp_path / "dataset")
    parameters = PARAMETERS.model_copy(update={"resolution": resolution, "neighbors": neighbors})
    files = make_search(tmp_path / "search", dataset, parameters)
    make_bundle(files, dataset, parameters, ["depth_flip"] * neighbors)  # type: ignore[list-item]
    bundle = load_bundle(files.bundle)
    assert (bundle.card.input_shape, bundle.network.side) == ((channels, 32, 32), resolution)
    export_onnx(files.bundle, tmp_path / "model.onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    held = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).get_modelmeta().custom_metadata_map
    beside = [f"{name} below 1" for name in WINDOWS], [f"{name} above 1" for name in WINDOWS]
    assert held[CHANNELS_KEY].split(", ") == [*beside[0] * neighbors, *WINDOWS, *beside[1] * neighbors]
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 32, 32), np.uint8)
    logits, _ = onnx_outputs((tmp_path / "model.onnx").read_bytes(), images)
    np.testing.assert_allclose(logits, bundle.logits(images), atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_networks_of_timm_are_exported(search: SearchFiles, name: str) -> None:
    parameters = Hyperparameters(architecture=f"timm/{name}", labels="all")
    card = load_bundle(search.bundle).card
    told = {"architecture": parameters.architecture, "parameters": parameters, "image_shape": (3, 64, 64), "size": 64}
    torch.manual_seed(0)
    loaded = Bundle(build_network(parameters, (3, 64, 64)).eval(), card.model_copy(update=told))
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), np.uint8)
    logits, _ = onnx_label_outputs(onnx_export._exported(loaded), images)
    np.testing.assert_allclose(logits, loaded.label_logits(images), atol=1e-5)


def test_a_folder_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["export-onnx", "nowhere", str(tmp_path)]) == 2
    said = f"ich-ray: export-onnx {tmp_path}: must be a file, got a folder; name a file in it\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    search: SearchFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnxruntime":
        monkeypatch.setattr(onnx_export, "_exported", lambda bundle: b"")
    with pytest.raises(ConfigError, match=rf"{package} must be installed.*ich_ray\[onnx\]"):
        export_onnx(search.bundle, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []

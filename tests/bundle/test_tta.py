"""A bundle with test-time augmentation: whatever it is asked, it answers with the mean over the views of its card."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ich_ray.assess.calibration import calibrate
from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.card import Card
from ich_ray.bundle.grad_cam import grad_cam
from ich_ray.bundle.onnx_export import export_onnx, onnx_outputs
from ich_ray.bundle.tta import VIEWS, with_tta
from ich_ray.data.dataset import PreparedDataset
from ich_ray.errors import IntegrityError
from ich_ray.model.networks import Network, build_network
from ich_ray.storage import SearchFiles, locate, read_json, write_json
from ich_ray.vocabulary import TtaView
from tests.records import make_card
from tests.searched import PARAMETERS, make_bundle, make_search


@pytest.fixture(scope="module")
def bundle(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A calibrated one that averages over the mirror image."""
    files = make_search(tmp_path_factory.mktemp("mirrored") / "search", dataset)
    make_bundle(files, dataset, tta=["hflip"])
    calibrate(files.root)
    return load_bundle(files.bundle)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)


def network(**fields: object) -> Network:
    torch.manual_seed(0)
    return build_network(PARAMETERS.model_copy(update=fields), (3, 32, 32)).eval()


def test_every_view_is_made() -> None:
    assert {*VIEWS} == {*get_args(TtaView)}


def with_views(plain: Network, *names: TtaView, **fields: object) -> nn.Module:
    return with_tta(plain, names, PARAMETERS.model_copy(update=fields), 3)


def test_a_mirror_image_has_its_columns_in_the_other_order() -> None:
    image = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    assert VIEWS["hflip"](PARAMETERS, 1)(image).tolist() == [[[[2, 1, 0], [5, 4, 3]]]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"neighbors": 1}, [6, 7, 8, 3, 4, 5, 0, 1, 2]),
        ({"neighbors": 2, "neighbor_windows": "first"}, [6, 5, 2, 3, 4, 1, 0]),
    ],
)
def test_neighbors_below_and_above_change_places_and_the_slice_stays(
    fields: dict[str, object], expected: list[int]
) -> None:
    """Windows of each keep their order: a neighbor's are no mirror image."""
    channels = torch.arange(len(expected), dtype=torch.uint8).view(1, -1, 1, 1)
    flipped = VIEWS["depth_flip"](PARAMETERS.model_copy(update=fields), 3)(channels)
    assert flipped.flatten().tolist() == expected


def test_a_network_that_knows_no_below_and_above_answers_as_before() -> None:
    same, other = network(neighbors=1), network(neighbors=1)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 9, 32, 32), np.uint8))
    with torch.no_grad():
        first = next(weight for weight in same.parameters() if weight.ndim == 4)
        first.copy_((first + first[:, [6, 7, 8, 3, 4, 5, 0, 1, 2]]) / 2)
        told = with_views(same, "depth_flip", neighbors=1)(batch)
        assert told.tolist() == pytest.approx(same(batch).tolist(), abs=1e-5)
        both = with_views(other, "hflip", "depth_flip", neighbors=1)(batch)
        exchanged = batch[:, [6, 7, 8, 3, 4, 5, 0, 1, 2]]
        assert torch.equal(both, (other(batch) + other(batch.flip(-1)) + other(exchanged)) / 3)
        assert both.tolist() != pytest.approx(other(batch).tolist(), abs=1e-5)


def test_a_network_that_knows_no_left_and_right_answers_as_before(images: NDArray[np.uint8]) -> None:
    same = network()
    with torch.no_grad():
        for weight in same.parameters():
            if weight.ndim == 4:
                weight.copy_((weight + weight.flip(-1)) / 2)
        batch = torch.from_numpy(images)
        assert with_views(same, "hflip")(batch).tolist() == pytest.approx(same(batch).tolist(), abs=1e-5)
        other = network()
        assert with_views(other, "hflip")(batch).tolist() != pytest.approx(other(batch).tolist(), abs=1e-5)


@pytest.mark.parametrize(("fields", "shape"), [({}, (5,)), ({"labels": "all"}, (5, 6)), ({"resolution": 24}, (5,))])
def test_logits_are_the_mean_of_image_and_mirror_image(
    images: NDArray[np.uint8], fields: dict[str, object], shape: tuple[int, ...]
) -> None:
    plain = network(**fields)
    with torch.inference_mode():
        batch = torch.from_numpy(images)
        found = with_views(plain, "hflip")(batch)
        expected = (plain(batch) + plain(torch.from_numpy(images[..., ::-1].copy()))) / 2
    assert found.shape == shape
    assert torch.equal(found, expected)


def test_without_views_the_network_itself_answers() -> None:
    plain = network()
    assert with_views(plain) is plain


def test_a_bundle_answers_with_the_mean_whatever_it_is_asked(
    bundle: Bundle, dataset: PreparedDataset, images: NDArray[np.uint8]
) -> None:
    plain = bundle.without_tta()
    expected = (plain.logits(images) + plain.logits(images[..., ::-1].copy())) / 2
    assert np.abs(expected - plain.logits(images)).max() > 1e-4
    assert bundle.logits(images) == pytest.approx(expected, abs=1e-6)
    assert bundle.probabilities(images) == pytest.approx(bundle.calibrated(expected), abs=1e-6)
    slices = dataset.role("validation")
    assert bundle.slice_logits(slices) == pytest.approx(bundle.logits(bundle.inputs(slices)), abs=1e-6)
    assert plain.card.tta == ()
    assert bundle.card.tta == ("hflip",)


def test_heat_is_of_the_image_as_it_is(bundle: Bundle, images: NDArray[np.uint8]) -> None:
    pytest.importorskip("captum")
    assert np.array_equal(grad_cam(bundle, images), grad_cam(bundle.without_tta(), images))


def test_it_is_in_the_card_and_its_checklist(bundle: Bundle, dataset: PreparedDataset, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    card = read_json(tmp_path / "card.json")
    assert card["tta"] == ["hflip"]
    assert "to one logit, the mean over the image as it is and hflip; prob" in str(card["checklist"])
    weights = {name: value.tolist() for name, value in load_bundle(tmp_path).network.state_dict().items()}
    assert weights == {name: value.tolist() for name, value in bundle.network.state_dict().items()}


def test_a_card_without_the_field_has_no_views(retrained: SearchFiles, tmp_path: Path) -> None:
    shutil.copytree(str(retrained.bundle), tmp_path / "older")
    folder = locate(tmp_path / "older")
    card = read_json(folder / "card.json")
    assert card.pop("tta") == []
    write_json(folder / "card.json", card)
    older = load_bundle(folder)
    assert older.card.tta == ()
    assert older.model is older.network


@pytest.mark.parametrize("views", [["vflip"], ["hflip", "hflip"], ["depth_flip"]])
def test_a_card_with_other_views_is_damaged(retrained: SearchFiles, tmp_path: Path, views: list[str]) -> None:
    shutil.copytree(str(retrained.bundle), tmp_path / "damaged")
    folder = locate(tmp_path / "damaged")
    write_json(folder / "card.json", {**read_json(folder / "card.json"), "tta": views})
    with pytest.raises(IntegrityError, match=r"card\.json: .*(tta|hflip|depth_flip)"):
        load_bundle(folder)


def test_a_card_alone_says_it() -> None:
    assert Card.model_validate(make_card()).tta == ()
    assert Card.model_validate(make_card(tta=["hflip"])).tta == ("hflip",)


def numbers_in(file: Path) -> int:
    """Of all weights in a graph."""
    import onnx

    return sum(math.prod(weight.dims) for weight in onnx.load(str(file)).graph.initializer)


@pytest.mark.slow  # PyTorch takes seconds to export anything
def test_the_graph_averages_too(bundle: Bundle, images: NDArray[np.uint8], tmp_path: Path) -> None:
    bundle.save(tmp_path / "bundle")
    export_onnx(tmp_path / "bundle", tmp_path / "model.onnx")
    logits, probabilities = onnx_outputs((tmp_path / "model.onnx").read_bytes(), images)
    assert logits == pytest.approx(bundle.logits(images), abs=1e-5)
    assert probabilities == pytest.approx(bundle.probabilities(images), abs=1e-6)
    bundle.without_tta().save(tmp_path / "plain")
    export_onnx(tmp_path / "plain", tmp_path / "plain.onnx")
    held, alone = (numbers_in(tmp_path / name) for name in ("model.onnx", "plain.onnx"))
    assert alone <= held < 1.5 * alone, "the weights are there once"

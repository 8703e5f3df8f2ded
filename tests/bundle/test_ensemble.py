"""A bundle of several networks: whatever it is asked, it answers with the mean of their logits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ich_ray.bundle.bundle import Bundle, load_bundle
from ich_ray.bundle.card import Card
from ich_ray.bundle.ensemble import Ensemble
from ich_ray.bundle.grad_cam import grad_cam
from ich_ray.bundle.members import Member, differing_inputs
from ich_ray.bundle.onnx_export import export_onnx, onnx_outputs
from ich_ray.errors import IntegrityError
from ich_ray.model.networks import Network, build_network
from ich_ray.storage import read_json, write_json
from ich_ray.trial_records import WeightsNote
from tests.records import make_card
from tests.searched import PARAMETERS

WINDOWS = [{"name": name, "center_hu": 40, "width_hu": 80} for name in ("brain", "subdural", "bone")]
CARD = Card.model_validate(make_card(image_shape=[3, 32, 32], size=32, windows=WINDOWS))
UNSAVED = WeightsNote(file="model.safetensors", sha256="0" * 64)
WIDER = PARAMETERS.model_copy(update={"filters": 12})


def network(seed: int, **fields: object) -> Network:
    torch.manual_seed(seed)
    return build_network(PARAMETERS.model_copy(update=fields), (3, 32, 32)).eval()


def ensemble(**fields: object) -> Bundle:
    """Two networks, the second wider and trained with other class weights."""
    first, second = network(0, **fields), network(1, filters=12, **fields)
    labels = 6 if fields.get("labels") == "all" else 1
    member = Member(
        trial=4,
        seed=7,
        parameters=WIDER.model_copy(update=fields),
        shifts=(0.0,) * (labels - 1) + (0.5,),
        weights=UNSAVED,
    )
    changes = {"parameters": PARAMETERS.model_copy(update=fields), "members": (member,), "temperature": 2.0}
    return Bundle(first, CARD.model_copy(update=changes), others=[second])


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)


def own_logits(one: Network, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(one(torch.from_numpy(images)).numpy())


def test_logits_are_the_mean_without_the_class_weights_of_each(images: NDArray[np.uint8]) -> None:
    bundle = ensemble()
    first, second = (own_logits(one, images) for one in bundle.networks)
    assert bundle.logits(images) == pytest.approx((first + second + 0.5) / 2, abs=1e-6)
    assert bundle.without_members().logits(images) == pytest.approx(first, abs=1e-6)
    six = ensemble(labels="all")
    first, second = (own_logits(one, images) for one in six.networks)
    expected = (first + second) / 2 + np.array([0, 0, 0, 0, 0, 0.25])
    assert six.label_logits(images) == pytest.approx(expected, abs=1e-6)


def test_views_are_averaged_over_all_networks(images: NDArray[np.uint8]) -> None:
    plain = ensemble()
    card = plain.card.model_copy(update={"tta": ("hflip",)})
    mirrored = Bundle(plain.network, card, others=plain.networks[1:])
    mirror = np.ascontiguousarray(images[..., ::-1])
    assert mirrored.logits(images) == pytest.approx((plain.logits(images) + plain.logits(mirror)) / 2, abs=1e-6)
    assert mirrored.without_tta().logits(images) == pytest.approx(plain.logits(images), abs=1e-6)


def test_it_comes_back_as_it_was_saved(images: NDArray[np.uint8], tmp_path: Path) -> None:
    bundle = ensemble()
    bundle.save(tmp_path / "bundle")
    assert {one.name for one in (tmp_path / "bundle").glob("*.safetensors")} == {
        "model.safetensors",
        "model-1.safetensors",
    }
    again = load_bundle(tmp_path / "bundle")
    assert again.logits(images).tolist() == bundle.logits(images).tolist()
    assert [member.trial for member in again.card.members] == [4]
    told = read_json(tmp_path / "bundle" / "card.json")["checklist"]["Model, its input and output"]
    assert "an ensemble: the mean logits of it and of plain_cnn of trial 4 with seed 7" in told


def test_a_damaged_or_missing_network_is_found(tmp_path: Path) -> None:
    ensemble().save(tmp_path / "bundle")
    file = tmp_path / "bundle" / "model-1.safetensors"
    shutil.copyfile(file, tmp_path / "whole")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(IntegrityError, match=r"model-1\.safetensors: SHA-256 must be .* as in card\.json"):
        load_bundle(tmp_path / "bundle")
    file.unlink()
    with pytest.raises(IntegrityError, match=r"model-1\.safetensors: the weights of the card must be there, got none"):
        load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"neighbors": 1}, "members must have the neighbors of the first network"),
        ({"labels": "all"}, "members must have the labels of the first network"),
    ],
)
def test_a_card_whose_networks_see_or_answer_different_things_is_refused(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    ensemble().save(tmp_path / "bundle")
    file = tmp_path / "bundle" / "card.json"
    card = read_json(file)
    card["members"][0]["parameters"] |= change
    write_json(file, card)
    with pytest.raises(IntegrityError, match=said):
        load_bundle(tmp_path / "bundle")


def test_a_side_of_their_own_is_allowed_where_all_of_an_image_is_shown() -> None:
    small = PARAMETERS.model_copy(update={"resolution": 16})
    assert differing_inputs(PARAMETERS, small) == ""
    cut = {"crop": "head"}
    assert differing_inputs(PARAMETERS.model_copy(update=cut), small.model_copy(update=cut)) == "resolution"


def test_the_graph_holds_all_networks(images: NDArray[np.uint8], tmp_path: Path) -> None:
    bundle = ensemble()
    bundle.save(tmp_path / "bundle")
    model = export_onnx(tmp_path / "bundle", tmp_path / "model.onnx").read_bytes()
    logits, probabilities = onnx_outputs(model, images)
    assert logits == pytest.approx(bundle.logits(images), abs=1e-4)
    assert probabilities == pytest.approx(bundle.probabilities(images), abs=1e-4)


def test_heat_is_the_mean_of_the_networks_own(images: NDArray[np.uint8]) -> None:
    pytest.importorskip("captum")
    bundle = ensemble()
    second = Bundle(bundle.networks[1], CARD.model_copy(update={"parameters": WIDER}))
    each = [grad_cam(one, images) for one in (bundle.without_members(), second)]
    mean = (each[0] + each[1]) / 2
    peaks = np.maximum(mean.max((1, 2), keepdims=True), 1e-12)
    assert grad_cam(bundle, images) == pytest.approx(mean / peaks, abs=1e-5)


def test_one_network_and_no_shift_is_that_network(images: NDArray[np.uint8]) -> None:
    one = network(0)
    batch = torch.from_numpy(images)
    with torch.no_grad():
        assert torch.equal(Ensemble([one], [[0.0]])(batch), one(batch))


def test_a_smaller_bundle_leaves_no_weights_of_the_larger_one(tmp_path: Path) -> None:
    larger = ensemble()
    larger.save(tmp_path)
    for name in ("model-12.safetensors", "model-own.safetensors"):
        shutil.copy(tmp_path / "model-1.safetensors", tmp_path / name)
    larger.save(tmp_path)
    assert (tmp_path / "model-1.safetensors").exists()
    assert not (tmp_path / "model-12.safetensors").exists()
    larger.without_members().save(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["card.json", "model-own.safetensors", "model.safetensors"]
    assert len(load_bundle(tmp_path).networks) == 1

"""`crop` and `scale`: what training, validation, frozen layers and bundles see of the same slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ich_ray import progress
from ich_ray.bundle.bundle import Bundle
from ich_ray.bundle.checklist import checklist
from ich_ray.bundle.grad_cam import grad_cam
from ich_ray.data.dataset import PreparedDataset, SliceSet
from ich_ray.errors import ConfigError
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.networks import build_network
from ich_ray.search.plan.cost_model import trial_memory
from ich_ray.search.preflight import check_trials
from ich_ray.training.frozen_features import as_features, trunk_features, trunk_key
from ich_ray.training.inference import predict_logits
from ich_ray.training.loop import Parts, TrainingBudget, train
from ich_ray.training.network_inputs import check_inputs, place_inputs
from tests.prepared import every_image, make_dataset, with_views
from tests.training.test_network_inputs import card_of

CROPPED = Hyperparameters(filters=4, dense=8, blocks=1, batch_size=16, resolution=8, crop="head")
CPU = torch.device("cpu")
BUDGET = TrainingBudget(64, 32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Of 32 pixels; heads of every other series lie at its upper left, of 16 pixels with their margin."""
    made = make_dataset(tmp_path_factory.mktemp("crop") / "data", patients=16)
    upper = np.arange(len(made)) // 4 % 2 == 0
    box = np.array([0, 0, 1 / 2.2, 1 / 2.2])
    boxes = np.where(upper[:, None], box, np.nan)
    boxes[upper & (np.arange(len(made)) % 4 == 1)] = np.nan  # has the box of its series
    return with_views(made, boxes, np.where(upper, 480.0, 240))


def parts_of(dataset: PreparedDataset, rows: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The rectangles of `scale: mm` of some rows at 8 pixels, by NumPy: whole, or the middle half."""
    found = []
    for row in rows:
        image = every_image(dataset)[row].astype(float)
        shown = image if row // 4 % 2 else image[:, 8:24, 8:24]
        of_each = shown.shape[-1] // 8
        found.append(shown.reshape(3, 8, of_each, 8, of_each).mean((2, 4)))
    return np.stack(found)


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_network_is_given_what_numpy_cuts(dataset: PreparedDataset, where: Any) -> None:
    parameters = Hyperparameters(resolution=8, scale="mm")
    placed = place_inputs(parameters, SliceSet(dataset, np.arange(12)), CPU, where)
    found = placed.take(np.array([9, 4, 1, 6])).numpy()
    np.testing.assert_allclose(found, parts_of(dataset, [9, 4, 1, 6]), atol=5e-3)
    images, rectangles = placed.take_uncut(np.array([9, 4]))
    assert np.array_equal(images.numpy(), every_image(dataset)[[9, 4]])
    assert rectangles is not None
    assert rectangles.tolist() == [[0, 0, 0.5, 0.5], [0, 0, 1, 1]]


def test_a_slice_without_a_head_has_the_box_of_its_series(dataset: PreparedDataset) -> None:
    placed = place_inputs(CROPPED, SliceSet(dataset, np.arange(8)), CPU)
    rectangles = placed.take_uncut(np.arange(8))[1]
    assert rectangles is not None
    expected = [[1 / 2.2 - 1, 1 / 2.2 - 1, 0.5, 0.5]] * 4 + [[0, 0, 1, 1]] * 4
    assert rectangles.numpy() == pytest.approx(np.array(expected), abs=1e-6)


def test_neighbors_are_cut_as_their_slice_is(dataset: PreparedDataset) -> None:
    seeing = Hyperparameters(resolution=8, scale="mm", neighbors=1)
    found = place_inputs(seeing, SliceSet(dataset, np.array([5])), CPU).take(np.array([0]))
    np.testing.assert_allclose(found[0].numpy(), np.concatenate(parts_of(dataset, [4, 5, 6])), atol=5e-3)


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_a_step_depends_neither_on_where_images_lie_nor_on_a_resume(dataset: PreparedDataset, augment: float) -> None:
    drawn = CROPPED.model_copy(update={"augment": augment, "erase": augment / 2})
    roles = dataset.role("train"), dataset.role("validation")
    first, whole = [(each.metrics, each.state()) for each in train(drawn, *roles, budget=BUDGET, seed=1)]
    (again,) = train(drawn, *roles, budget=BUDGET, seed=1, resume=first[1], placement="device")
    assert again.metrics == whole[0]
    plain = drawn.model_copy(update={"crop": "none"})
    *_, other = train(plain, *roles, budget=BUDGET, seed=1)
    assert other.metrics != whole[0]
    with pytest.raises(ConfigError, match="resume: the state must belong to the same parameters"):
        list(train(plain, *roles, budget=BUDGET, seed=1, resume=first[1]))


def test_images_of_a_training_are_the_same_in_any_batch(dataset: PreparedDataset) -> None:
    """Shown by what an augmentation from outside is given, which is cut already."""
    seen: dict[int, list[torch.Tensor]] = {8: [], 16: []}
    for size, held in seen.items():

        def kept(images: torch.Tensor, positions: torch.Tensor, seed: int, held: Any = held) -> torch.Tensor:
            held.append(images)
            return images

        drawn = CROPPED.model_copy(update={"batch_size": size})
        list(train(drawn, dataset.role("train"), None, budget=BUDGET, seed=1, parts=Parts(augmentation=kept)))
    assert {image.shape[1:] for image in seen[8]} == {(3, 8, 8)}
    assert torch.equal(torch.cat(seen[8]), torch.cat(seen[16]))


def test_bundles_give_the_same_logits_from_slices_and_from_images(dataset: PreparedDataset) -> None:
    torch.manual_seed(0)
    slices = dataset.role("test")
    bundle = Bundle(build_network(CROPPED, dataset.image_shape), card_of(dataset, CROPPED))
    images, rectangles = bundle.inputs(slices), bundle.rectangles(slices)
    assert images.shape == (len(slices), 3, 32, 32)
    logits = bundle.slice_logits(slices)
    assert np.array_equal(bundle.logits(images, rectangles), logits)
    assert np.array_equal(predict_logits(bundle.network, slices, CROPPED), logits)
    bundle.check_outputs()
    with pytest.raises(ConfigError, match=r"rectangles: \[\d+, 4\] must be given .* crop: head and .*, got none"):
        bundle.logits(images)
    plain = Hyperparameters(filters=4, blocks=1)
    whole = Bundle(build_network(plain, dataset.image_shape), card_of(dataset, plain))
    assert whole.rectangles(slices) is None
    with pytest.raises(ConfigError, match=r"rectangles: none must be given .* scale: pixels, got \[\d+, 4\]"):
        whole.logits(images, rectangles)


def test_the_card_says_what_is_shown(dataset: PreparedDataset) -> None:
    told = {
        (crop, scale): checklist(card_of(dataset, CROPPED.model_copy(update={"crop": crop, "scale": scale})))
        for crop in ("none", "head")
        for scale in ("pixels", "mm")
    }
    reduced = ", reduced to 8 x 8 pixels by the network"
    head = "around the largest body above -500 HU in all slices of its series"
    ends = {
        ("none", "pixels"): f"32 x 32 pixels{reduced}",
        ("none", "mm"): f"32 x 32 pixels, cut to a square of 240 mm around its middle{reduced}",
        ("head", "pixels"): f"32 x 32 pixels, cut to a square {head}{reduced}",
        ("head", "mm"): f"32 x 32 pixels, cut to a square of 240 mm {head}{reduced}",
    }
    assert {key: found["Preprocessing"].partition("area-averaged to ")[2] for key, found in told.items()} == ends


def test_the_mirror_image_of_tta_is_that_of_what_is_shown(dataset: PreparedDataset) -> None:
    torch.manual_seed(0)
    network, slices = build_network(CROPPED, dataset.image_shape), dataset.role("test")
    card = card_of(dataset, CROPPED).model_copy(update={"tta": ("hflip",)})
    bundle = Bundle(network, card)
    shown = place_inputs(CROPPED, slices, CPU).take(np.arange(len(slices)))
    with torch.inference_mode():
        expected = (bundle.network(shown) + bundle.network(shown.flip(-1))) / 2
    np.testing.assert_allclose(bundle.slice_logits(slices), expected.numpy(), atol=1e-6)


def test_heat_lies_where_what_is_shown_lies(dataset: PreparedDataset) -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    slices = SliceSet(dataset, np.arange(8))
    parameters = CROPPED.model_copy(update={"scale": "mm"})  # around the box: all of 240 mm, half of 480
    bundle = Bundle(build_network(parameters, dataset.image_shape), card_of(dataset, parameters))
    images, rectangles = bundle.inputs(slices), np.tile(np.float32([-0.5, 0.5, 0.5, 0.5]), (8, 1))
    heat = grad_cam(bundle, images, rectangles)
    assert heat.shape == (8, 32, 32)
    assert heat.max() > 0
    assert not heat[:, :15].any()
    assert not heat[:, :, 17:].any()
    cut = Hyperparameters(filters=4, dense=8, blocks=1, resolution=8)
    whole = Bundle(bundle.network, card_of(dataset, cut))
    shown = bundle.cut(torch.from_numpy(images), rectangles).round().to(torch.uint8).numpy()
    larger = np.kron(shown, np.ones((4, 4), np.uint8))
    alone = grad_cam(whole, larger)  # the same pixels without the rest of their images
    assert np.corrcoef(alone[:, 1::2, 1::2].ravel(), heat[:, 16:, :16].ravel())[0, 1] > 0.9


def test_frozen_layers_see_what_is_shown_and_have_keys_of_their_own(dataset: PreparedDataset) -> None:
    frozen = Hyperparameters(architecture="mobilenet_v3_small", unfreeze_from="head")
    network = build_network(frozen, dataset.image_shape)
    keys = set()
    for crop, scale in (("none", "pixels"), ("head", "pixels"), ("none", "mm"), ("head", "mm")):
        drawn = frozen.model_copy(update={"crop": crop, "scale": scale})
        keys.add(trunk_key(network, drawn, dataset))
    assert len(keys) == 4
    drawn, slices = frozen.model_copy(update={"crop": "head"}), SliceSet(dataset, np.arange(6))
    shown = place_inputs(drawn, slices, CPU).take(np.arange(6))
    expected = trunk_features(network, drawn, shown).numpy()
    assert np.array_equal(as_features(network, drawn, slices), expected)


def test_slices_without_a_head_are_counted_before_a_search(
    dataset: PreparedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.show()
    try:
        check_trials(dataset, [CROPPED])
        check_trials(dataset, [CROPPED.model_copy(update={"crop": "none", "scale": "mm"})])
    finally:
        progress.show(False)
    told = "crop: 16 of 36 training slices have no head in their series, they are shown whole\n"
    assert capsys.readouterr().err == told


def test_a_dataset_that_does_not_know_heads_or_sizes_is_refused(tmp_path: Path) -> None:
    old = make_dataset(tmp_path / "old", patients=16)
    with pytest.raises(ConfigError, match=r"^crop: head needs the place of the head in slices, got none in .*prepare"):
        check_trials(old, [Hyperparameters(), CROPPED])
    with pytest.raises(ConfigError, match=r"^scale: mm needs the size of images in mm, got none in .*PixelSpacing"):
        check_trials(old, [Hyperparameters(scale="mm")])
    with pytest.raises(ConfigError, match="crop: head needs"):
        list(train(CROPPED, old.role("train"), None, budget=BUDGET, seed=1))
    boxes = np.tile([0.2, 0.2, 0.8, 0.8], (len(old), 1))
    known = with_views(old, boxes, None)
    check_inputs(CROPPED, known)
    with pytest.raises(ConfigError, match="scale: mm needs"):
        check_inputs(CROPPED.model_copy(update={"scale": "mm"}), known)


def test_the_plan_counts_what_the_cut_takes() -> None:
    shape, batch = (3, 512, 512), 16
    shown = Hyperparameters(resolution=128, batch_size=batch, crop="head")
    assert trial_memory(shown, shape).resampled == batch * 4 * (3 * 512**2 + 16 * 5 * 128**2 + 3 * 128**2)
    assert trial_memory(Hyperparameters(batch_size=batch), shape).resampled == 0
    assert trial_memory(Hyperparameters(batch_size=batch, scale="mm"), shape).resampled == batch * 4 * 8 * 512**2

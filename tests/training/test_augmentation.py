"""Random numbers by place in the stream, what is made of images with them, and the seam for others."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from torch import distributed, multiprocessing

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.feature_store import FeaturesInMemory
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.model.input_shape import mirrored_channels
from ich_ray.model.resampling import reduced
from ich_ray.training import augmentation
from ich_ray.training.augmentation import AugmentAndErase, augmentation_of, philox, stream_random
from ich_ray.training.data_parallel import Shard
from ich_ray.training.loop import Parts, Progress, TrainingBudget, TrainingState, train
from tests.prepared import make_dataset

STANDARD = AugmentAndErase(strength=1, erase=0.5, side=12)
QUICK = Hyperparameters(batch_size=16, learning_rate=3e-3, dropout=0.0, filters=4, dense=0)
SEEING = QUICK.model_copy(update={"neighbors": 1, "neighbor_windows": "first"})
SWAPPING = AugmentAndErase(strength=1, erase=0.5, side=12, mirrored=(4, 1, 2, 3, 0))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_dataset(tmp_path_factory.mktemp("prepared") / "dataset", size=16)


# https://github.com/DEShaw-Research/random123, tests/kat_vectors
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(tuple(torch.tensor([word]) for word in counter), key)) == words


def test_numbers_belong_to_seed_and_position() -> None:
    positions = torch.arange(2**32 - 50, 2**32 + 50)
    whole = stream_random(7, positions, 9)
    assert whole.shape == (100, 9)
    assert whole.dtype == torch.float32
    assert torch.equal(torch.cat([stream_random(7, part, 9) for part in positions.split(7)]), whole)
    assert torch.equal(stream_random(7, positions[1::2], 9), whole[1::2])
    assert torch.equal(stream_random(7, positions, 2), whole[:, :2])
    assert stream_random(7, positions[:0], 9).shape == (0, 9)
    assert len(whole.unique()) == 900
    for other in (8, 7 + 2**32):
        assert not (stream_random(other, positions, 9) == whole).any()


def test_numbers_are_uniform() -> None:
    found = stream_random(3, torch.arange(200_000), 2)
    assert found.min() >= 0
    assert found.max() < 1
    assert found.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.003)  # four standard errors
    assert found.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.001)
    assert abs(np.corrcoef(found.T.numpy())[0, 1]) < 0.01
    assert abs(np.corrcoef(found[:-1, 0].numpy(), found[1:, 0].numpy())[0, 1]) < 0.01


def noise(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def slowly(image: np.ndarray, numbers: list[float], strength: float) -> np.ndarray:
    """One channel as documented: mirrored, scaled, turned, shifted, brightened; SciPy interpolates."""
    side = len(image)
    flip, angle, right, down, scale, gain, offset = numbers[0], *(strength * (2 * number - 1) for number in numbers[1:])
    if flip < 0.5 * min(1, strength):
        image = image[:, ::-1]
    # affine_transform asks where a pixel (row, column) of the result comes from.
    turn = math.radians(15 * angle)
    back = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) / (1 + 0.1 * scale)
    center = np.full(2, (side - 1) / 2)
    shift = side * 0.05 * np.array([down, right])
    padded = np.pad(image.astype(float), 1)  # SciPy does not interpolate towards black beyond its last pixel
    moved = affine_transform(padded, back, center + 1 - back @ (center + shift), output_shape=image.shape, order=1)
    return np.clip(moved * (1 + 0.1 * gain) + 255 * 0.05 * offset, 0, 255)


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_images_are_flipped_turned_shifted_scaled_and_brightened(strength: float) -> None:
    images, positions = noise(12, 32), torch.arange(1000, 1012)
    found = AugmentAndErase(strength, 0, 32)(images, positions, 5)
    for image, numbers, made in zip(images.numpy(), stream_random(5, positions, 7).tolist(), found, strict=True):
        expected = np.stack([slowly(channel, numbers, strength) for channel in image])
        np.testing.assert_allclose(made, expected, atol=0.02)


def test_at_no_strength_to_speak_of_images_are_reduced_alone() -> None:
    images, positions = noise(20, 32), torch.arange(20)
    for side in (32, 24, 16):
        found = AugmentAndErase(1e-9, 0, side)(images, positions, 5)
        torch.testing.assert_close(found, reduced(images, side).float(), rtol=0, atol=5e-3)


@pytest.mark.parametrize(("strength", "share"), [(0.5, 0.25), (1, 0.5), (1.5, 0.5)])
def test_a_flip_is_the_toss_of_a_coin(strength: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for span in ("_DEGREES", "_SHIFT", "_SCALE", "_GAIN", "_OFFSET"):
        monkeypatch.setattr(augmentation, span, 0)
    images = noise(1, 8).expand(2000, 3, 8, 8)
    found = AugmentAndErase(strength, 0, 8)(images, torch.arange(2000), 5).round()
    flipped = (found == images.flip(3)).all((1, 2, 3))
    assert (flipped | (found == images).all((1, 2, 3))).all()
    assert flipped.float().mean() == pytest.approx(share, abs=0.04)  # four standard errors


def test_white_stays_white_at_most_and_what_comes_from_outside_is_black() -> None:
    found = AugmentAndErase(1.5, 0, 32)(torch.full((400, 3, 32, 32), 255, dtype=torch.uint8), torch.arange(400), 5)
    assert (found.min(), found.max()) == (0, 255)
    assert (found[:, 0, 0, 0] <= 1.5 * 255 * 0.05).float().mean() > 0.3  # corners, as bright as an offset makes black


def test_one_rectangle_is_erased() -> None:
    images, positions = torch.full((3000, 1, 64, 64), 9, dtype=torch.uint8), torch.arange(3000)
    found = AugmentAndErase(0, 0.25, 64)(images, positions, 5)
    assert found.dtype == torch.uint8
    assert set(found.unique().tolist()) == {0, 9}
    black = (found[:, 0] == 0)[(found[:, 0] == 0).any((1, 2))]
    assert len(black) / 3000 == pytest.approx(0.25, abs=0.032)  # four standard errors
    rows, columns = black.any(2).sum(1), black.any(1).sum(1)
    assert torch.equal(black.sum((1, 2)), rows * columns)
    assert torch.equal(black.any(2).int().diff(dim=1).clamp(min=0).sum(1) + black[:, 0].any(1), torch.ones(len(black)))
    # 2 to 20 % of the area and 0.3 to 3.3 as high as wide, to half a pixel of each side.
    assert ((rows + 0.5) * (columns + 0.5) >= 0.02 * 64**2).all()
    assert ((rows - 0.5) * (columns - 0.5) <= 0.2 * 64**2).all()
    assert ((rows - 0.5) / (columns + 0.5) <= 10 / 3).all()
    assert ((columns - 0.5) / (rows + 0.5) <= 10 / 3).all()
    assert (rows * columns).float().mean() / 64**2 == pytest.approx(0.11, abs=0.008)
    touching = torch.stack([black[:, 0].any(1), black[:, -1].any(1), black[:, :, 0].any(1), black[:, :, -1].any(1)])
    assert touching.any(1).all()
    assert AugmentAndErase(0, 1, 64)(images, positions, 5).eq(0).any(3).any(2).all()


def test_erasing_changes_nothing_else() -> None:
    images, positions = noise(50, 32), torch.arange(50)
    whole, erased = (AugmentAndErase(1, share, 24)(images, positions, 5) for share in (0, 1))
    changed = whole != erased
    assert not erased[changed].any()
    assert changed.any(3).any(2).all()


@pytest.mark.parametrize("side", [48, 32, 20])
def test_an_image_is_changed_alike_in_any_batch(side: int) -> None:
    images, positions = noise(61, 48), torch.arange(2**32 - 30, 2**32 + 31)
    augment = AugmentAndErase(1.5, 0.5, side)
    whole = augment(images, positions, 5)
    for size in (1, 7, 16):
        cut = zip(images.split(size), positions.split(size), strict=True)
        assert torch.equal(torch.cat([augment(part, places, 5) for part, places in cut]), whole)
    assert not torch.equal(augment(images, positions, 6), whole)


def test_a_draw_says_how_its_images_are_augmented() -> None:
    assert augmentation_of(Hyperparameters(resolution=24), (3, 32, 32)) is None
    assert augmentation_of(Hyperparameters(augment=0.5), (3, 32, 32)) == AugmentAndErase(0.5, 0, 32)
    assert augmentation_of(Hyperparameters(erase=0.5, resolution=24), (3, 32, 32)) == AugmentAndErase(0, 0.5, 24)
    seeing = SEEING.model_copy(update={"augment": 1.0})
    assert augmentation_of(seeing, (3, 32, 32)) == AugmentAndErase(1, 0, 32, (4, 1, 2, 3, 0))


def test_neighbors_change_places_by_the_toss_of_a_coin_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = tuple(mirrored_channels(SEEING, 3))
    assert mirrored == (4, 1, 2, 3, 0)
    assert mirrored_channels(SEEING.model_copy(update={"neighbor_windows": "same"}), 2) == [4, 5, 2, 3, 0, 1]
    positions = torch.arange(2000)
    coins, five = stream_random(5, positions, 13)[:, 12] < 0.5, noise(1, 8)[:, [0, 1, 2, 0, 1]].clone()
    five[:, 3:] += 1
    images = five.expand(2000, 5, 8, 8)
    plain, found = (AugmentAndErase(1, 0, 8, order)(images, positions, 5) for order in ((), mirrored))
    alone, together = found[~coins], found[coins]
    assert torch.equal(alone, plain[~coins])
    torch.testing.assert_close(together, plain[coins][:, mirrored], rtol=0, atol=1e-4)  # one geometry and brightness
    assert len(together) == pytest.approx(1000, abs=90)  # four standard errors
    changed = (AugmentAndErase(0.5, 0, 8, mirrored)(images, positions, 5) - AugmentAndErase(0.5, 0, 8)(
        images, positions, 5)).abs().amax((1, 2, 3)) > 0.01  # fmt: skip
    assert changed.float().mean() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(AugmentAndErase(0, 0.5, 8, mirrored)(images, positions, 5)[:, 1:4],
                       AugmentAndErase(0, 0.5, 8)(images, positions, 5)[:, 1:4])  # fmt: skip


class Noted:
    """The standard augmentation; notes what it made of each place of the stream."""

    def __init__(self) -> None:
        self.made: dict[int, torch.Tensor] = {}

    def __call__(self, images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        assert images.dtype == torch.uint8
        made = (SWAPPING if images.shape[1] == 5 else STANDARD)(images, positions, seed)
        self.made |= dict(zip(positions.tolist(), made, strict=True))
        return made


def trained(
    dataset: PreparedDataset, noted: Noted, parameters: Hyperparameters = QUICK, images: int = 300, **more: object
) -> list[Progress]:
    roles, keys = (
        (dataset.role("train"), dataset.role("validation")),
        {"budget": TrainingBudget(images, 100), "seed": 3},
    )
    return list(train(parameters, *roles, parts=Parts(augmentation=noted), **keys, **more))  # type: ignore[arg-type]


def test_neither_batches_nor_a_resume_change_a_pixel(dataset: PreparedDataset) -> None:
    one, other, again = Noted(), Noted(), Noted()
    state = trained(dataset, one, images=100)[0].state()
    whole = trained(dataset, one)
    trained(dataset, other, QUICK.model_copy(update={"batch_size": 7}))
    assert sorted(one.made) == sorted(other.made) == list(range(300))  # in the third epoch of 132 slices
    assert all(torch.equal(one.made[place], other.made[place]) for place in one.made)
    resumed = trained(dataset, again, resume=state)
    assert sorted(again.made) == list(range(100, 300))
    assert all(torch.equal(one.made[place], again.made[place]) for place in again.made)
    assert [progress.metrics for progress in resumed] == [progress.metrics for progress in whole[1:]]
    plain = train(QUICK, dataset.role("train"), dataset.role("validation"), budget=TrainingBudget(100, 100), seed=3)
    assert next(plain).metrics != whole[0].metrics


def worker(rank: int, port: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    noted = Noted()
    trained(PreparedDataset.open(folder), noted, SEEING, images=107, shard=Shard(rank, 2))
    tensors = {str(place): made for place, made in noted.made.items()}
    numbers = {"images_seen": 107, "elapsed_s": 0.0, "plan": {}}
    TrainingState(tensors, numbers).save(Path(out) / f"{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_number_of_workers_changes_no_pixel(dataset: PreparedDataset, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, str(dataset.files.root), str(tmp_path)), nprocs=2)
    alone, parts = Noted(), [TrainingState.load(tmp_path / f"{rank}.safetensors").tensors for rank in range(2)]
    trained(dataset, alone, SEEING, images=107)
    assert parts[0].keys().isdisjoint(parts[1])
    together = parts[0] | parts[1]
    assert len(together) == 107
    assert all(torch.equal(made, together[str(place)]) for place, made in alone.made.items())


@pytest.mark.parametrize(
    "changes", [{"augment": 1.0, "erase": 0.5, "resolution": 12}, {"augment": 0.5}, {"erase": 1.0}], ids=str
)
def test_a_resumed_training_is_the_unbroken_one(
    dataset: PreparedDataset, tmp_path: Path, changes: dict[str, float]
) -> None:
    parameters = QUICK.model_copy(update={**changes, "dropout": 0.2})
    roles, budget = (dataset.role("train"), dataset.role("validation")), TrainingBudget(300, 100)
    first, *others = [(each.metrics, each.state()) for each in train(parameters, *roles, budget=budget, seed=3)]
    first[1].save(tmp_path / "state.safetensors")
    resume = TrainingState.load(tmp_path / "state.safetensors")
    again = [(each.metrics, each.state()) for each in train(parameters, *roles, budget=budget, seed=3, resume=resume)]
    assert [metrics for metrics, _ in again] == [metrics for metrics, _ in others]
    for name, tensor in others[-1][1].tensors.items():
        assert torch.equal(tensor, again[-1][1].tensors[name]), name


def test_training_uses_what_the_draw_says(dataset: PreparedDataset) -> None:
    noted, drawn = Noted(), QUICK.model_copy(update={"augment": 1.0, "erase": 0.5, "resolution": 12})
    roles, keys = (dataset.role("train"), dataset.role("validation")), {"budget": TrainingBudget(100, 100), "seed": 3}
    handed = trained(dataset, noted, QUICK.model_copy(update={"resolution": 12}), images=100)
    assert next(train(drawn, *roles, **keys)).metrics == handed[0].metrics  # type: ignore[arg-type]
    assert next(iter(noted.made.values())).shape == (3, 12, 12)


def test_augmented_images_have_no_features(dataset: PreparedDataset) -> None:
    """Those of the images as they are would be wrong ones: frozen layers see each augmented image."""
    frozen = Hyperparameters(architecture="resnet18", unfreeze_from="head", batch_size=16)
    useless = FeaturesInMemory(np.arange(len(dataset.role("train").rows) * 2), np.empty((0, 1), np.float32))
    noted = Noted()
    (progress,) = trained(dataset, noted, frozen, images=100, features=useless)
    assert len(noted.made) == 100
    assert progress.images_seen == 100

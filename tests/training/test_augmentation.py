"""Random numbers by place in the stream, and the seam for what draws them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from ich_ray.data.dataset import PreparedDataset
from ich_ray.data.feature_store import FeaturesInMemory
from ich_ray.model.hyperparameters import Hyperparameters
from ich_ray.training.augmentation import philox, stream_random
from ich_ray.training.data_parallel import Shard
from ich_ray.training.loop import Parts, Progress, TrainingBudget, TrainingState, train
from tests.prepared import make_dataset

QUICK = Hyperparameters(batch_size=16, learning_rate=3e-3, dropout=0.0, filters=4, dense=0)


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


class Gain:
    """A test's own augmentation: each image brighter or darker; notes what it made of each place of the stream."""

    def __init__(self) -> None:
        self.made: dict[int, torch.Tensor] = {}

    def __call__(self, images: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        assert images.dtype == torch.uint8
        gain = 0.8 + 0.4 * stream_random(seed, positions, 1)
        made = images * gain[:, :, None, None]
        self.made |= dict(zip(positions.tolist(), made, strict=True))
        return made


def trained(
    dataset: PreparedDataset, gain: Gain, parameters: Hyperparameters = QUICK, images: int = 300, **more: object
) -> list[Progress]:
    roles, keys = (
        (dataset.role("train"), dataset.role("validation")),
        {"budget": TrainingBudget(images, 100), "seed": 3},
    )
    return list(train(parameters, *roles, parts=Parts(augmentation=gain), **keys, **more))  # type: ignore[arg-type]


def test_neither_batches_nor_a_resume_change_a_pixel(dataset: PreparedDataset) -> None:
    one, other, again = Gain(), Gain(), Gain()
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
    gain = Gain()
    trained(PreparedDataset.open(folder), gain, images=107, shard=Shard(rank, 2))
    tensors = {str(place): made for place, made in gain.made.items()}
    numbers = {"images_seen": 107, "elapsed_s": 0.0, "plan": {}}
    TrainingState(tensors, numbers).save(Path(out) / f"{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_number_of_workers_changes_no_pixel(dataset: PreparedDataset, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, str(dataset.files.root), str(tmp_path)), nprocs=2)
    alone, parts = Gain(), [TrainingState.load(tmp_path / f"{rank}.safetensors").tensors for rank in range(2)]
    trained(dataset, alone, images=107)
    assert parts[0].keys().isdisjoint(parts[1])
    together = parts[0] | parts[1]
    assert len(together) == 107
    assert all(torch.equal(made, together[str(place)]) for place, made in alone.made.items())


def test_augmented_images_have_no_features(dataset: PreparedDataset) -> None:
    """Those of the images as they are would be wrong ones: frozen layers see each augmented image."""
    frozen = Hyperparameters(architecture="resnet18", unfreeze_from="head", batch_size=16)
    useless = FeaturesInMemory(np.arange(len(dataset.role("train").rows) * 2), np.empty((0, 1), np.float32))
    gain = Gain()
    (progress,) = trained(dataset, gain, frozen, images=100, features=useless)
    assert len(gain.made) == 100
    assert progress.images_seen == 100

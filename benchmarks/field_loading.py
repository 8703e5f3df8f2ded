"""The field on loading: shuffled batches of 256 phantom images, 128x128x3 uint8, as PyTorch tensors on the CPU.

Each peer as its documentation says is fast: the raw arrays in its own format (only the first reads PNG files), file
cache warm, as many worker processes as there are cores, kept from epoch to epoch. Ours and copying the same memory in a
row, the floor, use one thread and no workers. A round is an epoch, or as many as half a second holds. Told are images
per second on the clock, and the CPU time of a contestant with all its workers, which other work on the machine changes
less. Only ours and Hugging Face's shuffle all images exactly; the others shuffle shards, blocks or buffers.

    python benchmarks/field_loading.py [--images 4096] [--rounds 5]
"""

from __future__ import annotations

import argparse
import atexit
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.contest import Peer, absent, in_turns, machine, ratios, spread, table
from benchmarks.decode import SIZE
from benchmarks.decode import ours as decode
from benchmarks.reading import BATCH, PngFiles, copying, of_ray, ours
from ich_ray.ct.phantom import write_phantom
from ich_ray.data.dataset import PreparedDataset
from ich_ray.runtime import connected
from tests.prepared import SLICES_A_PATIENT, make_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    Epoch = Callable[[], object]

WEBDATASET = Peer("WebDataset", "webdataset", "webdataset")
# Its transformers<5 and the huggingface_hub of datasets>=5 exclude each other; it works beside newer transformers.
STREAMING = Peer("MosaicML Streaming", "streaming", "mosaicml-streaming, then pip install --upgrade transformers")
LITDATA = Peer("LitData", "litdata", "litdata")
DATASETS = Peer("Hugging Face datasets", "datasets", "datasets")
PEERS = (WEBDATASET, STREAMING, LITDATA, DATASETS)
WORKERS = len(os.sched_getaffinity(0))
SHARD = 256  # images
_UNTIL_THE_END = ExitStack()  # of this process
FLOOR = "copying the same memory (floor)"


def counted(batches: Iterable[Any]) -> int:
    """Images of an epoch; every batch must be what was asked for."""
    images = 0
    for batch in batches:
        assert batch.dtype == torch.uint8
        assert batch.shape[1:] == (3, SIZE, SIZE)
        images += len(batch)
    return images


class Decoded(PngFiles):
    """With the decoder of torchvision, which beats Pillow."""

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.io import decode_image

        return decode_image(str(self.paths[index]))


def of_png(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    files: Dataset[torch.Tensor] = Decoded(folder, images)
    loader = DataLoader(files, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, prefetch_factor=4)
    return lambda: counted(loader)


def of_webdataset(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    """Tar files of arrays; shards and a buffer of 1,000 are shuffled, batches made in the workers."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=SHARD, verbose=0) as sink:
        for number, image in enumerate(images):
            sink.write({"__key__": f"{number:06d}", "npy": image})
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode().to_tuple("npy").batched(BATCH)
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda: counted(torch.as_tensor(batch) for (batch,) in loader)


def of_streaming(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    """Shards of its MDS format, read where they lie."""
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    with MDSWriter(out=str(folder), columns={"image": f"ndarray:uint8:3,{SIZE},{SIZE}"}) as sink:
        for image in images:
            sink.write({"image": image})
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda: counted(batch["image"] for batch in loader)


def of_litdata(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    """Chunks of 64 MB of tensors, written by its `optimize`."""
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    inputs = list(range(len(images)))
    optimize(partial(_tensor, images), inputs, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)
    data = StreamingDataset(str(folder), shuffle=True)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda: counted(loader)


def _tensor(images: NDArray[np.uint8], number: int) -> torch.Tensor:
    return torch.from_numpy(images[number].copy())


def of_datasets(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    """Mapped Arrow files of fixed-shape arrays, whole batches of random rows."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Array3D((3, SIZE, SIZE), "uint8")})
    made = datasets.Dataset.from_generator(
        _examples, features=features, cache_dir=str(folder / "cache"), gen_kwargs={"file": str(images.filename)}
    )
    made.save_to_disk(str(folder / "saved"))
    data = datasets.load_from_disk(str(folder / "saved")).with_format("torch", dtype=torch.uint8)
    batches = BatchSampler(RandomSampler(data), BATCH, drop_last=False)
    loader = DataLoader(data, batch_size=None, sampler=batches, num_workers=WORKERS, persistent_workers=True)
    return lambda: counted(batch["image"] for batch in loader)


def _examples(file: str) -> Iterator[dict[str, NDArray[np.uint8]]]:
    for image in np.load(file, mmap_mode="r"):
        yield {"image": image}


def of_ray_data(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    """Materialized in its object store, with a local shuffle buffer."""
    del folder
    atexit.register(_UNTIL_THE_END.close)
    _UNTIL_THE_END.enter_context(connected(cpus=WORKERS))
    return of_ray(images)


def of_ours(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    del images
    return ours(PreparedDataset.open(folder.parent / "data"), np.random.default_rng(0))


def of_copying(folder: Path, images: np.memmap[Any, Any]) -> Epoch:
    del folder
    return copying(np.array(images))


LOADERS: dict[str, Callable[[Path, Any], Epoch]] = {
    "ours": of_ours,
    "PNG files + DataLoader, torchvision's decoder": of_png,
    WEBDATASET.name: of_webdataset,
    STREAMING.name: of_streaming,
    LITDATA.name: of_litdata,
    DATASETS.name: of_datasets,
    "Ray Data, materialized": of_ray_data,
    FLOOR: of_copying,
}


@lru_cache
def made(loader: str, folder: Path) -> Epoch:
    """Written and opened in the process of its contestant."""
    own = folder / str(list(LOADERS).index(loader))
    own.mkdir()
    return LOADERS[loader](own, np.load(folder / "images.npy", mmap_mode="r"))


def cpu_s() -> float:
    """Of this process and all that it started."""
    root = psutil.Process()
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def measure(loader: str, folder: Path, images: int) -> tuple[float, float]:
    """Images per second, and CPU milliseconds per 1,000 images."""
    epoch = made(loader, folder)
    epochs, used, started = 0, cpu_s(), time.perf_counter()
    while (passed := time.perf_counter() - started) < 0.5:
        epoch()
        epochs += 1
    return epochs * images / passed, (cpu_s() - used) / epochs / images * 1e6


def write_images(folder: Path, count: int) -> int:
    """Phantom slices, each shifted, as the train role of a dataset and as an array; how many."""
    files = sorted(Path(str(write_phantom(folder / "dicom", 8, seed=0).images)).iterdir())
    slices = [decode(path) for path in files]
    patients = round(count / SLICES_A_PATIENT / 0.55)
    shifted = (np.roll(slices[n % len(slices)], n // len(slices), axis=2) for n in range(patients * SLICES_A_PATIENT))
    train = make_dataset(folder / "data", patients, SIZE, blocks=32, images=np.stack(list(shifted))).role("train")
    whole = len(train) // BATCH * BATCH
    np.save(folder / "images.npy", train.gather(np.arange(whole)))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(LOADERS), help="these, and ours")
    options = parser.parse_args()
    out = {peer.name for peer in PEERS if not peer.there}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = write_images(folder, options.images)
        asked = ["ours", *options.only] if options.only else LOADERS
        timed = {name: partial(measure, name, folder, count) for name in asked if name not in out}
        found = in_turns(timed, options.rounds)
    print(f"{count} images, {options.rounds} rounds, {WORKERS} workers for those that have some; {machine()}")
    rates = {name: [rate for rate, _ in values] for name, values in found.items()}
    times = {name: [used for _, used in values] for name, values in found.items()}
    rows = [
        [
            name,
            spread(rates[name], 0),
            spread(ratios(rates["ours"], rates[name])),
            spread(ratios(times[name], times["ours"])),
        ]
        for name in sorted(rates, key=lambda name: statistics.median(rates[name]))
    ]
    print(table(["loader", "images/s", "ours / it, images/s", "CPU time / ours"], rows))
    print(*absent(PEERS), sep="\n")


if __name__ == "__main__":
    main()

"""752,803 files and their labels, no pixels: reading the table, joining, roles, leak audit and fingerprint.

The rows of the files are made up as if every slice had been decoded; the label table is tiled to the size of the RSNA
set from a real one (a CSV file with columns `id` and the six labels), or made up without it. To stay under: 30 s and
2 GiB.

    python benchmarks/joining.py [--labels rsna_labels_wide.csv.gz] [--slices 752803]
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

sys.path.insert(0, str(Path(__file__).parents[1]))

from ich_ray.ct.windowing import DEFAULT_WINDOWS, parse_windows
from ich_ray.data.prepare.decode_chunk import ROWS
from ich_ray.data.prepare.join import assemble, fingerprint
from ich_ray.data.prepare.label_table import read_labels
from ich_ray.data.prepare.pseudonyms import Pseudonyms
from ich_ray.vocabulary import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator

SLICES_A_PATIENT = 40  # 752,803 slices of 18,938 patients
CHUNK = 256


def tiled(where: str | None, count: int) -> pa.Table:
    """The long RSNA table of `count` slices, with the labels of a real table over and over."""
    if where:
        real = pacsv.read_csv(where)
        values = np.stack([real[name].to_numpy().astype(np.int8) for name in LABELS], axis=1)
    else:
        rng = np.random.default_rng(0)
        values = (rng.random((332_649, len(LABELS))) < 0.05).astype(np.int8)
        values[:, -1] = values[:, :-1].any(axis=1)
    values = values[np.arange(count) % len(values)]
    values = values[np.argsort(-values[:, -1], kind="stable")]  # or no patient would be without a positive slice
    ids = np.repeat(names(count), len(LABELS))
    kinds = np.tile(np.array([f"_{name}" for name in LABELS]), count)
    return pa.table({"ID": pc.binary_join_element_wise(pa.array(ids), pa.array(kinds), ""), "Label": values.ravel()})


def names(count: int) -> np.ndarray:
    return np.array([f"ID_{number:09x}" for number in range(count)])


def rows_of(count: int, pseudonyms: Pseudonyms) -> pa.Table:
    """What the chunks would have said."""
    number = np.arange(count)
    people = [f"P{patient}" for patient in range(count // SLICES_A_PATIENT + 1)]
    hidden = {kind: np.array([pseudonyms.name(kind, person) for person in people])[number // SLICES_A_PATIENT]
              for kind in ("patient", "study", "series")}  # fmt: skip
    tokens = np.array([pseudonyms.masked_token(person) for person in people])[number // SLICES_A_PATIENT]
    empty, same = np.full(count, ""), np.zeros(count, np.float32)
    corners = np.stack([same, same, 5.0 * (number % SLICES_A_PATIENT)], axis=1)
    normals = np.tile([0.0, 0.0, 1.0], count)
    return pa.table(
        {
            "file": np.char.add(names(count), ".dcm"), "reason": empty, "detail": empty, "slice_id": names(count),
            **hidden, "token": tokens, "position_mm": (number % SLICES_A_PATIENT).astype(np.float32),
            "corner_mm": pa.FixedSizeListArray.from_arrays(pa.array(corners.ravel()), 3),
            "normal": pa.FixedSizeListArray.from_arrays(pa.array(normals), 3),
            "rows": same + 512, "columns": same + 512,
            "spacing_mm": same, "thickness_mm": same, "tilt_deg": same, "kernel": empty, "flags": empty,
            "representation": empty,
            "pixels": np.array([f"{value:032x}" for value in range(count)]), "chunk": number // CHUNK,
            "row": number % CHUNK,
        }
    ).cast(ROWS)  # fmt: skip


@contextmanager
def timed(what: str, times: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times[what] = time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels")
    parser.add_argument("--slices", type=int, default=752_803)
    options = parser.parse_args()
    pseudonyms, times = Pseudonyms(b"k" * 32), dict[str, float]()
    rows = rows_of(options.slices, pseudonyms)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        pacsv.write_csv(tiled(options.labels, options.slices), path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with timed("reading the label table", times):
            labels = read_labels(path)
        with timed("joining, roles, leak audit", times):
            assembly = assemble(rows, labels, pseudonyms=pseudonyms, seed=0, digest=str)
        with timed("fingerprint", times):
            fingerprint(assembly, parse_windows(DEFAULT_WINDOWS), 128)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, seconds in times.items():
        print(f"{name:28} {seconds:6.1f} s")
    print(f"{len(assembly.accepted)} slices, {len(labels) * len(LABELS)} label rows")
    print(f"all                          {sum(times.values()):6.1f} s   (to stay under: 30)")
    print(
        f"peak memory                  {peak / 2**20:6.2f} GiB (to stay under: 2; {before / 2**20:.2f} when it began)"
    )


if __name__ == "__main__":
    main()

"""What every test runs under."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from ich_ray.data.dataset import PreparedDataset
    from ich_ray.storage import SearchFiles

# The first example of a test pays for imports and compiling, on machines that do other things, too.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Before PyTorch is loaded, here and in the workers that tests start: two threads on a network of a few filters spend
# their time waiting for each other (100 img/s where one thread reaches 700, on a busy machine).
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's key, joins a cluster that happens to run, or asks a cloud for its notices.

    Ctrl-C is heard, however the tests were started.
    """
    os.environ["ICH_RAY_METADATA_SERVICE"] = "off"
    os.environ["ICH_RAY_KEY_FILE"] = str(Path(tmp_path_factory.mktemp("key")) / "key")
    os.environ.pop("RAY_ADDRESS", None)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started by a script with &
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_lost_head_ends_all_tests() -> Iterator[None]:
    """One under a test fails this test; ending the process would end all that follow, and pytest-xdist waits for them.

    A fault in pytest-xdist 3.8: files of which nothing is left to do are handed out again, and no word of theirs comes.
    """
    from ich_ray import runtime

    def told(problem: str, code: int = 1) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"exit code {code}: {problem}")
        ending(problem, code)  # a test looks at it

    ending, runtime._leave = runtime._leave, told
    yield
    runtime._leave = ending


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    from tests.prepared import make_dataset

    return make_dataset(tmp_path_factory.mktemp("prepared") / "dataset")


@pytest.fixture(scope="session")
def retrained(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> SearchFiles:
    """A search with a bundle that is not calibrated. Who writes into it takes a copy."""
    from tests.searched import make_bundle, make_search  # trains a network, which takes seconds

    files = make_search(tmp_path_factory.mktemp("searches") / "search", dataset)
    make_bundle(files, dataset)
    return files

"""The road from DICOM to predictions as an ordinary user, in an installation of root, without a home."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ich_ray
from ich_ray.ct.phantom import write_phantom

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
USER = 61234
SPACE = """
name: tiny
objective: {metric: average_precision, mode: max}
budget: {images: 64, report_every: 64, first_rung: 64, reduction: 3, min_peers: 2}
parameters:
  architecture: {fixed: plain_cnn}
  blocks: {fixed: 1}
  filters: {choice: [4, 8]}
  dense: {fixed: 8}
  weights: {fixed: none}
  batch_size: {fixed: 32}
  learning_rate: {loguniform: [1.0e-4, 3.0e-2]}
  decay: {fixed: 0.01}
  dropout: {fixed: 0.1}
  optimizer: {fixed: adam}
"""
# An interpreter below the home of root is closed to others; this much more than an ordinary user such a test needs.
MAY_READ = "+dac_read_search"
SHARED_MEMORY = Path("/dev/shm")


class Ordinary:
    """A user whom the system does not list, with a folder of its own."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.temporary = folder, temporary

    def command(self, *words: str) -> list[str]:
        program = shutil.which("setpriv") or "setpriv"
        may = ["--inh-caps", MAY_READ, "--ambient-caps", MAY_READ]
        return [program, f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *may, sys.executable, *words]

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """`ich-ray`, in an environment with nothing but a PATH, and temporary files on another disk."""
        environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary), **environ}
        command = self.command("-c", "from ich_ray.cli import main; main()", *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, env=environment)


@pytest.fixture
def ordinary(tmp_path: Path) -> Iterator[Ordinary]:
    if os.geteuid():
        pytest.skip("only root can become another user")
    for above in [tmp_path, *tmp_path.parents[:2]]:  # pytest's own, closed to others
        above.chmod(0o755)
    temporary = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.exists() else None))
    user = Ordinary(tmp_path / "own", temporary)
    user.folder.mkdir()
    for folder in (user.folder, user.temporary):
        os.chown(folder, USER, USER)
    code = "import os, sys, ich_ray; sys.exit(os.access(os.path.dirname(ich_ray.__file__), os.W_OK))"
    tried = subprocess.run(user.command("-c", code), capture_output=True, text=True, check=False, cwd=user.folder)
    if tried.returncode:
        pytest.skip(f"no such user here, or it may write the installation: {tried.stderr[-200:]}")
    yield user
    shutil.rmtree(temporary)
    shutil.rmtree(f"/tmp/ich{USER}", ignore_errors=True)


def test_the_road_needs_neither_a_home_nor_an_installation_that_can_be_written(
    ordinary: Ordinary, tmp_path: Path
) -> None:
    write_phantom(tmp_path / "dicom", patients=40, seed=0, slices=4, size=64)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    images, labels = tmp_path / "dicom" / "stage_2_train", tmp_path / "dicom" / "stage_2_train.csv"
    road = ["run", str(images), "--labels", str(labels), "--space", str(tmp_path / "tiny.yaml"), "--out", "out"]
    sizes = ["--size", "32", "--trials", "2", "--confirm", "0", "--sequence", "0"]

    said = ordinary.run("doctor")
    assert "warning home      this: the home of its user must be writable" in said.stdout
    assert said.returncode == 0

    refused = ordinary.run(*road, *sizes)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("ich-ray: ")
    assert "ICH_RAY_KEY_FILE" in refused.stderr.splitlines()[-1]

    done = ordinary.run(*road, *sizes, ICH_RAY_KEY_FILE=str(ordinary.folder / "key"))
    assert done.returncode == 0, done.stderr
    assert "on test patients" in done.stdout
    bundle = ordinary.folder / "out" / "search" / "final" / "bundle"
    predicted = ordinary.run("predict", str(bundle), str(images), "--out", "table.csv")
    assert predicted.returncode == 0, predicted.stderr
    with (ordinary.folder / "table.csv").open() as file:
        assert len([*csv.DictReader(file)]) == len([*images.iterdir()])
    assert sorted(path.name for path in ordinary.folder.iterdir()) == ["identities", "key", "out", "table.csv"]


def test_a_folder_of_another_user_is_named_by_doctor_and_by_a_search(ordinary: Ordinary) -> None:
    theirs = Path(f"/tmp/ich{USER}")
    theirs.mkdir(mode=0o755)
    line = f"{theirs}: must be a folder of user {USER} alone, got a folder of user 0; let its owner, or root, remove it"
    found = ordinary.run("doctor")
    assert found.returncode == 1
    assert f"error   folder    {line}" in found.stdout.splitlines()
    code = "from ich_ray.runtime import connected\nwith connected():\n    pass"
    tried = subprocess.run(ordinary.command("-c", code), capture_output=True, text=True, check=False)
    assert tried.stderr.splitlines()[-1] == f"ich_ray.errors.ConfigError: {line}"


def test_a_search_from_a_folder_with_another_package_runs_the_one_that_is_installed(
    ordinary: Ordinary, tmp_path: Path
) -> None:
    """`shared/cases/worker_reads_cwd.py`: a whole second checkout, which says who reads it."""
    shutil.copytree(Path(ich_ray.__file__).parent, ordinary.folder / "ich_ray")
    first, mark = ordinary.folder / "ich_ray" / "__init__.py", "from __future__ import annotations\n"
    read = f"open({str(ordinary.folder / 'WHO')!r}, 'a').write('read\\n')\n"
    first.write_text(first.read_text().replace(mark, mark + read, 1))
    code = (
        "import sys; sys.path.remove('')\n"  # what the command `ich-ray` does not have
        "from ich_ray.runtime import connected\nfrom ich_ray.machines import ask_machines, on_node\n"
        "with connected(cpus=1):\n    ask_machines()\n"
    )
    done = subprocess.run(
        ordinary.command("-c", code), capture_output=True, text=True, check=False, cwd=ordinary.folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (ordinary.folder / "WHO").exists()


def has_mounts() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_mounts(), reason="needs mount namespaces")
def test_a_small_shared_memory_is_enough(tmp_path: Path) -> None:
    """What a container gets where nobody asks for more: 64 MB, where here 100 MB are sent to a worker."""
    (tmp_path / "send.py").write_text(
        "import numpy as np, ray\nfrom ich_ray.cluster.doctor import doctor\nfrom ich_ray.runtime import connected\n"
        "print([str(found) for found in doctor() if found.check == 'shm'])\n"
        "with connected(cpus=1):\n"
        "    print(ray.get(ray.remote(lambda sent: sent.sum()).remote(ray.put(np.ones(100_000_000, np.uint8)))))\n"
    )
    command = f"mount -t tmpfs -o size=64m none {SHARED_MEMORY} && exec {sys.executable} {tmp_path / 'send.py'}"
    shell = [shutil.which("unshare") or "unshare", "--mount", "sh", "-c", command]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    said, total = done.stdout.splitlines()
    assert "warning shm" in said
    assert "--shm-size" in said
    assert total == "100000000"

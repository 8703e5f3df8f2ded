"""Commands that the pages on clusters and the cluster files name are commands of ours and of Ray."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from ray.scripts import scripts

from ich_ray.search.cluster_resources import Machine, autoscaled
from tests.docs.blocks import blocks
from tests.docs.commands import problem
from tests.test_cluster_yaml import FILES, prepared

REPOSITORY = Path(__file__).parents[1]
PAGES = ("docs/clusters.md", "docs/slurm.md")
TEXTS = (*PAGES, *FILES, "clusters/kuberay.yaml", "clusters/slurm.sh")
PROGRAMS = r"(?:ray|ich-ray|sbatch|kubectl) "
# A line of a comment or of YAML, or what stands between backticks; all of them may be cut short by "...".
COMMAND = re.compile(rf"^#?\s{{3,}}({PROGRAMS}.*)$|`({PROGRAMS}[^`]+)`", re.MULTILINE)


def commands(name: str) -> list[list[str]]:
    if name in PAGES:
        lines = [line for block in blocks(name) for line in block.text.splitlines() if re.match(PROGRAMS, line)]
    else:
        text = re.sub(r"\\\n#?\s*", "", (REPOSITORY / name).read_text())
        lines = ["".join(found) for found in COMMAND.findall(text)]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_is_one_that_there_is(name: str) -> None:
    found = commands(name)
    assert found
    for program, *arguments in found:
        files = [word for word in arguments if word.startswith("clusters/") or word == "cluster.yaml"]
        assert [file for file in files if not (REPOSITORY / file).exists()] == []
        if program == "sbatch":
            submitted = arguments[arguments.index("clusters/slurm.sh") + 1 :]
            assert problem(["ich-ray", *submitted]) is None
        elif program != "kubectl":
            assert problem([program, *arguments]) is None


def test_a_flag_that_there_is_not_would_be_found() -> None:
    command = "ich-ray submit -- search data --space s --out o --hour 1"
    assert "--hour" in (problem(command.split()) or "")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_node_is_started_by_flags_that_ray_knows(name: str, kind: str) -> None:
    config = prepared(name)
    (flags,) = re.findall(r"bin/ray start (.*)$", "\n".join(config[f"{kind}_start_ray_commands"]), re.MULTILINE)
    given = scripts.start.make_context("start", shlex.split(flags)).params
    assert given["head"] is (kind == "head")


@pytest.mark.parametrize("file", ["cluster.yaml", "gcp.yaml", "azure.yaml", "onprem.yaml", "kuberay.yaml", "slurm.sh"])
def test_the_page_knows_every_file(file: str) -> None:
    assert file in (REPOSITORY / "docs/clusters.md").read_text()


@pytest.mark.parametrize(("name", "cpus"), [("cluster.yaml", 8), ("clusters/gcp.yaml", 8), ("clusters/azure.yaml", 24)])
def test_a_search_reads_in_the_file_how_many_machines_may_come(name: str, cpus: int) -> None:
    assert autoscaled(prepared(name), workers=0) == [
        Machine("gpu_spot", cpus, 1, 8),
        Machine("gpu_on_demand", cpus, 1, 2),
        Machine("cpu_spot", 32, 0, 4),
    ]

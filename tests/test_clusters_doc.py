"""Commands that docs/clusters.md, the README and the cluster files name are commands of ours and of Ray."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main
from ray.scripts import scripts
from typer.exceptions import TyperException

from ich_ray import cli
from ich_ray.search.cluster_resources import Machine, autoscaled
from tests.test_cluster_yaml import FILES, prepared

REPOSITORY = Path(__file__).parents[1]
TEXTS = ("docs/clusters.md", "README.md", *FILES, "clusters/kuberay.yaml", "clusters/slurm.sh")
# A line of a code block or of a comment, or what stands between backticks; all of them may be cut short by "...".
COMMAND = re.compile(
    r"^(?:#?\s{3,})((?:ray|ich-ray|sbatch|kubectl) .*)$|`((?:ray|ich-ray|sbatch|kubectl) [^`]+)`", re.MULTILINE
)


def commands(name: str) -> list[list[str]]:
    text = re.sub(r"\\\n#?\s*", "", (REPOSITORY / name).read_text())
    if name == "README.md":
        text = text[text.index("## A cluster") : text.index("## From Python")]
    if name.endswith(".md"):
        text = re.sub(r"^(?=ray |ich-ray |sbatch |kubectl )", "    ", text, flags=re.MULTILINE)
    return [shlex.split("".join(found).replace("`ray\n", ""), comments=True) for found in COMMAND.findall(text)]


def group(program: str) -> click.Group:
    return scripts.cli if program == "ray" else typer.main.get_group(cli.app)  # type: ignore[return-value]


def check(program: str, verb: str, *arguments: str) -> None:
    """Read a command as the program does; one without arguments, or that is cut short, only has a verb to be known."""
    command = group(program).commands[verb]
    if "--" in arguments:
        check(program, *arguments[arguments.index("--") + 1 :])
    elif arguments and "..." not in arguments:
        command.make_context(verb, list(arguments))


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_is_one_that_there_is(name: str) -> None:
    found = commands(name)
    assert found
    for program, *arguments in found:
        files = [word for word in arguments if word.startswith("clusters/") or word == "cluster.yaml"]
        assert [file for file in files if not (REPOSITORY / file).exists()] == []
        if program == "sbatch":
            verb, *rest = arguments[arguments.index("clusters/slurm.sh") + 1 :]
            if verb != "...":
                check("ich-ray", verb, *rest)
        elif program != "kubectl":
            check(program, *arguments)


def test_a_flag_that_there_is_not_would_be_found() -> None:
    with pytest.raises(TyperException, match="--hour"):
        check("ich-ray", "submit", "--", "search", "data", "--space", "s", "--out", "o", "--hour", "1")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_node_is_started_by_flags_that_ray_knows(name: str, kind: str) -> None:
    config = prepared(name)
    (flags,) = re.findall(r"bin/ray start (.*)$", "\n".join(config[f"{kind}_start_ray_commands"]), re.MULTILINE)
    given = scripts.start.make_context("start", shlex.split(flags)).params
    assert given["head"] is (kind == "head")


@pytest.mark.parametrize("file", ["gcp.yaml", "azure.yaml", "onprem.yaml", "kuberay.yaml", "slurm.sh"])
def test_the_page_and_the_readme_know_every_file(file: str) -> None:
    for name in ("docs/clusters.md", "README.md"):
        assert file in (REPOSITORY / name).read_text()


@pytest.mark.parametrize(("name", "cpus"), [("cluster.yaml", 8), ("clusters/gcp.yaml", 8), ("clusters/azure.yaml", 24)])
def test_a_search_reads_in_the_file_how_many_machines_may_come(name: str, cpus: int) -> None:
    assert autoscaled(prepared(name), workers=0) == [
        Machine("gpu_spot", cpus, 1, 8),
        Machine("gpu_on_demand", cpus, 1, 2),
        Machine("cpu_spot", 32, 0, 4),
    ]

"""clusters/kuberay.yaml by its structure: what KubeRay would only tell when it is too late."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml
from ray.scripts import scripts

from ich_ray import cli
from ich_ray.cluster.secrets import find_secrets
from tests.data.real import kuberay_schema

FILE = Path(__file__).parents[1] / "clusters" / "kuberay.yaml"
SPEC: dict[str, Any] = yaml.safe_load(FILE.read_text())["spec"]
CLUSTER: dict[str, Any] = SPEC["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]


def test_the_command_is_one_of_ours_and_goes_on_where_it_was() -> None:
    program, verb, *arguments = shlex.split(SPEC["entrypoint"])
    assert program == "ich-ray"
    command = typer.main.get_group(cli.app).commands[verb]
    given = command.make_context(verb, arguments).params
    assert given["resume"] is True
    assert all(str(given[place]).startswith("/mnt/ich_ray/") for place in ("dataset", "space", "out"))
    assert SPEC["backoffLimit"] == 3
    # A search cannot see what KubeRay may start.
    (group,) = CLUSTER["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert given["concurrent"] == group["maxReplicas"]
    assert given["gpus_per_trial"] == int(limits["nvidia.com/gpu"])


def test_nothing_is_left_running_and_workers_start_from_zero() -> None:
    assert SPEC["shutdownAfterJobFinishes"] is True
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [(group["replicas"], group["minReplicas"]) for group in CLUSTER["workerGroupSpecs"]] == [(0, 0)]


def test_the_token_is_demanded_and_nothing_is_open_to_the_world() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert find_secrets(FILE.read_text()) == []


@pytest.mark.parametrize("group", GROUPS, ids=["head", "worker"])
def test_every_pod_has_the_shared_folder_and_room_for_objects(group: dict[str, Any]) -> None:
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/mnt/ich_ray", "/dev/shm"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_its_ray_is_ours() -> None:
    constraints = (FILE.parents[1] / "constraints.txt").read_text().splitlines()
    assert f"ray=={CLUSTER['rayVersion']}" in constraints
    assert f"ray:{CLUSTER['rayVersion']}-" in FILE.read_text()


def test_kuberay_takes_it_and_would_refuse_a_misspelt_key() -> None:
    takes = jsonschema.Draft202012Validator(kuberay_schema())  # of a schema that needs no check, which takes 20 s
    job = yaml.safe_load(FILE.read_text())
    assert [error.message for error in takes.iter_errors(job)] == []
    misspelt = copy.deepcopy(job)
    misspelt["spec"]["shutdownAfterJobFinish"] = True
    (error,) = takes.iter_errors(misspelt)
    assert "shutdownAfterJobFinish" in error.message


def test_a_pod_that_must_go_drains_its_node_and_waits_within_its_grace() -> None:
    (group,) = CLUSTER["workerGroupSpecs"]
    pod = group["template"]["spec"]
    shell, option, command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("bash", "-c")
    ray, verb, *flags = shlex.split(command.partition(";")[0])
    given = scripts.drain_node.make_context(verb, flags).params
    assert (ray, verb) == ("ray", "drain-node")
    assert (given["reason"], given["node_id"]) == ("DRAIN_NODE_REASON_PREEMPTION", None)  # this node
    (waits,) = re.findall(r"\{1\.\.(\d+)\}", command)
    assert int(waits) == given["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"]

"""Each interface that Ray keeps to itself is there in the installed Ray, with what this package needs of it.

The client of a head is tried on a head that is there, in test_runtime.py.
"""

from __future__ import annotations

import inspect
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from ray._private import node, services
from ray.job_config import JobConfig
from ray.tune.experiment import Trial

from ich_ray import ray_internals

REPOSITORY = Path(__file__).parents[1]


def test_the_installed_ray_is_of_the_minor_version_that_is_asked_for() -> None:
    assert '"ray[data,default,train,tune]>=2.60,<2.61"' in (REPOSITORY / "pyproject.toml").read_text()
    assert version("ray").startswith("2.60.")


@pytest.mark.parametrize(
    ("function", "needed"),
    [
        (ray_internals.worker.print_to_stdstream, ["data", "ignore_prefix"]),  # replaced by one of ours
        (ray_internals.get_dashboard_url, []),
        (ray_internals.get_cluster_status, ["gcs_address"]),
        (ray_internals.is_autoscaler_v2, ["fetch_from_server"]),
        (ray_internals.internal_kv_get, ["key"]),
    ],
)
def test_a_function_takes_what_it_is_given(function: object, needed: list[str]) -> None:
    assert callable(function)
    assert {*needed} <= {*inspect.signature(function).parameters}


def test_the_status_of_the_autoscaler_has_a_key() -> None:
    assert ray_internals.DEBUG_AUTOSCALING_STATUS == "__autoscaling_status"


def test_the_worker_knows_its_node_and_its_cluster() -> None:
    worker = ray_internals.worker.global_worker
    assert worker.node is None, "no Ray is connected in this process"
    assert isinstance(type(worker).current_cluster_and_job, property)


def test_a_worker_knows_the_files_of_its_output() -> None:
    """test_run.py reads those of a worker; this process is none."""
    for method in (ray_internals.worker.Worker.get_out_file_path, ray_internals.worker.Worker.get_err_file_path):
        assert [*inspect.signature(method).parameters] == ["self"]
    assert ray_internals.output_files() == []


FOLDERS = ["/script", "/python_path", "/v/lib/python3.11/site-packages/ray/thirdparty_files"]
LIBRARY = [
    "/p/lib/python311.zip",
    "/p/lib/python3.11",
    "/p/lib/python3.11/lib-dynload",
    "/v/lib/python3.11/site-packages",
]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ([*FOLDERS, *LIBRARY], ["/python_path", "/script"]),
        ([*LIBRARY, "/checkout"], []),  # an editable installation: a worker's own path has it, too
        (["", *LIBRARY], ["HERE"]),  # a notebook
        (["/p/lib", *LIBRARY], ["/p/lib"]),
    ],
)
def test_workers_look_first_where_this_process_looks_before_what_is_installed(
    path: list[str], sent: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts each folder in front of those before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: "/p/lib/python3.11")
    monkeypatch.setattr(sys, "path", path)
    job = ray_internals.DriverPathJob()
    assert job._py_driver_sys_path == [str(tmp_path) if folder == "HERE" else folder for folder in sent]


def test_ray_asks_a_job_before_it_adds_the_working_directory() -> None:
    """If it asked otherwise, workers would look there first again; test_runtime.py looks at a worker."""
    assert "_runtime_env_has_working_dir" in vars(JobConfig)
    assert "job_config._runtime_env_has_working_dir()" in inspect.getsource(ray_internals.worker.connect)


def test_a_trial_that_has_ended_is_forgotten_by_tune() -> None:
    trial = Trial("search", config={"number": 3}, stub=True)
    trial._default_result_or_future = {"first": "answer"}
    for held in (trial.metric_analysis, trial.metric_n_steps, trial.last_result, trial.evaluated_params):
        held["something"] = 1
    ray_internals.forget(trial)
    assert trial._default_result_or_future is None
    assert (trial.metric_analysis, trial.metric_n_steps, trial.evaluated_params) == ({}, {}, {})
    assert {*trial.last_result} <= {"trial_id"}
    assert trial.config == {"number": 3}


def test_a_ray_that_starts_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ray._private.services.get_node(" in inspect.getsource(node.Node.__init__), "asked through its module"
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), {"node_id": "a"}])

    def get_node(*arguments: str) -> Any:
        assert arguments == ("head", "a")
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    with ray_internals.started_within(60):
        assert services.get_node("head", "a") == {"node_id": "a"}  # type: ignore[no-untyped-call]
    assert services.get_node is get_node
    answers = iter([RuntimeError("the last word\nand a stack")])
    with ray_internals.started_within(-1), pytest.raises(TimeoutError, match=r"^the last word$"):
        services.get_node("head", "a")  # type: ignore[no-untyped-call]

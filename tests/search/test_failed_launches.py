"""Machines that an autoscaler could not start, told in the words of both versions of the installed Ray."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError
from ray.autoscaler.v2.schema import Stats
from ray.autoscaler.v2.utils import ClusterStatusParser
from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
    AutoscalingState,
    FailedInstanceRequest,
    GetClusterStatusReply,
)

from ich_ray.search import cluster_resources
from ich_ray.search.cluster_resources import failed_launches

QUOTA = "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket"
REQUEST = "01234567-89ab-cdef-0123-456789abcdef"


def report(monkeypatch: pytest.MonkeyPatch, failed: dict[str, NodeLaunchException | None], at: float) -> None:
    """What the monitor of the first version leaves in Ray's store."""
    tracker = NodeProviderAvailabilityTracker(timer=lambda: at)
    for kind, why in failed.items():
        tracker.update_node_availability(kind, int(at), why)
    summary = AutoscalerSummary({"head": 1}, {}, [], {}, [], node_availability_summary=tracker.summary())
    status = json.dumps({"time": at, "autoscaler_report": asdict(summary)}).encode()
    monkeypatch.setattr(cluster_resources, "is_autoscaler_v2", lambda fetch_from_server: False)
    monkeypatch.setattr(cluster_resources, "internal_kv_get", lambda _: status)


def answer(monkeypatch: pytest.MonkeyPatch, *failed: tuple[str, str, float]) -> None:
    """What the head tells of the second version."""
    requests = [
        FailedInstanceRequest(
            instance_type_name="g5", ray_node_type_name=kind, count=1, reason=why, start_ts=int(at), failed_ts=int(at)
        )
        for kind, why, at in failed
    ]
    reply = GetClusterStatusReply(autoscaling_state=AutoscalingState(failed_instance_requests=requests))
    status = ClusterStatusParser.from_get_cluster_status_reply(
        GetClusterStatusReply.FromString(reply.SerializeToString()), Stats()
    )
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(cluster_resources, "is_autoscaler_v2", lambda fetch_from_server: True)
    monkeypatch.setattr(cluster_resources, "get_cluster_status", lambda _, timeout: status)
    monkeypatch.setattr(cluster_resources.ray, "get_runtime_context", lambda: context)


def told() -> list[tuple[str, str]]:
    return [(one.kind, one.reason) for one in failed_launches()]


def test_the_first_version_says_what_its_cloud_said(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {
        "gpu_worker": NodeLaunchException("VcpuLimitExceeded", f"{QUOTA}\n\x1b[2J", None),
        "cpu_worker": None,
        "other": NodeLaunchException(
            "UnauthorizedOperation", f"arn:aws:iam::123456789012:user/x may not. Message: {'q' * 900}", None
        ),
    }
    report(monkeypatch, failed, time.time() - 60)
    assert told() == [
        ("gpu_worker", f"VcpuLimitExceeded: {QUOTA} \\x1b[2J"),
        ("other", "UnauthorizedOperation: arn:… may not. Message: …"),
    ]
    assert abs(failed_launches()[0].time - time.time() + 60) < 30


def test_the_second_version_says_it_where_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    of_cloud = LaunchNodeError("gpu_worker", 1, REQUEST, 0)  # the cloud's word is its cause, of which nothing is told
    of_kuberay = LaunchNodeError("pods", 2, REQUEST, 0, details="quota exceeded")
    answer(
        monkeypatch,
        ("gpu_worker", "launch failed with something older", now - 120),
        ("gpu_worker", f"launch failed with {of_cloud}", now - 60),
        ("pods", f"launch failed with {of_kuberay}", now - 60),
        ("of_yesterday", "launch failed with no capacity", now - 86_400),
        ("silent", "", now - 30),
        ("k" * 20_000, "", now - 20),
    )
    assert told() == [
        ("gpu_worker", "Failed to launch 1 nodes of type gpu_worker"),
        ("pods", "Failed to launch 2 nodes of type pods: quota exceeded"),
        ("silent", "no reason was given"),
        ("k" * 100, "no reason was given"),
    ]


def test_without_an_autoscaler_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch)
    assert told() == []
    monkeypatch.setattr(cluster_resources, "is_autoscaler_v2", lambda fetch_from_server: False)
    kept: Any
    for kept in (None, b"", b"{}", b"[]", b"{", b'{"autoscaler_report": {"node_availability_summary": 3}}'):
        monkeypatch.setattr(cluster_resources, "internal_kv_get", lambda _, kept=kept: kept)
        assert told() == []


def test_a_head_that_does_not_answer_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(fetch_from_server: bool) -> bool:
        raise ConnectionError("no answer")

    monkeypatch.setattr(cluster_resources, "is_autoscaler_v2", silent)
    assert told() == []

"""cluster.yaml through the AWS provider of Ray, against a stand-in of AWS in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

moto = pytest.importorskip("moto")
boto3 = pytest.importorskip("boto3")

pytestmark = pytest.mark.slow

FILE = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture(scope="module")
def bootstrapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The file, its image filled in, as `ray up` sends it to the head."""
    tmp_path, monkeypatch = tmp_path_factory.mktemp("home"), pytest.MonkeyPatch()
    monkeypatch.setenv("HOME", str(tmp_path))  # the key pair goes to ~/.ssh
    (tmp_path / ".ssh").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    from ray.autoscaler._private.aws import config as provider
    from ray.autoscaler._private.aws import utils

    monkeypatch.setattr(provider.time, "sleep", lambda _: None)  # it waits for AWS to spread a new role
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        utils.resource_cache.cache_clear()
        config = yaml.safe_load(FILE.read_text())
        image = boto3.client("ec2", config["provider"]["region"]).describe_images()["Images"][0]["ImageId"]
        text = FILE.read_text().replace("ami-REPLACE-WITH-A-GPU-DRIVER-IMAGE-OF-YOUR-REGION", image)
        prepared = prepare_config(yaml.safe_load(text))
        validate_config(prepared)
        yield provider.bootstrap_aws(prepared)
        utils.resource_cache.cache_clear()
    monkeypatch.undo()


def test_aws_accepts_every_node_type(bootstrapped: dict[str, Any]) -> None:
    ec2 = boto3.client("ec2", bootstrapped["provider"]["region"])
    kinds = bootstrapped["available_node_types"]
    assert set(kinds) == {"head", "gpu_spot", "gpu_on_demand", "cpu_spot"}
    for kind in kinds.values():
        node = dict(kind["node_config"])
        subnets = node.pop("SubnetIds")
        # As Ray's provider starts them: one at a time, in the first of its subnets.
        made = ec2.run_instances(MinCount=1, MaxCount=1, SubnetId=subnets[0], **node)["Instances"][0]
        assert made["InstanceType"] == node["InstanceType"]
        told = ec2.describe_instance_types(InstanceTypes=[node["InstanceType"]])["InstanceTypes"][0]
        assert told["VCpuInfo"]["DefaultVCpus"] >= kind["resources"]["CPU"]
        gpus = sum(gpu["Count"] for gpu in told.get("GpuInfo", {}).get("Gpus", []))
        assert gpus == kind["resources"]["GPU"]


def test_only_ssh_is_open_to_the_world(bootstrapped: dict[str, Any]) -> None:
    ec2 = boto3.client("ec2", bootstrapped["provider"]["region"])
    groups = {
        group
        for kind in bootstrapped["available_node_types"].values()
        for group in kind["node_config"]["SecurityGroupIds"]
    }
    (found,) = ec2.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
    world = [rule for rule in found["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in world] == [(22, 22)]
    inside = [rule for rule in found["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert {pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]} == groups


def test_only_the_head_may_start_machines(bootstrapped: dict[str, Any]) -> None:
    assert bootstrapped["head_node"]["IamInstanceProfile"]["Arn"].endswith("/ray-autoscaler-v1")
    kinds = bootstrapped["available_node_types"].values()
    assert [kind for kind in kinds if "IamInstanceProfile" in kind["node_config"]] == []


def test_the_key_is_private(bootstrapped: dict[str, Any]) -> None:
    key = Path(bootstrapped["auth"]["ssh_private_key"])
    assert key.is_relative_to(Path.home())
    assert key.stat().st_mode & 0o777 == 0o600

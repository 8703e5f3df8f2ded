"""The cluster files pass Ray's own validation, without a cloud, and are safe by default."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[1]
CLOUDS = ("cluster.yaml", "clusters/gcp.yaml", "clusters/azure.yaml")
FILES = (*CLOUDS, "clusters/onprem.yaml")
RAY = Path(ray.autoscaler.__file__).parent


def prepared(name: str) -> dict[str, Any]:
    """The file as `ray up` sees it, Ray's defaults filled in."""
    config: dict[str, Any] = prepare_config(yaml.safe_load((REPOSITORY / name).read_text()))
    return config


def starts(config: dict[str, Any], kind: str) -> str:
    found = [line for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    validate_config(prepared(name))


def test_ray_would_refuse_a_misspelt_key() -> None:
    config = prepared("cluster.yaml")
    config["idle_timeout_minuets"] = 10
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate_config(config)


@pytest.mark.parametrize("name", FILES)
def test_the_dashboard_listens_on_localhost_only(name: str) -> None:
    assert "--dashboard-host=127.0.0.1" in starts(prepared(name), "head")
    assert "0.0.0.0" not in (REPOSITORY / name).read_text()  # noqa: S104


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_node_demands_the_token(name: str, kind: str) -> None:
    config = prepared(name)
    # In the same command, before `ray start`: each command gets a shell of its own.
    assert re.search(r"RAY_AUTH_MODE=token \S*/bin/ray start", starts(config, kind))
    mounted = "~/.ray/auth_token"
    assert config["file_mounts"][mounted] == mounted
    setup = config[f"{kind}_setup_commands"]
    assert any("test -s ~/.ray/auth_token" in line and "chmod 600 ~/.ray/auth_token" in line for line in setup)


@pytest.mark.parametrize("name", FILES)
def test_login_shells_find_this_ray_and_its_token(name: str, tmp_path: Path) -> None:
    """`ray down` says `ray stop` to one."""
    (line,) = (line for line in prepared(name)["setup_commands"] if ".profile" in line)
    for _ in range(2):  # `ray up` a second time
        subprocess.run(["bash", "-c", line], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=True)  # noqa: S607
    (profile,) = (tmp_path / ".profile").read_text().splitlines()
    home = "$HOME" if name == "clusters/onprem.yaml" else "/home/ubuntu"  # machines of your own have users of yours
    assert profile == f"export PATH={home}/ich_ray_env/bin:$PATH RAY_AUTH_MODE=token"


@pytest.mark.parametrize("name", FILES)
def test_it_holds_no_secret(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert not re.findall(r"[0-9a-f]{32,}|AKIA[0-9A-Z]{16}|PRIVATE KEY|RAY_AUTH_TOKEN\s*=", text)


@pytest.mark.parametrize("name", FILES)
def test_ray_is_called_by_its_full_path(name: str) -> None:
    config = prepared(name)
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert re.search(r"(/home/ubuntu|\$HOME)/ich_ray_env/bin/ray (start|stop)", line), line


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_from_here_is_here(name: str) -> None:
    sources = [source for source in prepared(name)["file_mounts"].values() if not source.startswith("~")]
    assert "ich_ray" in sources
    assert "pyproject.toml" in sources
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_has_no_work_and_workers_start_from_zero(name: str) -> None:
    config = prepared(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert {name: kind["min_workers"] for name, kind in types.items()} == {
        "gpu_spot": 0,
        "gpu_on_demand": 0,
        "cpu_spot": 0,
    }
    assert config["idle_timeout_minutes"] <= 15
    assert config["max_workers"] == sum(kind["max_workers"] for kind in types.values())
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("cluster.yaml", r"[cmrt]\d\S*"),
        ("clusters/gcp.yaml", r"[en]2-standard-\d+"),
        ("clusters/azure.yaml", r"Standard_D\d+s_v5"),
    ],
)
def test_the_head_is_a_machine_without_a_gpu(name: str, machine: str) -> None:
    config = prepared(name)
    node = config["available_node_types"][config["head_node_type"]]["node_config"]
    told = node | node.get("azure_arm_parameters", {})
    (chosen,) = (told[key] for key in ("InstanceType", "machineType", "vmSize") if key in told)
    assert re.fullmatch(machine, chosen)


def is_spot(kind: dict[str, Any]) -> bool:
    """Whether it may vanish; nothing that costs money is left of it then."""
    node = kind["node_config"]
    arm = node.get("azure_arm_parameters", {})
    google = {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE", "onHostMaintenance": "TERMINATE"}
    return (
        node.get("InstanceMarketOptions") == {"MarketType": "spot"}
        or node.get("scheduling") == google
        or (arm.get("priority"), arm.get("evictionPolicy")) == ("Spot", "Delete")
    )


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_first_and_gpus_on_demand_second(name: str) -> None:
    types = prepared(name)["available_node_types"]
    assert {key for key, kind in types.items() if is_spot(kind)} == {"gpu_spot", "cpu_spot"}
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["priority"] > on_demand["priority"]
    assert spot["resources"] == on_demand["resources"]
    assert spot["resources"]["GPU"] == 1
    assert types["cpu_spot"]["resources"]["GPU"] == 0


def fstab(name: str) -> str:
    """The entry of the shared folder, as the set-up writes it."""
    (line,) = (line for line in prepared(name)["setup_commands"] if "/etc/fstab" in line)
    (entry,) = re.findall(r"echo '(.*)'", line)
    return str(entry)


@pytest.mark.parametrize("name", CLOUDS)
def test_every_node_mounts_the_shared_folder(name: str) -> None:
    """The head and workers; hard, so that a pause of its server is no error of a trial."""
    _, folder, kind, options, dump, check = fstab(name).split()
    assert (folder, dump, check) == ("/mnt/ich_ray", "0", "0")
    assert kind in {"nfs", "nfs4"}
    assert {"hard", "_netdev"} <= set(options.split(","))
    lines = prepared(name)["setup_commands"]
    mounting = next(number for number, line in enumerate(lines) if "sudo mount /mnt/ich_ray" in line)
    assert next(number for number, line in enumerate(lines) if "nfs-common" in line) < mounting


def test_the_file_system_of_aws_is_of_the_same_region() -> None:
    region = prepared("cluster.yaml")["provider"]["region"]
    assert fstab("cluster.yaml").split()[0].endswith(f".efs.{region}.amazonaws.com:/")


def test_the_zone_of_google_is_named_once() -> None:
    config = prepared("clusters/gcp.yaml")
    zone = config["provider"]["availability_zone"]
    assert zone.startswith(config["provider"]["region"])
    for kind in config["available_node_types"].values():
        (disk,) = kind["node_config"]["disks"]
        assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"
        assert (disk["boot"], disk["autoDelete"]) == (True, True)


def test_azure_is_told_what_the_template_of_its_machines_knows() -> None:
    """Ray fills it in on the head; a parameter that it does not have ends as a failed deployment there."""
    template = json.loads((RAY / "_private/_azure/azure-vm-template.json").read_text())["parameters"]
    ours = {"adminUsername", "publicKey", "vmName", "vmTags", "vmCount", "msi", "nsg", "subnet"}  # by Ray
    config = prepared("clusters/azure.yaml")
    for kind in config["available_node_types"].values():
        told = dict(kind["node_config"]["azure_arm_parameters"])
        told.pop("availability_zone", None)
        assert set(told) <= set(template) - ours
        kinds = {"string": str, "int": int, "object": dict}
        assert all(isinstance(value, kinds[template[key]["type"]]) for key, value in told.items())
        needed = {key for key, of in template.items() if "defaultValue" not in of} - ours
        assert needed <= set(told)


def test_the_security_group_of_azure_lets_in_ssh_alone() -> None:
    template = json.loads((RAY / "_private/_azure/azure-config-template.json").read_text())
    (group,) = (made for made in template["resources"] if made["type"] == "Microsoft.Network/networkSecurityGroups")
    (rule,) = group["properties"]["securityRules"]
    assert (rule["properties"]["direction"], rule["properties"]["destinationPortRange"]) == ("Inbound", "22")


def test_the_packages_of_azure_are_those_that_this_ray_names() -> None:
    defaults = yaml.safe_load((RAY / "azure/defaults.yaml").read_text())
    (theirs,) = defaults["head_setup_commands"]
    (ours,) = yaml.safe_load((REPOSITORY / "clusters/azure.yaml").read_text())["head_setup_commands"]
    assert re.findall(r"\S+==\S+", ours) == re.findall(r"\S+==\S+", theirs)
    assert len(re.findall(r"\S+==\S+", ours)) == 8


@pytest.mark.parametrize(
    ("name", "marks"),
    [
        ("cluster.yaml", {"ami-REPLACE-WITH-A-GPU-DRIVER-IMAGE-OF-YOUR-REGION", "fs-REPLACE-WITH-YOUR-EFS-ID"}),
        ("clusters/gcp.yaml", {"REPLACE-WITH-YOUR-PROJECT", "REPLACE-WITH-THE-ADDRESS-OF-YOUR-FILESTORE"}),
        ("clusters/azure.yaml", {"REPLACE-WITH-YOUR-ACCOUNT"}),
        (
            "clusters/onprem.yaml",
            {"HEAD-ADDRESS-TO-REPLACE", "FIRST-WORKER-ADDRESS-TO-REPLACE", "SECOND-WORKER-ADDRESS-TO-REPLACE"},
        ),
        ("clusters/kuberay.yaml", {"REPLACE-WITH-YOUR-IMAGE", "REPLACE-WITH-A-READ-WRITE-MANY-CLAIM"}),
        ("clusters/slurm.sh", {"REPLACE-WITH-A-PARTITION-OF-GPUS"}),
    ],
)
def test_what_a_user_must_fill_in_says_so(name: str, marks: set[str]) -> None:
    text = (REPOSITORY / name).read_text()
    assert set(re.findall(r"(?:ami-|fs-)?REPLACE-WITH-[A-Z-]+[A-Z]|[A-Z-]+-TO-REPLACE", text)) == marks


def test_the_top_folder_has_one_cluster_file() -> None:
    assert {path.name for path in REPOSITORY.glob("*.yaml")} == {"cluster.yaml"}
    assert {path.name for path in (REPOSITORY / "clusters").iterdir()} == {
        "azure.yaml",
        "gcp.yaml",
        "kuberay.yaml",
        "onprem.yaml",
        "slurm.sh",
    }

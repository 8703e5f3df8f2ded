"""The cluster files pass Ray's own validation, without a cloud, and are safe by default."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[1]
FILES = ("cluster.yaml", "clusters/onprem.yaml")


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


def test_the_head_has_no_gpu_and_workers_start_from_zero() -> None:
    config = prepared("cluster.yaml")
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert re.match(r"[cmrt]\d", head["node_config"]["InstanceType"])
    assert {name: kind["min_workers"] for name, kind in types.items()} == {
        "gpu_spot": 0,
        "gpu_on_demand": 0,
        "cpu_spot": 0,
    }
    assert config["idle_timeout_minutes"] <= 15
    assert config["max_workers"] == sum(kind["max_workers"] for kind in types.values())


def test_gpu_workers_are_spot_first_and_on_demand_second() -> None:
    types = prepared("cluster.yaml")["available_node_types"]
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert spot["priority"] > on_demand["priority"]
    assert spot["resources"]["GPU"] == on_demand["resources"]["GPU"] == 1


def test_every_node_mounts_the_shared_folder_of_the_same_region() -> None:
    config = prepared("cluster.yaml")
    for kind in ("head", "worker"):
        mount = next(line for line in config[f"{kind}_setup_commands"] if "efs" in line)
        assert f".efs.{config['provider']['region']}.amazonaws.com:/ /mnt/ich_ray nfs4 " in mount


def test_what_a_user_must_fill_in_says_so() -> None:
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert "ami-REPLACE-WITH-" in text
    assert "fs-REPLACE-WITH-" in text

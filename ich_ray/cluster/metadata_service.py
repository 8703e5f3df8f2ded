"""Whether a machine of a cloud is told that it will be taken away: its metadata service, asked once.

Which cloud is read from the firmware's tables first; a machine of none is asked nothing.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ich_ray.errors import first_line

__all__ = ["Metadata", "ask_metadata"]

_DMI = Path("/sys/class/dmi/id")
_SERVICE = "http://169.254.169.254"
_ANSWER_WITHIN_S = 2.0


class _Cloud(NamedTuple):
    """How to know a machine of a cloud, and what its service answers."""

    name: str
    table: str
    begins: str
    method: str
    path: str
    headers: dict[str, str]


_CLOUDS = (
    _Cloud(
        "AWS", "sys_vendor", "Amazon EC2", "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    ),
    _Cloud(
        "Google Cloud", "product_name", "Google Compute Engine", "GET", "/computeMetadata/v1/instance/preempted",
        {"Metadata-Flavor": "Google"},
    ),
    _Cloud(
        "Azure", "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "GET",
        "/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"},
    ),
)  # fmt: skip


class Metadata(NamedTuple):
    """The cloud of this machine, empty if none, and why its service is not heard, empty if it is."""

    cloud: str = ""
    problem: str = ""


def ask_metadata(dmi: Path | None = None, service: str | None = None) -> Metadata:
    """Whether the service answers; no proxy is asked, and nothing where no cloud is told.

    Args:
        dmi: folder of the firmware's tables.
        service: its address, to be a stand-in's.
    """
    cloud = next((cloud for cloud in _CLOUDS if _table(dmi or _DMI, cloud.table).startswith(cloud.begins)), None)
    if cloud is None:
        return Metadata()
    connection = http.client.HTTPConnection(urlsplit(service or _SERVICE).netloc, timeout=_ANSWER_WITHIN_S)
    try:
        connection.request(cloud.method, cloud.path, headers=cloud.headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return Metadata(cloud.name, first_line(error))
    finally:
        connection.close()
    return Metadata(cloud.name, "" if status == http.client.OK else f"HTTP status {status}")


def _table(dmi: Path, name: str) -> str:
    try:
        return (dmi / name).read_text(errors="replace").strip()
    except OSError:  # not there, or for root alone
        return ""

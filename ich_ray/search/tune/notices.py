"""Notices of clouds that this machine will be taken away, from their metadata services.

Knows what AWS, Google Cloud and Azure answer, and how often they may be asked; what is done with a notice is
preemption.py's. Off a machine of these clouds nothing is asked.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NO_ANSWER", "MetadataService", "Notice", "follow", "service_of"]

# `off`, or `CLOUD=http://ADDRESS` in place of what the machine says of itself.
SETTING = "ICH_RAY_METADATA_SERVICE"
_LINK_LOCAL = "http://169.254.169.254"
# Between two requests of a machine, as the clouds advise.
_EVERY_S = 5.0
_ANSWER_WITHIN_S = 3.0
# Azure turns its events on at the first request for them.
_AZURE_ANSWERS_WITHIN_S = 130.0
_LARGEST_BYTES = 1 << 16
_TOKEN_S = 21600
# A recommendation is asked for in the place of each such request for an order.
_RECOMMENDED_EACH = 12
# What Google gives a machine from its notice on, and what Azure gives at least.
_GRACE_S = 30.0
# Besides a refused or silent connection: what is no HTTP, or no answer of the form that the cloud documents.
NO_ANSWER = (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError)
_AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"  # the asset tag of its machines, which Hyper-V elsewhere has not


@dataclass(frozen=True)
class Notice:
    """What a cloud says of this machine.

    Attributes:
        detail: in a few words.
        deadline: when it is taken away at the earliest, in seconds since 1970; None where it may well stay or come
            back, as after a recommendation.
    """

    detail: str
    deadline: float | None


class MetadataService(Protocol):
    """Of one cloud, by name."""

    name: ClassVar[str]

    def ask(self) -> Notice | None:
        """Make one request; None where it brought no notice.

        Raises:
            OSError: there is no such service, or it does not answer now.
            HTTPException, ValueError, LookupError, TypeError, AttributeError: it answers with something else.
        """


def service_of(
    environ: Mapping[str, str] = os.environ, dmi: Path = Path("/sys/class/dmi/id")
) -> MetadataService | None:
    """The service of the cloud that this machine belongs to; None elsewhere.

    Args:
        environ: where ICH_RAY_METADATA_SERVICE may stand.
        dmi: what the firmware says of the machine.

    Raises:
        ConfigError: the variable is not right.
    """
    given = environ.get(SETTING)
    if given == "off":
        return None
    if given:
        cloud, _, url = given.partition("=")
        if cloud not in _CLOUDS or not url.startswith("http://"):
            raise ConfigError(
                f"{SETTING}: must be off or CLOUD=http://ADDRESS with one of {', '.join(_CLOUDS)}, got {given[:80]!r}; "
                "leave it out where a machine knows its cloud"
            )
        return _CLOUDS[cloud](url.rstrip("/"))
    found = _cloud_of(dmi)
    return _CLOUDS[found](_LINK_LOCAL) if found else None


def follow(
    service: MetadataService, tell: Callable[[Notice], bool], wait: Callable[[float], object] = time.sleep
) -> None:
    """Ask until a notice has been acted on; at once no more where there is no service.

    Args:
        service: of this machine's cloud.
        tell: given each notice; whether nothing more need be known.
        wait: between two requests.
    """
    answers = False
    while True:
        try:
            notice = service.ask()
            answers = True
        except NO_ANSWER:
            if not answers:
                return
            notice = None
        if notice and tell(notice):
            return
        wait(_EVERY_S)


@dataclass
class _Aws:
    """`spot/instance-action` comes two minutes before, a rebalance recommendation earlier or never."""

    name: ClassVar[str] = "AWS"
    url: str
    now: Callable[[], float] = time.time
    _token: str = field(default="", repr=False)
    _until: float = 0.0
    _asked: int = 0

    def ask(self) -> Notice | None:
        if self.now() >= self._until:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = _request(f"{self.url}/latest/api/token", headers, method="PUT") or ""
            self._until = self.now() + _TOKEN_S / 2
            return None
        self._asked += 1
        if self._asked % _RECOMMENDED_EACH == 0:
            if self._get("events/recommendations/rebalance"):
                return Notice("AWS recommends to move to another machine", None)
            return None
        answer = self._get("spot/instance-action")
        if not answer:
            return None
        told = _fields(answer)
        stays = told["action"] == "hibernate"  # whose memory comes back: Ray knows no way back from draining
        deadline = datetime.fromisoformat(told["time"]).timestamp()
        return Notice(f"AWS spot {str(told['action'])[:40]}", None if stays else deadline)

    def _get(self, name: str) -> str | None:
        try:
            return _request(f"{self.url}/latest/meta-data/{name}", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token is over
                self._until = 0.0
                return None
            raise


@dataclass
class _GoogleCloud:
    name: ClassVar[str] = "Google Cloud"
    url: str
    now: Callable[[], float] = time.time

    def ask(self) -> Notice | None:
        answer = _request(f"{self.url}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return Notice("Google Cloud preemption", self.now() + _GRACE_S) if answer == "TRUE" else None


@dataclass
class _Azure:
    """Events name machines, of a scale set perhaps: the first request is for the name of this one."""

    name: ClassVar[str] = "Azure"
    url: str
    now: Callable[[], float] = time.time
    _name: str = ""

    def ask(self) -> Notice | None:
        if not self._name:
            self._name = self._get("instance/compute/name?api-version=2021-02-01&format=text") or ""
            return None
        told = _fields(self._get("scheduledevents?api-version=2020-07-01") or "{}")
        for event in told.get("Events", ()):
            if event["EventType"] in {"Preempt", "Terminate"} and self._name in event["Resources"]:
                stated = event.get("NotBefore")  # empty once it has begun
                deadline = parsedate_to_datetime(stated).timestamp() if stated else self.now() + _GRACE_S
                return Notice(f"Azure {event['EventType'].lower()}", deadline)
        return None

    def _get(self, name: str) -> str | None:
        return _request(f"{self.url}/metadata/{name}", {"Metadata": "true"}, within_s=_AZURE_ANSWERS_WITHIN_S)


_CLOUDS: Mapping[str, Callable[[str], MetadataService]] = {"aws": _Aws, "gcp": _GoogleCloud, "azure": _Azure}


def _cloud_of(dmi: Path) -> str | None:
    """The cloud whose machine this is, by its firmware; without a request."""
    vendor = _line(dmi / "sys_vendor")
    if vendor == "Amazon EC2" or "amazon" in _line(dmi / "bios_version"):  # the second on machines of Xen
        return "aws"
    if vendor == "Google":
        return "gcp"
    return "azure" if _line(dmi / "chassis_asset_tag") == _AZURE_TAG else None


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _request(
    url: str, headers: dict[str, str], *, method: str = "GET", within_s: float = _ANSWER_WITHIN_S
) -> str | None:
    """The body of an answer; None where there is nothing of that name. No proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers, method=method), timeout=within_s) as answer:  # noqa: S310
            return str(answer.read(_LARGEST_BYTES).decode("utf-8", "replace")).strip()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise


def _fields(answer: str) -> dict[str, Any]:
    """What a JSON object says; of any other shape a ValueError."""
    try:
        told = json.loads(answer)
    except RecursionError:
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"no JSON object: {answer[:80]!r}")
    return told

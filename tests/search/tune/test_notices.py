"""Metadata services of clouds, played by a server on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ich_ray.errors import ConfigError
from ich_ray.search.tune import notices
from ich_ray.search.tune.notices import Notice, follow, service_of
from tests.search.cloud_metadata import ACTION, TOKEN, Service, running_service

REBALANCE = "GET /latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "GET /computeMetadata/v1/instance/preempted"
NAME = "GET /metadata/instance/compute/name"
EVENTS = "GET /metadata/scheduledevents"


@pytest.fixture
def service() -> Iterator[Service]:
    with running_service() as made:
        yield made


class Told(list[Notice]):
    """Takes notices, and after so many waits ends who asks."""

    def __init__(self, waits: int = 0, then: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        self.left, self.then, self.waited = waits, then, list[float]()

    def __call__(self, notice: Notice) -> bool:
        self.append(notice)
        return notice.deadline is not None

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.then(len(self.waited))
        if len(self.waited) > self.left:
            raise KeyboardInterrupt


def followed(service: Service, cloud: str, told: Told) -> Told:
    found = service_of({notices.SETTING: f"{cloud}={service.url}"})
    assert found is not None
    follow(found, told, told.wait)
    return told


def test_an_order_of_aws_is_told_with_its_time(service: Service) -> None:
    service.answers = {TOKEN: "secret", ACTION: '{"action": "terminate", "time": "2026-11-29T10:02:00Z"}'}
    told = followed(service, "aws", Told(1))
    assert told == [Notice("AWS spot terminate", 1795946520.0)]
    assert service.asked == [TOKEN, ACTION]
    assert service.headers[0]["x-aws-ec2-metadata-token-ttl-seconds"] == "21600"
    assert service.headers[1]["x-aws-ec2-metadata-token"] == "secret"


def test_without_an_order_one_request_is_made_every_five_seconds(service: Service) -> None:
    service.answers = {TOKEN: "secret"}
    told = Told(24)
    with pytest.raises(KeyboardInterrupt):
        followed(service, "aws", told)
    assert told == []
    assert told.waited == [5.0] * 25
    assert service.asked == [TOKEN, *[ACTION] * 11, REBALANCE, *[ACTION] * 11, REBALANCE]


def test_a_recommendation_is_told_and_the_order_after_it(service: Service) -> None:
    service.answers = {TOKEN: "secret", REBALANCE: '{"noticeTime": "2026-11-29T10:00:00Z"}'}
    order = {ACTION: '{"action": "stop", "time": "2026-11-29T10:02:00Z"}'}
    told = followed(service, "aws", Told(20, lambda waits: service.answers.update(order if waits > 13 else {})))
    assert told == [
        Notice("AWS recommends to move to another machine", None),
        Notice("AWS spot stop", 1795946520.0),
    ]


def test_a_machine_that_hibernates_is_not_left(service: Service) -> None:
    service.answers = {TOKEN: "secret", ACTION: '{"action": "hibernate", "time": "2026-11-29T10:02:00Z"}'}
    told = Told(2)
    with pytest.raises(KeyboardInterrupt):
        followed(service, "aws", told)
    assert told == [Notice("AWS spot hibernate", None)] * 2


def test_a_token_that_is_over_is_asked_for_again(service: Service) -> None:
    service.answers, service.statuses = {TOKEN: "secret"}, {ACTION: 401}
    with pytest.raises(KeyboardInterrupt):
        followed(service, "aws", Told(3))
    assert service.asked == [TOKEN, ACTION, TOKEN, ACTION]


def test_a_preemption_of_google_cloud_is_told(service: Service) -> None:
    service.answers = {PREEMPTED: "FALSE"}
    told = Told(5, lambda waits: service.answers.update({PREEMPTED: "TRUE"} if waits == 2 else {}))
    found = notices._GoogleCloud(service.url, now=lambda: 1000.0)
    follow(found, told, told.wait)
    assert told == [Notice("Google Cloud preemption", 1030.0)]
    assert service.asked == [PREEMPTED] * 3
    assert service.headers[0]["metadata-flavor"] == "Google"


EVENT = (
    '{"DocumentIncarnation": 2, "Events": [{"EventType": "%s", "Resources": ["%s"], '
    '"NotBefore": "Sun, 29 Nov 2026 10:02:00 GMT"}]}'
)


@pytest.mark.parametrize(
    ("kind", "machine", "expected"),
    [
        ("Preempt", "gpu_3", [Notice("Azure preempt", 1795946520.0)]),
        ("Terminate", "gpu_3", [Notice("Azure terminate", 1795946520.0)]),
        ("Freeze", "gpu_3", []),  # for some seconds
        ("Preempt", "gpu_4", []),
    ],
)
def test_of_azure_s_events_those_are_told_that_take_this_machine_away(
    service: Service, kind: str, machine: str, expected: list[Notice]
) -> None:
    service.answers, told = {NAME: "gpu_3", EVENTS: EVENT % (kind, machine)}, Told(2)
    try:
        followed(service, "azure", told)
    except KeyboardInterrupt:
        assert expected == []
    assert told == expected
    assert service.asked[:2] == [NAME, EVENTS]
    assert service.headers[0]["metadata"] == "true"


def test_where_no_service_answers_it_is_asked_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(url: str, *_: object, **__: object) -> str:
        asked.append(url)
        raise ConnectionRefusedError

    monkeypatch.setattr(notices, "_request", refuse)
    assert followed(service, "aws", Told()) == []
    assert asked == [f"{service.url}/latest/api/token"]


@pytest.mark.parametrize("answer", ["<html>", "[1]", '{"action": "terminate"}', '{"action": "x", "time": "soon"}'])
def test_an_answer_of_another_form_is_no_notice_and_ends_nothing(service: Service, answer: str) -> None:
    service.answers = {TOKEN: "secret", ACTION: answer}
    told = Told(3)
    with pytest.raises(KeyboardInterrupt):
        followed(service, "aws", told)
    assert (told, service.asked) == ([], [TOKEN, *[ACTION] * 3])


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"sys_vendor": "Amazon EC2"}, notices._Aws),
        ({"sys_vendor": "Xen", "bios_version": "4.11.amazon"}, notices._Aws),
        ({"sys_vendor": "Google"}, notices._GoogleCloud),
        ({"chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"}, notices._Azure),
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "1234"}, type(None)),
        ({}, type(None)),
    ],
)
def test_the_firmware_names_the_cloud_without_a_request(facts: dict[str, str], kind: type, tmp_path: Path) -> None:
    for name, value in facts.items():
        (tmp_path / name).write_text(value + "\n")
    assert type(service_of({}, tmp_path)) is kind
    assert service_of({notices.SETTING: "off"}, tmp_path) is None


@pytest.mark.parametrize("given", ["aws", "aws=https://x", "amazon=http://127.0.0.1", "http://127.0.0.1"])
def test_a_setting_that_is_not_right_is_told(given: str) -> None:
    with pytest.raises(ConfigError, match=r"ICH_RAY_METADATA_SERVICE: must be off or CLOUD=http://ADDRESS"):
        service_of({notices.SETTING: given})

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from ich_ray.errors import ConfigError
from ich_ray.notify import notifier as notifier_module
from ich_ray.notify.destinations import parse_destination
from ich_ray.notify.notifier import Notifier, notifying
from tests.notify.webhook import LONG_S, Webhook

TOKEN = "T0ken"  # noqa: S105


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(notifier_module, "say", lines.append)
    monkeypatch.setattr(notifier_module, "_AGAIN_AFTER_S", 0.0)
    return lines


def send(url: str, *texts: str) -> None:
    notifier = Notifier(parse_destination(url))
    for text in texts:
        notifier.send(text)
    notifier.close(LONG_S)


def test_messages_arrive_in_their_order(webhook: Webhook, said: list[str]) -> None:
    with notifying(f"{webhook.url}/{TOKEN}") as notifier:
        assert notifier is not None
        notifier.send("one")
        notifier.send("two")
    assert webhook.messages == [{"text": "one"}, {"text": "two"}]
    assert webhook.paths == [f"/{TOKEN}"] * 2
    assert webhook.headers[0]["content-type"] == "application/json"
    assert said == []


def test_nobody_is_told_where_nothing_was_asked_for() -> None:
    with notifying(None) as notifier:
        assert notifier is None
    with pytest.raises(ConfigError, match=r"^--notify: must be"), notifying("nowhere"):
        raise AssertionError("the block was entered")


def test_ntfy_is_sent_json_with_its_topic(webhook: Webhook, said: list[str]) -> None:
    send(f"ntfy+http://:tk_1@{webhook.url.removeprefix('http://')}/topic", "one")
    assert webhook.messages == [{"topic": "topic", "message": "one"}]
    assert webhook.paths == ["/"]
    assert webhook.headers[0]["authorization"] == "Basic OnRrXzE="
    assert said == []


def test_a_dead_address_is_tried_twice_and_said_once(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tries: list[str] = []
    post = notifier_module._post
    monkeypatch.setattr(notifier_module, "_post", lambda webhook, text: (tries.append(text), post(webhook, text)))
    send(f"http://127.0.0.1:{port}/{TOKEN}", "one", "two")
    assert tries == ["one", "one", "two", "two"]
    assert said == [
        "notify: a message could not be sent (Connection refused); the work goes on, and no further failure is said"
    ]


@pytest.mark.parametrize(("status", "location"), [(404, ""), (500, ""), (302, "/other"), (307, "/other"), (308, "")])
def test_a_refusal_and_a_redirection_are_failures(
    webhook: Webhook, said: list[str], status: int, location: str
) -> None:
    webhook.status, webhook.location = status, location
    send(f"{webhook.url}/{TOKEN}", "one")
    assert webhook.paths == [f"/{TOKEN}"] * 2, "nobody was sent elsewhere"
    assert said == [
        f"notify: a message could not be sent (status {status}); the work goes on, and no further failure is said"
    ]


def test_whoever_sends_never_waits(webhook: Webhook, said: list[str]) -> None:
    webhook.open.clear()
    notifier = Notifier(parse_destination(f"{webhook.url}/{TOKEN}"))
    for number in range(1000):
        notifier.send(str(number))
    notifier.close(0.0)
    assert not webhook.open.is_set(), "nothing was answered yet"
    assert said == [
        "notify: a message could not be sent (no answer within 0 s); the work goes on, and no further failure is said"
    ]
    assert len(notifier._waiting) <= 50
    webhook.open.set()
    notifier._thread.join(LONG_S)
    assert webhook.messages[-1] == {"text": "999"}, "the oldest go"


def test_a_slow_address_is_left_after_its_time(
    webhook: Webhook, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier_module, "TIME_LIMIT_S", 0.1)
    webhook.open.clear()
    send(f"{webhook.url}/{TOKEN}", "one")
    assert [line.partition("(")[2].partition(")")[0] for line in said] == ["no answer within 0 s"]


def test_a_proxy_of_the_environment_is_not_for_this_machine(
    webhook: Webhook, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    send(f"{webhook.url}/{TOKEN}", "one")
    assert (webhook.messages, said) == ([{"text": "one"}], [])


def test_a_look_that_fails_ends_only_itself(webhook: Webhook, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "_LOOK_EVERY_S", 0.01)
    notifier = Notifier(parse_destination(f"{webhook.url}/{TOKEN}"))
    looked = threading.Event()

    def look() -> None:
        looked.set()
        raise RuntimeError(TOKEN)

    notifier.look = look
    assert looked.wait(LONG_S)
    notifier.send("one")
    notifier.close(LONG_S)
    assert webhook.messages == [{"text": "one"}]
    assert said == ["notify: nobody looks for a standstill any more (RuntimeError)"]


def test_mail_goes_through_sendmail(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sendmail"
    lines = ("#!/bin/sh", f"cd {tmp_path}", 'echo "$@" > arguments', "cat > mail", "exit $(cat rc)", "")
    program.write_text("\n".join(lines))
    program.chmod(0o755)
    (tmp_path / "rc").write_text("0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    send("mailto:team@hospital.example", "search tiny: has ended")
    assert (tmp_path / "arguments").read_text() == "-i -t\n"
    mail = (tmp_path / "mail").read_text()
    assert "To: team@hospital.example\n" in mail
    assert mail.endswith("\n\nsearch tiny: has ended\n")
    assert said == []
    (tmp_path / "rc").write_text("75")
    send("mailto:team@hospital.example", "again")
    assert [line.partition("(")[2].partition(")")[0] for line in said] == ["sendmail ended with 75"]

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ich_ray.errors import ConfigError
from ich_ray.notify import destinations
from ich_ray.notify.destinations import Mail, Webhook, parse_destination

SECRET = "T0/B1/s3cretw0rd"  # noqa: S105


def webhook(told: str) -> Webhook:
    found = parse_destination(told)
    assert isinstance(found, Webhook)
    return found


@pytest.mark.parametrize(
    ("told", "url", "kind", "topic"),
    [
        ("https://hooks.slack.com/services/T0/B1/x", "https://hooks.slack.com/services/T0/B1/x", "slack", ""),
        ("https://chat.hospital.example/hooks/x?a=b#c", "https://chat.hospital.example/hooks/x?a=b", "slack", ""),
        ("http://127.0.0.1:8000/x", "http://127.0.0.1:8000/x", "slack", ""),
        ("http://[::1]:8000/x", "http://[::1]:8000/x", "slack", ""),
        ("http://localhost/x", "http://localhost/x", "slack", ""),
        ("https://ntfy.sh/topic_1", "https://ntfy.sh/", "ntfy", "topic_1"),
        ("ntfy+https://push.hospital.example:8443/t/", "https://push.hospital.example:8443/", "ntfy", "t"),
        ("https://a.webhook.office.com/x", "https://a.webhook.office.com/x", "teams", ""),
        ("https://prod-1.westus.logic.azure.com:443/w?sig=x", "https://prod-1.westus.logic.azure.com:443/w?sig=x",
         "teams", ""),
        ("https://e.environment.api.powerplatform.com/w", "https://e.environment.api.powerplatform.com/w", "teams", ""),
        ("https://evil-logic.azure.com.example/x", "https://evil-logic.azure.com.example/x", "slack", ""),
    ],
)  # fmt: skip
def test_a_host_says_who_reads_the_message(told: str, url: str, kind: str, topic: str) -> None:
    found = webhook(told)
    assert (found.url, found.kind, found.topic, found.authorization) == (url, kind, topic, "")


def test_each_service_gets_its_own_json() -> None:
    bodies = {
        kind: json.loads(webhook(told).body("5 of 20 trials"))
        for kind, told in {
            "slack": "https://hooks.slack.com/x",
            "ntfy": "https://ntfy.sh/topic",
            "teams": "https://x.logic.azure.com/w",
        }.items()
    }
    assert bodies["slack"] == {"text": "5 of 20 trials"}
    assert bodies["ntfy"] == {"topic": "topic", "message": "5 of 20 trials"}
    assert bodies["teams"]["type"] == "message"
    card = bodies["teams"]["attachments"][0]
    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert card["content"]["body"] == [{"type": "TextBlock", "text": "5 of 20 trials", "wrap": True}]


@pytest.mark.parametrize(
    ("told", "header"),
    [("https://:tk_1@ntfy.sh/topic", "Basic OnRrXzE="), ("https://me:p%40ss@chat.example/x", "Basic bWU6cEBzcw==")],
)
def test_a_user_or_a_token_goes_into_a_header(told: str, header: str) -> None:
    found = webhook(told)
    assert "@" not in found.url
    assert found.headers()["Authorization"] == header


@pytest.mark.parametrize(
    "told",
    [
        f"http://hooks.example/{SECRET}",
        f"ftp://hooks.example/{SECRET}",
        f"gopher:///{SECRET}",
        f"hooks.example/{SECRET}",
        f"https:///{SECRET}",
        f"https://hooks.example:port/{SECRET}",
        f"https://[::1/{SECRET}",
        f"https://hooks.example/{SECRET}\r\nX-More: 1",
        f"https://hooks.example/{SECRET} more",
        f"https://hooks.exämple/{SECRET}",
        f"ntfy+https://push.example/{SECRET}",
        "https://ntfy.sh/",
        f"https://hooks.example/{SECRET}{'x' * 5000}",
        f"mailto:{SECRET}",
        f"mailto:-t{SECRET}@hospital.example",
        f"mailto:team@hospital.example?cc={SECRET}",
        f"mailto:team@hospital.example\nBcc: {SECRET}",
        "",
        "@",
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(told: str) -> None:
    with pytest.raises(ConfigError, match=r"^--notify") as caught:
        parse_destination(told)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback would repeat it"


def test_an_address_is_in_no_representation() -> None:
    assert "s3cret" not in repr(webhook(f"https://u:s3cretw0rd@hooks.example/{SECRET}"))
    assert "s3cret" not in repr(webhook("https://ntfy.sh/s3cretw0rd"))
    assert "team" not in repr(Mail(("team@hospital.example",), "/usr/sbin/sendmail"))


def test_a_file_that_only_its_owner_reads_holds_the_address(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    path.write_text("https://hooks.slack.com/x\n")
    path.chmod(0o600)
    assert webhook(f"@{path}").url == "https://hooks.slack.com/x"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"only its owner, who is you or root, may read it, got mode 0640.*chmod 600"):
        parse_destination(f"@{path}")
    with pytest.raises(ConfigError, match=r"must name a file that holds the address, got No such file"):
        parse_destination(f"@{tmp_path / 'none'}")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="must name a file, got something else"):
        parse_destination(f"@{tmp_path / 'pipe'}")
    path.chmod(0o600)
    path.write_text(f"@{path}")
    with pytest.raises(ConfigError, match="got something else"):
        parse_destination(f"@{path}")


def test_mail_needs_a_sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(destinations, "_SENDMAIL_FOLDERS", ())
    with pytest.raises(ConfigError, match="needs a sendmail on this machine, got none"):
        parse_destination("mailto:team@hospital.example")
    (tmp_path / "sendmail").write_text("#!/bin/sh\n")
    (tmp_path / "sendmail").chmod(0o755)
    found = parse_destination("mailto:team@hospital.example,b+c@x.example")
    assert found == Mail(("team@hospital.example", "b+c@x.example"), str(tmp_path / "sendmail"))
    assert "team" not in " ".join(found.command())
    assert found.body("search tiny: has ended; and more").decode().splitlines() == [
        "To: team@hospital.example, b+c@x.example",
        "Subject: ich-ray: search tiny: has ended",
        "Auto-Submitted: auto-generated",
        'Content-Type: text/plain; charset="utf-8"',
        "Content-Transfer-Encoding: 7bit",
        "MIME-Version: 1.0",
        "",
        "search tiny: has ended; and more",
    ]

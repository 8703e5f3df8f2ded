"""Where messages go: Slack, Teams, ntfy, another webhook, or mail. Sends nothing.

The address is a secret: whoever has it may write there. It comes from a flag, the environment or a file, and no error,
record or log repeats it.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from ich_ray.errors import ConfigError

__all__ = ["Destination", "Mail", "Webhook", "parse_destination"]

_LONGEST = 4096
_NTFY = "ntfy+"
# Workflows of Teams take cards only; a text alone ends as an empty post.
_TEAMS_HOSTS = (".webhook.office.com", ".logic.azure.com", ".powerplatform.com", ".powerautomate.com")
_TOPIC = re.compile(r"/([\w-]{1,64})/?")
_MAILBOX = re.compile(r"[A-Za-z0-9][\w.+-]*@[A-Za-z0-9][A-Za-z0-9.-]*")
_SENDMAIL_FOLDERS = ("/usr/sbin", "/usr/lib", "/usr/local/sbin")


@dataclass(frozen=True)
class Webhook:
    """An address that takes JSON by POST.

    Attributes:
        url: without a user and a password.
        kind: whose form the JSON has; that of Slack is what most others read.
        topic: of ntfy.
        authorization: a header, empty for none.
    """

    url: str = field(repr=False)
    kind: Literal["slack", "teams", "ntfy"]
    topic: str = field(default="", repr=False)
    authorization: str = field(default="", repr=False)

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(urlsplit(self.url).hostname or "")

    def headers(self) -> dict[str, str]:
        given = {"Authorization": self.authorization} if self.authorization else {}
        return {"Content-Type": "application/json", "User-Agent": "ich-ray", **given}

    def body(self, text: str) -> bytes:
        return json.dumps(self._message(text)).encode()

    def _message(self, text: str) -> dict[str, Any]:
        if self.kind == "ntfy":
            return {"topic": self.topic, "message": text}
        if self.kind == "slack":
            return {"text": text}
        card = {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": [{"type": "TextBlock", "text": text, "wrap": True}],
        }
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
        return {"type": "message", "text": text, "attachments": [attachment]}


@dataclass(frozen=True)
class Mail:
    """Mailboxes, reached by the sendmail of this machine."""

    to: tuple[str, ...] = field(repr=False)
    sendmail: str

    def command(self) -> list[str]:
        """Mailboxes stand in the header that it reads, and not in the list of processes."""
        return [self.sendmail, "-i", "-t"]

    def body(self, text: str) -> bytes:
        mail = EmailMessage()
        mail["To"] = ", ".join(self.to)
        mail["Subject"] = f"ich-ray: {text.partition(';')[0]}"[:200]
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text)
        return mail.as_bytes(policy=SMTP.clone(linesep="\n"))


Destination = Webhook | Mail


def parse_destination(told: str) -> Destination:
    """Read an address, or the file that `@FILE` names.

    Raises:
        ConfigError: it is none; the message does not repeat it.
    """
    text = (_of_file(told[1:]) if told.startswith("@") else told).strip()
    if text.startswith("mailto:"):
        return _mail(text.removeprefix("mailto:"))
    if not text or len(text) > _LONGEST or not (text.isascii() and text.isprintable()) or " " in text:
        raise _wrong("something else")
    named_ntfy = text.startswith(_NTFY)
    try:
        parts = urlsplit(text.removeprefix(_NTFY))
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise _wrong("an address that cannot be read") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise _wrong("something else")
    if parts.scheme == "http" and not _is_loopback(host):
        raise _wrong("http to another machine, where others can read it")
    authorization = _basic(parts)
    there = f"[{host}]" if ":" in host else host
    parts = parts._replace(netloc=there if port is None else f"{there}:{port}", fragment="")
    if named_ntfy or host == "ntfy.sh":
        topic = _TOPIC.fullmatch(parts.path)
        if topic is None:
            raise _wrong("an address of ntfy without a topic, or with more than one")
        return Webhook(urlunsplit(parts._replace(path="/")), "ntfy", topic[1], authorization)
    teams = f".{host}".endswith(_TEAMS_HOSTS)
    return Webhook(urlunsplit(parts), "teams" if teams else "slack", authorization=authorization)


def _mail(text: str) -> Mail:
    mailboxes = tuple(text.split(","))
    if not all(len(one) <= 254 and _MAILBOX.fullmatch(one) for one in mailboxes):
        raise _wrong("a mailto: that is not a mailbox, or several with commas between them")
    found = shutil.which("sendmail") or shutil.which("sendmail", path=os.pathsep.join(_SENDMAIL_FOLDERS))
    if found is None:
        raise ConfigError("--notify mailto: needs a sendmail on this machine, got none; install one, or use a webhook")
    return Mail(mailboxes, found)


def _of_file(name: str) -> str:
    """The text of a file that nobody else may read; what is checked is what is read."""
    path = Path(name).expanduser()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it does not wait for the writer of a pipe
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigError(f"--notify @{path}: must name a file, got something else; correct it")
            # A secret of Kubernetes belongs to root and is read by the group of its pod.
            others = 0o077 if facts.st_uid == os.geteuid() else 0o037
            if facts.st_uid not in {os.geteuid(), 0} or facts.st_mode & others:
                raise ConfigError(
                    f"--notify @{path}: only its owner, who is you or root, may read it, got mode "
                    f"{stat.S_IMODE(facts.st_mode):04o} of user {facts.st_uid}; run `chmod 600 {path}`"
                )
            return os.read(descriptor, _LONGEST + 2).decode("utf-8", "replace")
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "a name that no file has"
        raise ConfigError(f"--notify @{path}: must name a file that holds the address, got {why}; correct it") from None


def _basic(parts: SplitResult) -> str:
    """The header for a user and a password in an address; ntfy takes a token as the password of nobody."""
    if parts.username is None and parts.password is None:
        return ""
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wrong(got: str) -> ConfigError:
    return ConfigError(
        f"--notify: must be https://HOST/..., ntfy+https://HOST/TOPIC, mailto:MAILBOX or @FILE that holds one of them, "
        f"got {got}; correct it (it is a secret and not shown)"
    )

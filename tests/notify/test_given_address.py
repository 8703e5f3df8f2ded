from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ich_ray.notify.given_address import asked_for, taken_off


@pytest.mark.parametrize(
    ("arguments", "kept", "address"),
    [
        (["search", "d", "--notify", "https://h/x", "--resume"], ["search", "d", "--resume"], "https://h/x"),
        (["run", "--notify=https://h/x", "--debug"], ["run", "--debug"], "https://h/x"),
        (["--debug", "search", "d", "--notify", "https://h/x"], ["--debug", "search", "d"], "https://h/x"),
        (["retrain", "s", "--notify", "mailto:a@b"], ["retrain", "s"], "mailto:a@b"),
        (["confirm", "s", "--notify", "@file"], ["confirm", "s", "--notify", "@file"], None),
        (["confirm", "s", "--notify=@file"], ["confirm", "s", "--notify=@file"], None),
        (["search", "--notify"], ["search", "--notify"], None),
        (["search", "d"], ["search", "d"], None),
        (["submit", "--", "search", "--notify", "u"], ["submit", "--", "search", "--notify", "u"], None),
        ([], [], None),
    ],
)
def test_an_address_is_taken_off_and_a_file_stays(arguments: list[str], kept: list[str], address: str | None) -> None:
    assert taken_off(arguments) == (kept, address)


def test_the_environment_is_asked_second_and_loses_the_address() -> None:
    environ = {"ICH_RAY_NOTIFY": "https://h/x", "OTHER": "1"}
    assert asked_for(None, environ) == "https://h/x"
    assert environ == {"OTHER": "1"}
    assert asked_for("@file", {"ICH_RAY_NOTIFY": "https://h/x"}) == "@file"
    assert asked_for(None, {"ICH_RAY_NOTIFY": ""}) is None
    assert asked_for(None, {}) is None


SHOWN = """
import os, sys
from ich_ray.notify.given_address import asked_for, hide_address
before = os.getpid()
hide_address(sys.argv[1:])
told = asked_for(None)
print(sys.argv[1:], open("/proc/self/cmdline").read().split(chr(0))[-4:-1], told, "ICH_RAY_NOTIFY" in os.environ)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="needs /proc")
def test_the_list_of_processes_does_not_show_it() -> None:
    words = ["search", "data", "--notify", "https://hooks.example/s3cret", "--resume"]
    found = subprocess.run([sys.executable, "-c", SHOWN, *words], capture_output=True, text=True, check=True)
    rest = ["search", "data", "--resume"]
    assert found.stdout == f"{rest} {rest} https://hooks.example/s3cret False\n"

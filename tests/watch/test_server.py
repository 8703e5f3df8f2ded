"""What the server of the page answers, and to whom."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ich_ray.cli import call
from ich_ray.errors import ConfigError
from ich_ray.search.trial_output import write_output
from ich_ray.watch import server as module
from ich_ray.watch.server import KEY_HEADER, Watch
from tests.watch.planted import plant_search, served, write_trial


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with served(Path(str(plant_search(tmp_path_factory.mktemp("watch") / "search").root))) as found:
        yield found


def ask(watch: Watch, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", watch.port, timeout=60)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def test_the_address_opens_the_page_and_the_page_opens_again_without_the_key(watch: Watch) -> None:
    answer = ask(watch, f"/?open={watch.key}")
    assert answer.status == 200
    assert b"<title>watch</title>" in answer.body
    cookie = answer.headers["set-cookie"]
    assert "; HttpOnly; SameSite=Strict; Path=/" in cookie
    assert watch.key not in cookie
    again = ask(watch, "/", Cookie=cookie.partition(";")[0])
    assert (again.status, again.body) == (200, answer.body)
    assert watch.key.encode() not in answer.body


@pytest.mark.parametrize(
    "path", ["/", "/?open=", "/?open=wrong", "/?open=é", "/?open=a&open=b", "/data", "/trial?number=0"]
)
def test_without_the_key_there_is_nothing(watch: Watch, path: str) -> None:
    answer = ask(watch, path.replace("é", "%C3%A9"))
    assert answer.status == 401
    assert answer.body.count(b"\n") == 1
    assert b"demo" not in answer.body


def test_the_cookie_of_the_page_opens_no_data(watch: Watch) -> None:
    cookie = f"ich_ray_watch_{watch.port}={watch.session}"
    assert ask(watch, "/", Cookie=cookie).status == 200
    for path in ("/data", "/trial?number=0", "/parameters"):
        assert ask(watch, path, Cookie=cookie).status == 401
        assert ask(watch, f"{path}{'&' if '?' in path else '?'}open={watch.key}", Cookie=cookie).status == 401
    assert ask(watch, "/data", X_Watch_Key=watch.session).status == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost@evil.example", "[", "[::2]"]
)
def test_a_name_that_was_bound_to_this_machine_by_a_trick_is_refused(watch: Watch, host: str) -> None:
    assert ask(watch, "/data", Host=host, X_Watch_Key=watch.key).status == 403
    assert ask(watch, f"/?open={watch.key}", Host=host).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "localhost:9999", "[::1]:8266", "LOCALHOST"])
def test_a_tunnel_may_have_a_port_of_its_own(watch: Watch, host: str) -> None:
    host = host.format(port=watch.port)
    assert ask(watch, "/data", Host=host, Origin=f"http://{host}", X_Watch_Key=watch.key).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://{host}", "http://localhost:1"])
def test_other_sites_may_not_ask(watch: Watch, origin: str) -> None:
    host = f"127.0.0.1:{watch.port}"
    assert ask(watch, "/data", Origin=origin.format(host=host), X_Watch_Key=watch.key).status == 403
    assert ask(watch, "/data", Sec_Fetch_Site="cross-site", X_Watch_Key=watch.key).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get"])
def test_only_get_is_answered(watch: Watch, method: str) -> None:
    assert ask(watch, "/data", method, X_Watch_Key=watch.key).status == 405


@pytest.mark.parametrize(
    "path", ["/../search.json", "/watch.js", "/data/", "/trial", "/trial?number=99", "/trial?number=-1",
             "/trial?number=1e3", "/trial?number=٣", "/%2e%2e/search.json"]
)  # fmt: skip
def test_there_is_nothing_else(watch: Watch, path: str) -> None:
    assert ask(watch, path.replace("٣", "%D9%A3"), X_Watch_Key=watch.key).status == 404


def test_a_line_that_is_no_request_ends_in_an_answer_of_one_line(watch: Watch) -> None:
    for sent in (b"\x16\x03\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", watch.port), 60) as connection:
            connection.sendall(sent)
            answer = b""
            while more := connection.recv(65536):
                answer += more
        assert b"Traceback" not in answer
        assert b"xxxx" not in answer
    assert ask(watch, "/data", X_Watch_Key=watch.key).status == 200


def test_every_answer_forbids_what_the_page_does_not_need(watch: Watch) -> None:
    page = ask(watch, f"/?open={watch.key}")
    for answer in (page, ask(watch, "/"), ask(watch, "/data", X_Watch_Key=watch.key), ask(watch, "/", "POST")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "connect-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.headers["content-security-policy"]


def test_the_page_asks_nobody_and_sets_text_only() -> None:
    sources = "".join(path.read_text() for path in Path(module.__file__).parent.glob("watch.*"))
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg\b)", sources) == []
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=|new Function", sources)
        == []
    )


def test_only_what_has_changed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = plant_search(tmp_path / "search")
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.0)
    with served(tmp_path / "search") as watch:
        told = json.loads(ask(watch, "/data", X_Watch_Key=watch.key).body)
        assert (told["name"], told["whole"], len(told["trials"])) == ("demo", True, 12)
        unchanged = ask(watch, f"/data?since={told['version']}", X_Watch_Key=watch.key)
        assert (unchanged.status, unchanged.body) == (204, b"")
        trial = watch.board.as_result().trials[11]
        write_trial(files, trial.model_copy(update={"attempts": 5}))
        watch.read()
        told = json.loads(ask(watch, f"/data?since={told['version']}", X_Watch_Key=watch.key).body)
        assert (told["whole"], [row[0] for row in told["trials"]]) == (False, [11])


def test_a_page_that_waits_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = plant_search(tmp_path / "search")
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 600.0)
    with served(tmp_path / "search") as watch:
        told: list[str | None] = []
        waits = threading.Thread(target=lambda: told.append(watch.news(1)))
        waits.start()
        write_trial(files, watch.board.as_result().trials[11].model_copy(update={"attempts": 5}))
        waits.join(240)  # the follower sees it within seconds
        assert told
        assert told[0] is not None
        assert [row[0] for row in json.loads(told[0])["trials"]] == [11]


def test_a_folder_that_goes_away_leaves_what_was_known(tmp_path: Path) -> None:
    plant_search(tmp_path / "search")
    watch = Watch(tmp_path / "search", 0)
    watch.read()
    (tmp_path / "search" / "trials").rename(tmp_path / "gone")
    (tmp_path / "search" / "trials").write_text("")
    watch.read()
    told = json.loads(watch.board.message(None))
    watch.close()
    assert "trials" in told["problem"]
    assert len(told["trials"]) == 12


def test_an_error_of_a_library_for_a_storage_is_shown_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> set[int]:
        raise RuntimeError("503, try later")

    plant_search(tmp_path / "search")
    watch = Watch(tmp_path / "search", 0)
    with monkeypatch.context() as patch:
        patch.setattr(watch._followed, "refresh", fails)
        watch.read()
    problem = json.loads(watch.board.message(None))["problem"]
    watch.read()
    told = json.loads(watch.board.message(None))
    watch.close()
    assert "search: must be readable, got RuntimeError: 503, try later; it is asked for again" in problem
    assert (told["problem"], len(told["trials"])) == ("", 12)


def test_a_trial_is_shown_with_the_last_lines_of_its_processes(tmp_path: Path) -> None:
    files = plant_search(tmp_path / "search")
    write_output(str(files.root), 2, "# gpu-1, process 7, its last lines\nUserWarning: slow\n")
    write_output(str(files.root), 2, "Fatal Python error\n", lost=True)
    with served(Path(str(files.root))) as watch:
        shown = json.loads(ask(watch, "/trial?number=2", X_Watch_Key=watch.key).body)
        assert shown["log"][1:] == ["# gpu-1, process 7, its last lines", "UserWarning: slow"]
        assert shown["lost_log"][1:] == ["Fatal Python error"]
        other = json.loads(ask(watch, "/trial?number=1", X_Watch_Key=watch.key).body)
        assert (other["log"], other["lost_log"]) == ([], [])


def test_large_answers_are_compressed_for_a_tunnel(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMPRESSED_FROM", 1000)
    plain = ask(watch, "/data", X_Watch_Key=watch.key)
    packed = ask(watch, "/data", X_Watch_Key=watch.key, Accept_Encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 2


def test_two_on_one_port_and_a_folder_that_is_no_search_are_one_line(
    watch: Watch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_search(tmp_path / "search")
    assert call(["watch", str(tmp_path / "search"), "--port", str(watch.port)]) == 2
    assert capsys.readouterr().err == (
        f"ich-ray: --port {watch.port}: must be free on 127.0.0.1, got address already in use; "
        "another `watch` may have it: give another port, or 0 for any that is free\n"
    )
    assert call(["watch", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "a search holds search.json, got none" in captured.err
    assert captured.err.count("\n") == 1
    with pytest.raises(ConfigError):
        Watch(tmp_path / "search.json", 0)


def test_the_verb_prints_the_address_and_ends_in_peace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_search(tmp_path / "search")

    def interrupted(_: Watch) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "serve", interrupted)
    assert call(["watch", str(tmp_path / "search"), "--port", "0", "--gpu-price", "2.5"]) == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?open=[\w-]{43}\n", capsys.readouterr().out)


def test_nobody_else_can_connect(watch: Watch) -> None:
    assert watch._server.socket.getsockname()[0] == "127.0.0.1"
    assert KEY_HEADER == "X-Watch-Key"  # as the page has it
    assert "X-Watch-Key" in (Path(module.__file__).parent / "watch.js").read_text()

"""Every failure ends in the exit code of the page, with what, why and what to do on stderr and nothing on stdout."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from piccolod.errors import BY_CODE
from tests.unit.cli.api_double import ApiDouble, Reply, serving
from tests.unit.cli.conftest import Ctl


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "invalid", 8),
        (401, "unauthenticated", 9),
        (401, "wrong_password", 9),
        (403, "forbidden", 9),
        (404, "not_found", 3),
        (409, "exists", 1),
        (409, "not_leader", 5),
        (413, "too_large", 8),
        (423, "locked", 4),
        (429, "too_many", 1),
        (500, "failed", 1),
        (503, "no_leader", 6),
        (503, "store_unavailable", 6),
        (503, "store_corrupt", 6),
        (503, "unavailable", 1),
        (504, "deadline_exceeded", 7),
        (507, "store_full", 6),
    ],
)
def test_an_error_of_the_api_ends_in_its_exit_code(ctl: Ctl, double: ApiDouble, status: int, code: str, exit_code: int) -> None:
    double.refuse("GET", "/apps", status, code, detail="the disk is on fire", hint="put it out")
    done = ctl("ps")
    assert done.code == exit_code == BY_CODE[code].exit_code
    assert done.out == ""
    assert done.err.splitlines()[0] == "error: the disk is on fire"
    assert "hint: put it out" in done.err
    assert "request: r-1" in done.err


@pytest.mark.parametrize(
    ("status", "exit_code"), [(400, 8), (401, 9), (403, 9), (404, 3), (423, 4), (500, 1), (503, 1), (504, 7), (418, 1)]
)
def test_an_answer_without_a_code_is_judged_by_its_status(ctl: Ctl, double: ApiDouble, status: int, exit_code: int) -> None:
    double.on("GET", "/apps", Reply(status, None, {"Content-Type": "text/html"}))
    done = ctl("ps")
    assert done.code == exit_code
    assert str(status) in done.err


@pytest.mark.parametrize(
    "args", [["nonsense"], ["apps", "shwo", "x"], ["apps", "show"], ["-o", "xml", "ps"], ["--timeout", "0", "ps"]]
)
def test_a_mistake_on_the_command_line_is_2(ctl: Ctl, double: ApiDouble, args: list[str]) -> None:
    done = ctl(*args)
    assert done.code == 2
    assert double.sent == []


def test_a_mistyped_command_gets_a_suggestion(ctl: Ctl) -> None:
    assert "Did you mean 'status'?" in ctl("statsu").err


def test_no_socket_says_that_piccolod_is_not_running_and_how_to_start_it(ctl: Ctl, folder: Path) -> None:
    done = ctl("ps", socket=str(folder / "none.sock"))
    assert done.code == 1
    assert "not running" in done.err
    assert str(folder / "none.sock") in done.err
    assert "systemctl start piccolod" in done.err


def test_a_socket_without_listener_says_so(ctl: Ctl, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "left.sock"))
    done = ctl("ps", socket=str(folder / "left.sock"))
    assert done.code == 1
    assert "nobody listens" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_socket_that_is_not_ours_ends_in_9(ctl: Ctl, double: ApiDouble, folder: Path) -> None:
    double.on("GET", "/apps", [])
    (folder / "api.sock").chmod(0o600)
    folder.chmod(0o755)
    assert ctl("ps").code == 0
    os.seteuid(65534)
    try:
        done = ctl("ps")
    finally:
        os.seteuid(0)
    assert done.code == 9
    assert "no permission" in done.err
    assert "root" in done.err


def test_a_module_that_restarts_under_a_call_is_asked_again(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    restarted = Reply(503, {"code": "peer_restarted", "detail": "persistence restarted with the call in flight"})
    double.on("POST", "/apps/hello/enable", restarted, {"app": app, "rev": 1})
    assert ctl("apps", "enable", "hello", "--no-wait").code == 0
    double.on("POST", "/apps/hello/enable", restarted)
    assert ctl("apps", "enable", "hello", "--no-wait").code == 1
    assert len(double.sent) == 4


def test_https_to_a_port_that_speaks_http_says_so(ctl: Ctl) -> None:
    with serving(ApiDouble(), None) as node:
        done = ctl("--url", node.url.replace("http:", "https:"), "ps")
    assert done.code == 1
    assert "TLS" in done.err


def test_a_refused_port_says_which_url(ctl: Ctl) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = ctl("--url", url, "ps")
    assert done.code == 1
    assert url in done.err
    assert "refused" in done.err


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://", "http://h:99999999"])
def test_a_url_that_is_none_is_8(ctl: Ctl, url: str) -> None:
    assert ctl("--url", url, "ps").code == 8


@pytest.mark.parametrize(
    "raw", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json!", b"\x00" * 90_000]
)
def test_garbage_is_named_as_such(ctl: Ctl, double: ApiDouble, raw: bytes) -> None:
    double.on("GET", "/apps", Reply(raw=raw))
    done = ctl("ps")
    assert done.code == 1
    assert "not as piccolod does" in done.err


def test_an_answer_that_breaks_off_is_no_success(ctl: Ctl, double: ApiDouble) -> None:
    double.on("GET", "/apps", Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n[]"))
    done = ctl("ps")
    assert done.code == 1
    assert "outcome is not known" in done.err


def test_a_server_that_is_silent_is_7_and_in_time(ctl: Ctl, double: ApiDouble) -> None:
    def silent(_: object) -> Reply:
        double.release.wait(20)
        return Reply(200, [])

    double.on("GET", "/apps", silent)
    began = time.monotonic()
    done = ctl("ps", "--timeout", "300ms")
    assert done.code == 7
    assert time.monotonic() - began < 5
    assert "--timeout" in done.err


def test_a_server_that_drips_is_7_too(ctl: Ctl, folder: Path) -> None:
    """Each byte comes in time, the answer as a whole does not."""
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "drip.sock"))
        listener.listen()

        def drip() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        peer.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        done = ctl("ps", "--timeout", "400ms", socket=str(folder / "drip.sock"))
        stop.set()
        thread.join(5)
    assert done.code == 7


def test_a_lost_answer_is_asked_for_again_with_the_same_key(ctl: Ctl, double: ApiDouble, app: dict[str, Any]) -> None:
    double.on("POST", "/apps/hello/enable", Reply(raw=b""), {"app": app, "rev": 1})
    done = ctl("apps", "enable", "hello", "--no-wait")
    assert done.code == 0
    first, second = double.bodies("POST", "/apps/hello/enable")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_first_password_is_never_sent_twice(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/crypto/setup", Reply(raw=b""))
    done = ctl("setup", "--password-stdin", stdin="secret word\n")
    assert done.code == 1
    assert len(double.sent) == 1


def test_the_leader_is_named_when_this_node_is_not_it(ctl: Ctl, double: ApiDouble) -> None:
    leader = {"node": "n2", "address": "10.0.0.2", "url": "https://10.0.0.2:8080", "epoch": 4}
    double.refuse("POST", "/crypto/lock", 409, "not_leader", leader=leader)
    done = ctl("lock")
    assert done.code == 5
    assert "the leader is n2 at https://10.0.0.2:8080" in done.err

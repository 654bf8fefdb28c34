"""The control socket: for root and for api, whatever is sent to it."""

from __future__ import annotations

import json
import os
import socket
import stat

import pytest

from tests.unit.supervisor.conftest import row, wait_for


@pytest.fixture
def node(make_node):
    return make_node([row("api"), row("m")]).start()


def test_only_the_owner_and_the_group_can_reach_the_socket(node):
    assert stat.S_IMODE(node.paths.supervisor_socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(node.paths.bus.stat().st_mode) == 0o710
    assert stat.S_IMODE(node.paths.command_socket("m").stat().st_mode) == 0o660


def test_another_user_is_cut_off_unheard(node):
    node.folder.chmod(0o755)
    node.paths.run.chmod(0o755)
    node.paths.supervisor_socket.chmod(0o666)  # as if permissions were lost
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(5)
                link.connect(str(node.paths.supervisor_socket))
                try:
                    link.sendall(b'{"cmd": "modules"}\n')
                    got = link.recv(100)
                except (ConnectionResetError, BrokenPipeError):
                    got = b""
                os.write(writer, b"heard" if got else b"cut off")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b"cut off"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\n", "invalid"), (b"[]\n", "invalid"), (b"{\n", "invalid"), (b"\xff\n", "invalid"), (b"[" * 3000 + b"\n", "invalid"),
        (b"{}\n", "not_found"), (b'{"cmd": "no"}\n', "not_found"), (b'{"cmd": ["modules"]}\n', "not_found"),
        (b'{"cmd": "restart"}\n', "not_found"), (b'{"cmd": "restart", "name": "../m"}\n', "not_found"),
        (b'{"cmd": "logs", "name": "m", "tail": -1}\n', "invalid"), (b'{"cmd": "logs", "name": "m", "tail": "x"}\n', "invalid"),
        (b'{"cmd": "logs", "name": "m", "tail": 1e9}\n', "invalid"), (b"x" * 5000, "too_large"),
    ],
)  # fmt: skip
def test_bad_requests_are_answered_with_a_reason(node, line, code):
    answer = node.ask_raw(line)
    assert answer["ok"] is False
    assert answer["error"]["code"] == code
    assert node.ask("modules")


def test_many_requests_on_one_connection_are_answered_in_order(node):
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(str(node.paths.supervisor_socket))
        link.sendall(b"".join(json.dumps({"id": n, "cmd": "tree"}).encode() + b"\n" for n in range(40)))
        got = b""
        while got.count(b"\n") < 40:
            part = link.recv(1 << 16)
            assert part, "answered until the end"
            got += part
    assert [json.loads(line)["id"] for line in got.splitlines()] == list(range(40))


def test_clients_that_never_read_harm_nobody(node):
    links = []
    try:
        for _ in range(10):
            link = socket.socket(socket.AF_UNIX)
            link.setblocking(False)
            link.connect(str(node.paths.supervisor_socket))
            try:
                for _ in range(2000):
                    link.send(b'{"cmd": "tree"}\n')
            except BlockingIOError:
                pass
            links.append(link)
        assert node.ask("modules")
    finally:
        for link in links:
            link.close()


def test_more_clients_than_allowed_are_cut_off_and_room_comes_back(node):
    links = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for link in links:
        link.connect(str(node.paths.supervisor_socket))
    for link in links:
        link.close()
    wait_for(lambda: node.modules(), "it answers again")


def test_stop_over_the_socket_ends_all(node):
    node.ask("stop")
    assert node.process is not None
    assert node.process.wait(5) == 0

"""Listening sockets: bound by the supervisor, kept over restarts, closed when nobody wants them."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from piccolod.errors import Failed, Invalid, TooMany
from piccolod.kernel import MODULES
from piccolod.supervisor.holder import Holders, search
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.sockets import Sockets, Taken
from tests.unit.supervisor.conftest import row, wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def sockets(tmp_path):
    made = Sockets(tmp_path)
    yield made
    made.close()


def answer(port: int, host: str = "127.0.0.1") -> str:
    with socket.create_connection((host, port), timeout=5) as link:
        return link.recv(100).decode()


def test_two_workers_of_a_family_share_one_socket(sockets):
    port = free_port()
    first, _ = sockets.listen("router.0", "tcp", "127.0.0.1", port)
    second, _ = sockets.listen("router.1", "tcp", "127.0.0.1", port)
    assert first == second


def test_another_family_is_refused_by_name(sockets):
    port = free_port()
    sockets.listen("router.0", "tcp", "127.0.0.1", port)
    with pytest.raises(Failed, match="held by router"):
        sockets.listen("api", "tcp", "127.0.0.1", port)


def test_a_socket_is_closed_when_the_last_of_the_family_gives_it_up(sockets):
    port = free_port()
    for worker in ("router.0", "router.1"):
        sockets.listen(worker, "tcp", "127.0.0.1", port)
    sockets.unlisten("router.0", "tcp", "127.0.0.1", port)
    socket.create_connection(("127.0.0.1", port)).close()
    sockets.unlisten("router.1", "tcp", "127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_family_that_asks_for_too_many_is_refused_with_the_number_and_the_others_still_get_theirs(sockets):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        for number in range(100):
            sockets.listen("router.0", "tcp", f"127.0.1.{number}", 0)
        with pytest.raises(TooMany, match="router listens on 100 sockets already"):
            sockets.listen("router.1", "tcp", "127.0.2.1", 0)
        sockets.listen("router.1", "tcp", "127.0.1.1", 0)  # one that the family has
        sockets.listen("api", "tcp", "127.0.2.1", 0)
        sockets.unlisten("router.0", "tcp", "127.0.1.0", 0)
        sockets.listen("router.0", "tcp", "127.0.2.2", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_taken_port_names_the_program_that_holds_it(sockets):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Taken, match=f"127.0.0.1:{port}/tcp is taken"):
            sockets.listen("api", "tcp", "127.0.0.1", port)
        assert next(filter(None, search("tcp", port))).endswith(f"(pid {os.getpid()})")


def test_the_search_for_a_holder_is_spread_over_turns_and_remembered():
    loop = Loop(lambda error: (_ for _ in ()).throw(error))
    holders, found = Holders(loop), []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        holders.find("tcp", port, found.append)
        holders.find("tcp", port, found.append)
        turns = 0
        while len(found) < 2:
            loop.turn()
            turns += 1
            assert turns < 10_000
        holders.find("tcp", port, found.append)
    loop.close()
    assert len(set(found)) == 1
    assert found[0].endswith(f"(pid {os.getpid()})")


def test_ipv4_and_ipv6_of_one_port_are_two_sockets_and_ipv6_alone_serves_both(sockets):
    port = free_port()
    four, _ = sockets.listen("router.0", "tcp", "0.0.0.0", port)
    six, _ = sockets.listen("router.0", "tcp", "::", port)
    assert four != six
    other = free_port()
    sockets.listen("router.0", "tcp", "::", other)
    socket.create_connection(("127.0.0.1", other)).close()


def test_a_udp_port_is_not_shared_with_a_stranger(sockets):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(Failed, match="is taken"):
            sockets.listen("router.0", "udp", "127.0.0.1", other.getsockname()[1])


def test_a_unix_socket_replaces_a_stale_one_and_only_root_may_connect(sockets, tmp_path):
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    sockets.listen("api", "unix", str(path), 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_ISSOCK(path.stat().st_mode)
    sockets.unlisten("api", "unix", str(path), 0)
    assert not path.exists()


@pytest.mark.parametrize("name", ["page", "lock"])
def test_a_file_that_is_no_socket_is_never_unlinked(sockets, tmp_path, name):
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(Failed, match="is no socket"):
        sockets.listen("api", "unix", str(path), 0)
    assert path.read_text() == "mine"


def test_a_module_binds_only_what_its_row_grants(make_node):
    port = free_port()
    node = make_node([row("api", listens=["unix:api.sock"])])
    node.words("api", f"listen=127.0.0.1:{port}")
    node.start()
    assert "api may not listen on tcp" in node.read("api.listen")


@pytest.mark.parametrize("name", ["page", "lock", "supervisor.sock", "podman.sock"])
def test_no_row_grants_a_name_of_the_node_itself(name):
    assert all(f"unix:{name}" not in spec.listens for spec in MODULES)


@pytest.mark.parametrize(
    "asked",
    [
        ("unix", "/etc/passwd", 0), ("unix", "RUN/../x", 0), ("unix", "RUN/bus/x.sock", 0), ("unix", "RUN/.hidden", 0),
        ("tcp", "localhost", 80), ("tcp", "127.0.0.1", 70000), ("tcp", "127.0.0.1", -1), ("tcp", "127.0.0.1", "80"),
        ("sctp", "127.0.0.1", 80), ([], {}, None),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(sockets, tmp_path, asked):
    proto, address, port = asked
    if isinstance(address, str):
        address = address.replace("RUN", str(tmp_path))
    with pytest.raises(Invalid):
        sockets.listen("api", proto, address, port)


def test_a_restart_of_the_module_refuses_no_connection(make_node):
    port = free_port()
    node = make_node([row("api")])
    node.words("api", f"listen=127.0.0.1:{port}")
    node.start()
    failures: list[str] = []
    answers: set[str] = set()
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            try:
                answers.add(answer(port))
            except ConnectionResetError:
                pass  # in flight in the process that was killed
            except OSError as error:
                failures.append(repr(error))

    thread = threading.Thread(target=poll)
    thread.start()
    pids = set()
    for _ in range(3):
        pid = node.kill("api")
        pids.add(str(pid))
        node.wait_replaced("api", pid)
    wait_for(lambda: str(node.pid("api")) in answers, "the last one answers")
    done.set()
    thread.join()
    assert failures == []


def test_two_workers_share_the_port_and_one_serves_while_the_other_is_down(make_node):
    port = free_port()
    node = make_node([row("router.0"), row("router.1")], policy={"first_s": 60.0, "ceiling_s": 60.0})
    for worker in ("router.0", "router.1"):
        node.words(worker, f"listen=0.0.0.0:{port}")
    node.start()
    pid = node.pid("router.0")
    node.words("router.0", "crash")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: node.module("router.0")["restarts"] == 2, "it is down for long")
    assert {answer(port) for _ in range(20)} == {str(node.pid("router.1"))}


def test_a_port_that_another_program_holds_is_refused_by_its_name_and_the_module_lives(make_node):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen();"
         "print(s.getsockname()[1], flush=True); time.sleep(1000)"], stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        node = make_node([row("api")])
        node.words("api", f"listen=127.0.0.1:{port}")
        node.start()
        assert f"(pid {holder.pid})" in node.read("api.listen")
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def test_a_socket_that_the_next_life_does_not_want_is_closed(make_node, monkeypatch):
    port = free_port()
    node = make_node([row("api")])
    node.words("api", f"listen=127.0.0.1:{port}")
    node.start()
    node.words("api")
    pid = node.kill("api")
    node.wait_replaced("api", pid)

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.1)
        return False

    wait_for(refused, "the port is closed", timeout_s=15)

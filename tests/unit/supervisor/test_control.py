"""The control socket: for root and for api, whatever is sent to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from piccolod.supervisor.allowance import Allowance
from tests.unit.supervisor.conftest import ROOT, row, wait_for


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


@pytest.mark.parametrize("number", [[[]], {"a": 1}, None, 1.5])
def test_what_is_no_number_for_a_request_is_not_given_back(node, number):
    answer = node.ask_raw(json.dumps({"id": number, "cmd": "tree"}).encode() + b"\n")
    assert answer["ok"] and answer["id"] is None


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
    links = [socket.socket(socket.AF_UNIX) for _ in range(80)]
    for link in links:
        link.connect(str(node.paths.supervisor_socket))
    for link in links:
        link.close()
    wait_for(lambda: node.modules(), "it answers again")


def test_stop_over_the_socket_ends_all(node):
    node.ask("stop")
    assert node.process is not None
    assert node.process.wait(5) == 0


_FLOOD = """
import socket, sys, threading
path, request, reads, connections = sys.argv[1], sys.argv[2].encode() + b"\\n", sys.argv[3] == "reads", int(sys.argv[4])

def drain(link):
    while link.recv(1 << 16):
        pass

def flood():
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(path)
                if reads:
                    threading.Thread(target=drain, args=(link,), daemon=True).start()
                while True:
                    link.sendall(request * 20)
        except OSError:
            pass

for _ in range(connections):
    threading.Thread(target=flood).start()
"""


@contextlib.contextmanager
def flood(node, request: str, *, reads: bool, connections: int):
    arguments = [str(node.paths.supervisor_socket), request, "reads" if reads else "", str(connections)]
    process = subprocess.Popen([sys.executable, "-c", _FLOOD, *arguments], cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def readies(node, name: str) -> int:
    return sum(1 for _, module, word in node.notes() if (module, word) == (name, "ready"))


def test_under_a_flood_a_hung_module_is_replaced_in_time_and_memory_stays_small(make_node):
    node = make_node([row("broker"), row("m")])
    node.words("m", "verbose")
    node.start()
    wait_for(lambda: node.tree()["zygote"]["warm"], "the zygote is warm")
    pid, supervisor = node.pid("m"), node.process.pid
    before = rss_mib(supervisor)
    most = before
    logs = json.dumps({"cmd": "logs", "name": "m", "tail": 10000})
    with flood(node, logs, reads=True, connections=12), flood(node, logs, reads=False, connections=12):
        wait_for(lambda: cpu_s(supervisor) > 1.0, "the flood is there", timeout_s=10)
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)

        def replaced() -> bool:
            nonlocal most
            most = max(most, rss_mib(supervisor))
            return readies(node, "m") == 2

        wait_for(replaced, "m is replaced and ready", timeout_s=3.0)
        took = time.monotonic() - began
    assert took < 1.5
    assert most - before < 24, f"{before:.0f} MiB became {most:.0f} MiB"
    assert node.modules()["m"]["state"] == "ready", "and it answers again"


def test_a_flood_takes_no_more_than_its_share_of_the_supervisors_time(node):
    supervisor = node.process.pid
    with flood(node, '{"cmd": "modules"}', reads=True, connections=8):
        first = cpu_s(supervisor)
        wait_for(lambda: cpu_s(supervisor) > first + 0.2, "the flood is there")
        began, used = time.monotonic(), cpu_s(supervisor)
        wait_for(lambda: time.monotonic() - began > 2.0, "two seconds of it")
        assert (cpu_s(supervisor) - used) / (time.monotonic() - began) < 0.5
        assert node.modules()["m"]["state"] == "ready", "another one is answered meanwhile"


def test_one_process_cannot_take_the_room_of_all(node):
    links = [socket.socket(socket.AF_UNIX) for _ in range(64)]
    try:
        for link in links:
            link.connect(str(node.paths.supervisor_socket))
        done = subprocess.run(
            [sys.executable, "-c", "import socket, sys; link = socket.socket(socket.AF_UNIX); link.settimeout(5); "
             "link.connect(sys.argv[1]); link.sendall(b'{\"cmd\": \"tree\"}\\n'); print(link.recv(100))",
             str(node.paths.supervisor_socket)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert '"ok":true' in done.stdout
    finally:
        for link in links:
            link.close()


def test_a_request_whose_sender_has_gone_is_obeyed_all_the_same(node):
    pid = node.pid("m")
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(node.paths.supervisor_socket))
        link.sendall(b'{"cmd": "restart", "name": "m"}\n')
    node.wait_replaced("m", pid)


def test_an_allowance_is_a_share_in_the_long_run_and_a_burst_at_once():
    allowance = Allowance(share=0.25, burst_s=1.0, now=0.0)
    assert allowance.wait_s(0.0) == 0
    allowance.spend(1.5)
    assert allowance.wait_s(0.0) == 2.0
    assert allowance.wait_s(2.0) == 0
    allowance.spend(0.5)
    assert allowance.wait_s(3.0) == 1.0
    assert allowance.wait_s(100.0) == 0
    allowance.spend(2.0)
    assert allowance.wait_s(100.0) == 4.0, "what was not used for long is worth no more than the burst"

"""The service manager's protocol, against a socket that plays the manager."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import time

import pytest

from tests.unit.supervisor.conftest import ROOT, row, wait_for
from tests.unit.supervisor.samples import sealed


class Systemd:
    def __init__(self, path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.words: list[str] = []
        self.fds: dict[str, int] = {}

    def read(self) -> list[str]:
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(64))
            except BlockingIOError:
                return self.words
            lines = data.decode().split("\n")
            self.words += lines
            fds = array.array("i")
            for _, _, raw in ancillary:
                fds.frombytes(raw)
            name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "")
            if "FDSTORE=1" in lines:
                self.fds[name] = fds[0]
            elif "FDSTOREREMOVE=1" in lines and name in self.fds:
                os.close(self.fds.pop(name))

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds.values():
            os.close(fd)


@pytest.fixture
def systemd(tmp_path):
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


def test_ready_is_said_when_the_modules_that_count_are_ready_and_others_are_named(make_node, systemd, tmp_path):
    node = make_node([row("broker"), row("api", needs=["broker"]), row("router.0")])
    node.env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    node.words("router.0", "never-ready")
    node.start(ready=False)
    wait_for(lambda: "READY=1" in systemd.read(), "READY is said")
    wait_for(lambda: "STATUS=not ready: router.0" in systemd.read(), "who is missing is named")
    node.stop()
    assert "STOPPING=1" in systemd.read()


def test_ready_is_not_said_while_a_module_that_counts_is_missing(make_node, systemd, tmp_path):
    node = make_node([row("broker"), row("api", needs=["broker"])])
    node.env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    node.words("api", "never-ready")
    node.start(ready=False)
    wait_for(lambda: "STATUS=not ready: api" in systemd.read(), "who is missing is named")
    assert "READY=1" not in systemd.read()


def test_the_watchdog_is_fed_and_starves_when_the_supervisor_is_frozen(make_node, systemd, tmp_path):
    node = make_node([row("m")])
    node.env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    node.start()
    wait_for(lambda: systemd.read().count("WATCHDOG=1") >= 5, "it is fed")
    assert node.process is not None
    node.process.send_signal(19)
    time.sleep(0.3)
    before = systemd.read().count("WATCHDOG=1")
    time.sleep(0.5)
    assert systemd.read().count("WATCHDOG=1") == before
    node.process.send_signal(18)


def test_modules_do_not_see_the_notify_socket(make_node, systemd, tmp_path):
    node = make_node([row("m"), row("x", spawn="exec")])
    node.env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "A_SECRET": "hunter2"}
    node.start()
    for name in ("m", "x"):
        with open(f"/proc/{node.pid(name)}/environ", "rb") as file:
            environment = file.read()
        assert b"NOTIFY_SOCKET" not in environment and b"hunter2" not in environment


def test_a_deposit_is_stored_with_the_manager_and_removed_by_lock(make_node, systemd, tmp_path):
    node = make_node([row("persistence", holds_keys=True)])
    node.env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    node.words("persistence", "deposit=the-key")
    node.start()
    wait_for(lambda: systemd.read() and "key.persistence.secret" in systemd.fds, "the manager has the descriptor")
    assert os.pread(systemd.fds["key.persistence.secret"], 100, 0) == b"the-key"
    node.words("persistence", "lock")
    node.wait_replaced("persistence", node.kill("persistence"))
    wait_for(lambda: systemd.read() and not systemd.fds, "the manager gave it up")


def test_a_stored_descriptor_is_taken_back_at_start():
    script = """
import os, sys
from piccolod.supervisor.notify import Notify
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="key.persistence.secret")
found = Notify().take_stored()
(key, fd), = found.items()
print(key, os.pread(fd, 100, 0), os.get_inheritable(fd), "LISTEN_FDS" in os.environ)
"""
    fd = sealed(b"the-key")
    os.set_inheritable(fd, True)
    try:
        done = subprocess.run([sys.executable, "-c", script, str(fd)], cwd=ROOT, pass_fds=(fd,), capture_output=True, text=True)
    finally:
        os.close(fd)
    assert done.stdout.strip() == "('persistence', 'secret') b'the-key' False False", done.stderr

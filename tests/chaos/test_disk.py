"""A disk that takes no writes: they are refused with its reason, the kernel is given away, and all comes back by itself."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.persistence.disk import PATIENCE_S
from tests.node import Node, Reply, until

GIVEN_AWAY_S = PATIENCE_S + 5


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0711", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Its state is one small disk, and its store another: each test leaves both as they were."""
    with Node() as node, small_disk(node.state, 48), small_disk(node.state / "store", 16):
        try:
            node.start()
            node.unlock()
            yield node
        finally:
            if node.process is not None:
                node.stop()


def write(node: Node, title: str) -> Reply:
    return node.api("PUT", "/settings", {"title": title})


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def kernel(node: Node) -> dict[str, str]:
    found: dict[str, str] = next(one for one in node.get("/leadership") if one["resource"] == "kernel")
    return found


def until_refused(node: Node, status: int) -> tuple[str, float]:
    """Writes until one is refused: the title that was acknowledged last, and a moment before the refusal."""
    kept = node.get("/settings")["title"]
    for number in range(2000):
        at = time.monotonic()
        reply = write(node, f"night {number} {os.urandom(40).hex()}")
        if reply.status == status:
            return str(kept), at
        assert reply.status == 200, reply
        kept = reply.json["title"]
    raise AssertionError("2000 writes were taken")


def until_given_away(node: Node, status: int) -> None:
    """By its clients' writes, which do not wait for the next probe. Large ones: a full log may have room for a word."""
    large = node.demo_manifest("large", f"environment: {{TEXT: {'x' * 20_000}}}\n")

    def given_away() -> bool:
        reply = node.api("POST", "/apps", large, kind="application/yaml")
        assert reply.status == status, reply
        return kernel(node)["role"] != "leader"

    until(given_away, "the kernel given away", GIVEN_AWAY_S, 0.1)


def check_refused_and_back(node: Node, status: int, reason: str, mend: Callable[[], object]) -> None:
    """From the first refused write to the next one that is taken."""
    epoch = kernel(node)["epoch"]
    try:
        kept, refused_at = until_refused(node, status)
        until_given_away(node, status)
        assert time.monotonic() - refused_at >= PATIENCE_S, "what was refused before counts no more"
        refused = write(node, "while it is given away")
        assert refused.status == status and reason in refused.json["detail"], refused
        installed = node.api("POST", "/apps", node.demo_manifest(), kind="application/yaml")
        assert installed.status == status and reason in installed.json["detail"], installed
        ready = node.api("GET", "/health/ready")
        assert ready.status == 503 and reason in ready.body.decode() and "does not lead the kernel" in ready.body.decode()
        assert node.get("/settings")["title"] == kept, "what was acknowledged is read"
    finally:
        mend()
    until(lambda: kernel(node)["role"] == "leader", "led again by itself", 10, 0.2)
    assert kernel(node)["epoch"] > epoch
    assert write(node, "after").status == 200
    until(lambda: node.api("GET", "/health/ready").status == 200, "ready again", 10, 0.2)


def test_a_full_disk(node: Node) -> None:
    """Full for a moment it costs no term and leaves nothing behind; then all of the state is full, not only the store."""
    epoch = kernel(node)["epoch"]
    moment = fill(node.state / "store")
    until_refused(node, 507)
    moment.unlink()
    until(lambda: node.api("GET", "/health/ready").status == 200, "ready again", 5)
    assert kernel(node)["epoch"] == epoch and write(node, "after").status == 200
    ballast = [fill(node.state), fill(node.state / "store")]
    check_refused_and_back(node, 507, "full", lambda: [file.unlink() for file in ballast])


def test_a_disk_with_errors(node: Node) -> None:
    """EFBIG, as prlimit makes it, is an I/O error to SQLite; the process and its open files are the real ones."""
    pid = node.pid("persistence")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    check_refused_and_back(node, 503, "control.db", lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited))
    assert node.pid("persistence") == pid


def test_a_read_only_disk(node: Node) -> None:
    """A file that is open for writing keeps its file system writable: persistence dies, and comes back to a read-only one."""
    assert node.process is not None
    store, pid, instance = node.state / "store", node.pid("persistence"), node.instance("persistence")
    node.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not _maps(pid), "persistence dead", 2, 0.001)
        # Its memory goes first, its open files a moment later.
        until(lambda: _remount(store, "ro"), "the disk read-only", 2, 0.01)
    finally:
        node.process.send_signal(signal.SIGCONT)
    until(lambda: node.is_replaced("persistence", instance), "persistence again", 10)
    refused = until(lambda: (reply := write(node, "x")).status == 503 and reply, "writes refused", 5)
    assert "control.db" in refused.json["detail"], refused
    until_given_away(node, 503)
    ready = node.api("GET", "/health/ready")
    assert ready.status == 503 and "control.db" in ready.body.decode()
    assert _remount(store, "rw")
    until(lambda: kernel(node)["role"] == "leader", "led again by itself, and never locked", 10, 0.2)
    assert write(node, "after").status == 200


def _remount(folder: Path, how: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=False, capture_output=True).returncode == 0


def _maps(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/maps").read_bytes())
    except OSError:
        return False

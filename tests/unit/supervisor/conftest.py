"""Real supervisors over real processes; whatever a test started is dead when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from piccolod.paths import Paths
from tests.node import unmount_below

ROOT = Path(__file__).parents[3]
SAMPLE = "tests.unit.supervisor.samples:main"


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 8.0) -> Any:
    deadline_at = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_at, f"not within {timeout_s} s: {what}"
        time.sleep(0.002)
    return value


def gone(pid: int) -> bool:
    """Exited: no such process, or only its zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "target": SAMPLE, "listens": ["tcp"], **more}


THREE = [row("broker"), row("store", needs=["broker"]), row("edge", needs=["store"])]


class TestNode:
    """A supervisor in a process of its own, reached as people reach it: by signals and its control socket."""

    __test__ = False

    def __init__(self, table: list[dict[str, Any]], **more: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sup"))
        self.paths = Paths(state=self.folder / "state", run=self.folder / "run")
        self.sample = self.paths.state / "sample"
        self.sample.mkdir(parents=True)
        self.table = table
        self.more = more
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: set[int] = set()
        self.env: dict[str, str] = {}

    def words(self, module: str, *words: str) -> None:
        """What the sample does from its next start on."""
        (self.sample / module).write_text("\n".join(words))

    def order(self, module: str, **message: Any) -> None:
        """What the sample does now."""
        folder = self.sample / f"{module}.orders"
        folder.mkdir(exist_ok=True)
        draft = folder.parent / "draft"
        draft.write_text(json.dumps(message))
        draft.rename(folder / str(time.monotonic_ns()))

    def start(self, *, ready: bool = True, refused: bool = False) -> TestNode:
        file = self.folder / "node.json"
        file.write_text(
            json.dumps({"state": str(self.paths.state), "run": str(self.paths.run), "table": self.table, **self.more})
        )
        with open(self.folder / "stderr", "ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.supervisor.node", str(file)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True,
                env={**os.environ, **self.env},
            )  # fmt: skip
        self.seen.add(self.process.pid)
        if not refused:
            wait_for(self.modules, "the supervisor answers")
        if ready and not refused:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = 8.0) -> None:
        wait_for(
            lambda: (found := self.modules()) and all(each["state"] in ("ready", "disabled") for each in found.values()),
            f"all modules are ready: {self.states()}", timeout_s,
        )  # fmt: skip

    def ask(self, cmd: str, **more: Any) -> Any:
        answer = self.ask_raw((json.dumps({"cmd": cmd, **more}) + "\n").encode())
        assert answer["ok"], answer
        return answer["result"]

    def ask_raw(self, line: bytes) -> Any:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(5)
            link.connect(str(self.paths.supervisor_socket))
            link.sendall(line)
            got = b""
            while not got.endswith(b"\n"):
                part = link.recv(1 << 16)
                if not part:
                    break
                got += part
        return json.loads(got) if got else None

    def modules(self) -> dict[str, dict[str, Any]]:
        try:
            found = {each["name"]: each for each in self.ask("modules")}
        except OSError:
            return {}
        self.seen |= {each["pid"] for each in found.values() if each["pid"]}
        return found

    def states(self) -> dict[str, str]:
        return {name: f"{each['state']} {each['reason']}" for name, each in self.modules().items()}

    def module(self, name: str) -> dict[str, Any]:
        return self.modules()[name]

    def pid(self, name: str) -> int:
        return int(self.module(name)["pid"])

    def tree(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("tree")
        self.seen |= {found["zygote"]["pid"], found["log_writer"]["pid"]}
        return found

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def wait_replaced(self, name: str, pid: int, timeout_s: float = 8.0) -> dict[str, Any]:
        return wait_for(
            lambda: (found := self.modules().get(name)) and found["state"] == "ready" and found["pid"] != pid and found,
            f"{name} is replaced and ready", timeout_s,
        )  # fmt: skip

    def notes(self) -> list[list[str]]:
        try:
            return [line.split() for line in (self.sample / "notes").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def read(self, name: str) -> str:
        return (self.sample / name).read_text()

    def on_disk(self, name: str) -> bytes:
        """The newest file of a module's log."""
        try:
            return (self.paths.log / f"{name}.log").read_bytes()
        except FileNotFoundError:
            return b""

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 10.0) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def die(self) -> None:
        """kill -9 of the supervisor alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def events(self) -> list[dict[str, Any]]:
        """What the sample that stands for the broker was told to publish."""
        try:
            return [json.loads(line) for line in self.read("events").splitlines()]
        except FileNotFoundError:
            return []

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.tree()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.seen |= set(children(self.process.pid))
                os.kill(self.process.pid, signal.SIGCONT)
                self.process.kill()
            self.process.wait()
        for pid in self.seen:
            if b"supervisor" in _cmdline(pid) or b"zygote" in _cmdline(pid) or b"entry" in _cmdline(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        unmount_below(self.folder)  # podman keeps one on its storage
        shutil.rmtree(self.folder, ignore_errors=True)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.fixture
def make_node() -> Iterator[Callable[..., TestNode]]:
    made: list[TestNode] = []

    def make(table: list[dict[str, Any]], **more: Any) -> TestNode:
        made.append(TestNode(table, **more))
        return made[-1]

    yield make
    for node in made:
        node.close()

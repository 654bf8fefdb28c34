"""A real piccolod on this machine, for tests and benches: its own folders, its own containers, nothing left behind.

with Node() as node:
    node.start()
    node.unlock()
    node.install(node.demo_manifest())
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

import psutil

from tests import netns

ROOT = Path(__file__).parent.parent
PASSWORD = "correct horse battery"
PICCOLOD = Path(sys.executable).parent / "piccolod"
DEMO_IMAGE = "localhost/piccolo-demo:1"


class Failed(AssertionError):
    """A condition that did not come true in time; says what was seen."""


def until(condition: Callable[[], Any], what: str, within_s: float = 10.0, every_s: float = 0.02) -> Any:
    """The first truthy value of `condition()`. Raises Failed with the last one."""
    give_up_at = time.monotonic() + within_s
    while True:
        seen = condition()
        if seen:
            return seen
        if time.monotonic() > give_up_at:
            raise Failed(f"not within {within_s:g} s: {what}; last seen: {seen!r}")
        time.sleep(every_s)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:600]!r}"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Process(Protocol):
    """What a node needs of its piccolod; subprocess.Popen is one."""

    pid: int

    def send_signal(self, number: int, /) -> None: ...
    def wait(self, timeout: float | None = None) -> Any: ...
    def kill(self) -> None: ...


class Node:
    """One piccolod. The context manager ends it and removes every trace, whatever happened in between."""

    name, address = "n1", "127.0.0.1"
    _kept = ""
    within: Sequence[str] = ()  # what runs piccolod, as `unshare` does; see `beside`
    known: ClassVar[WeakSet[Node]] = WeakSet()  # all of this process: a test that fails shows what they said

    def __init__(self, folder: Path | None = None, extra_config: str = "") -> None:
        Node.known.add(self)
        self.folder = folder or Path(tempfile.mkdtemp(prefix="pn"))
        self.state, self.run = self.folder / "state", self.folder / "run"
        self.state_dir, self.run_dir = self.state, self.run  # as the node itself names them
        self.port = free_port()
        first_port = random.randrange(20_000, 32_000, 100)  # of its own: other nodes of this host take ports that it gives up
        self.process: Process | None = None
        self.config_file = self.folder / "piccolod.toml"
        self.output = self.folder / "output"
        self._write_config(f"{first_port}-{first_port + 99}", f'listen = ["127.0.0.1:{self.port}"]', extra_config)

    def _write_config(self, public_ports: str, api: str, extra: str) -> None:
        self.config_file.write_text(
            f'[node]\nname = "{self.name}"\naddress = "{self.address}"\n'
            f'state_dir = "{self.state_dir}"\nrun_dir = "{self.run_dir}"\n'
            f'[api]\n{api}\n[apps]\npublic_ports = "{public_ports}"\n{extra}'
        )

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.keep_words()
        self.remove()

    # --- the process

    def start(self, wait: bool = True) -> None:
        self.process = self.spawn(*self.within, str(PICCOLOD), "--config", str(self.config_file))
        if wait:
            self.wait_up()

    def spawn(self, *command: str) -> Process:
        """Starts a program where this node lives; what it says goes to `output`."""
        with self.output.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=ROOT)

    def inside(self, *command: str) -> list[str]:
        """How `command` is run where this node lives: with its network, its mounts, its processes."""
        return list(command)

    def wait_up(self, within_s: float = 15.0) -> None:
        try:
            until(self.all_ready, f"every module of {self.name} ready", within_s)
        except Failed as error:
            raise Failed(f"{error}; output: {self.tail()}") from None

    def all_ready(self) -> bool:
        return all(module["state"] in ("ready", "disabled") for module in self.supervisor("modules") or [{"state": "none"}])

    def tail(self, length: int = 2000) -> str:
        return (self.output.read_text() if self.output.exists() else self._kept)[-length:]

    def keep_words(self) -> None:
        """What it said, for `tail` when its folder is gone."""
        self._kept = self.tail(8000)

    def stop(self, number: int = signal.SIGTERM, within_s: float | None = None) -> float:
        """Seconds that the stop took. Ctrl-C waits for apps, which have the grace of their manifest."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(within_s or (10.0 if number == signal.SIGTERM else 30.0))
        self.process = None
        return time.monotonic() - began

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def supervisor(self, command: str, **arguments: Any) -> Any:
        """A command on the control socket; None when nobody answers."""
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self.run / "supervisor.sock"))
            sock.sendall(json.dumps({"cmd": command, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer = json.loads(lines.readline())
                assert answer["ok"], answer
                return answer["result"]
        return None

    def modules(self) -> dict[str, dict[str, Any]]:
        return {module["name"]: module for module in self.supervisor("modules") or []}

    def pid(self, module: str) -> int:
        """0 while it has no process."""
        return int(self.modules()[module]["pid"])

    def signal(self, module: str, number: int) -> None:
        """To its process, once it has one: 0 would be this very process and all that it was started with."""
        pid = until(lambda: self.pid(module), f"{module} has a process", 40)
        os.kill(pid, number)

    def instance(self, module: str) -> str:
        return str(self.modules()[module]["instance"])

    def is_replaced(self, module: str, instance: str) -> bool:
        now = self.modules().get(module)
        return now is not None and now["instance"] != instance and now["state"] == "ready"

    # --- the API by its unix socket, as root

    def api(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json",
        headers: dict[str, str] | None = None, timeout_s: float = 30.0,
    ) -> Reply:  # fmt: skip
        connection = UnixConnection(self.run / "api.sock", timeout_s)
        try:
            data = (
                body
                if isinstance(body, bytes | None)
                else body.encode()
                if isinstance(body, str)
                else json.dumps(body).encode()
            )
            sent = {**({"Content-Type": kind} if data is not None else {}), **(headers or {})}
            connection.request(method, path if path == "/metrics" else f"/api/v1{path}", data, sent)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        reply = self.api("GET", path)
        assert reply.status == 200, reply
        return reply.json

    def ctl(self, *arguments: str, text: str | None = None, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """piccoloctl, as a person runs it."""
        return subprocess.run(
            [PICCOLOD.with_name("piccoloctl"), "--socket", self.run / "api.sock", *arguments],
            input=text, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip

    def unlock(self) -> None:
        """Setup on a new node, unlock on an old one."""
        status = self.get("/crypto/status")
        action = "unlock" if status["initialized"] else "setup"
        if status["locked"] or not status["initialized"]:
            reply = self.api("POST", f"/crypto/{action}", {"password": PASSWORD})
            assert reply.status in (200, 201), reply

    # --- apps

    def beside(self) -> list[str]:
        """A command that runs others where piccolod runs: in its mount namespace."""
        return ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt"] if self.within and self.process is not None else []

    def load_demo_image(self) -> None:
        if DEMO_IMAGE not in str(self.api("GET", "/images").body):
            self.build_demo_image()

    def build_demo_image(self) -> None:
        subprocess.run(
            [*self.beside(), "sh", ROOT / "deploy/demo/load.sh", sys.executable, str(self.folder), str(self.port)],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120,
        )  # fmt: skip

    def demo_manifest(self, name: str = "hello", extra: str = "") -> str:
        return (
            f"name: {name}\nimage: {DEMO_IMAGE}\npull: never\n"
            "listeners:\n  - {name: web, guest_port: 80, flow: tcp, protocol: http, public_port: auto}\n"
            f"{extra}"
        )

    def install(self, manifest: str, running: bool = True) -> dict[str, Any]:
        reply = self.api("POST", "/apps", manifest, kind="application/yaml")
        assert reply.status in (200, 201, 202), reply
        name = reply.json.get("name") or reply.json["app"]["name"]
        return self.wait_app(name) if running else self.app(name)

    def app(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = self.get(f"/apps/{name}")
        return document

    def wait_app(self, name: str, state: str = "running", within_s: float = 20.0) -> dict[str, Any]:
        last: dict[str, Any] = {}

        def there() -> bool:
            last.update(self.app(name))
            return bool(last["state"] == state)

        try:
            until(there, f"{name} is {state}", within_s)
        except Failed as error:
            raise Failed(f"{error}; saw {last.get('state')}: {last.get('reason')}") from None
        return last

    def public_port(self, app: str, listener: str = "web") -> int:
        return next(int(one["public_port"]) for one in self.app(app)["listeners"] if one["name"] == listener)

    def fetch(self, port: int, path: str = "/", timeout_s: float = 2.0) -> Reply:
        connection = http.client.HTTPConnection(self.address, port, timeout=timeout_s)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return Reply(response.status, {}, response.read())
        finally:
            connection.close()

    def podman(self, *arguments: str) -> str:
        """podman on this node's containers, beside piccolod: what is really there."""
        root = ["--root", str(self.state_dir / "containers"), "--runroot", str(self.run_dir / "containers")]
        done = subprocess.run(
            self.inside("podman", *root, *arguments), capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "CONTAINERS_CONF": str(self.run_dir / "containers.conf")},
        )  # fmt: skip
        return done.stdout

    # --- the end

    def processes(self) -> list[psutil.Process]:
        """All of it: what the supervisor started, what names its folder, and the children of all these.

        A forked module's own command line names nothing of its node.
        """
        pids = {module["pid"] for module in self.modules().values() if module["pid"]} | set(self.survivors())
        pids |= {self.process.pid} if self.process is not None else set()
        found: set[psutil.Process] = set()
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                one = psutil.Process(pid)
                found |= {one, *one.children(recursive=True)}
        return sorted(found, key=lambda one: one.pid)

    def survivors(self) -> list[int]:
        """Every process whose command line names this node's folder."""
        return processes_of(self.folder)

    def remove(self) -> None:
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(signal.SIGINT, 15)
        if self.process is not None:
            self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.podman("rm", "--all", "--force", "--time", "0")
            self.podman("network", "prune", "--force")
        for _ in range(50):
            survivors = self.survivors()
            if not survivors:
                break
            for pid in survivors:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        netns.remove_left()
        unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """Every process whose command line names the folder."""
    return [pid for pid, line in _command_lines() if str(folder) in line and pid != os.getpid()]


def _command_lines() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def unmount_below(folder: Path) -> None:
    """Takes away every mount that a test left below its folder, the innermost first."""
    found = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for path in sorted((path for path in found if path.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


def on_the_disk(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below the folder that lies on its own file system, and its content: what is mounted below is left out."""
    device = folder.stat().st_dev
    for path, folders, names in os.walk(folder):
        here = Path(path)
        folders[:] = [name for name in folders if (here / name).lstat().st_dev == device]
        for name in names:
            file = here / name
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(file.lstat().st_mode) and file.lstat().st_dev == device:
                    yield file, file.read_bytes()

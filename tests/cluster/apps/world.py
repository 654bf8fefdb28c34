"""apps against the real podman, the real leashes and the real deadline page.

The neighbours that are other processes in a node (persistence, volumes, the routers, the bus) are doubles of this file: a
dictionary with generations, plain folders, and a list of the routes that were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from piccolod import clock, podman_conf
from piccolod.config import Config
from piccolod.config import Node as NodeKeys
from piccolod.errors import Conflict, Locked, NotFound, Unavailable
from piccolod.leadership import leash_probe, leash_table, oci_hook, page
from piccolod.leadership.page import PageWriter
from piccolod.leadership.resources import RESOURCE_KERNEL
from piccolod.leadership.roles import Reason
from piccolod.module import Caller
from piccolod.protocol import apps as protocol
from piccolod.protocol import consensus, persistence, volumes
from piccolod.protocol.base import Event, Nothing
from piccolod.protocol.events import ControlStoreCommit, LockStateChanged
from piccolod.protocol.router import ForgetAppRoute, RegisterAppRoute, RouteStates
from services.apps.service import Service
from services.consensus.static_leaser import StaticLeaser

MARKS = [
    pytest.mark.filterwarnings("ignore:unclosed <podman.api.uds"),  # podman-py's pool leaves them to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.podman,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("podman") is None, reason="needs root and podman"),
]

IMAGE = "localhost/apps-test:1"
SERVE = """#!/bin/sh
echo "serving $GREETING"
[ -n "$FAIL" ] && { echo "no database"; exit 3; }
[ -n "$DEAF" ] && trap '' TERM
mkdir -p /tmp/www && echo -n "${ANSWER:-one}" > /tmp/www/index.html
busybox httpd -f -p 80 -h /tmp/www & wait
[ -n "$DEAF" ] && exec sleep 1000
exit 0
"""


class Machine:
    """What outlives a restart of apps: podman, leashes, the page, the store, the volumes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keys = NodeKeys(name="n1", state_dir=str(folder / "s"), run_dir=str(folder / "r"))
        self.config = Config(node=keys)
        self.paths = self.config.paths
        self.paths.leash.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.documents: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        self.rev = 0
        self.idems: dict[str, int] = {}
        self.locked = False
        self.routes: dict[str, RegisterAppRoute] = {}
        self.route_log: list[tuple[float, str, str]] = []
        self.podman = podman_conf.prepare(self.config)
        oci_hook.write_hook(self.paths, sys.executable)

    def start(self) -> None:
        page.create(self.paths.page)
        for index in range(leash_probe.LEASHES):
            self.start_leash(index)
        self.start_podman()

    def start_leash(self, index: int) -> None:
        command = leash_probe.command(sys.executable, self.paths.page, self.paths.leash, index)
        self.processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True))
        wait_for(lambda: self.paths.leash_socket(index).exists(), "a leash")

    def start_podman(self) -> None:
        self.paths.podman_socket.unlink(missing_ok=True)
        self.service = subprocess.Popen(
            self.podman.service_argv, env=self.podman.env, start_new_session=True, stderr=subprocess.DEVNULL
        )
        self.processes.append(self.service)
        wait_for(self.paths.podman_socket.exists, "podman's socket")

    def run_podman(self, *args: str) -> str:
        done = subprocess.run([*self.podman.argv, *args], env=self.podman.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def build(self, tag: str = IMAGE, extra: str = "") -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as context:
            root = Path(context)
            shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "busybox")
            (root / "serve").write_text(SERVE)
            (root / "serve").chmod(0o755)
            (root / "Containerfile").write_text(
                "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\nCOPY busybox /bin/cat\nCOPY busybox /bin/mkdir\n"
                f'COPY busybox /bin/sleep\nCOPY busybox /bin/id\nCOPY busybox /bin/true\nCOPY serve /bin/serve\n{extra}\nENTRYPOINT ["/bin/serve"]\n'
            )
            self.run_podman("build", "-q", "--network", "none", "-t", tag, context)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            subprocess.run(
                [*self.podman.argv, "rm", "-af", "-t", "0"], env=self.podman.env, capture_output=True, timeout=60, check=False
            )
            subprocess.run(
                [*self.podman.argv, "network", "prune", "-f"], env=self.podman.env, capture_output=True, timeout=60, check=False
            )
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.wait()
        for mount in sorted(mounts_below(self.folder), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split()[4]).startswith(f"{folder}/")]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not come within {seconds} s"
        time.sleep(0.02)


class Neighbours:
    """In the place of the module's bus."""

    name, inst, stop_apps, stop_seconds = "apps", "i1", False, 5.0

    def __init__(self, machine: Machine, leaser: StaticLeaser, tasks: asyncio.TaskGroup) -> None:
        self.machine, self._leaser, self._tasks = machine, leaser, tasks
        self.config, self.paths = machine.config, machine.paths
        self.log = structlog.get_logger()
        self.handlers: dict[type, Callable[..., Awaitable[Any]]] = {}
        self.listeners: list[tuple[type, Callable[[Any], None]]] = []
        self.events: list[Event] = []
        self.spawned: list[asyncio.Task[None]] = []
        self.judgement: tuple[Any, ...] = ()
        self.lose_delete = False

    def serve(self, kind: type, handler: Callable[..., Awaitable[Any]]) -> None:
        self.handlers[kind] = handler

    def spawn(self, work: Any, *, name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(work, name=name)
        self.spawned.append(task)
        return task

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def on(self, kind: type, callback: Callable[[Any], None], key: str | None = None) -> None:
        self.listeners.append((kind, callback))

    def on_resync(self, callback: Callable[[], None]) -> None:
        pass

    def health(self, *judgement: Any) -> None:
        self.judgement = judgement

    def tell(self, event: Event) -> None:
        for kind, callback in self.listeners:
            if isinstance(event, kind):
                callback(event)

    async def call(self, request: Any, *, timeout_s: float = 5.0, idem: str = "", target: str | None = None) -> Any:
        await asyncio.sleep(0)
        if isinstance(request, persistence.Commit) and idem in self.machine.idems:
            return persistence.Committed(rev=self.machine.idems[idem], repeated=True)
        answer = getattr(self, f"_{type(request).__name__}")(request)
        if isinstance(request, persistence.Commit):
            if idem:
                self.machine.idems[idem] = answer.rev
            if self.lose_delete and request.writes[0].body is None:
                self.lose_delete = False
                raise Unavailable("the answer is lost")
        return await answer if asyncio.iscoroutine(answer) else answer

    # --- consensus
    async def _Campaign(self, request: consensus.Campaign) -> consensus.Term:
        term = await self._leaser.campaign(request.resource, Reason(request.reason))
        return consensus.Term(resource=request.resource, gen=term.gen, epoch=term.epoch, token=term.token)

    async def _Closing(self, request: consensus.Closing) -> Nothing:
        await self._leaser.close(request.resource, request.token)
        return Nothing()

    async def _Withdraw(self, request: consensus.Withdraw) -> Nothing:
        for entry in leash_table.read(self.paths.leash).values():
            assert entry.resource != request.resource or leash_table.proven_dead(entry), "withdrawn before it was dead"
        await self._leaser.release(request.resource, request.token, Reason(request.reason))
        return Nothing()

    # --- persistence
    def _open(self) -> None:
        if self.machine.locked:
            raise Locked("locked")

    def _GetCryptoStatus(self, request: Any) -> persistence.CryptoStatus:
        return persistence.CryptoStatus(
            initialized=True, locked=self.machine.locked, has_recovery=False, keyset_version=1, cluster_id="c1", reason=""
        )

    def _List(self, request: persistence.List) -> persistence.Documents:
        self._open()
        found = tuple(
            persistence.Document(id=key, generation=generation, body=body)
            for (collection, key), (generation, body) in sorted(self.machine.documents.items())
            if collection == request.collection
        )
        return persistence.Documents(rev=self.machine.rev, documents=found)

    def _Read(self, request: persistence.Read) -> persistence.Document:
        self._open()
        if (request.collection, request.id) not in self.machine.documents:
            raise NotFound(request.id)
        generation, body = self.machine.documents[request.collection, request.id]
        return persistence.Document(id=request.id, generation=generation, body=body)

    def _Commit(self, request: persistence.Commit) -> persistence.Committed:
        self._open()
        documents = self.machine.documents
        for expect in request.expect:
            if documents.get((expect.collection, expect.id), (0, {}))[0] != expect.generation:
                raise Conflict(f"{expect.collection}/{expect.id} changed")
        self.machine.rev += 1
        for write in request.writes:
            if write.body is None:
                documents.pop((write.collection, write.id), None)
            else:
                documents[write.collection, write.id] = (self.machine.rev, json.loads(json.dumps(write.body)))
        self.tell(ControlStoreCommit(rev=self.machine.rev, collections=tuple({write.collection for write in request.writes})))
        return persistence.Committed(rev=self.machine.rev)

    # --- volumes
    def _folder(self, app: str, volume: str) -> Path:
        return self.machine.folder / "volumes" / f"{app}.{volume}"

    def _volume(self, app: str, name: str, attached: bool) -> volumes.VolumeDocument:
        path = str(self._folder(app, name)) if attached else ""
        return volumes.VolumeDocument(
            app=app, name=name, attached="rw" if attached else "no", path=path, size_limit_bytes=0, used_bytes=0, quota=""
        )

    def _Ensure(self, request: volumes.Ensure) -> volumes.VolumeDocument:
        self._folder(request.app, request.volume).mkdir(parents=True, exist_ok=True)
        return self._volume(request.app, request.volume, False)

    def _Attach(self, request: volumes.Attach) -> volumes.VolumeDocument:
        (self._folder(request.app, request.volume).with_suffix(".attached")).touch()
        return self._volume(request.app, request.volume, True)

    def _Detach(self, request: volumes.Detach) -> Nothing:
        self._folder(request.app, request.volume).with_suffix(".attached").unlink(missing_ok=True)
        return Nothing()

    def _ListVolumes(self, request: volumes.ListVolumes) -> volumes.VolumeDocuments:
        found = []
        for folder in sorted((self.machine.folder / "volumes").glob(f"{request.app}.*")):
            if folder.is_dir():
                attached = Path(f"{folder.parent}/{request.app}.attached").exists()
                found.append(self._volume(str(request.app), folder.name.partition(".")[2], attached))
        return volumes.VolumeDocuments(volumes=tuple(found))

    def _Purge(self, request: volumes.Purge) -> Nothing:
        for folder in (self.machine.folder / "volumes").glob(f"{request.app}.*"):
            shutil.rmtree(folder, ignore_errors=True)
        return Nothing()

    # --- router
    def _RegisterAppRoute(self, request: RegisterAppRoute) -> RouteStates:
        self.machine.routes[request.app] = request
        self.machine.route_log.append((clock.now(), request.app, request.mode))
        return RouteStates(routes=())

    def _ForgetAppRoute(self, request: ForgetAppRoute) -> RouteStates:
        self.machine.routes.pop(request.app, None)
        return RouteStates(routes=())


class World:
    """One life of apps on a machine."""

    def __init__(self, machine: Machine, module: Neighbours, service: Service) -> None:
        self.machine, self.module, self.service = machine, module, service

    async def ask(self, request: Any, seconds: float = 20.0, idem: str = "") -> Any:
        caller = Caller("api", os.getpid(), idem, "", clock.now() + seconds)
        return await self.module.handlers[type(request)](request, caller)

    async def install(self, text: str, **more: Any) -> protocol.AppDocument:
        request = protocol.InstallApp(manifest=protocol.Manifest(text=text), author="test", **more)
        return (await self.ask(request)).app

    async def apply(self, text: str) -> protocol.AppDocument:
        return (await self.ask(protocol.ApplyApp(manifest=protocol.Manifest(text=text), author="test"))).app

    async def change(self, name: str, action: str, **more: Any) -> protocol.AppDocument:
        return (await self.ask(protocol.ChangeApp(name=name, action=action, author="test", **more))).app

    async def show(self, name: str) -> protocol.AppDocument:
        return await self.ask(protocol.ShowApp(name=name))

    async def until(self, name: str, state: str, seconds: float = 20.0, reason: str = "") -> protocol.AppDocument:
        give_up_at = clock.now() + seconds
        while True:
            app = await self.show(name)
            if app.state == state and reason in app.reason:
                return app
            assert clock.now() < give_up_at, f"{name} is {app.state} ({app.reason}), not {state} {reason}"
            await asyncio.sleep(0.01)

    async def serving(self, name: str, seconds: float = 20.0) -> protocol.AppDocument:
        return await self.until(name, "running", seconds)

    async def get(self, name: str, path: str = "/") -> str:
        """As the router would: by the endpoint of the route, while it is local."""
        route = self.machine.routes[name]
        assert route.mode == "local", route.mode
        reader, writer = await asyncio.open_connection(route.endpoints[0].address, route.endpoints[0].port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode().partition("\r\n\r\n")[2]

    async def eventually(self, condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
        give_up_at = clock.now() + seconds
        while not (found := condition()):
            assert clock.now() < give_up_at, f"{what} did not come within {seconds} s"
            await asyncio.sleep(0.01)
        return found

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.machine.run_podman("inspect", f"piccolo-{name}"))
        return found[0]

    def containers(self) -> list[str]:
        return self.machine.run_podman("ps", "-a", "--format", "{{.Names}}").split()


@contextlib.asynccontextmanager
async def life(machine: Machine) -> AsyncIterator[World]:
    writer = PageWriter(machine.paths.page)
    leaser = StaticLeaser(machine.folder / "terms.db", writer, "n1")
    await leaser.open()
    await leaser.campaign(RESOURCE_KERNEL, Reason.BOOTSTRAP)
    try:
        async with asyncio.TaskGroup() as tasks:
            module = Neighbours(machine, leaser, tasks)
            service = Service(module)  # type: ignore[arg-type]
            await service.start()
            if not machine.locked:
                module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            yield World(machine, module, service)
            await service.stop()
            for task in module.spawned:
                task.cancel()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
    finally:
        await leaser.end()
        writer.close()


def manifest(name: str = "hello", **more: str) -> str:
    lines = {
        "image": IMAGE,
        "pull": "never",
        "listeners": "[{name: web, guest_port: 80, protocol: http}]",
        "stop": "{grace: 1s}",
        **more,
    }
    return f"name: {name}\n" + "".join(f"{key}: {value}\n" for key, value in lines.items())

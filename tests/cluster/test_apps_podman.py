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
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from piccolod import clock, podman_conf
from piccolod.config import Config
from piccolod.config import Node as NodeKeys
from piccolod.errors import Conflict, Exists, Invalid, Locked, NotFound, Unavailable
from piccolod.leadership import leash_probe, leash_table, oci_hook, page
from piccolod.leadership.page import PageReader, PageWriter
from piccolod.leadership.resources import RESOURCE_KERNEL, resource_for_app
from piccolod.leadership.roles import Reason
from piccolod.module import Caller
from piccolod.protocol import apps as protocol
from piccolod.protocol import consensus, persistence, volumes
from piccolod.protocol.base import Event, Nothing
from piccolod.protocol.events import ControlStoreCommit, LockStateChanged
from piccolod.protocol.router import ForgetAppRoute, RegisterAppRoute, RouteStates
from services.apps.service import Service
from services.consensus.static_leaser import StaticLeaser

pytestmark = [
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


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    """A folder whose podman storage holds the test image: copied, not rebuilt, for each machine."""
    folder = Path(tempfile.mkdtemp(prefix="pa-", dir="/tmp"))
    machine = Machine(folder)
    try:
        machine.build()
        archive = folder / "image.tar"
        machine.run_podman("save", "-q", "-o", str(archive), IMAGE)
        yield archive
    finally:
        machine.close()


@pytest.fixture
def machine(images: Path) -> Iterator[Machine]:
    machine = Machine(Path(tempfile.mkdtemp(prefix="pa-", dir="/tmp")))
    try:
        machine.run_podman("load", "-q", "-i", str(images))
        machine.start()
        yield machine
    finally:
        machine.close()


def manifest(name: str = "hello", **more: str) -> str:
    lines = {
        "image": IMAGE,
        "pull": "never",
        "listeners": "[{name: web, guest_port: 80, protocol: http}]",
        "stop": "{grace: 1s}",
        **more,
    }
    return f"name: {name}\n" + "".join(f"{key}: {value}\n" for key, value in lines.items())


def test_an_installed_app_serves_and_its_container_is_what_the_manifest_allows(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            began = clock.now()
            installed = await world.install(manifest(environment="{GREETING: 'yes'}", resources="{limits: {memory: 64MiB}}"))
            assert installed.listeners[0].public_port in machine.config.public_ports
            app = await world.serving("hello")
            took = clock.now() - began
            assert await world.get("hello") == "one"
            assert app.leader is not None
            assert app.leader.epoch == 1
            assert app.image_id.startswith("sha256:")
            assert took < 3.0, f"install to serving took {took:.2f} s"
            print(f"install to serving: {took:.3f} s")
            seen = world.inspect("hello")
            assert seen["HostConfig"]["ReadonlyRootfs"]
            assert seen["HostConfig"]["PidsLimit"] == 2048
            assert seen["HostConfig"]["Memory"] == 64 * 2**20
            assert seen["EffectiveCaps"] in ([], None)
            assert not seen["HostConfig"]["PortBindings"]
            status = Path(f"/proc/{seen['State']['Pid']}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            assert "CapEff:\t0000000000000000" in status
            labels = seen["Config"]["Labels"]
            assert [labels[f"io.piccolo.{key}"] for key in ("cluster", "node", "app", "epoch", "generation")] == [
                "c1",
                "n1",
                "hello",
                "1",
                "1",
            ]
            (entry,) = leash_table.read(machine.paths.leash).values()
            assert entry.pid == seen["State"]["Pid"]
            assert entry.cgroup.endswith(seen["Id"])
            found = await world.ask(protocol.GetAppLogs(name="hello"))
            assert [line.line for line in found.lines] == ["serving yes"]
            with pytest.raises(Exists):
                await world.install(manifest())

    asyncio.run(story())


def test_a_container_whose_term_ends_between_its_making_and_its_process_gets_none(machine: Machine) -> None:
    """Only the runtime's own look at the page is left then: apps looked at it a moment before, and podman was slow."""

    async def story() -> None:
        async with life(machine) as world:
            podman = world.service._node.podman
            made, seen = podman.init, asyncio.Queue[tuple[int, dict[str, Any]]]()

            async def late(name: str) -> None:
                podman.init = made  # type: ignore[method-assign]
                now = PageReader(machine.paths.page).read()
                assert now is not None
                token = now.terms[resource_for_app("hello")].token
                await world.module.call(consensus.Closing(resource=resource_for_app("hello"), token=token))
                try:
                    await made(name)
                finally:
                    seen.put_nowait((token, world.inspect("hello")))

            podman.init = late  # type: ignore[method-assign]
            await world.install(manifest())
            async with asyncio.timeout(20):
                token, found = await seen.get()
            assert found["State"]["Status"] == "created", found["State"]
            assert found["State"]["Pid"] == 0
            annotations = found["Config"]["Annotations"]
            assert annotations["io.piccolo.resource"] == resource_for_app("hello")
            assert annotations["io.piccolo.token"] == str(token)
            app = await world.serving("hello")
            assert app.leader is not None
            assert app.leader.epoch > 1, "it runs in a term of its own, not in the one that was closed"

    asyncio.run(story())


def test_an_app_that_is_always_on_runs_without_a_term_and_is_not_guarded(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(cluster="{policy: always_on}"))
            await world.serving("hello")
            assert await world.get("hello") == "one"
            seen = world.inspect("hello")
            assert "io.piccolo.resource" not in (seen["Config"].get("Annotations") or {})
            page_now = PageReader(machine.paths.page).read()
            assert page_now is not None
            assert resource_for_app("hello") not in page_now.terms
            assert leash_table.read(machine.paths.leash) == {}
            os.kill(seen["State"]["Pid"], signal.SIGKILL)
            await world.eventually(lambda: machine.routes["hello"].mode != "local", "the end seen")
            await world.serving("hello")
            await world.change("hello", "stop")
            await world.until("hello", "stopped")

    asyncio.run(story())


def test_an_app_without_internet_has_no_way_out_and_one_with_it_has(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest("inside"))
            await world.install(manifest("outside", permissions="{network: {internet: allow}}"))
            for name in ("inside", "outside"):
                await world.serving(name)
                assert await world.get(name) == "one"
            routes = {
                name: subprocess.run(
                    ["nsenter", "-t", str(world.inspect(name)["State"]["Pid"]), "-n", "ip", "route"],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                for name in ("inside", "outside")
            }
            assert "default" not in routes["inside"]
            assert "default" in routes["outside"]

    asyncio.run(story())


def test_a_crash_of_the_process_costs_little_and_a_crash_loop_ends_in_failed_and_tells_where_its_lines_are(
    machine: Machine,
) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            waits = []
            for _ in range(3):
                pid = world.inspect("hello")["State"]["Pid"]
                began = clock.now()
                os.kill(pid, signal.SIGKILL)
                await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
                await world.eventually(lambda: machine.routes["hello"].mode == "local", "the app")
                waits.append(clock.now() - began)
                assert await world.get("hello") == "one"
                await asyncio.sleep(0.2)
            print("crash to serving:", [f"{wait:.2f}" for wait in waits])
            assert min(waits) < 1.0, waits
            await world.install(manifest("sick", environment="{FAIL: 'yes'}"))
            app = await world.until("sick", "failed", 30.0)
            assert "exited with code 3" in app.reason
            assert "no database" not in app.reason, "what an app prints may be secret"
            assert "piccoloctl logs sick" in app.reason
            assert machine.routes["sick"].mode == "closed"

    asyncio.run(story())


def test_stop_and_start_open_a_new_term_and_nothing_is_left_armed_in_between(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            await world.change("hello", "stop")
            await world.until("hello", "stopped")
            reader = PageReader(machine.paths.page)
            assert resource_for_app("hello") not in (reader.read() or pytest.fail("no page")).terms
            assert leash_table.read(machine.paths.leash) == {}
            assert machine.routes["hello"].mode == "closed"
            await world.change("hello", "start")
            app = await world.serving("hello")
            assert app.leader is not None
            assert app.leader.epoch == 2
            before = world.inspect("hello")["Id"]
            await world.change("hello", "restart")
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            app = await world.serving("hello")
            assert app.leader is not None
            assert app.leader.epoch == 2
            assert world.inspect("hello")["Id"] != before

    asyncio.run(story())


def test_a_restarted_apps_adopts_the_container_and_a_locked_one_minds_it(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            before = world.inspect("hello")
        machine.routes.clear()
        async with life(machine) as world:
            await world.serving("hello")
            await world.eventually(
                lambda: machine.routes.get("hello") is not None and machine.routes["hello"].mode == "local", "the route"
            )
            assert world.inspect("hello")["State"]["Pid"] == before["State"]["Pid"]
        machine.locked = True
        machine.routes.clear()
        async with life(machine) as world:
            await world.eventually(
                lambda: machine.routes.get("hello") is not None and machine.routes["hello"].mode == "local", "the route"
            )
            with pytest.raises(Locked):
                await world.show("hello")
            os.kill(world.inspect("hello")["State"]["Pid"], signal.SIGKILL)
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.eventually(lambda: machine.routes["hello"].mode == "local", "the app again")
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            await world.serving("hello")
            assert world.inspect("hello")["Id"] == before["Id"]

    asyncio.run(story())


def test_what_the_store_does_not_know_is_ended(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
        machine.documents.clear()
        async with life(machine) as world:
            await world.eventually(lambda: "piccolo-hello" not in world.containers(), "the end of the orphan")
            await world.eventually(lambda: not leash_table.read(machine.paths.leash), "the disarming")
            reader = PageReader(machine.paths.page)
            await world.eventually(lambda: resource_for_app("hello") not in reader.read().terms, "the end of its term")

    asyncio.run(story())


def test_secrets_and_config_lie_in_memory_and_are_read_by_the_app(machine: Machine) -> None:
    machine.documents["secrets", "password"] = (1, {"value": "hunter2"})

    async def story() -> None:
        async with life(machine) as world:
            await world.install(
                manifest(
                    secrets="[{name: password, file: /run/secrets/password}]",
                    app_config="{level: 3, names: [a, b], on: 'yes'}",
                    storage="{temporary: {cache: {container: /cache, size_limit: 1MiB}}}",
                )
            )
            await world.serving("hello")
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/run/secrets/password") == "hunter2"
            config = machine.run_podman("exec", "piccolo-hello", "cat", "/piccolo/config/app.yaml")
            assert json.loads(config) == {"level": 3, "names": ["a", "b"], "on": "yes"}
            assert os.path.ismount(machine.paths.app_files)
            found = subprocess.run(
                ["grep", "-rl", "hunter2", str(machine.paths.state)], capture_output=True, text=True, check=False
            )
            assert found.stdout == ""
            assert "1024" in machine.run_podman("exec", "piccolo-hello", "busybox", "df", "-k", "/cache")
            await world.ask(protocol.UninstallApp(name="hello", author="test"))
            assert not os.path.ismount(machine.paths.app_files)
            assert machine.documents.keys() == {("secrets", "password")}

    asyncio.run(story())


def test_a_volume_outlives_the_app_until_it_is_purged(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            text = manifest(storage="{persistent: {data: {container: /data}}}")
            await world.install(text)
            await world.serving("hello")
            machine.run_podman("exec", "piccolo-hello", "sh", "-c", "echo kept > /data/file")
            await world.ask(protocol.UninstallApp(name="hello", author="test"))
            assert (machine.folder / "volumes/hello.data/file").read_text() == "kept\n"
            assert not (machine.folder / "volumes/hello.attached").exists()
            await world.install(text)
            await world.serving("hello")
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/data/file") == "kept"
            await world.ask(protocol.UninstallApp(name="hello", author="test", purge=True))
            assert not (machine.folder / "volumes/hello.data").exists()
            assert world.containers() == []
            assert "piccolo-hello" not in machine.run_podman("network", "ls", "--format", "{{.Name}}")

    asyncio.run(story())


def test_an_update_that_is_well_wins_and_one_that_is_not_is_rolled_back(machine: Machine) -> None:
    machine.build("localhost/apps-test:2", "ENV ANSWER=two")
    machine.build("localhost/apps-test:bad", "ENV FAIL=yes")

    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(update="{health_deadline: 5s}"))
            await world.serving("hello")
            await world.ask(protocol.UpdateApp(name="hello", author="test", image="localhost/apps-test:2"))
            await world.eventually(lambda: "candidate" not in machine.documents["apps", "hello"][1], "the verdict")
            app = await world.serving("hello")
            assert await world.get("hello") == "two"
            assert app.image == "localhost/apps-test:2"
            assert any("updated to" in warning for warning in app.warnings)
            await world.ask(protocol.UpdateApp(name="hello", author="test", image="localhost/apps-test:bad"))
            await world.eventually(lambda: "candidate" not in machine.documents["apps", "hello"][1], "the verdict", 20.0)
            app = await world.serving("hello")
            assert await world.get("hello") == "two"
            assert any("rolled back" in warning and "exited with code 3" in warning for warning in app.warnings), app.warnings
            await world.change("hello", "revert")
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.serving("hello")
            assert await world.get("hello") == "one"
            with pytest.raises(NotFound, match="not on this node"):
                await world.ask(protocol.UpdateApp(name="hello", author="test", image="localhost/apps-test:9"))

    asyncio.run(story())


def test_apps_that_dies_at_any_step_of_an_update_ends_on_the_old_or_the_new(machine: Machine) -> None:
    machine.build("localhost/apps-test:2", "ENV ANSWER=two")

    async def start() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")

    async def update(after: float) -> None:
        async with life(machine) as world:
            await world.serving("hello")
            image = (
                "localhost/apps-test:2"
                if machine.documents["apps", "hello"][1]["current"]["manifest"]["image"] == IMAGE
                else IMAGE
            )
            await world.ask(protocol.UpdateApp(name="hello", author="test", image=image))
            await asyncio.sleep(after)

    async def settle() -> None:
        async with life(machine) as world:
            await world.serving("hello")
            await world.eventually(lambda: "candidate" not in machine.documents["apps", "hello"][1], "the verdict")
            app = await world.serving("hello")
            assert await world.get("hello") == ("one" if app.image == IMAGE else "two")
            assert world.containers() == ["piccolo-hello"]

    asyncio.run(start())
    for after in (0.0, 0.05, 0.15, 0.3, 0.5):
        asyncio.run(update(after))
        asyncio.run(settle())


def test_apply_replaces_the_container_only_when_something_of_it_changed(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(title="One"))
            await world.serving("hello")
            before = world.inspect("hello")["Id"]
            app = await world.apply(manifest(title="Two"))
            assert app.title == "Two"
            await asyncio.sleep(0.3)
            assert world.inspect("hello")["Id"] == before
            await world.apply(manifest(title="Two", environment="{ANSWER: other}"))
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.serving("hello")
            assert await world.get("hello") == "other"
            shown = await world.ask(
                protocol.PlanApp(manifest=protocol.Manifest(text=manifest(title="Three", environment="{ANSWER: other}")))
            )
            assert (shown.action, shown.restarts) == ("change", False)
            assert "title: Two -> Three" in shown.changes

    asyncio.run(story())


def test_podman_away_is_named_and_what_runs_goes_on(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            machine.service.kill()
            machine.service.wait()
            machine.paths.podman_socket.unlink()
            app = await world.install(manifest("later"))
            assert app.listeners[0].public_port in machine.config.public_ports
            await world.eventually(lambda: "podman" in str(world.module.judgement), "the judgement", 20.0)
            assert await world.get("hello") == "one"
            app = await world.show("hello")
            assert app.state == "running"
            assert "podman" in (await world.show("later")).reason
            machine.start_podman()
            await world.serving("later", 20.0)
            app = await world.serving("hello")
            assert app.reason == ""

    asyncio.run(story())


def test_a_frozen_podman_blocks_nobody(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            machine.service.send_signal(signal.SIGSTOP)
            try:
                began = clock.now()
                app = await world.show("hello")
                assert clock.now() - began < 0.2
                assert app.state == "running"
                await world.install(manifest("later"))
                assert clock.now() - began < 4.0
                assert await world.get("hello") == "one"
            finally:
                machine.service.send_signal(signal.SIGCONT)
            await world.serving("later", 30.0)

    asyncio.run(story())


def test_with_one_leash_nothing_new_starts(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            machine.processes[0].kill()
            machine.processes[0].wait()
            await world.install(manifest())
            await world.until("hello", "degraded", reason="1 of 2 leashes")
            assert world.inspect("hello")["State"]["Status"] == "initialized"
            machine.start_leash(0)
            await world.serving("hello")

    asyncio.run(story())


def test_a_deaf_app_is_killed_after_its_grace_and_an_unhealthy_one_is_restarted(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            check = "{exec: {command: [busybox, test, '!', -e, /tmp/sick]}, interval: 100ms, retries: 2}"
            await world.install(manifest(environment="{DEAF: 'yes'}", stop="{grace: 1s}", healthcheck=check))
            await world.serving("hello")
            before = world.inspect("hello")["State"]["Pid"]
            machine.run_podman("exec", "piccolo-hello", "sh", "-c", "echo > /tmp/sick")
            await world.eventually(lambda: not Path(f"/proc/{before}").exists(), "the kill", 20.0)
            app = await world.serving("hello")
            assert app.restarts == 1
            monitors = subprocess.run(
                ["pgrep", "-fc", f"conmon.*{machine.folder}"], capture_output=True, text=True, check=False
            ).stdout
            assert int(monitors) <= 2, "each check leaves a monitor behind"
            began = clock.now()
            await world.change("hello", "stop")
            await world.until("hello", "stopped")
            assert 0.9 < clock.now() - began < 6.0

    asyncio.run(story())


def test_the_wrong_manifest_changes_nothing(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            with pytest.raises(Invalid) as caught:
                await world.install("name: x\nlisteners: [{name: web, guest_port: 0}]\nport: 1\n")
            assert len(caught.value.errors) == 3
            assert machine.rev == 0
            await world.install(manifest("one", listeners="[{name: web, guest_port: 80, public_port: 4000}]"))
            with pytest.raises(Conflict, match="belongs to app one"):
                await world.install(manifest("two", listeners="[{name: web, guest_port: 80, public_port: 4000}]"))
            assert machine.rev == 1

    asyncio.run(story())


def test_images_come_from_files_and_a_pending_app_starts_when_its_image_comes(machine: Machine, images: Path) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(image="localhost/apps-root:1", command="[/bin/serve]"))
            app = await world.until("hello", "pending", reason="is not on this node")
            assert app.image_id == ""
            uploads = machine.paths.run / "uploads"
            uploads.mkdir()
            upload = uploads / "upload.tar"
            with tarfile.open(upload, "w") as tar:
                for name in ("busybox", "sh", "mkdir", "sleep"):
                    tar.add(shutil.which("busybox") or "", f"bin/{name}")
                script = machine.folder / "serve"
                script.write_text(SERVE)
                script.chmod(0o755)
                tar.add(script, "bin/serve")
            answer = await world.ask(protocol.AddImage(kind="import", file=str(upload), name="localhost/apps-root:1"))
            assert answer.images[0].names == ("localhost/apps-root:1",)
            app = await world.serving("hello")
            assert app.image_id == answer.images[0].id
            shutil.copy(images, upload)
            answer = await world.ask(protocol.AddImage(kind="load", file=str(upload)))
            assert IMAGE in answer.images[0].names
            with pytest.raises(Invalid, match="not an uploaded file"):
                await world.ask(protocol.AddImage(kind="load", file="/etc/passwd"))
            (uploads / "link").symlink_to(images)
            shutil.copy(images, machine.paths.run / "beside.tar")
            for outside in (uploads / "link", machine.paths.run / "beside.tar", uploads / "sub/../../beside.tar"):
                with pytest.raises(Invalid, match="not an uploaded file"):
                    await world.ask(protocol.AddImage(kind="load", file=str(outside)))
            upload.write_bytes(b"garbage" * 1000)
            for kind in ("load", "import", "build"):
                with pytest.raises(Invalid, match=f"podman cannot {kind} this file: ."):
                    await world.ask(protocol.AddImage(kind=kind, file=str(upload), name="localhost/garbage:1"))
            machine.build("localhost/old:1", "LABEL old=1")
            machine.build("localhost/old:1", "LABEL old=2")  # takes the name, which leaves the first without
            before = {image.id: image.names for image in (await world.ask(protocol.ListImages())).images}
            unnamed = {image_id for image_id, names in before.items() if not names}
            assert len(unnamed) >= 1
            gone = await world.ask(protocol.PruneImages())
            assert {image.id for image in gone.images} >= unnamed
            assert not any(image.names for image in gone.images)
            gone = await world.ask(protocol.PruneImages(unused=True))
            assert "localhost/old:1" in {name for image in gone.images for name in image.names}
            left = {name for image in (await world.ask(protocol.ListImages())).images for name in image.names}
            assert "localhost/apps-root:1" in left, "an app needs it"
            assert "localhost/old:1" not in left
            assert (await world.show("hello")).state == "running"
            shutil.copy(images, upload)
            await world.ask(protocol.AddImage(kind="load", file=str(upload)))
            listed = await world.ask(protocol.ListImages())
            assert {image.used_by for image in listed.images} == {(), ("hello",)}
            await world.install(
                manifest("built", image="~", build="{containerfile: 'FROM localhost/apps-test:1'}").replace("image: ~\n", "")
            )
            await world.serving("built")

    asyncio.run(story())


def test_a_dependent_app_waits(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest("base", environment="{FAIL: 'yes'}"))
            await world.install(manifest("upper", depends_on="[base]"))
            await world.until("upper", "pending", reason="waits for base")
            await world.apply(manifest("base"))
            await world.serving("upper")

    asyncio.run(story())


def test_the_leashes_end_an_app_whose_term_is_over_even_while_apps_is_away(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            pid = world.inspect("hello")["State"]["Pid"]
        writer = PageWriter(machine.paths.page)
        now = writer.read()
        assert now is not None
        writer.write(now._replace(terms={key: term for key, term in now.terms.items() if key == RESOURCE_KERNEL}))
        writer.close()
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the leash's kill", 5.0)

    asyncio.run(story())


def test_quiesce_stops_all_led_apps_until_the_unlock_and_then_they_are_back_on_their_ports(machine: Machine) -> None:
    machine.documents["secrets", "password"] = (1, {"value": "hunter2"})

    async def story() -> None:
        async with life(machine) as world:
            text = manifest(
                storage="{persistent: {data: {container: /data}}}", secrets="[{name: password, file: /run/secrets/password}]"
            )
            port = (await world.install(text)).listeners[0].public_port
            await world.install(manifest("other"))
            await world.serving("hello")
            await world.serving("other")
            quiesced = await world.ask(protocol.Quiesce())
            assert quiesced.still_running == ()
            assert leash_table.read(machine.paths.leash) == {}
            assert not (machine.folder / "volumes/hello.attached").exists()
            assert not any(machine.paths.app_files.iterdir())
            assert (await world.show("hello")).reason.startswith("stopped for the lock")
            machine.locked = True
            world.module.tell(LockStateChanged(locked=True, initialized=True, rev=machine.rev))
            await world.eventually(lambda: world.service._node.locked, "the lock")
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            app = await world.serving("hello")
            assert app.listeners[0].public_port == port
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/run/secrets/password") == "hunter2"
            await world.serving("other")

    asyncio.run(story())


def test_apps_that_dies_between_the_silence_and_the_lock_does_not_bring_them_back(machine: Machine) -> None:
    async def first() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            assert (await world.ask(protocol.Quiesce())).still_running == ()

    async def second() -> None:
        async with life(machine) as world:
            await world.eventually(lambda: world.service._apps, "the app known again")
            app = world.service._apps["hello"]
            await world.eventually(app.at_rest.is_set, "the app held")
            assert leash_table.read(machine.paths.leash) == {}
            machine.locked = True
            world.module.tell(LockStateChanged(locked=True, initialized=True, rev=machine.rev))
            await world.eventually(lambda: world.service._node.locked, "the lock")

    async def third() -> None:
        async with life(machine) as world:
            world.module.tell(LockStateChanged(locked=True, initialized=True, rev=machine.rev))
            await world.eventually(world.service._node.known.is_set, "the lock known")
            assert leash_table.read(machine.paths.leash) == {}
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            await world.serving("hello")

    asyncio.run(first())
    asyncio.run(second())
    asyncio.run(third())


def test_a_wish_to_lock_in_the_first_moment_of_apps_holds(machine: Machine) -> None:
    """It comes before apps has heard whether the store is locked, as when it is repeated after a crash."""

    async def first() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")

    async def second() -> None:
        machine.locked = True  # no news at the start of this life
        async with life(machine) as world:
            wish = asyncio.ensure_future(world.ask(protocol.Quiesce()))
            await asyncio.sleep(0)
            machine.locked = False
            world.module.tell(LockStateChanged(locked=False, initialized=True, rev=machine.rev))
            assert (await wish).still_running == ()
            assert leash_table.read(machine.paths.leash) == {}

    asyncio.run(first())
    asyncio.run(second())


def test_a_lock_that_failed_brings_the_apps_back_at_once(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest())
            await world.serving("hello")
            await world.ask(protocol.Quiesce())
            await world.ask(protocol.Resume())
            await world.serving("hello")

    asyncio.run(story())


def test_a_changed_secret_is_read_by_the_next_run_of_the_same_container(machine: Machine) -> None:
    machine.documents["secrets", "password"] = (1, {"value": "old"})

    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(secrets="[{name: password, file: /run/secrets/password}]"))
            await world.serving("hello")
            before = world.inspect("hello")
            machine.documents["secrets", "password"] = (2, {"value": "new"})
            os.kill(before["State"]["Pid"], signal.SIGKILL)
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.serving("hello")
            assert world.inspect("hello")["Id"] == before["Id"]
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/run/secrets/password") == "new"

    asyncio.run(story())


def test_a_repeated_install_of_an_app_that_is_gone_makes_no_phantom(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            request = protocol.InstallApp(manifest=protocol.Manifest(text=manifest()), author="test")
            await world.ask(request, idem="once")
            await world.serving("hello")
            again = await world.ask(request, idem="once")
            assert again.app.name == "hello"
            world.module.lose_delete = True
            await world.ask(protocol.UninstallApp(name="hello", author="test"))
            await world.eventually(lambda: not world.service._apps, "the end of the app")
            assert ("apps", "hello") not in machine.documents
            with pytest.raises(Conflict, match="uninstalled since"):
                await world.ask(request, idem="once")
            assert (await world.ask(protocol.ListApps())).apps == ()

    asyncio.run(story())


def test_an_app_that_vanished_from_the_store_is_minded_no_longer(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(image="localhost/missing:1"))
            await world.until("hello", "pending")
            machine.documents.clear()
            world.module.tell(ControlStoreCommit(rev=machine.rev, collections=("apps",)))
            await world.eventually(lambda: not world.service._apps, "the end of the app")

    asyncio.run(story())


def test_no_other_image_and_no_way_back_for_a_privileged_app_without_consent(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            missing = "localhost/missing:1"
            await world.install(manifest(image=missing, permissions="{capabilities: [SYS_ADMIN]}"), consent=True)
            update = protocol.UpdateApp(name="hello", author="test", image="localhost/missing:2")
            for request in (update, protocol.UpdateApp(name="hello", author="test")):
                with pytest.raises(Invalid, match="consent"):
                    await world.ask(request)
            await world.apply(manifest(image=missing))
            with pytest.raises(Invalid, match="consent"):
                await world.change("hello", "revert")
            app = await world.change("hello", "revert", consent=True)
            assert app.generation == 3

    asyncio.run(story())


def test_a_plan_of_what_is_installed_changes_nothing(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            text = manifest(image="localhost/missing:1", listeners="[{name: web, guest_port: 80, public_port: auto}]")
            await world.install(text)
            made = await world.ask(protocol.PlanApp(manifest=protocol.Manifest(text=text)))
            assert (made.action, made.changes, made.restarts) == ("none", (), False)

    asyncio.run(story())

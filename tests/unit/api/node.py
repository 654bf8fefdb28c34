"""A node for tests of the API: the real service on real sockets, the other modules played by doubles."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import socket
import tempfile
import threading
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec

from piccolod import clock, config
from piccolod.bus.caller import Caller
from piccolod.errors import Conflict, Locked, NotFound, PiccoloError, TooMany, WrongPassword
from piccolod.leadership import page
from piccolod.protocol import persistence as store
from piccolod.protocol.base import Event, Nothing
from piccolod.protocol.events import LockStateChanged, ModuleStateChanged
from piccolod.protocol.telemetry import EventRecord, EventRecords, GetEvents
from services.api.service import APP, Service

PASSWORD = "correct horse battery"
BASE = "/api/v1"


class Modules:
    """Answers every command: the store and the journal with sense, the others with an example of their reply."""

    def __init__(self) -> None:
        self.locked = False
        self.documents: dict[tuple[str, str], store.Document] = {}
        self.rev = 1
        self.fail: PiccoloError | None = None  # whoever is asked answers with this
        self.fail_kinds: dict[type, PiccoloError] = {}
        self.replies: dict[type, Any] = {}
        self.calls: list[tuple[Any, str, str | None]] = []
        self.events: list[EventRecord] = []
        self.on_commit: Callable[[int], None] = lambda rev: None

    async def call(self, request: Any, *, timeout_s: float, idem: str = "", target: str | None = None) -> Any:
        self.calls.append((request, idem, target))
        kind = type(request)
        if kind in self.fail_kinds:
            raise self.fail_kinds[kind]
        if self.fail is not None:
            raise self.fail
        if kind in self.replies:
            reply = self.replies[kind]
            return reply(request) if callable(reply) else reply
        play = getattr(self, f"_{kind.__name__}", None)
        if play is not None:
            return await play(request, timeout_s)
        return example(request.reply)

    def asked(self, kind: type) -> list[Any]:
        return [request for request, _, _ in self.calls if isinstance(request, kind)]

    def _open(self) -> None:
        if self.locked:
            raise Locked("the store is locked", hint="piccoloctl unlock")

    async def _Read(self, request: store.Read, timeout_s: float) -> store.Document:
        self._open()
        found = self.documents.get((request.collection, request.id))
        if found is None:
            raise NotFound(f"no {request.collection}/{request.id}")
        return found

    async def _List(self, request: store.List, timeout_s: float) -> store.Documents:
        self._open()
        found = [each for (collection, _), each in sorted(self.documents.items()) if collection == request.collection]
        return store.Documents(rev=self.rev, documents=tuple(found))

    async def _Commit(self, request: store.Commit, timeout_s: float) -> store.Committed:
        self._open()
        for each in request.expect:
            known = self.documents.get((each.collection, each.id))
            if (known.generation if known else 0) != each.generation:
                raise Conflict(f"{each.id} was changed")
        self.rev += 1
        for write in request.writes:
            if write.body is None:
                self.documents.pop((write.collection, write.id), None)
            else:
                body = msgspec.msgpack.decode(msgspec.msgpack.encode(write.body))
                made = store.Document(id=write.id, generation=self.rev, body=body)
                self.documents[write.collection, write.id] = made
        self.on_commit(self.rev)
        return store.Committed(rev=self.rev)

    async def _GetRevision(self, request: Any, timeout_s: float) -> store.Revision:
        return store.Revision(rev=self.rev, announced=self.rev, verified=self.rev, digest="d", locked=self.locked)

    async def _VerifyPassword(self, request: store.VerifyPassword, timeout_s: float) -> Nothing:
        self._open()
        if request.source == "limited":
            raise TooMany("too many", retry_after_s=7)
        if request.password != PASSWORD:
            raise WrongPassword("this is not the password")
        return Nothing()

    async def _GetEvents(self, request: GetEvents, timeout_s: float) -> EventRecords:
        until = clock.now() + request.wait_s
        while True:
            after = request.after if request.after >= 0 else max(0, len(self.events) - request.limit)
            found = [each for each in self.events if each.id > after and request.type in ("", each.type)]
            if found or clock.now() >= until:
                break
            await asyncio.sleep(0.01)
        return EventRecords(events=tuple(found[: request.limit]), last_id=len(self.events))


def example(kind: Any) -> Any:
    """Any value of a type, every field filled."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{name: example(hints[name]) for name in kind.__struct_fields__})
    if origin is tuple:
        return (example(args[0]),)
    if origin is dict:
        return {"x": example(args[1])}
    if origin is typing.Literal:
        return args[0]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return next(iter(kind))
    if origin in (types.UnionType, typing.Union):
        return example(args[0])
    return {str: "x", int: 1, float: 1.0, bool: True, bytes: b"x", Any: "x"}[kind]


class FakeModule:
    """Stands for the bus and the supervisor."""

    def __init__(self, settings: config.Config, modules: Modules) -> None:
        self.name, self.inst = "api", "i1"
        self.config, self.paths = settings, settings.paths
        self.errors: list[dict[str, Any]] = []
        self.log = SimpleNamespace(
            debug=lambda *_, **__: None,
            info=lambda *_, **__: None,
            warning=lambda *_, **__: None,
            error=lambda *_, **more: self.errors.append(more),
        )
        self.call = modules.call
        self.published: list[Event] = []
        self.callbacks: dict[type, list[tuple[str | None, Callable[[Any], None]]]] = {}
        self.healths: list[tuple[str, str]] = []
        self.sockets: list[socket.socket] = []
        self.refuse_listen: PiccoloError | None = None
        self.handlers: dict[type, Callable[[Any, Any], Any]] = {}
        self.busy_with = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, kind: type, handler: Callable[[Any, Any], Any]) -> None:
        self.handlers[kind] = handler

    def on(self, kind: type, callback: Callable[[Any], None], key: str | None = None) -> None:
        self.callbacks.setdefault(kind, []).append((key, callback))

    def tell(self, event: Event) -> None:
        for key, callback in self.callbacks.get(type(event), ()):
            if key in (None, event.key()):
                callback(event)

    def publish(self, event: Event) -> None:
        self.published.append(event)

    def health(self, level: Any, reason: str = "", role: str = "") -> None:
        self.healths.append((level.value, reason))

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.busy_with += 1
        yield
        self.busy_with -= 1

    def spawn(self, work: Any, *, name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        return task

    async def listen(self, proto: str, address: str, port: int = 0) -> socket.socket:
        if self.refuse_listen is not None and proto == "tcp":
            raise self.refuse_listen
        family = socket.AF_UNIX if proto == "unix" else socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.bind(address if proto == "unix" else (address, port))
        made.listen(64)
        made.setblocking(False)
        self.sockets.append(made)
        return made

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for each in self.sockets:
            each.close()


class Supervisor:
    """The control socket's side that the API sees."""

    def __init__(self) -> None:
        self.error: PiccoloError | None = None
        self.requests: list[dict[str, Any]] = []
        self.modules = [
            {
                "name": "apps", "pid": 7, "instance": "i", "state": "ready", "reason": "", "restarts": 2, "uptime_s": 1.5,
                "rss_bytes": 1000, "applied_rev": 3, "restart_on_kernel_rev_change": False, "level": "OK", "lag_ms": 0.1,
                "warnings": [],
            }
        ]  # fmt: skip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        self.requests.append(request)
        answer = {"id": None, "ok": True, "result": self._result(request)}
        if self.error is not None:
            answer = {"id": None, "ok": False, "error": self.error.to_wire()}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    def _result(self, request: dict[str, Any]) -> Any:
        return {"modules": self.modules, "logs": ["a line"], "why": [], "restart": None}[request["cmd"]]


@dataclasses.dataclass
class Node:
    module: FakeModule
    modules: Modules
    supervisor: Supervisor
    service: Service
    loop: asyncio.AbstractEventLoop
    port: int
    folder: Path

    def tell(self, event: Event) -> None:
        """An event, delivered as the bus would: on the module's loop. The supervisor knows its own words."""
        if isinstance(event, ModuleStateChanged):
            known = next((each for each in self.supervisor.modules if each["name"] == event.module), None)
            if known is not None:
                known |= {"state": event.state, "reason": event.reason}
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (self.module.tell(event), done.set()))
        assert done.wait(5)

    def command(self, request: Any, timeout_s: float = 10.0) -> Any:
        """What the service answers another module. Raises what it refuses it with."""
        handler = self.module.handlers[type(request)]
        caller = Caller("test", 1, "", "", clock.now() + timeout_s)
        return asyncio.run_coroutine_threadsafe(handler(request, caller), self.loop).result(timeout_s)

    def make_ready(self) -> None:
        for name in list(self.service._core.seen.modules):
            self.tell(
                ModuleStateChanged(module=name, state="ready", pid=1, instance="i", restarts=0, reason="")
            )  # fmt: skip
        self.tell(LockStateChanged(locked=False, initialized=True, rev=1))

    def unix(self, **more: Any) -> Client:
        transport = httpx.HTTPTransport(uds=str(self.module.paths.api_socket), verify=False)
        return Client(httpx.Client(transport=transport, base_url="http://localhost", timeout=10, verify=False, **more))

    def tcp(self, **more: Any) -> Client:
        return Client(httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10, verify=False, **more))

    def token(self, scope: str) -> Client:
        """A client with a fresh token of that scope."""
        with self.unix() as admin:
            made = admin.post("/auth/tokens", json={"name": f"t-{scope}", "scope": scope})
        return self.tcp(headers={"Authorization": f"Bearer {made.json()['token']}"})

    def audits(self) -> list[Any]:
        return [event for event in self.module.published if event.type == "Audit"]


class Client:
    """Checks each answer that it sees: its status must be documented, and a failure must have the one shape."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        full = path if path.startswith(("/api/", "/metrics")) else BASE + path
        response = self.http.request(method, full, **more)
        check(method, full, response)
        return response

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)

    def put(self, path: str, **more: Any) -> httpx.Response:
        return self.request("PUT", path, **more)

    def delete(self, path: str, **more: Any) -> httpx.Response:
        return self.request("DELETE", path, **more)


def check(method: str, path: str, response: httpx.Response) -> None:
    if response.status_code >= 400 and method != "HEAD":
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json", response.text
        assert problem["status"] == response.status_code
        assert {"type", "title", "code", "detail", "hint", "errors", "leader", "request_id"} <= set(problem)
        assert problem["request_id"] == response.headers["x-request-id"]
    operation = operation_of(method, path.partition("?")[0])
    if operation is not None:
        assert str(response.status_code) in operation["responses"], (method, path, response.status_code, response.text)


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    parts = path.split("/")
    for template, item in OPENAPI["paths"].items():
        mine = template.split("/")
        fits = len(mine) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(mine, parts, strict=True))
        if fits and method.lower() in item:
            return dict(item[method.lower()])
    return None


OPENAPI: dict[str, Any] = APP.openapi_schema.to_schema()


@contextmanager
def running(
    extra: str = "",
    api: str = "",
    *,
    host: str = "127.0.0.1",
    refuse_listen: PiccoloError | None = None,
    name: str = "n1",
    address: str = "10.77.0.1",
    before: Callable[[FakeModule, Modules], None] = lambda module, modules: None,
) -> Iterator[Node]:
    """One life of the api, in a thread with a loop of its own. `before` prepares what it finds."""
    folder = Path(tempfile.mkdtemp(prefix="api"))
    port = free_port()
    settings = config.parse(
        f'[node]\nname = "{name}"\naddress = "{address}"\nstate_dir = "{folder}/s"\nrun_dir = "{folder}/r"\n'
        f'[api]\nlisten = ["{host}:{port}"]\n{api}\n{extra}'
    )
    settings.paths.run.mkdir()
    settings.paths.state.mkdir(exist_ok=True)
    page.create(settings.paths.page)
    modules, supervisor = Modules(), Supervisor()
    module = FakeModule(settings, modules)
    module.refuse_listen = refuse_listen
    before(module, modules)
    loop = asyncio.new_event_loop()
    control: list[asyncio.Server] = []

    async def begin() -> Service:
        control.append(await asyncio.start_unix_server(supervisor.serve, str(settings.paths.supervisor_socket)))
        service = Service(module)  # type: ignore[arg-type]
        await service.start()
        return service

    async def end(service: Service) -> None:
        await service.stop()
        control[0].close()
        module.end()
        await asyncio.sleep(0.05)  # connections that were just accepted get their transports, which close them
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was cancelled while it was accepted closes its transport in a later turn

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        service = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
        try:
            yield Node(module, modules, supervisor, service, loop, port, folder)
        finally:
            asyncio.run_coroutine_threadsafe(end(service), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        shutil.rmtree(folder)


def lead(node: Node, *resources: str, epoch: int = 3) -> None:
    """Puts terms on the deadline page of the node: these, and no others."""
    writer = page.PageWriter(node.module.paths.page)
    terms = {resource: page.Term(7, epoch) for resource in resources}
    writer.write(page.Page(0, 1, 1, 0, clock.boot_id(), clock.FOREVER, clock.FOREVER, terms))
    writer.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

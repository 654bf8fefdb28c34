"""The life of a module: START, its own start, READY, beats, commands and events, STOP. The same in every service.

    def main(link: Link) -> None:
        run(link, Service)

`Service(module)` has `async def start()` and `async def stop()`; READY is sent when start returns. A module ends when the
supervisor's end of the pair closes (at once: an orphan must not act), when STOP comes, or when one of its tasks raises:
it starts clean, a few milliseconds later.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import select
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import zmq

from piccolod import clock, log
from piccolod import config as configuration
from piccolod.bus.caller import Caller
from piccolod.bus.client import CommandClient
from piccolod.bus.peers import Peers
from piccolod.bus.publisher import Publisher
from piccolod.bus.server import CommandServer
from piccolod.bus.subscriber import Subscriber
from piccolod.errors import Busy, Unavailable
from piccolod.kernel import BY_NAME
from piccolod.link import Link, LinkClosed, Message
from piccolod.protocol.base import Event, Level, Reply, Request
from piccolod.protocol.events import HealthChanged
from piccolod.pulse import FD, Pulse

__all__ = ["Caller", "Module", "Service", "run"]

R = TypeVar("R")
E = TypeVar("E", bound=Event)

configuration.from_mapping({})  # builds its tables before the zygote forks, once for all modules

_ORPHANED: Final = 70  # the exit code, as the supervisor's ledger shows it
_SUPERVISOR_WAIT_S: Final = 10.0
_TELL_AGAIN_S: Final = 0.02
_STATES: Final = ("STATUS", "BUSY")  # what is told anew makes what was told before void


class Service(Protocol):
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Module:
    """What a service has of the outside world."""

    def __init__(self, link: Link, start: Message, fds: dict[str, int], tasks: asyncio.TaskGroup) -> None:
        self.name: str = start["module"]
        self.inst: str = start["inst"]
        self.spec = BY_NAME[self.name]
        self.config = configuration.from_mapping(start["config"])
        self.paths = self.config.paths
        self.log = log.logger(self.name, self.inst)
        self.peers = Peers()
        self.stopping = asyncio.Event()
        self.stop_seconds = 3.0
        self.stop_apps = False  # STOP asked to end the apps too, not only this module
        self.stop_all = False  # STOP was for all modules of this node
        self._link = link
        self._pulse = Pulse(fds[FD])
        self._tasks = tasks
        self._deposits = {name.removeprefix("key:"): fd for name, fd in fds.items() if name.startswith("key:")}
        self._answers: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._next_id = 0
        self._closed = False
        self._untold: dict[str, Message] = {}  # states by type: the supervisor did not take their last
        self._busy_with = 0
        self._applied_rev = 0  # 0: whatever there was when it started
        self._on_reload: Callable[[int], Awaitable[None]] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._loop = asyncio.get_running_loop()
        self.peers.refresh = self._read_link
        self.peers.learn(start["peers"])
        self._publisher = Publisher(self._context, self.paths.bus_publish, self.name, self.inst)
        self._subscriber = Subscriber(self._context, self.paths.bus_subscribe, self.paths.bus_snapshot)
        self._client = CommandClient(self._context, self.paths, self.name, self.inst, self.peers)
        self._server = CommandServer(
            self._context, fds["command"], str(self.paths.command_socket(self.name)), self.inst, self.peers,
            lambda work: self.spawn(work, name="command"), self._command_failed,
        )  # fmt: skip
        self._loop.add_reader(link.fileno(), self._read_link)
        self._loop.set_exception_handler(self._callback_failed)

    # --- commands and events

    def serve(self, kind: type[Request[R]], handler: Callable[[Any, Caller], Awaitable[R]]) -> None:
        """`handler(request, caller)` runs for each command of this kind. To be called in `start`."""
        self._server.serve(kind, handler)

    async def call(
        self, request: Request[Reply], *, timeout_s: float = 5.0, idem: str = "", trace: str = "", target: str | None = None
    ) -> Reply:
        """Asks another module. `target` names one worker where the service has several."""
        return await self._client.call(request, timeout_s=timeout_s, idem=idem, trace=trace, target=target)

    def publish(self, event: Event) -> None:
        self._publisher.publish(event)

    def on(self, kind: type[E], callback: Callable[[E], None], key: str | None = None) -> None:
        """`callback(event)` for each event of a kind; the last value of a state comes soon after this call."""
        self._subscriber.on(kind, callback, key)

    def on_resync(self, callback: Callable[[], None]) -> None:
        """Events may have been lost: `callback` makes the service read its sources of truth again."""
        self._subscriber.on_resync(callback)

    def health(self, level: Level, reason: str = "", role: str = "") -> None:
        """This module's own judgement of itself, for readiness and `piccoloctl modules`."""
        self.publish(HealthChanged(component=self.name, level=level, reason=reason, role=role))
        self._tell({"t": "STATUS", "level": level.value, "reason": reason})

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """A task that belongs to the module: what it raises ends the module."""
        return self._tasks.create_task(work, name=name)

    # --- the supervisor

    async def listen(self, proto: str, address: str, port: int = 0) -> socket.socket:
        """A socket bound and kept by the supervisor: a restart of the module refuses no connection.

        `proto` tcp, udp or unix (`address` is then the path). Raises Busy naming who holds the port.
        """
        message, fds = await self._ask({"t": "LISTEN", "proto": proto, "address": address, "port": port})
        if message.get("error") or not fds:
            raise Busy(message.get("error") or f"no socket for {proto} {address} {port}")
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        return sock

    async def unlisten(self, proto: str, address: str, port: int = 0) -> None:
        self._tell({"t": "UNLISTEN", "proto": proto, "address": address, "port": port})

    async def deposit(self, name: str, secret: bytes) -> None:
        """Leaves `secret` with the supervisor, for the next life of this module: a sealed memfd that it never reads."""
        fd = _sealed(name, secret)
        try:
            message, _ = await self._ask({"t": "DEPOSIT", "name": name}, (fd,))
        finally:
            os.close(fd)
        if message.get("error"):
            raise Unavailable(f"the supervisor does not keep {name}: {message['error']}")

    def deposited(self, name: str) -> bytes | None:
        """What the former life of this module left."""
        fd = self._deposits.get(name)
        return None if fd is None else os.pread(fd, os.fstat(fd).st_size, 0)

    async def drop_deposits(self) -> None:
        """`lock`: the supervisor drops every deposit and restarts the other modules that hold keys."""
        message, _ = await self._ask({"t": "LOCK"})
        if message.get("error"):
            raise Unavailable(f"the supervisor did not drop the keys: {message['error']}")
        for fd in self._deposits.values():
            os.close(fd)
        self._deposits.clear()

    def report_verified(self, rev: int, collections: tuple[str, ...], leader: bool) -> None:
        self._tell({"t": "VERIFIED", "rev": rev, "collections": list(collections), "leader": leader})

    def report_applied(self, rev: int) -> None:
        self._applied_rev = rev
        self._tell({"t": "APPLIED", "rev": rev})

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around work that somebody waits for and that cannot be begun again: no rev restarts the module meanwhile.

        Whoever asks for a restart by name gets it all the same, and so does a roll-out that has waited for long.
        """
        self._busy_with += 1
        if self._busy_with == 1:
            self._tell({"t": "BUSY", "on": True})
        try:
            yield
        finally:
            self._busy_with -= 1
            if self._busy_with == 0:
                self._tell({"t": "BUSY", "on": False})

    def on_reload(self, callback: Callable[[int], Awaitable[None]]) -> None:
        """`await callback(rev)` on RELOAD; APPLIED is reported when it returns."""
        self._on_reload = callback

    # --- inside

    def open(self) -> None:
        self._server.open()

    def close(self) -> None:
        self._closed = True
        self._loop.remove_reader(self._link.fileno())
        self._server.close()
        self._client.close()
        self._subscriber.close()
        self._publisher.close()
        self._context.destroy(linger=200)

    def ready(self) -> None:
        self._tell({"t": "READY", "applied_rev": self._applied_rev, "reloads": self._on_reload is not None})

    async def beat(self) -> None:
        """From the loop that does the work, so that a stuck loop is seen. Lag: how late this very loop runs."""
        every_s = (self.config.module(self.name).heartbeat_ms or self.spec.heartbeat_ms) / 1000
        due_at = clock.now()
        while True:
            lag_ms = max(0.0, (clock.now() - due_at) * 1000)
            self._pulse.beat(clock.now(), lag_ms)
            for message in tuple(self._untold.values()):
                self._tell(message)
            due_at = clock.now() + every_s
            await asyncio.sleep(every_s)

    def _tell(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """A supervisor that does not read for a while gets it later, of the states the last."""
        if self._closed:
            return
        try:
            sent = self._link.send(message, fds)
        except LinkClosed:
            os._exit(_ORPHANED)
        if message["t"] in _STATES:
            self._untold.pop(message["t"], None)
            if not sent:
                self._untold[message["t"]] = message
        elif not sent:
            self._loop.call_later(_TELL_AGAIN_S, self._tell, message, fds)

    async def _ask(self, message: Message, fds: tuple[int, ...] = ()) -> tuple[Message, list[int]]:
        self._next_id += 1
        number = self._next_id
        answer: asyncio.Future[tuple[Message, list[int]]] = self._loop.create_future()
        self._answers[number] = answer
        self._tell({**message, "id": number}, fds)
        try:
            async with asyncio.timeout(_SUPERVISOR_WAIT_S):
                return await answer
        except TimeoutError:
            raise Unavailable(f"the supervisor did not answer {message['t']} in {_SUPERVISOR_WAIT_S:g} s") from None
        finally:
            self._answers.pop(number, None)

    def _read_link(self) -> None:
        try:
            while (got := self._link.receive()) is not None:
                self._obey(*got)
        except LinkClosed:
            os._exit(_ORPHANED)

    def _obey(self, message: Message, fds: list[int]) -> None:
        kind = message["t"]
        if kind == "DONE" and (answer := self._answers.get(message.get("id", 0))) is not None and not answer.done():
            answer.set_result((message, fds))
            return
        for fd in fds:
            os.close(fd)
        if kind == "PEERS":
            self.peers.learn(message["peers"])
        elif kind == "STOP":
            self.stop_seconds = float(message.get("seconds", 3.0))
            self.stop_apps = bool(message.get("apps", False))
            self.stop_all = bool(message.get("all", False))
            self._tell({"t": "STOPPING"})
            self.stopping.set()
        elif kind == "RELOAD":
            self.spawn(self._reload(int(message["rev"])), name="reload")

    async def _reload(self, rev: int) -> None:
        if self._on_reload is not None:
            await self._on_reload(rev)
        self.report_applied(rev)

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback of the loop raised (an event's, a timer's): the module ends, as for a task. It starts clean."""
        error = context.get("exception")
        if isinstance(error, Exception) and "handle" in context:
            self.spawn(_raise(error), name="failed callback")
        else:
            loop.default_exception_handler(context)

    def _command_failed(self, command: str, text: str) -> None:
        self.log.error("failed a command by a bug", command=command, traceback=text)


async def _raise(error: Exception) -> None:
    raise error


def run(link: Link, service: Callable[[Module], Service]) -> None:
    """The whole life of a module's process. Does not return normally: exits 0 after STOP."""
    faulthandler.enable()  # SIGABRT, too: the stack of a hung module goes to its log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    start, fds = await_start(link)
    log.configure(configuration.from_mapping(start["config"]).module(start["module"]).log_level)
    code = asyncio.run(_live(link, start, fds, service))
    sys.stdout.flush()
    os._exit(code)


async def _live(link: Link, start: Message, fds: dict[str, int], service: Callable[[Module], Service]) -> int:
    module: Module | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            module = Module(link, start, fds, tasks)
            beats = tasks.create_task(module.beat(), name="beat")
            living = service(module)
            await living.start()
            module.open()
            module.ready()
            await module.stopping.wait()
            await _end(living, module)
            beats.cancel()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
    except BaseExceptionGroup as group:
        for error in group.exceptions:
            log.logger(start["module"], start["inst"]).error("died of an exception", exc_info=error)
        return 1
    finally:
        if module is not None:
            module.close()
    return 0


async def _end(service: Service, module: Module) -> None:
    try:
        async with asyncio.timeout(module.stop_seconds):
            await service.stop()
    except TimeoutError:
        module.log.warning("did not stop in time", seconds=module.stop_seconds)


def await_start(link: Link) -> tuple[Message, dict[str, int]]:
    """Waits for START; the descriptors by their names. Exits when the supervisor is gone."""
    while True:
        select.select([link.fileno()], [], [])
        try:
            got = link.receive()
        except LinkClosed:
            os._exit(_ORPHANED)
        if got is not None and got[0]["t"] == "START":
            message, fds = got
            return message, dict(zip(message["fds"], fds, strict=True))


def _sealed(name: str, secret: bytes) -> int:
    import fcntl

    fd = os.memfd_create(f"piccolo-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, secret)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd

"""One life of a module's process: from the wish for it to its end. Knows processes and pairs, not modules' rules."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from piccolod import clock
from piccolod.link import Link, LinkClosed, Message
from piccolod.pulse import PulseReader
from piccolod.supervisor.known_process import is_stopped
from piccolod.supervisor.logs import LogPipe
from piccolod.supervisor.loop import Loop, Timer
from piccolod.supervisor.reaper import Ending, Reaper
from piccolod.supervisor.rights import Rights
from piccolod.supervisor.sockets import Address
from piccolod.supervisor.spawner import Order, Spawner

_DUMP_S: Final = 0.3  # for faulthandler to write the stacks
_OUTBOX: Final = 256
_REST: Final = 512  # no queue of a pair holds more messages


class Life:
    """`on_message(life, message, fds)` owns the descriptors; `on_spawned` and `on_end` come once, in this order."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        pipe: LogPipe,
        pulse: PulseReader,
        inst: str,
        on_message: Callable[[Life, Message, list[int]], None],
        on_spawned: Callable[[Life], None],
        on_end: Callable[[Life, Ending], None],
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._pipe = pipe
        self.pulse = pulse
        self.inst = inst
        self._on_message = on_message
        self._on_spawned = on_spawned
        self._on_end = on_end
        self._link: Link | None = None
        self._entry: Message = {}
        self._withdraw: Callable[[], None] = lambda: None
        self._outbox: deque[tuple[Message, tuple[int, ...]]] = deque()
        self._timer: Timer | None = None
        self._pidfd = -1
        self.pid = 0
        self.ended = False
        self.asked_at = clock.now()
        self.started_at = 0.0  # START was sent
        self.ready_at = 0.0
        self.heard_at = 0.0  # the last beat that was seen
        self.cause = ""  # why we ended it; empty while we did not
        self.listens: set[Address] = set()  # the sockets that it asked for
        self.ignored = 0  # messages that said nothing

    def spawn(self, spawner: Spawner, target: str, fork: bool, rights: Rights, path: list[str]) -> None:
        self._entry = {"t": "ENTRY", "target": target, "path": path, "rights": rights.to_wire()}
        order = Order(target, fork, self._pair, self._pipe.write_fd, self._spawned)
        self._withdraw = lambda: spawner.withdraw(order)
        spawner.spawn(order)

    def _pair(self) -> socket.socket:
        """The other end of a fresh one: whoever has that of an attempt before finds it closed."""
        self._close_link()
        self._link, theirs = Link.pair()
        self._link.send(self._entry)
        self._loop.watch(self._link.fileno(), self._io)
        return theirs

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """In order, and later if the module is slow. One that stops reading is ended."""
        if self._link is None:
            return
        if not self._outbox and self._send(message, fds):
            return
        if len(self._outbox) >= _OUTBOX:
            self.kill("it does not read what it is told")
            return
        self._outbox.append((message, tuple(os.dup(fd) for fd in fds)))
        self._loop.modify(self._link.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def feel(self) -> None:
        """Sees whether it has beaten."""
        self.heard_at = max(self.heard_at, self.pulse.at())

    # --- ending it

    def abort(self, cause: str) -> None:
        """For one that hangs: its stacks into the log, then its end. A stopped process cannot do the first."""
        if self.ended or self.cause:
            return
        if is_stopped(self.pid):
            self.kill(cause)
            return
        self.cause = cause
        self._signal(signal.SIGABRT)
        self._timer = self._loop.after(_DUMP_S, lambda: self._signal(signal.SIGKILL))

    def kill(self, cause: str) -> None:
        if self.ended:
            return
        self.cause = self.cause or cause
        self._signal(signal.SIGKILL)

    def stop(self, seconds: float, cause: str, more: dict[str, Any] | None = None) -> None:
        """Asks it to end, and ends it when it has not after `seconds`."""
        if self.ended:
            return
        self.cause = self.cause or cause
        if not self.started_at:  # it does nothing yet
            self._signal(signal.SIGKILL)
            return
        # It is told a little less than it has, so that its last act is an orderly end.
        self.send({"t": "STOP", "seconds": max(seconds / 2, seconds - 0.3), **(more or {})})
        if self._timer is None:
            self._timer = self._loop.after(seconds, lambda: self._signal(signal.SIGKILL))

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
        elif self.pid and not self.ended:  # no descriptor was left for it; our child's pid is its own until we reap it
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
        elif not self.pid:  # on its way into being: nobody waits for it, it finds its pair closed and ends
            self._close_link()
            self._withdraw()
            self._loop.after(0.0, lambda: self._ended(Ending(signal=number)))

    # --- what happens

    def _spawned(self, pid: int) -> None:
        self._pipe.close_write()
        if pid == 0:
            self._ended(Ending(code=1))
            return
        self.pid = pid
        if self._reaper.expect(pid, self._ended):
            with suppress(OSError):
                self._pidfd = os.pidfd_open(pid)
            if self._link is None:
                self._closed_its_pair()
        self._on_spawned(self)

    def _io(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._flush()
            # One a turn: a flood must not keep the others waiting, and most come alone.
            if (got := self._receive()) is not None:
                self._on_message(self, *got)
        except LinkClosed:
            self._close_link()
            if self.pid:  # else the end of an attempt, of which the spawner tells
                self._closed_its_pair()

    def _closed_its_pair(self) -> None:
        """Its end follows by SIGCHLD; a process that lives without its pair cannot be led and must not stay."""
        self._timer = self._timer or self._loop.after(_DUMP_S, lambda: self.kill("it closed its pair"))

    def _receive(self) -> tuple[Message, list[int]] | None:
        if self._link is None:
            return None
        try:
            return self._link.receive()
        except RecursionError:  # nested deeper than any message of ours
            return {"t": ""}, []

    def _send(self, message: Message, fds: tuple[int, ...]) -> bool:
        if self._link is not None:
            with suppress(LinkClosed):
                return self._link.send(message, fds)
        return True  # nobody is there to miss it

    def _flush(self) -> None:
        while self._outbox:
            message, fds = self._outbox[0]
            if not self._send(message, fds):
                return
            self._outbox.popleft()
            for fd in fds:
                os.close(fd)
        if self._link is not None:
            self._loop.modify(self._link.fileno(), select.EPOLLIN)

    def _ended(self, ending: Ending) -> None:
        if self.ended:
            return
        try:
            self._hear_the_rest()
        finally:  # whatever a message of it does to us, it is over
            self._end(ending)

    def _end(self, ending: Ending) -> None:
        if self.ended:
            return
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._close_link()
        self._pipe.close_write()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._pipe.drain()
        self.pulse.close()
        self._on_end(self, ending)

    def _hear_the_rest(self) -> None:
        """What it said before it ended counts: a deposit, a lock. Not what a child of it goes on saying."""
        with suppress(LinkClosed):
            for _ in range(_REST):
                if (got := self._receive()) is None:
                    return
                self._on_message(self, *got)

    def _close_link(self) -> None:
        if self._link is not None:
            self._loop.forget(self._link.fileno())
            self._link.close()
            self._link = None
        for _, fds in self._outbox:
            for fd in fds:
                os.close(fd)
        self._outbox.clear()

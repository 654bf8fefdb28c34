"""Makes processes: forked by the zygote where that is possible, else executed. Never waits.

A zygote that does not answer is killed and made anew; whatever it was asked for is executed instead. Each attempt has a
pair of its own: whatever still comes out of an attempt that was given up speaks to nobody, and two never serve one pair.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from piccolod import clock
from piccolod.link import Link, LinkClosed, Message
from piccolod.supervisor import entry, zygote
from piccolod.supervisor.known_process import is_stopped
from piccolod.supervisor.loop import Loop, Timer
from piccolod.supervisor.reaper import Ending, Reaper

# A warm zygote forks in a few ms; while it imports, it answers between two imports.
_WARM_ANSWER_S: Final = 0.3
_COLD_ANSWER_S: Final = 20.0
_SECOND_COLD_ANSWER_S: Final = 3.0  # one made anew reads from the page cache what the first one read from the disk
_PING_S: Final = 1.0
_AGAIN_S: Final = 1.0

# Nothing else of the supervisor's environment reaches a module: no secret of the caller's shell, no notify socket.
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Order:
    """A process that is wanted. `log` stays the caller's until `done`, which closes nothing."""

    target: str
    fork: bool
    pair: Callable[[], socket.socket]  # for one attempt: the far end of a fresh pair; the one before it is closed. OSError
    log: int
    done: Callable[[int], None]  # its pid; 0: it could not be made


@dataclass(slots=True)
class _Asked:
    order: Order
    give_up: Timer
    wanted: bool = True


class Spawner:
    def __init__(
        self, loop: Loop, reaper: Reaper, targets: tuple[str, ...], log: Callable[[], int], say: Callable[..., None]
    ) -> None:
        """`log` gives a new descriptor for the zygote's output; `say(level, event, **facts)` is the supervisor's log."""
        self._loop = loop
        self._reaper = reaper
        self._targets = targets
        self._log = log
        self._say = say
        self._link: Link | None = None
        self.zygote_pid = 0
        self.zygote_restarts = -1
        self.warm = False
        self._asked: dict[int, _Asked] = {}
        self._ids = 0
        self._pinged = 0
        self._heard_at = 0.0
        self._closed = False
        reaper.ask = lambda: self._readable(0)

    @property
    def _cold_s(self) -> float:
        return _COLD_ANSWER_S if self.zygote_restarts <= 0 else _SECOND_COLD_ANSWER_S

    @property
    def in_flight(self) -> int:
        """Forks that are asked for and not reported: their processes are on their way to become our children."""
        return len(self._asked)

    def start(self) -> None:
        """Makes the zygote."""
        if self._closed or not self._targets:
            return
        try:
            ours, pid = self._make_zygote()
        except OSError as error:  # no descriptor or no process is left: once there is, it comes back
            self._say("error", "the zygote cannot be started, modules are executed", reason=str(error))
            self._loop.after(_AGAIN_S, self.start)
            return
        self._link, self.zygote_pid, self.warm = ours, pid, False
        self.zygote_restarts += 1
        self._heard_at = clock.now()
        self._loop.watch(ours.fileno(), self._readable)
        self._reaper.expect(pid, lambda ending: self._ended(pid, ending))
        ours.send({"t": "IMPORT", "path": sys.path, "targets": list(self._targets)})
        self._loop.after(_PING_S, lambda: self._ping(pid))

    def _make_zygote(self) -> tuple[Link, int]:
        ours, theirs = Link.pair()
        with theirs:
            try:
                log = self._log()
                try:
                    return ours, execute(zygote.__file__, theirs.fileno(), log)
                finally:
                    os.close(log)
            except OSError:
                ours.close()
                raise

    def spawn(self, order: Order) -> None:
        if self._link is None or not order.fork or (self.zygote_restarts > 0 and not self.warm):
            # A zygote made anew needs longer for its imports than one process for its own, and may freeze in them.
            self._execute(order)
            return
        self._ids += 1
        number = self._ids
        message = {"t": "FORK", "id": number, "target": order.target}
        try:
            with order.pair() as pair:
                sent = self._link.send(message, (pair.fileno(), order.log))
        except (LinkClosed, OSError):
            sent = False
        if not sent:
            self._execute(order)
            return
        answer_s = _WARM_ANSWER_S if self.warm else self._cold_s
        self._asked[number] = _Asked(order, self._loop.after(answer_s, lambda: self._late(number)))

    def withdraw(self, order: Order) -> None:
        """It is not wanted any more: `done` is not called, and a process that is made for it all the same is ended."""
        for asked in self._asked.values():
            if asked.order is order:
                asked.wanted = False

    def close(self) -> None:
        self._closed = True
        self._drop("")

    # --- the zygote's words

    def _readable(self, _events: int) -> None:
        try:
            while self._link is not None and (got := self._link.receive()) is not None:
                self._heard_at = clock.now()
                self._hear(got[0])
        except LinkClosed:
            self._drop("the zygote has ended")

    def _hear(self, message: Message) -> None:
        if message["t"] == "PONG":
            self.warm = bool(message.get("warm"))
            return
        if message["t"] == "BLANK":
            self._reaper.announce(int(message["pid"]))
            return
        asked = self._asked.pop(int(message.get("id", 0)), None)
        if asked is None:
            return
        asked.give_up.cancel()
        pid = int(message.get("pid", 0))
        if not asked.wanted:
            self._reaper.end_announced(pid)
        elif self._reaper.is_announced(pid):
            asked.order.done(pid)
        else:
            self._say("warning", "executed instead of forked", target=asked.order.target, reason=message.get("reason"))
            self._execute(asked.order)

    def _ping(self, pid: int) -> None:
        if self._link is None or pid != self.zygote_pid:
            return
        silent_s = clock.now() - self._heard_at
        if silent_s > _PING_S / 2 and is_stopped(pid):
            self._drop("the zygote is stopped")
            return
        if (self.warm and silent_s > 2 * _PING_S + _WARM_ANSWER_S) or silent_s > self._cold_s + _PING_S:
            self._drop("the zygote does not answer")
            return
        self._pinged += 1
        with suppress(LinkClosed):
            self._link.send({"t": "PING", "id": self._pinged})
        self._loop.after(_PING_S, lambda: self._ping(pid))

    def _late(self, number: int) -> None:
        if number in self._asked:
            self._drop("the zygote does not fork")

    def _ended(self, pid: int, ending: Ending) -> None:
        if pid == self.zygote_pid:
            self._drop(f"the zygote has ended: {ending}")

    def _drop(self, reason: str) -> None:
        """What it has made and not reported ends: at once, or by the end of its pair where it was not even announced."""
        if self._link is None:
            return
        self._loop.forget(self._link.fileno())
        self._link.close()
        self._link, self.warm = None, False
        with suppress(ProcessLookupError):
            os.kill(self.zygote_pid, signal.SIGKILL)
        self._reaper.end_all_announced()
        asked, self._asked = list(self._asked.values()), {}
        for each in asked:
            each.give_up.cancel()
        if self._closed:
            return
        self._say("warning", "making a new zygote", reason=reason)
        for each in asked:
            if each.wanted:
                self._execute(each.order)
        self._loop.after(0.0 if self.zygote_restarts == 0 else _AGAIN_S, self.start)

    # --- without the zygote

    def _execute(self, order: Order) -> None:
        try:
            with order.pair() as pair:
                pid = execute(entry.__file__, pair.fileno(), order.log)
        except OSError as error:
            self._say("error", "a process cannot be made", target=order.target, reason=str(error))
            self._loop.after(0.0, lambda: order.done(0))
            return
        order.done(pid)


def execute(file: str, fd: int, log: int) -> int:
    """A Python process of ours: `python -I FILE 3 OUR_PID`, with `fd` as 3, in a session of its own. Raises OSError."""
    keep = os.dup(fd) if fd == 3 else fd  # dup2 onto itself would leave it close-on-exec
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", file, "3", str(os.getpid())],
            environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, keep, 3),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD),
        )
    finally:
        if keep != fd:
            os.close(keep)


def environment(source: Mapping[str, str] = os.environ) -> dict[str, str]:
    return {name: source[name] for name in _PASSED_ON if name in source}

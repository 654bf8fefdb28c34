"""The two leashes, as the supervisor sees them: adopted when they run, started when they do not, replaced when they freeze."""

from __future__ import annotations

import select
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from piccolod import clock
from piccolod.leadership import leash_lock
from piccolod.leadership.leash_probe import LEASHES, LeashProbe, command
from piccolod.paths import Paths
from piccolod.supervisor import detach
from piccolod.supervisor.logs import Book, LogPipe
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.row import State, rss_bytes
from piccolod.supervisor.spawner import environment

_LOOK_S: Final = 0.5
_SOON_S: Final = 0.02
_SILENT_S: Final = 1.0
_START_S: Final = 5.0  # a leash needs 40 ms; a machine in trouble longer
_AGAIN_S: Final = 1.0


class _Leash:
    def __init__(self, name: str, probe: LeashProbe) -> None:
        self.name = name
        self.probe = probe
        self.watched = -1
        self.state = State.WAITING
        self.reason = ""
        self.pid = 0
        self.restarts = -1
        self.ready_at = 0.0
        self.spawned_at = float("-inf")
        self.replaced = False


class Leashes:
    def __init__(
        self,
        loop: Loop,
        paths: Paths,
        may_spawn: Callable[[], bool],
        book: Callable[[str], Book],
        say: Callable[..., None],
        on_change: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._paths = paths
        self._may_spawn = may_spawn
        self._book = book
        self._say = say
        self._on_change = on_change
        self._pipes: set[LogPipe] = set()
        self._closed = False
        self._leashes = [_Leash(f"leash.{index}", self._probe(index)) for index in range(LEASHES)]

    def start(self) -> None:
        for index in range(LEASHES):
            self._look(index)

    def states(self) -> list[tuple[str, State, str]]:
        return [(leash.name, leash.state, leash.reason) for leash in self._leashes]

    def documents(self, now: float) -> list[dict[str, Any]]:
        return [
            {
                "name": leash.name, "pid": leash.pid, "instance": "", "state": leash.state.value, "reason": leash.reason,
                "restarts": max(0, leash.restarts), "uptime_s": round(now - leash.ready_at, 3) if leash.ready_at else 0.0,
                "rss_bytes": rss_bytes(leash.pid) if leash.pid else 0, "applied_rev": 0,
                "restart_on_kernel_rev_change": False,
                "level": "OK" if leash.state is State.READY else "ERROR", "lag_ms": 0.0, "warnings": [],
            }
            for leash in self._leashes
        ]  # fmt: skip

    def leave(self) -> None:
        """They guard on without us."""
        self._closed = True
        for leash in self._leashes:
            self._unwatch(leash)
            leash.probe.close()

    def end(self) -> None:
        """They end as soon as they guard nobody."""
        self.leave()
        for index in range(LEASHES):
            leash_lock.signal_holder(self._paths.leash, index, signal.SIGTERM)

    # --- one of them

    def _probe(self, index: int) -> LeashProbe:
        return LeashProbe(self._paths.leash_socket(index), clock.now())

    def _look(self, index: int) -> None:
        if self._closed:
            return
        again_s = _LOOK_S
        try:
            again_s = self._tick(index)
        finally:
            self._loop.after(again_s, lambda: self._look(index))

    def _tick(self, index: int) -> float:
        """Looks once; returns when to look again."""
        leash, now = self._leashes[index], clock.now()
        self._unwatch(leash)
        silent_s = leash.probe.tick(now)
        self._watch(index)
        holder = leash_lock.holder(self._paths.leash, index)
        if holder is None:
            return self._absent(index, now)
        if silent_s == 0.0:
            if leash.state is not State.READY or leash.pid != holder:
                leash.pid, leash.ready_at = holder, now
                self._set(leash, State.READY, "")
                self._say("info", "ready", module=leash.name, pid=holder)
            return _LOOK_S
        patience_s = _SILENT_S if leash.ready_at else _START_S
        if silent_s > patience_s:
            self._replace(index, f"hung: silent for {silent_s:.1f} s")
            return _SOON_S
        return _LOOK_S if leash.state is State.READY else _SOON_S

    def _absent(self, index: int, now: float) -> float:
        leash = self._leashes[index]
        if leash.ready_at:
            self._say("error", "died", module=leash.name, reason="its lock is free")
            self._set(leash, State.RESTARTING, "it has ended; the other guards go on")
            leash.ready_at = 0.0
        if now - leash.spawned_at < _AGAIN_S:
            return _SOON_S
        if not self._may_spawn():
            return _SOON_S
        self._spawn(index, now)
        return _SOON_S

    def _spawn(self, index: int, now: float) -> None:
        leash = self._leashes[index]
        pipe = LogPipe(self._loop, self._book(leash.name), self._pipes.discard)
        self._pipes.add(pipe)
        leash.spawned_at = now
        leash.restarts += 1
        try:
            argv = command(sys.executable, self._paths.page, self._paths.leash, index)
            leash.pid = detach.spawn(argv, environment(), pipe.write_fd)
        except OSError as error:
            self._set(leash, State.RESTARTING, str(error))
            return
        finally:
            pipe.close_write()
        self._unwatch(leash)
        leash.probe.close()
        leash.probe = self._probe(index)
        if leash.state is State.WAITING:
            self._set(leash, State.STARTING, "")

    def _replace(self, index: int, why: str) -> None:
        leash = self._leashes[index]
        self._say("error", "replacing a leash", module=leash.name, reason=why)
        self._set(leash, State.HUNG, why)
        leash_lock.signal_holder(self._paths.leash, index, signal.SIGKILL)
        leash.ready_at, leash.spawned_at = 0.0, float("-inf")
        self._unwatch(leash)
        leash.probe.close()
        leash.probe = self._probe(index)

    def _watch(self, index: int) -> None:
        """Its end is seen at once, not at the next look."""
        leash = self._leashes[index]
        fd = leash.probe.fileno()
        if fd >= 0:
            self._loop.watch(fd, lambda _events: self._hung_up(index), select.EPOLLRDHUP)
            leash.watched = fd

    def _hung_up(self, index: int) -> None:
        self._unwatch(self._leashes[index])
        self._tick(index)

    def _unwatch(self, leash: _Leash) -> None:
        if leash.watched >= 0:
            self._loop.forget(leash.watched)
        leash.watched = -1

    def _set(self, leash: _Leash, state: State, reason: str) -> None:
        if (leash.state, leash.reason) != (state, reason):
            leash.state, leash.reason = state, reason
            self._on_change()

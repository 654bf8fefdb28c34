"""etcd: an external program, only where `state_dir/cluster/etcd.json` says so. It dies with the supervisor.

It is killed when it makes no progress: stopped, silent on its health socket, or stuck in the kernel behind a disk. The last
cannot wait for the disk to come back: meanwhile others have elected, and a leader that thaws revokes leases that live (3.4.23,
measured). A process that is killed while it hangs in the kernel runs no instruction of its own any more, but ends only when
the kernel lets go of it; until then it is shown as hung, and no other is started.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from piccolod import clock, etcd_conf
from piccolod.errors import Invalid, PiccoloError
from piccolod.etcd_conf import Settings
from piccolod.paths import Paths
from piccolod.supervisor import etcd_launch, restart
from piccolod.supervisor.known_process import is_stopped
from piccolod.supervisor.logs import Book, LogPipe
from piccolod.supervisor.loop import Loop, Timer
from piccolod.supervisor.ping import Ping
from piccolod.supervisor.reaper import Ending, Reaper
from piccolod.supervisor.row import State, rss_bytes
from piccolod.supervisor.spawner import environment, execute
from piccolod.supervisor.stall import Stall

NAME: Final = "etcd"

# Any answer will do. `GET /health` would be a proposal, which every member writes to its disk.
_PING: Final = b"GET / HTTP/1.0\r\nHost: etcd\r\n\r\n"
_LOOK_S: Final = 0.25
_MISSES: Final = 2
_START_S: Final = 60.0  # it reads its log first
STOP_S: Final = 3.0  # it hands its leadership over
_ABSENT_S: Final = 10.0
_ALARMS: Final = 16


class Etcd:
    """The member of this node; none, and no row of `modules`, while there is no file."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        paths: Paths,
        book: Callable[[str], Book],
        say: Callable[..., None],
        on_change: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._paths = paths
        self._book = book
        self._say = say
        self._on_change = on_change
        self.state = State.DISABLED
        self.reason = ""
        self.alarms: tuple[str, ...] = ()
        self._settings: Settings | None = None
        self._policy = restart.Policy()
        self._history = restart.History()
        self._pipes: set[LogPipe] = set()
        self._pid = 0
        self._began_at = 0.0
        self._ready_at = 0.0
        self._restarts = 0
        self._misses = 0
        self._cause = ""
        self._stall = Stall(0)
        self._ping: Ping | None = None
        self._timers: list[Timer] = []
        self._ended: Callable[[], None] | None = None

    # --- what is wanted of it

    def start(self) -> None:
        """As the file says, once at the supervisor's start. A file that cannot be used is told of, and no more."""
        try:
            self.reload()
        except PiccoloError as error:
            self._say("error", "etcd is not started", reason=error.detail)
            self._set(State.STOPPED, error.detail)

    def command(self, request: dict[str, Any]) -> None:
        """`{"cmd": "etcd", "do": "reload"}` after the file was written or removed: starts, restarts or ends it.
        `{"do": "stop"}` until the next reload. `{"do": "alarms", "alarms": ["NOSPACE on n1"]}`: what consensus has seen.
        Raises Invalid, Unavailable.
        """
        what = request.get("do")
        if what == "reload":
            self.reload()
        elif what == "stop":
            self._settings = None
            self._cease("stopped by request")
        elif what == "alarms":
            names = request.get("alarms")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise Invalid("`alarms` is a list of names")
            if self._settings is not None and self.alarms != (seen := tuple(name[:80] for name in names[:_ALARMS])):
                self.alarms = seen
                self._on_change()
        else:
            raise Invalid(f"etcd: no order {str(what)[:40]!r}", hint="reload, stop, alarms")

    def reload(self) -> None:
        settings = etcd_conf.read(self._paths.etcd_conf)
        if settings == self._settings:
            return
        self._settings = settings
        self._history = restart.History()
        if settings is None:
            self._cease("there is no member here any more")
        elif self._pid:
            self._terminate("its settings have changed")
        else:
            self._launch()

    def restart(self) -> None:
        """By request."""
        if self._pid:
            self._terminate("restarted by request")
        else:
            self._launch()

    def end(self, ended: Callable[[], None]) -> None:
        """With the supervisor."""
        self._settings = None
        self._cancel()
        if not self._pid:
            ended()
            return
        self._ended = ended
        self._cause = ""  # what was under way is asked again: the kill that would have followed was just called off
        self._terminate("stopped")
        self._after(STOP_S + 0.5, self._let_go)

    def _let_go(self) -> None:
        """It hangs in the kernel. SIGKILL has been sent, and comes again with our own end."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    # --- what is shown of it

    @property
    def here(self) -> bool:
        return self.state is not State.DISABLED

    def told(self) -> tuple[str, State, str]:
        """An alarm is no state of the process, but who asks for its health must hear of it."""
        return NAME, self.state, self._words()

    def document(self, now: float) -> dict[str, Any]:
        level = "ERROR" if self.alarms else "OK" if self.state is State.READY else "WARN"
        return {
            "name": NAME, "pid": self._pid, "instance": "", "state": self.state.value, "reason": self._words(),
            "restarts": self._restarts, "uptime_s": round(now - self._ready_at, 3) if self._ready_at else 0.0,
            "rss_bytes": rss_bytes(self._pid) if self._pid else 0, "applied_rev": 0, "restart_on_kernel_rev_change": False,
            "level": level, "lag_ms": 0.0, "warnings": [],
        }  # fmt: skip

    def _words(self) -> str:
        alarms = f"alarm {', '.join(self.alarms)}" if self.alarms else ""
        return "; ".join(part for part in (alarms, self.reason) if part)

    # --- making it

    def _launch(self) -> None:
        if self._settings is None or self._pid:
            return
        self._cancel()
        try:
            argv = etcd_conf.command(etcd_conf.program(), self._settings, self._paths)
            self._pid = self._execute(argv)
        except PiccoloError as error:
            self._set(State.ABSENT, f"{error.detail}: {error.hint}")
            self._after(_ABSENT_S, self._launch)
            return
        except OSError as error:
            self._again(str(error))
            return
        self._began_at, self._misses, self._cause, self._stall = clock.now(), 0, "", Stall(self._pid)
        self._reaper.expect(self._pid, self._died, walked=True)
        self._set(State.STARTING, "")
        self._after(_LOOK_S, self._look)

    def _execute(self, argv: list[str]) -> int:
        paths = self._paths
        wanted = {
            "argv": argv, "env": {**environment(), **etcd_conf.environment()}, "data_dir": str(paths.etcd_data),
            "cwd": str(paths.run),
        }  # fmt: skip
        order = os.memfd_create("etcd", os.MFD_CLOEXEC)
        pipe = LogPipe(self._loop, self._book(NAME), self._pipes.discard)
        self._pipes.add(pipe)
        try:
            os.write(order, json.dumps(wanted).encode())
            os.lseek(order, 0, os.SEEK_SET)
            return execute(etcd_launch.__file__, order, pipe.write_fd)
        finally:
            os.close(order)
            pipe.close_write()

    def _again(self, why: str) -> None:
        now = clock.now()
        ready_s = now - self._ready_at if self._ready_at else 0.0
        verdict = restart.after_death(self._history, self._policy, now, ready_s, random.random())  # noqa: S311
        self._history, self._ready_at = verdict.history, 0.0
        self._restarts += 1
        self._set(State.CRASHLOOPING if verdict.history.looping else State.RESTARTING, why)
        self._after(verdict.delay_s, self._launch)

    # --- watching it

    def _look(self) -> None:
        now = clock.now()
        limit_s = self._settings.stall_s if self._settings is not None else 0.0
        stalled_s = self._stall.look(now)
        if self._cause:
            return
        if is_stopped(self._pid):
            self._hang("hung: the process is stopped")
        elif stalled_s > limit_s and self.state is State.READY:
            self._hang(f"hung: it waits for its disk since {stalled_s:.1f} s")
        else:
            if self._ping is None:
                self._ping = Ping(self._loop, self._paths.etcd_health, _PING, limit_s, self._looked)
            self._after(_LOOK_S, self._look)

    def _looked(self, status: bytes) -> None:
        self._ping = None
        now = clock.now()
        if status:
            self._misses = 0
            if self.state is State.STARTING:
                self._ready_at = now
                self._set(State.READY, "")
                self._say("info", "ready", module=NAME, pid=self._pid, ms=round((now - self._began_at) * 1000))
            self._history = restart.while_ready(self._history, self._policy, now - self._ready_at)
        elif self.state is State.READY or now - self._began_at > _START_S:
            self._misses += 1
            if self._misses >= _MISSES:
                self._hang(f"hung: no answer on its health socket, {self._misses} times")

    def _died(self, ending: Ending) -> None:
        cause = self._cause or str(ending)
        planned = self._settings is None or self.state is State.STOPPING
        self._cancel()
        self._pid, self.alarms = 0, ()
        for pipe in list(self._pipes):
            pipe.drain()
        if self._ended is not None:
            self._let_go()
        elif self._settings is None:
            self._cease(cause)
        elif planned:
            self._ready_at = 0.0
            self._launch()
        else:
            self._say("error", "died", module=NAME, reason=cause)
            self._again(cause)

    # --- ending it

    def _cease(self, why: str) -> None:
        """None is wanted any more."""
        if self._pid:
            self._terminate(why)
            return
        self._cancel()
        self._ready_at, self.alarms = 0.0, ()
        there = self._paths.etcd_conf.exists()
        self._set(State.STOPPED if there else State.DISABLED, why)

    def _terminate(self, cause: str) -> None:
        if not self._pid or self._cause:
            return
        self._cause = cause
        self._set(State.STOPPING, cause)
        self._signal(signal.SIGTERM)
        self._after(STOP_S, lambda: self._signal(signal.SIGKILL))

    def _hang(self, cause: str) -> None:
        if self._cause:
            return
        self._cause = cause
        self._say("error", "killing etcd", pid=self._pid, reason=cause)
        self._set(State.HUNG, cause)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """Until we have reaped our child its pid is its own."""
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.callback is not None and timer.at > clock.now()]
        self._timers.append(self._loop.after(seconds, what))

    def _cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        if self._ping is not None:
            self._ping.close()
        self._ping = None

    def _set(self, state: State, reason: str) -> None:
        if (self.state, self.reason) != (state, reason):
            self.state, self.reason = state, reason
            self._on_change()

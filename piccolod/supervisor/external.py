"""podman's API service: an external program that outlives the supervisor, watched and, when it fails, started again.

It has a session of its own and is no descendant of ours, so that conmon and the containers never depend on piccolod. A
running one is adopted by its pid file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from piccolod import clock
from piccolod.config import Config
from piccolod.supervisor import detach, restart
from piccolod.supervisor.known_process import KnownProcess, kill, pid_file
from piccolod.supervisor.loop import Loop, Timer
from piccolod.supervisor.ping import Ping
from piccolod.supervisor.row import State, rss_bytes
from piccolod.supervisor.spawner import environment

NAME: Final = "podman"

# Not imported: what prepares podman is large, and runs in the process that becomes podman.
_LAUNCH: Final = str(Path(__file__).with_name("podman_launch.py"))
_PING: Final = b"GET /_ping HTTP/1.0\r\nHost: podman\r\n\r\n"
_LOOK_S: Final = 2.0
_FIRST_LOOK_S: Final = 0.05
_ANSWER_S: Final = 3.0
_MISSES: Final = 2
_START_S: Final = 20.0
_ABSENT_S: Final = 10.0
_LOG_BYTES: Final = 4 << 20
_PASSED_ON: Final = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip


class PodmanService:
    def __init__(
        self, loop: Loop, config: Config, may_spawn: Callable[[], bool], say: Callable[..., None], on_change: Callable[[], None]
    ) -> None:
        """`may_spawn`: no fork of the zygote is under way."""
        self._loop = loop
        self._config = config
        self._paths = config.paths
        self._may_spawn = may_spawn
        self._say = say
        self._on_change = on_change
        self.state = State.WAITING
        self.reason = ""
        self._history = restart.History()
        self._policy = restart.Policy()
        self._process: KnownProcess | None = None
        self._pidfd = -1
        self._told = -1
        self._launching = -1  # pidfd of the launch, while `_told` is open
        self._ready_at = 0.0
        self._began_at = 0.0
        self._restarts = 0
        self._misses = 0
        self._cause = ""
        self._ping: Ping | None = None
        self._look_timer: Timer | None = None
        self._closed = False
        self._ended: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Adopts the running one, or launches one."""
        if self._closed:
            return
        if self._adopt():
            self._say("info", "adopted podman's service", pid=self._process.pid if self._process else 0)
        elif self._may_spawn():
            self._launch()
        else:
            self._loop.after(0.01, self.start)

    def document(self, now: float) -> dict[str, Any]:
        pid = self._process.pid if self._process else 0
        return {
            "name": NAME, "pid": pid, "instance": "", "state": self.state.value, "reason": self.reason,
            "restarts": self._restarts, "uptime_s": round(now - self._ready_at, 3) if self._ready_at else 0.0,
            "rss_bytes": rss_bytes(pid) if pid else 0, "applied_rev": 0, "restart_on_kernel_rev_change": False,
            "level": "OK" if self.state is State.READY else "WARN", "lag_ms": 0.0, "warnings": [],
        }  # fmt: skip

    def restart(self) -> None:
        """By request: no death to be patient about."""
        if self._pidfd >= 0:
            self._history = restart.History()
            self._kill("restarted by request", State.STOPPING)

    def leave(self) -> None:
        """It runs on without us."""
        self._closed = True
        self._forget()

    def end(self, within_s: float, ended: Callable[[], None]) -> None:
        """Ends it with everything; containers were stopped before."""
        self._closed = True
        if self._pidfd < 0 and self._told < 0:
            ended()
            return
        self._ended = ended
        if self._told >= 0:
            # On its way into being, and perhaps behind a disk that hangs: that it ends is heard by `_told`.
            kill(self._launching, signal.SIGKILL)
            self._cancel_look()
            self._look_timer = self._loop.after(within_s, lambda: self._launched(0))
            return
        self._cause = "stopped"
        kill(self._pidfd, signal.SIGTERM)
        self._loop.after(within_s, lambda: kill(self._pidfd, signal.SIGKILL) if self._pidfd >= 0 else None)

    # --- making it

    def _adopt(self) -> bool:
        process = KnownProcess.read(pid_file(self._paths))
        pidfd = process.open() if process is not None else -1
        if pidfd < 0:
            return False
        self._process, self._pidfd, self._misses, self._cause = process, pidfd, 0, ""
        self._loop.watch(pidfd, lambda _events: self._died())
        self._began_at = clock.now()
        self._set(State.STARTING, "")
        self._look_soon(_FIRST_LOOK_S)
        return True

    def _launch(self) -> None:
        wanted = json.dumps(asdict(self._config)).encode()
        config = os.memfd_create("piccolod-config", os.MFD_CLOEXEC)
        told, tell = os.pipe2(os.O_CLOEXEC)
        log = _log(self._paths.log / "podman.log")
        try:
            os.write(config, wanted)
            os.lseek(config, 0, os.SEEK_SET)
            argv = [sys.executable, "-I", _LAUNCH]
            env = {**environment(), **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}
            pid = detach.spawn(argv, env, log, (config, tell))
        except OSError as error:
            os.close(told)
            self._failed("failed", str(error))
            return
        finally:
            for fd in (config, tell, log):
                os.close(fd)
        os.set_blocking(told, False)
        self._told = told
        with suppress(OSError):  # it has ended already, or no descriptor is left for it
            self._launching = os.pidfd_open(pid)
        self._set(State.STARTING, "")
        self._loop.watch(told, self._launched)
        self._look_timer = self._loop.after(_START_S, lambda: self._launched(0))

    def _launched(self, _events: int) -> None:
        """End of file: it has become podman, or found that another one has. Else it says why not."""
        try:
            failure = os.read(self._told, 4096)
        except BlockingIOError:
            failure = b'{"code": "failed", "detail": "podman\'s configuration cannot be prepared: a disk or mount hangs"}'
        self._forget()
        if self._closed:
            self._end_newborn()
        elif failure:
            told = json.loads(failure)
            self._failed(str(told.get("code")), str(told.get("detail")))
        elif not self._adopt():
            self._failed("failed", "podman's service ended at once, see its log")

    def _end_newborn(self) -> None:
        process = KnownProcess.read(pid_file(self._paths))
        if process is not None and (pidfd := process.open()) >= 0:
            kill(pidfd, signal.SIGKILL)
            os.close(pidfd)
        ended, self._ended = self._ended, lambda: None
        ended()

    def _failed(self, code: str, why: str) -> None:
        if code == "unavailable":
            self._set(State.ABSENT, why)
            self._loop.after(_ABSENT_S, self.start)
        else:
            self._again(why)

    def _again(self, why: str) -> None:
        now = clock.now()
        ready_s = now - self._ready_at if self._ready_at else 0.0
        verdict = restart.after_death(self._history, self._policy, now, ready_s, random.random())  # noqa: S311
        self._history, self._ready_at = verdict.history, 0.0
        self._set(State.CRASHLOOPING if verdict.history.looping else State.RESTARTING, why)
        self._restarts += 1
        self._loop.after(verdict.delay_s, self.start)

    # --- watching it

    def _died(self) -> None:
        cause = self._cause or "podman's service has ended"
        self._forget()
        self._process = None
        if not self._closed:
            self._say("warning", "died", module=NAME, reason=cause)
            self._again(cause)
        ended, self._ended = self._ended, lambda: None
        ended()

    def _look_soon(self, seconds: float) -> None:
        self._cancel_look()
        self._look_timer = self._loop.after(seconds, self._look)

    def _look(self) -> None:
        self._look_timer = None
        if self._process is not None and self._process.stopped():
            self._kill("hung: the process is stopped")
            return
        self._ping = Ping(self._loop, self._paths.podman_socket, _PING, _ANSWER_S, self._looked)

    def _looked(self, status: bytes) -> None:
        self._ping = None
        now = clock.now()
        if status == b"200":
            self._misses = 0
            if self.state is not State.READY:
                self._ready_at = now
                self._set(State.READY, "")
                self._say("info", "ready", module=NAME, ms=round((now - self._began_at) * 1000))
            self._history = restart.while_ready(self._history, self._policy, now - self._ready_at)
            self._look_soon(_LOOK_S)
        elif self.state is State.STARTING and now - self._began_at < _START_S:
            self._look_soon(_FIRST_LOOK_S)
        else:
            self._misses += 1
            if self._misses >= _MISSES:
                self._kill(f"hung: no answer on its socket, {self._misses} times")
            else:
                self._look_soon(_FIRST_LOOK_S)

    def _kill(self, cause: str, state: State = State.HUNG) -> None:
        self._cause = cause
        self._set(state, cause)
        kill(self._pidfd, signal.SIGKILL)

    def _forget(self) -> None:
        self._cancel_look()
        if self._ping is not None:
            self._ping.close()
        self._ping = None
        for fd in (self._pidfd, self._told, self._launching):
            if fd >= 0:
                self._loop.forget(fd)
                os.close(fd)
        self._pidfd = self._told = self._launching = -1

    def _cancel_look(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_timer = None

    def _set(self, state: State, reason: str) -> None:
        if (self.state, self.reason) != (state, reason):
            self.state, self.reason = state, reason
            self._on_change()


def _log(file: Path) -> int:
    """podman writes it itself: a pipe of ours would break when we end, and take podman with it."""
    with suppress(OSError):
        if file.stat().st_size > _LOG_BYTES:
            os.replace(file, f"{file}.1")
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

"""The supervisor: builds its parts, runs the loop, ends in order.

SIGTERM ends the modules; containers, podman's service and the leashes run on and are adopted by the next start. SIGINT
(Ctrl-C of `make run`) ends everything, containers first; a second one ends the modules at once.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from piccolod import clock, podman_conf
from piccolod.config import Config
from piccolod.errors import Busy, NotFound, PiccoloError
from piccolod.kernel import MODULES, ModuleSpec, Spawn
from piccolod.supervisor import restart, revision, rights
from piccolod.supervisor.bus_sockets import BusSockets
from piccolod.supervisor.cgroup import Cgroups
from piccolod.supervisor.control import Command, Control
from piccolod.supervisor.deposit import Deposits
from piccolod.supervisor.disk import Disk
from piccolod.supervisor.etcd import NAME as ETCD
from piccolod.supervisor.etcd import STOP_S as STOP_ETCD_S
from piccolod.supervisor.etcd import Etcd
from piccolod.supervisor.external import NAME as PODMAN
from piccolod.supervisor.external import PodmanService
from piccolod.supervisor.holder import Holders
from piccolod.supervisor.leashes import Leashes
from piccolod.supervisor.ledger import Ledger
from piccolod.supervisor.logs import Book, LogPipe
from piccolod.supervisor.loop import Loop
from piccolod.supervisor.notify import Notify
from piccolod.supervisor.parts import Parts
from piccolod.supervisor.reaper import Reaper
from piccolod.supervisor.requests import Requests, whole
from piccolod.supervisor.row import State
from piccolod.supervisor.rundir import RunDir, group_id
from piccolod.supervisor.say import Say
from piccolod.supervisor.sockets import Sockets
from piccolod.supervisor.spawner import Spawner
from piccolod.supervisor.third_guard import ThirdGuard
from piccolod.supervisor.tree import CONSENSUS, NEEDED, Tree
from piccolod.supervisor.voice import Voice

_STOP_S: Final = 4.0
_STOP_APPS_S: Final = 25.0  # the manifest's stop grace is at most 20 s for what ends in good time
_STOP_PODMAN_S: Final = 3.0
_SAME_KEY_S: Final = 0.3  # one Ctrl-C can arrive twice, from the terminal and from who started us
_TAIL: Final = 10_000
_DEGRADED_S: Final = 2.0


class Supervisor:
    """One node's. `externals` False: neither podman nor leashes, for tests of the tree alone."""

    def __init__(
        self,
        config: Config,
        table: Sequence[ModuleSpec] = MODULES,
        *,
        externals: bool = True,
        policy: restart.Policy | None = None,
        pace: revision.Pace | None = None,
    ) -> None:
        """Raises Busy beside another supervisor of this node, Failed when its folders cannot be made."""
        self._began_at = clock.now()
        self._config = config
        self._paths = paths = config.paths
        self._table = tuple(table)
        self._run_dir = RunDir(paths)
        self._notify = Notify()
        self._say = Say()
        self._loop = Loop(self._say.bug)
        self._reaper = Reaper(self._loop)
        self._pipes: set[LogPipe] = set()
        self._books: dict[str, Book] = {}
        self._was_ready = False
        self._stopping = False
        self._stopping_at = 0.0
        self._changed = False
        rights.no_core_dumps()
        rights.adopt_orphans(True)
        keeper = self._run_dir.prepare(_owners(config, self._table))
        self._signals()
        # What is here now is neither written to by a collector of ours nor of the log writer, which shares it.
        gc.collect()
        gc.freeze()
        self._disk = Disk(self._loop, self._reaper, self._say)
        self._disk.start()
        self._say.keep = self._book("supervisor").add
        first = sorted(self._table, key=lambda row: row.name not in NEEDED)
        targets = tuple(dict.fromkeys(row.target for row in first if row.spawn is Spawn.FORK))
        self._spawner = Spawner(self._loop, self._reaper, targets, self._zygote_log, self._say)
        self._spawner.start()
        self._ledger = Ledger(self._loop, paths.ledger, self._disk)
        self._ledger.load()
        self._sockets = Sockets(paths.run)
        self._deposits = Deposits()
        self._voice = Voice()
        requests = Requests(
            self._sockets, Holders(self._loop), self._deposits, self._notify,
            lambda sender: self._tree.restart_key_holders(sender),
        )  # fmt: skip
        requests.take_stored({row.name: row for row in self._table})
        self._bus = BusSockets(paths, [row.name for row in self._table], group_id())
        self._cgroups = Cgroups.of_this_process()
        parts = Parts(
            self._loop, self._reaper, self._spawner, self._sockets, self._bus, requests, self._ledger, self._voice,
            self._cgroups, self._book, self._say,
        )  # fmt: skip
        self._tree = Tree(parts, self._table, config, self._on_change, policy, pace)
        self._loop.on_stall = self._stalled
        self._guard = ThirdGuard(self._loop, paths, keeper, self._run_dir.tick, self._page_renewed, self._say)
        self._etcd = Etcd(self._loop, self._reaper, paths, self._book, self._say, self._on_change)
        self._control = Control(self._loop, paths, self._commands(), lambda: self._tree.roster.pid_of("api"))
        self._podman: PodmanService | None = None
        self._leashes: Leashes | None = None
        if externals:
            self._podman = PodmanService(self._loop, config, self._may_detach, self._say, self._on_change)
            self._leashes = Leashes(self._loop, paths, self._may_detach, self._book, self._say, self._on_change)

    def run(self) -> int:
        """Until it is told to stop; returns the exit code."""
        rights.raise_descriptor_limit()
        missing = [
            name for name, done in (("priority", rights.raise_priority()), ("oom_score", rights.lower_oom_score())) if not done
        ]
        self._say("info", "started", pid=os.getpid(), node=self._config.node.name, without=",".join(missing) or "nothing")
        # Before the first fork is under way, which would hold them up.
        if self._leashes is not None:
            self._leashes.start()
        if self._podman is not None:
            self._podman.start()
        self._etcd.start()
        self._tree.start()
        self._guard.look()
        if self._notify.watchdog_s:
            self._feed()
        self._loop.run()
        return 0

    # --- the end

    def stop(self, apps: bool) -> None:
        """Once; a second call ends the modules at once."""
        now = clock.now()
        if self._stopping:
            if now - self._stopping_at > _SAME_KEY_S:
                self._say("warning", "ends at once")
                self._tree.kill_all()
            return
        self._stopping, self._stopping_at = True, now
        self._say("info", "stopping", apps=apps)
        self._notify.stopping(_STOP_S + (_STOP_APPS_S if apps else 0.0) + _STOP_PODMAN_S + STOP_ETCD_S + 2)
        self._tree.stop(_STOP_S, _STOP_APPS_S if apps else 0.0, lambda: self._modules_ended(apps))

    def _modules_ended(self, apps: bool) -> None:
        self._spawner.close()
        self._etcd.end(lambda: self._etcd_ended(apps))

    def _etcd_ended(self, apps: bool) -> None:
        if self._leashes is not None:
            self._leashes.end() if apps else self._leashes.leave()
        if self._podman is None:
            self._end()
        elif apps:
            self._podman.end(_STOP_PODMAN_S, self._podman_ended)
        else:
            self._podman.leave()
            self._end()

    def _podman_ended(self) -> None:
        """With podman's own mount on its storage left, nobody could delete the state folder."""
        try:
            podman_conf.release(self._config)
        except (OSError, PiccoloError) as error:
            self._say(
                "warning",
                "what is mounted for podman stays",
                reason=error.detail if isinstance(error, PiccoloError) else str(error),
            )
        finally:
            self._end()

    def _end(self) -> None:
        self._say("info", "stopped", after_s=round(clock.now() - self._began_at, 1))
        self._control.close()
        self._sockets.close()
        self._bus.close()
        self._deposits.close()
        self._ledger.save()
        self._disk.close()
        self._loop.stop()

    # --- what happens

    def _signals(self) -> None:
        ours, self._wake = socket.socketpair()
        ours.setblocking(False)
        self._wake.setblocking(False)
        self._signal_pipe = ours
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the byte in the pipe is the message
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._loop.watch(ours.fileno(), self._signalled)

    def _signalled(self, _events: int) -> None:
        try:
            numbers = set(self._signal_pipe.recv(4096))
        except BlockingIOError:
            return
        if signal.SIGCHLD in numbers:
            self._reaper.reap()
        if signal.SIGINT in numbers:
            self.stop(apps=True)
        elif signal.SIGTERM in numbers:
            self.stop(apps=False)
        if signal.SIGHUP in numbers:
            self._say("info", "the configuration is read at start: restart piccolod to change it")

    def _page_renewed(self) -> None:
        """Consensus writes to the page that it has open; its next life has the new one, and the terms of this boot."""
        with suppress(PiccoloError):  # it is not in the table, or all stops
            self._tree.restart(CONSENSUS, "the deadline page was made anew")

    def _stalled(self, stalled_s: float) -> None:
        self._tree.forgive(stalled_s)
        if stalled_s > 1.0:
            self._say("warning", "was stopped or starved itself", seconds=round(stalled_s, 2))

    def _feed(self) -> None:
        self._notify.alive()
        self._loop.after(self._notify.watchdog_s, self._feed)

    def _on_change(self) -> None:
        """Many changes come together: they are told once."""
        if not self._changed:
            self._changed = True
            self._loop.after(0.0, self._tell)

    def _tell(self) -> None:
        self._changed = False
        if self._stopping:
            return
        lacking = [name for name, row in self._tree.roster.rows.items() if row.state not in (State.READY, State.DISABLED)]
        for name, state, reason in self._externals():
            self._tell_external(name, state, reason)
            if state is not State.READY:
                lacking.append(name)
        if not self._etcd.here:
            self._voice.take_back_health(ETCD)
        if not self._was_ready and self._tree.roster.all_ready(NEEDED):
            self._was_ready = True
            self._notify.ready()
            self._say("info", "piccolod is ready", ms=round((clock.now() - self._began_at) * 1000))
            self._loop.after(_DEGRADED_S, self._tell_degraded)
        self._notify.status("ready" if not lacking else f"not ready: {', '.join(lacking)}")

    def _externals(self) -> list[tuple[str, State, str]]:
        found = [] if self._podman is None else [(PODMAN, self._podman.state, self._podman.reason)]
        found += [self._etcd.told()] if self._etcd.here else []
        return found + ([] if self._leashes is None else self._leashes.states())

    def _tell_external(self, name: str, state: State, reason: str) -> None:
        body = {"module": name, "state": state.value, "pid": 0, "instance": "", "restarts": 0, "reason": reason}
        self._voice.module(body)
        if state is State.READY:
            self._voice.health(name, "ERROR" if reason else "OK", reason)
        elif state not in (State.WAITING, State.STARTING):
            self._voice.health(name, "ERROR", reason or state.value)

    def _tell_degraded(self) -> None:
        """What this host does not let us take away from modules: named once, in the log and in health."""
        lacks: dict[str, list[str]] = {}
        if not self._cgroups.limits_memory:
            lacks["no cgroup is delegated to piccolod: memory limits are watched, not enforced"] = ["all"]
        for name, row in self._tree.roster.rows.items():
            for warning in row.warnings:
                lacks.setdefault(warning, []).append(name)
        for warning, names in lacks.items():
            self._say("warning", "reduced isolation", modules=",".join(names), reason=warning)
        self._voice.health("supervisor", "OK", "; ".join(lacks))

    def _may_detach(self) -> bool:
        return self._spawner.in_flight == 0

    # --- logs

    def _book(self, name: str) -> Book:
        book = self._books.get(name)
        if book is None:
            book = self._books[name] = Book(self._paths.log / f"{name}.log", self._disk)
            book.load()
        return book

    def _zygote_log(self) -> int:
        pipe = LogPipe(self._loop, self._book("zygote"), self._pipes.discard)
        self._pipes.add(pipe)
        fd, pipe.write_fd = pipe.write_fd, -1
        return fd

    # --- commands

    def _commands(self) -> dict[str, Command]:
        return {
            "modules": lambda _request: self._documents(),
            "restart": self._restart,
            "logs": lambda request: self._book(self._named(request)).last(_tail(request)),
            "why": lambda request: [death._asdict() for death in reversed(self._ledger.of(self._named(request)))],
            "tree": lambda _request: self._tree_document(),
            "stop": self._stop,
            "etcd": self._etcd.command,
        }

    def _documents(self) -> list[dict[str, Any]]:
        now = clock.now()
        documents = self._tree.roster.documents(now)
        if self._podman is not None:
            documents.append(self._podman.document(now))
        if self._etcd.here:
            documents.append(self._etcd.document(now))
        return documents + (self._leashes.documents(now) if self._leashes is not None else [])

    def _restart(self, request: dict[str, Any]) -> None:
        if request.get("name") == PODMAN and self._podman is not None:
            self._podman.restart()
        elif request.get("name") == ETCD and self._etcd.here:
            self._etcd.restart()
        else:
            self._tree.restart(self._named(request), "restarted by request")

    def _stop(self, request: dict[str, Any]) -> None:
        if self._stopping:
            raise Busy("piccolod is stopping already")
        self._loop.after(0.05, lambda: self.stop(apps=request.get("apps") is True))

    def _named(self, request: dict[str, Any]) -> str:
        name = request.get("name")
        known = {*self._tree.roster.rows, *self._books}
        if not isinstance(name, str) or name not in known:
            raise NotFound(f"there is no module {str(name)[:40]!r}", hint="`piccoloctl modules list` shows them")
        return name

    def _tree_document(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "uptime_s": round(clock.now() - self._began_at, 3),
            "ready": self._was_ready,
            "zygote": {
                "pid": self._spawner.zygote_pid, "warm": self._spawner.warm, "restarts": self._spawner.zygote_restarts
            },
            "log_writer": {"pid": self._disk.pid, "dropped": self._disk.dropped},
            "modules": self._documents(),
        }  # fmt: skip


def _owners(config: Config, table: Sequence[ModuleSpec]) -> dict[Path, str]:
    """The folders of modules that are not root: they could not make them."""
    users = {row.name.partition(".")[0]: row.user for row in table}
    paths = config.paths
    folders = {paths.store: "persistence", paths.guesses: "persistence", paths.journal: "telemetry", paths.routes: "router"}
    return {folder: users[module] for folder, module in folders.items() if module in users}


def _tail(request: dict[str, Any]) -> int:
    return whole(request.get("tail", 100), _TAIL)

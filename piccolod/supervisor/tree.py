"""The tree of modules: each row of the table has a process from the wish for it to its successor, whatever it dies of.

Who is silent for too long: patience.py. The end of all: stopping.py. Who is told of what: roster.py.

A process is made before what it needs is ready, and told to START only then. PEERS, who is who now, reaches everybody
before a new process may speak.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections.abc import Callable, Sequence
from typing import Final

from piccolod import clock
from piccolod.config import Config
from piccolod.errors import Busy, Invalid
from piccolod.kernel import ModuleSpec, Spawn
from piccolod.link import Message
from piccolod.pulse import FD, PulseReader
from piccolod.supervisor import restart
from piccolod.supervisor.child import Life
from piccolod.supervisor.ledger import Death, last_words
from piccolod.supervisor.logs import LogPipe
from piccolod.supervisor.parts import Parts
from piccolod.supervisor.patience import Patience
from piccolod.supervisor.reaper import Ending
from piccolod.supervisor.requests import seconds, text, whole
from piccolod.supervisor.revision import Action, Pace, Verb
from piccolod.supervisor.rights import Rights
from piccolod.supervisor.roller import Roller
from piccolod.supervisor.roster import Roster
from piccolod.supervisor.row import Row, State
from piccolod.supervisor.stopping import APPS, Stopping

BROKER: Final = "broker"
CONSENSUS: Final = "consensus"
# Without these the node is of no use; others are named in its status.
NEEDED: Final = frozenset({BROKER, CONSENSUS, "persistence", "api"})
_VERIFIER: Final = "persistence"
_RAISED_PRIORITY: Final = frozenset({CONSENSUS})  # it writes the page that guards read

_NEVER_STARTED: Final = 71  # exit code of a module that waits no longer for START
_AGAIN_S: Final = 0.5  # where no process could be made
_RESTART_S: Final = 2.0  # for a module to end in a planned restart
_EXTEND_S: Final = 600.0
_TELL_IGNORED: Final = 10
_UNWANTED_S: Final = 10.0  # after READY: a socket that was not asked for again is closed


class Tree:
    def __init__(
        self,
        parts: Parts,
        table: Sequence[ModuleSpec],
        config: Config,
        on_change: Callable[[], None],
        policy: restart.Policy | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._parts = parts
        self._table = tuple(table)
        self._config = dataclasses.asdict(config)
        self._on_change = on_change
        self._policy = policy or restart.Policy()
        self.roster = Roster(self._table, config, parts.voice, on_change)
        self._patience = Patience(parts, self.roster, self._policy)
        self._stopping = Stopping(parts, self._table, self.roster)
        self._roller = Roller(
            parts.loop,
            self._table,
            pace or Pace(),
            alive=self.roster.ready,
            busy=self.roster.busy,
            act=self._bring_up,
            stale=self._stale,
        )
        self._pipes: set[LogPipe] = set()

    # --- what others ask

    def start(self) -> None:
        rows = self.roster.rows.values()
        for row in rows:
            self.roster.publish(row)
        # One after the other is imported and forked: those that the node is ready with come first.
        for row in sorted(rows, key=lambda row: row.spec.name not in NEEDED):
            if row.state is not State.DISABLED:
                self._spawn(row)
        self._patience.start()

    def restart(self, name: str, cause: str) -> None:
        """A planned restart. Raises NotFound; Busy while everything stops."""
        row = self.roster.named(name)
        if self._stopping.asked:
            raise Busy("piccolod is stopping")
        if row.state is State.DISABLED:
            raise Invalid(f"{name} is disabled", hint=f"see [modules.{name}] in the configuration")
        row.history = restart.History()
        self._restart(row, cause)

    def restart_key_holders(self, sender: str) -> None:
        for row in self.roster.rows.values():
            if row.spec.holds_keys and row.spec.name != sender:
                self._restart(row, "the node was locked")

    def stop(
        self,
        within_s: float,
        stop_apps_s: float,
        end_containers: Callable[[Callable[[], None]], None],
        stopped: Callable[[], None],
    ) -> None:
        """Once. See `Stopping.begin`."""
        if self._stopping.asked:
            return
        apps = self.roster.rows.get(APPS)
        if stop_apps_s and apps is not None and apps.retry is not None:
            self._spawn(apps)  # this is no time for patience with it
        self._stopping.begin(within_s, stop_apps_s, end_containers, stopped)

    def kill_all(self) -> None:
        self._stopping.kill_all()

    def forgive(self, stalled_s: float) -> None:
        self._patience.forgive(stalled_s)

    # --- a life begins

    def _spawn(self, row: Row) -> None:
        row.cancel_retry()
        parts, spec = self._parts, row.spec
        try:
            life = self._new_life(spec)
        except OSError as error:  # no descriptor is left: a module is late then, never forgotten
            self.roster.set(row, State.RESTARTING, f"no process can be made: {error.strerror}")
            parts.say("error", "no process can be made", module=spec.name, reason=str(error), again_in_s=_AGAIN_S)
            row.retry = parts.loop.after(_AGAIN_S, lambda: self._spawn(row))
            return
        row.life, row.applied_rev, row.warnings, row.level, row.words, row.busy = life, 0, (), "OK", "", False
        rights = Rights(
            user=spec.user,
            capabilities=spec.capabilities,
            raised_priority=spec.name in _RAISED_PRIORITY,
            cgroup=parts.cgroups.leaf(spec.name, row.memory_max_bytes),
        )
        life.spawn(parts.spawner, spec.target, spec.spawn is Spawn.FORK, rights, sys.path)

    def _new_life(self, spec: ModuleSpec) -> Life:
        parts = self._parts
        pulse = PulseReader()
        try:
            pipe = LogPipe(parts.loop, parts.book(spec.name), self._pipes.discard)
        except OSError:
            pulse.close()
            raise
        self._pipes.add(pipe)
        return Life(parts.loop, parts.reaper, pipe, pulse, os.urandom(6).hex(), self._message, self._spawned, self._ended)

    def _spawned(self, life: Life) -> None:
        self.roster.tell_peers()
        self._gate()

    def _gate(self) -> None:
        """Starts whoever has what it needs."""
        if self._stopping.begun:
            return
        ready = self.roster.ready()
        for row in self.roster.rows.values():
            if row.life is None or not row.life.pid or row.life.started_at or row.life.ended:
                continue
            if lacks := restart.missing(row.spec, ready):
                self.roster.set(row, State.WAITING, self._waits_for(lacks))
            else:
                self._start(row, row.life)

    def _waits_for(self, names: list[str]) -> str:
        disabled = [name for name in names if name not in self.roster.rows or self.roster.rows[name].state is State.DISABLED]
        return f"needs {', '.join(names)}" + (f"; {', '.join(disabled)} is disabled" if disabled else "")

    def _start(self, row: Row, life: Life) -> None:
        inherited = self._parts.requests.inheritance(row.spec.name)
        fds = {FD: life.pulse.fd, **self._parts.bus.of(row.spec.name), **inherited}
        life.started_at = clock.now()
        row.start_until = life.started_at + row.spec.start_timeout_s
        life.send(
            {
                "t": "START",
                "module": row.spec.name,
                "inst": life.inst,
                "config": self._config,
                "peers": self.roster.peers(),
                "fds": list(fds),
            },
            tuple(fds.values()),
        )
        life.pulse.close_fd()
        if not row.history.looping:  # of one that crashes again and again a start proves nothing
            self._parts.voice.take_back_health(row.spec.name)
        self.roster.set(row, State.STARTING, "tried again after a crash loop" if row.history.looping else "")
        self._patience.check()

    def _ready(self, row: Row, life: Life, message: Message) -> None:
        if life.ready_at or not life.started_at or life.cause:
            return
        row.applied_rev = whole(message.get("applied_rev", 0))
        now = clock.now()
        life.ready_at = life.heard_at = now
        self._parts.voice.take_back_health(row.spec.name)
        self.roster.set(row, State.READY, "")
        self._parts.say("info", "ready", module=row.spec.name, pid=life.pid, ms=round((now - life.asked_at) * 1000, 1))
        if row.spec.name == BROKER:
            self._parts.voice.speak_through(life)
        self._roller.ready(row.spec.name, row.applied_rev, message.get("reloads") is True)
        self._gate()
        self._patience.check()
        self._stopping.look()
        if self._parts.sockets.wanted(row.spec.name):
            self._parts.loop.after(_UNWANTED_S, lambda: self._close_unwanted(row, life))

    def _close_unwanted(self, row: Row, life: Life) -> None:
        if row.life is life and row.ready:
            for address in self._parts.sockets.forget(row.spec.name, life.listens):
                self._parts.say("info", "closed a socket that nobody wants any more", socket=str(address))

    # --- a life ends

    def _ended(self, life: Life, ending: Ending) -> None:
        row = self.roster.of(life)
        if row is None:
            return
        now = clock.now()
        reason = life.cause or str(ending)
        is_last = self._stopping.is_last(row, life, ending)
        planned = row.again or is_last
        self._record(row, life, ending, reason, planned)
        row.life = None
        if row.spec.name == BROKER:
            self._parts.voice.speak_through(None)
        if is_last:
            self.roster.set(row, State.STOPPED, reason)
            self.roster.tell_peers()
            self._stopping.look()
            return
        self._succeed(row, life, ending, reason, now)
        if row.life is None:  # else they are told in a moment, of the end and of the successor at once
            self.roster.tell_peers()

    def _succeed(self, row: Row, life: Life, ending: Ending, reason: str, now: float) -> None:
        if not life.started_at and not life.cause and ending.code == _NEVER_STARTED:
            self._spawn(row)  # it waited in vain for what it needs, and waits anew
            return
        row.restarts += 1
        if row.again:
            row.again = False
            self.roster.set(row, State.RESTARTING, reason)
            self._spawn(row)
        else:
            self._retry(row, reason, now, now - life.ready_at if life.ready_at else 0.0)
        for name in restart.followers(self._table, row.spec.name):
            self._restart(self.roster.rows[name], f"{row.spec.name} was restarted")

    def _retry(self, row: Row, reason: str, now: float, ready_s: float) -> None:
        verdict = restart.after_death(row.history, self._policy, now, ready_s, random.random())  # noqa: S311
        row.history = verdict.history
        if verdict.history.looping:
            reason = f"{reason}; {len(verdict.history.deaths)} deaths in {self._policy.window_s:.0f} s"
            self.roster.set(row, State.CRASHLOOPING, reason)
            self._parts.voice.health(row.spec.name, "ERROR", f"crashlooping: {reason}")
        else:
            self.roster.set(row, State.RESTARTING, reason)
        self._parts.say(
            "error" if verdict.history.looping else "warning",
            "died", module=row.spec.name, reason=reason, again_in_s=round(verdict.delay_s, 2),
        )  # fmt: skip
        if verdict.delay_s == 0:
            self._spawn(row)
        else:
            row.retry = self._parts.loop.after(verdict.delay_s, lambda: self._spawn(row))

    def _restart(self, row: Row, cause: str) -> None:
        if self._stopping.begun or row.state is State.DISABLED:
            return
        if row.life is None:
            self._spawn(row)
        elif not row.again and row.life.started_at:  # one that was not started yet is as good as new
            row.again = True
            self.roster.set(row, State.STOPPING, "")
            row.life.stop(_RESTART_S, cause)

    def _record(self, row: Row, life: Life, ending: Ending, reason: str, planned: bool) -> None:
        self._parts.ledger.add(
            Death(
                module=row.spec.name,
                at_ms=clock.wall_ms(),
                pid=life.pid,
                instance=life.inst,
                reason=reason,
                exit_code=ending.code,
                signal=ending.signal,
                uptime_s=round(clock.now() - life.ready_at, 3) if life.ready_at else 0.0,
                planned=planned,
                log=() if planned else last_words(self._parts.book(row.spec.name).last()),
            )
        )

    # --- what modules say

    def _message(self, life: Life, message: Message, fds: list[int]) -> None:
        row = self.roster.of(life)
        try:
            if row is not None:
                self._hear(row, life, message, fds)
        except Invalid as error:
            life.ignored += 1
            if row is not None and life.ignored <= _TELL_IGNORED:  # a flood of garbage must not push all else out of the log
                self._parts.say("warning", "ignored a message", module=row.spec.name, reason=error.detail)
        finally:
            for fd in fds:
                os.close(fd)

    def _hear(self, row: Row, life: Life, message: Message, fds: list[int]) -> None:
        kind = message["t"]
        if kind == "READY":
            self._ready(row, life, message)
        elif kind == "STATUS":
            level = text(message.get("level"))
            row.level, row.words = level if level in ("OK", "WARN", "ERROR") else "WARN", text(message.get("reason"))
        elif kind == "EXTEND":
            if row.state is State.STARTING:
                row.start_until = max(row.start_until, clock.now() + seconds(message.get("seconds"), _EXTEND_S))
                self.roster.set(row, State.STARTING, text(message.get("reason")))
                self._patience.check()
        elif kind in ("LISTEN", "DEPOSIT", "LOCK"):
            self._parts.requests.answer(life, row.spec, message, fds)
        elif kind == "UNLISTEN":
            where = (message.get("proto"), message.get("address"), message.get("port", 0))
            life.listens.discard(self._parts.sockets.unlisten(row.spec.name, *where))
        elif kind == "VERIFIED" and row.spec.name == _VERIFIER:
            self._verified(message)
        elif kind == "APPLIED":
            row.applied_rev = max(row.applied_rev, whole(message.get("rev")))
            self._roller.applied(row.spec.name, row.applied_rev)
        elif kind == "BUSY":
            row.busy = message.get("on") is True
            if not row.busy:
                self._roller.look()
        elif kind == "RIGHTS":
            self._lacks(row, message.get("missing"))

    def _lacks(self, row: Row, missing: object) -> None:
        if isinstance(missing, list):
            told = row.warnings
            row.warnings = tuple(text(each) for each in missing[:16])
            for each in row.warnings if row.warnings != told else ():
                self._parts.say("debug", "reduced isolation", module=row.spec.name, reason=each)
            self._on_change()

    # --- revisions

    def _verified(self, message: Message) -> None:
        collections = message.get("collections")
        touched = [text(each) for each in collections] if isinstance(collections, list) else []
        applied = self._roller.verified(whole(message.get("rev")), touched, message.get("leader") is True)
        for name, rev in applied.items():
            self.roster.rows[name].applied_rev = max(self.roster.rows[name].applied_rev, rev)

    def _bring_up(self, action: Action) -> None:
        row = self.roster.rows[action.module]
        self._parts.say("info", action.verb.value, module=action.module, rev=action.rev)
        if action.verb is Verb.RESTART:
            self._restart(row, f"rev {action.rev} of the control store")
        elif row.life is not None:
            row.life.send({"t": "RELOAD", "rev": action.rev})

    def _stale(self, name: str, rev: int) -> None:
        self._parts.voice.health(name, "ERROR", f"stale_rev: it could not be brought to rev {rev}")
        self._parts.say("error", "stale_rev", module=name, rev=rev)

"""The tree of modules: starts the rows of the table, watches them, restarts what dies or hangs, stops all in order.

A process is made before what it needs is ready, and told to START only then. PEERS, who is who now, reaches everybody
before a new process may speak.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from piccolod import clock
from piccolod.config import Config
from piccolod.errors import Busy, Invalid, NotFound
from piccolod.kernel import ModuleSpec, Spawn
from piccolod.link import Message
from piccolod.supervisor import restart
from piccolod.supervisor.child import Life
from piccolod.supervisor.ledger import Death, last_words
from piccolod.supervisor.logs import LogPipe
from piccolod.supervisor.loop import Timer
from piccolod.supervisor.parts import Parts
from piccolod.supervisor.reaper import Ending
from piccolod.supervisor.requests import seconds, text, whole
from piccolod.supervisor.revision import Action, Pace, Verb
from piccolod.supervisor.rights import Rights
from piccolod.supervisor.roller import Roller
from piccolod.supervisor.row import Row, State, rss_bytes
from piccolod.units import format_size

BROKER: Final = "broker"
APPS: Final = "apps"
# Without these the node is of no use; others are named in its status.
NEEDED: Final = frozenset({BROKER, "consensus", "persistence", "api"})
_VERIFIER: Final = "persistence"
_RAISED_PRIORITY: Final = frozenset({"consensus"})  # leadership.md, Guards

_NEVER_STARTED: Final = 71  # exit code of a module that waits no longer for START
_AGAIN_S: Final = 0.5  # where no process could be made
_RESTART_S: Final = 2.0  # for a module to end in a planned restart
_EXTEND_S: Final = 600.0
_UNWANTED_S: Final = 10.0  # after READY: a socket that was not asked for again is closed
_MEMORY_S: Final = 10.0
_LONG_S: Final = 5.0  # not ready for so long is a fault that health names


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
        self._roller = Roller(
            parts.loop,
            self._table,
            pace or Pace(),
            alive=lambda: [name for name, row in self.rows.items() if row.ready],
            act=self._bring_up,
            stale=self._stale,
        )
        self._check_timer: Timer | None = None
        self._pipes: set[LogPipe] = set()
        self._layers: list[list[str]] | None = None  # while it stops
        self._stop_at = 0.0
        self._stopped: Callable[[], None] = lambda: None
        self.rows = {spec.name: Row.of(spec, config) for spec in self._table}

    # --- what others ask

    def start(self) -> None:
        for row in self.rows.values():
            self._publish(row)
        # One after the other is imported and forked: those that the node is ready with come first.
        for row in sorted(self.rows.values(), key=lambda row: row.spec.name not in NEEDED):
            if row.state is not State.DISABLED:
                self._spawn(row)
        self._parts.loop.after(_MEMORY_S, self._check_memory)

    def restart(self, name: str, cause: str) -> None:
        """A planned restart. Raises NotFound; Busy while everything stops."""
        row = self._row(name)
        if self._layers is not None:
            raise Busy("piccolod is stopping")
        if row.state is State.DISABLED:
            raise Invalid(f"{name} is disabled", hint=f"see [modules.{name}] in the configuration")
        row.history = restart.History()
        self._restart(row, cause)

    def restart_key_holders(self, sender: str) -> None:
        for row in self.rows.values():
            if row.spec.holds_keys and row.spec.name != sender:
                self._restart(row, "the node was locked")

    def stop(self, within_s: float, stop_apps_s: float, stopped: Callable[[], None]) -> None:
        """Ends all modules within `within_s`, then calls `stopped`. `stop_apps_s` > 0: `apps` ends its containers first."""
        if self._layers is not None:
            return
        self._stopped = stopped
        for row in self.rows.values():
            self._cancel_retry(row)
            row.again = False
            if row.life is not None and not row.life.started_at:
                row.life.kill("stopped before it started")
        alive = [name for name, row in self.rows.items() if row.life is not None]
        apps = self.rows.get(APPS)
        self._stop_at = clock.now() + within_s + (stop_apps_s if apps else 0.0)
        self._layers = restart.stop_layers(self._table, alive)
        if stop_apps_s and apps is not None and apps.ready and apps.life is not None:
            self._layers = [[APPS], *restart.stop_layers(self._table, [name for name in alive if name != APPS])]
            self._say_stopping(apps)
            apps.life.stop(stop_apps_s, "stopped", {"apps": True})
        else:
            self._stop_layer()
        self._all_ended()

    def kill_all(self) -> None:
        for row in self.rows.values():
            if row.life is not None:
                row.life.kill("stopped at once")

    def ready(self, names: frozenset[str]) -> bool:
        """Whether those of `names` that are in the table are ready."""
        return all(row.ready for name, row in self.rows.items() if name in names)

    def documents(self) -> list[dict[str, Any]]:
        now = clock.now()
        return [row.document(now) for row in self.rows.values()]

    def pid_of(self, name: str) -> int:
        row = self.rows.get(name)
        return row.life.pid if row is not None and row.life is not None else 0

    def forgive(self, stalled_s: float) -> None:
        """We were late ourselves: nobody is blamed for the silence."""
        now = clock.now()
        for row in self.rows.values():
            if row.life is not None:
                row.life.heard_at = now
                row.start_until += stalled_s

    # --- a life begins

    def _spawn(self, row: Row) -> None:
        self._cancel_retry(row)
        parts, spec = self._parts, row.spec
        try:
            life = self._new_life(spec)
        except OSError as error:  # no descriptor is left: a module is late then, never forgotten
            self._set(row, State.RESTARTING, f"no process can be made: {error.strerror}")
            parts.say("error", "no process can be made", module=spec.name, reason=str(error), again_in_s=_AGAIN_S)
            row.retry = parts.loop.after(_AGAIN_S, lambda: self._spawn(row))
            return
        row.life, row.applied_rev, row.warnings, row.level, row.words = life, 0, (), "OK", ""
        rights = Rights(
            user=spec.user,
            capabilities=spec.capabilities,
            raised_priority=spec.name in _RAISED_PRIORITY,
            cgroup=parts.cgroups.leaf(spec.name, row.memory_max_bytes),
        )
        life.spawn(parts.spawner, spec.target, spec.spawn is Spawn.FORK, rights, sys.path)

    def _new_life(self, spec: ModuleSpec) -> Life:
        parts = self._parts
        pipe = LogPipe(parts.loop, parts.book(spec.name), self._pipes.discard)
        self._pipes.add(pipe)
        try:
            return Life(parts.loop, parts.reaper, pipe, os.urandom(6).hex(), self._message, self._spawned, self._ended)
        except OSError:
            pipe.close()
            raise

    def _spawned(self, life: Life) -> None:
        self._tell_peers()
        self._gate()

    def _gate(self) -> None:
        """Starts whoever has what it needs."""
        if self._layers is not None:
            return
        ready = {name for name, row in self.rows.items() if row.ready}
        for row in self.rows.values():
            if row.life is None or not row.life.pid or row.life.started_at or row.life.ended:
                continue
            if lacks := restart.missing(row.spec, ready):
                self._set(row, State.WAITING, self._waits_for(lacks))
            else:
                self._start(row, row.life)

    def _waits_for(self, names: list[str]) -> str:
        disabled = [name for name in names if name not in self.rows or self.rows[name].state is State.DISABLED]
        return f"needs {', '.join(names)}" + (f"; {', '.join(disabled)} is disabled" if disabled else "")

    def _start(self, row: Row, life: Life) -> None:
        fds = {**self._parts.bus.of(row.spec.name), **self._parts.requests.inheritance(row.spec.name)}
        life.started_at = clock.now()
        row.start_until = life.started_at + row.spec.start_timeout_s
        life.send(
            {
                "t": "START",
                "module": row.spec.name,
                "inst": life.inst,
                "config": self._config,
                "peers": self._peers(),
                "fds": list(fds),
            },
            tuple(fds.values()),
        )
        if not row.history.looping:  # of one that crashes again and again a start proves nothing
            self._parts.voice.take_back_health(row.spec.name)
        self._set(row, State.STARTING, "tried again after a crash loop" if row.history.looping else "")
        self._check()

    def _ready(self, row: Row, life: Life, message: Message) -> None:
        if life.ready_at or not life.started_at or life.cause:
            return
        row.applied_rev = whole(message.get("applied_rev", 0))
        now = clock.now()
        life.ready_at = life.heard_at = now
        self._parts.voice.take_back_health(row.spec.name)
        self._set(row, State.READY, "")
        self._parts.say("info", "ready", module=row.spec.name, pid=life.pid, ms=round((now - life.asked_at) * 1000, 1))
        if row.spec.name == BROKER:
            self._parts.voice.speak_through(life)
        self._roller.ready(row.spec.name, row.applied_rev, message.get("reloads") is True)
        self._gate()
        self._check()
        if self._parts.sockets.wanted(row.spec.name):
            self._parts.loop.after(_UNWANTED_S, lambda: self._close_unwanted(row, life))

    def _close_unwanted(self, row: Row, life: Life) -> None:
        if row.life is life and row.ready:
            for address in self._parts.sockets.forget(row.spec.name, life.listens):
                self._parts.say("info", "closed a socket that nobody wants any more", socket=str(address))

    # --- a life ends

    def _ended(self, life: Life, ending: Ending) -> None:
        row = next((row for row in self.rows.values() if row.life is life), None)
        if row is None:
            return
        now = clock.now()
        reason = life.cause or str(ending)
        planned = row.again or self._layers is not None
        self._record(row, life, ending, reason, planned)
        row.life = None
        if row.spec.name == BROKER:
            self._parts.voice.speak_through(None)
        if self._layers is not None:
            self._set(row, State.STOPPED, reason)
            self._tell_peers()
            self._all_ended()
            return
        self._succeed(row, life, ending, reason, now)
        if row.life is None:  # else they are told in a moment, of the end and of the successor at once
            self._tell_peers()

    def _succeed(self, row: Row, life: Life, ending: Ending, reason: str, now: float) -> None:
        if not life.started_at and not life.cause and ending.code == _NEVER_STARTED:
            self._spawn(row)  # it waited in vain for what it needs, and waits anew
            return
        row.restarts += 1
        if row.again:
            row.again = False
            self._set(row, State.RESTARTING, reason)
            self._spawn(row)
        else:
            self._retry(row, reason, now, now - life.ready_at if life.ready_at else 0.0)
        for name in restart.followers(self._table, row.spec.name):
            self._restart(self.rows[name], f"{row.spec.name} was restarted")

    def _retry(self, row: Row, reason: str, now: float, ready_s: float) -> None:
        verdict = restart.after_death(row.history, self._policy, now, ready_s, random.random())  # noqa: S311
        row.history = verdict.history
        if verdict.history.looping:
            reason = f"{reason}; {len(verdict.history.deaths)} deaths in {self._policy.window_s:.0f} s"
            self._set(row, State.CRASHLOOPING, reason)
            self._parts.voice.health(row.spec.name, "ERROR", f"crashlooping: {reason}")
        else:
            self._set(row, State.RESTARTING, reason)
        self._parts.say(
            "error" if verdict.history.looping else "warning",
            "died", module=row.spec.name, reason=reason, again_in_s=round(verdict.delay_s, 2),
        )  # fmt: skip
        if verdict.delay_s == 0:
            self._spawn(row)
        else:
            row.retry = self._parts.loop.after(verdict.delay_s, lambda: self._spawn(row))

    def _restart(self, row: Row, cause: str) -> None:
        if self._layers is not None or row.state is State.DISABLED:
            return
        if row.life is None:
            self._spawn(row)
        elif not row.again and row.life.started_at:  # one that was not started yet is as good as new
            row.again = True
            self._say_stopping(row)
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

    def _cancel_retry(self, row: Row) -> None:
        if row.retry is not None:
            row.retry.cancel()
        row.retry = None

    # --- the end of all

    def _stop_layer(self) -> None:
        assert self._layers is not None
        now = clock.now()
        # What one layer does not use is the next one's.
        share_s = max(0.05, (self._stop_at - now) / max(1, len(self._layers)))
        for name in self._layers[0] if self._layers else ():
            row = self.rows[name]
            if row.life is not None:
                self._say_stopping(row)
                row.life.stop(share_s, "stopped")

    def _all_ended(self) -> None:
        assert self._layers is not None
        while self._layers and all(self.rows[name].life is None for name in self._layers[0]):
            self._layers.pop(0)
            if self._layers:
                self._stop_layer()
        if not self._layers and all(row.life is None for row in self.rows.values()):
            stopped, self._stopped = self._stopped, lambda: None
            stopped()

    def _say_stopping(self, row: Row) -> None:
        self._set(row, State.STOPPING, "")

    # --- what modules say

    def _message(self, life: Life, message: Message, fds: list[int]) -> None:
        row = next((row for row in self.rows.values() if row.life is life), None)
        try:
            if row is not None:
                self._hear(row, life, message, fds)
        except Invalid as error:
            self._parts.say("warning", "ignored a message", module=row.spec.name if row else "", reason=error.detail)
        finally:
            for fd in fds:
                os.close(fd)

    def _hear(self, row: Row, life: Life, message: Message, fds: list[int]) -> None:
        kind = message["t"]
        if kind == "BEAT":
            life.heard_at = clock.now()
            row.lag_ms = seconds(message.get("lag_ms", 0), 1e9)
        elif kind == "READY":
            self._ready(row, life, message)
        elif kind == "STATUS":
            level = text(message.get("level"))
            row.level, row.words = level if level in ("OK", "WARN", "ERROR") else "WARN", text(message.get("reason"))
        elif kind == "EXTEND":
            if row.state is State.STARTING:
                row.start_until = max(row.start_until, clock.now() + seconds(message.get("seconds"), _EXTEND_S))
                self._set(row, State.STARTING, text(message.get("reason")))
                self._check()
        elif kind in ("LISTEN", "DEPOSIT", "LOCK"):
            self._parts.requests.answer(life, row.spec, message, fds)
        elif kind == "UNLISTEN":
            self._parts.sockets.unlisten(row.spec.name, message.get("proto"), message.get("address"), message.get("port", 0))
        elif kind == "VERIFIED" and row.spec.name == _VERIFIER:
            self._verified(message)
        elif kind == "APPLIED":
            row.applied_rev = max(row.applied_rev, whole(message.get("rev")))
            self._roller.applied(row.spec.name, row.applied_rev)
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
            self.rows[name].applied_rev = max(self.rows[name].applied_rev, rev)

    def _bring_up(self, action: Action) -> None:
        row = self.rows[action.module]
        self._parts.say("info", action.verb.value, module=action.module, rev=action.rev)
        if action.verb is Verb.RESTART:
            self._restart(row, f"rev {action.rev} of the control store")
        elif row.life is not None:
            row.life.send({"t": "RELOAD", "rev": action.rev})

    def _stale(self, name: str, rev: int) -> None:
        self._parts.voice.health(name, "ERROR", f"stale_rev: it could not be brought to rev {rev}")
        self._parts.say("error", "stale_rev", module=name, rev=rev)

    # --- watching

    def _check(self) -> None:
        """Who is silent, who does not get ready; then sleeps until the next one could be."""
        now = clock.now()
        soonest = now + 1.0
        for row in self.rows.values():
            until = self._patience(row)
            if until <= now:
                self._lose_patience(row, now)
            else:
                soonest = min(soonest, until)
            if row.life is not None and row.life.ready_at:
                row.history = restart.while_ready(row.history, self._policy, now - row.life.ready_at)
        if self._check_timer is not None:
            self._check_timer.cancel()
        self._check_timer = self._parts.loop.at(max(soonest, now + 0.02), self._check)

    def _patience(self, row: Row) -> float:
        life = row.life
        if life is None or not life.started_at or life.cause or row.state is State.STOPPING:
            return clock.FOREVER
        return life.heard_at + row.missed_after_s if life.ready_at else row.start_until

    def _lose_patience(self, row: Row, now: float) -> None:
        life = row.life
        assert life is not None
        if life.ready_at:
            cause = f"hung: no beat for {now - life.heard_at:.1f} s"
            self._set(row, State.HUNG, cause)
        else:
            cause = f"not ready within {now - life.started_at:.0f} s" + (f": {row.reason}" if row.reason else "")
        self._parts.say("warning", "lost patience", module=row.spec.name, reason=cause)
        life.abort(cause)

    def _check_memory(self) -> None:
        """Where the host has no memory cgroup for us the limit is watched here."""
        for row in self.rows.values():
            life = row.life
            if life is not None and life.ready_at and not self._parts.cgroups.limits_memory:
                used = rss_bytes(life.pid)
                if used > row.memory_max_bytes:
                    life.kill(f"it uses {format_size(used)}, its limit is {format_size(row.memory_max_bytes)}")
            waits = row.state in (State.WAITING, State.STARTING) and life is not None
            if waits and life is not None and clock.now() - life.asked_at > _LONG_S and not self._layers:
                self._parts.voice.health(row.spec.name, "ERROR", row.reason or "it does not get ready")
        self._parts.loop.after(_MEMORY_S, self._check_memory)

    # --- telling

    def _peers(self) -> dict[str, list[object]]:
        return {name: [row.life.pid, row.life.inst] for name, row in self.rows.items() if row.life is not None and row.life.pid}

    def _tell_peers(self) -> None:
        message = {"t": "PEERS", "peers": self._peers()}
        for row in self.rows.values():
            if row.life is not None and row.life.started_at and not row.life.ended:
                row.life.send(message)

    def _set(self, row: Row, state: State, reason: str) -> None:
        if (row.state, row.reason) == (state, reason) and state is not State.STARTING:
            return
        row.state, row.reason = state, reason
        self._publish(row)
        self._on_change()

    def _publish(self, row: Row) -> None:
        self._parts.voice.module(row.event())

    def _row(self, name: str) -> Row:
        row = self.rows.get(name)
        if row is None:
            raise NotFound(f"there is no module {name!r}", hint="`piccoloctl modules list` shows them")
        return row

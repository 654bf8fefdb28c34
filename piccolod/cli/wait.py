"""Waiting for what was asked for, an app above all, telling each change of its state on the way."""

from __future__ import annotations

import time
from typing import Any, Final

from piccolod import clock
from piccolod.cli.app_view import unbound
from piccolod.cli.client import Client, path_of
from piccolod.cli.refusal import Refusal
from piccolod.cli.session import Session
from piccolod.errors import DeadlineExceeded, NotFound, PiccoloError, Unavailable

_LOOK_S: Final = 0.1
# A reconciler looks again within milliseconds after a commit. What it showed before may still be shown at the first
# looks: a resting state counts when it was reached by a change that we saw, or has lasted this long.
_OLD_NEWS_S: Final = 0.5
# `pending` and a port that is taken are stages on the way, or the end: when they last, somebody has to do something.
_PENDING_S: Final = 2.0
_UNTOLD_S: Final = 3.0
_UP: Final = frozenset({"running", "standby"})
_RESTING: Final = frozenset({"running", "standby", "stopped", "failed"})


class Progress:
    """What was said last, so that each change is said once. What was so before the command is no news."""

    def __init__(self, session: Session, app: dict[str, Any]) -> None:
        self._session = session
        self._name = app["name"]
        self._last = (str(app.get("state") or ""), str(app.get("reason") or ""))
        self.since_at = clock.now()
        self.moved = False

    def see(self, state: str, reason: str) -> None:
        if (state, reason) == self._last:
            return
        if state != self._last[0]:
            self.moved = self.moved or bool(self._last[0])
            self.since_at = clock.now()
        self._last = (state, reason)
        self._session.say(f"{self._name}: {state}" + (f": {reason}" if reason else ""))

    def lasts(self, seconds: float) -> bool:
        return clock.now() - self.since_at >= seconds


def until_settled(
    session: Session, app: dict[str, Any], generation: int = 0, patience_s: float | None = None
) -> dict[str, Any]:
    """The app's document once it rests: running, stopped, failed, or for good pending or without its port.

    DeadlineExceeded before that.

    Documents before `generation` (by default the one of `app`) are old news.
    """
    name, generation = str(app["name"]), generation or int(app["generation"])
    client, began_at = session.client(), clock.now()
    end_at = began_at + (session.timeout_s or patience_s or session.patience_s)
    progress = Progress(session, app)
    while True:
        seen = _look(client, name)
        if seen is not None:
            app = seen
            progress.see(str(app.get("state")), str(app.get("reason") or ""))
            if int(app["generation"]) >= generation and _settled(app, progress):
                return app
        if clock.now() + _LOOK_S > end_at:
            raise _too_late(app, clock.now() - began_at)
        time.sleep(_LOOK_S)


def until_gone(session: Session, name: str) -> None:
    client, end_at = session.client(), clock.now() + session.patience_s
    progress = Progress(session, {"name": name})
    while True:
        try:
            app = _look(client, name)
        except Refusal as refusal:
            if isinstance(refusal.error, NotFound):
                return
            raise
        if app is not None:
            progress.see(str(app.get("state")), str(app.get("reason") or ""))
        if clock.now() + _LOOK_S > end_at:
            raise _too_late(app or {"name": name}, session.patience_s)
        time.sleep(_LOOK_S)


def until_reached(session: Session, name: str, moved: dict[str, Any]) -> tuple[str, float]:
    """The node where clients reach the app in the term that `moved` shows, or in a later one, and how long nobody was served.

    Milliseconds; 0 where that is not known: the tale is told as well as it goes, and an app that runs is what was asked for.
    DeadlineExceeded before that.
    """
    client, end_at, first = session.client(), clock.now() + session.patience_s, int(moved["epoch"])
    progress = Progress(session, {"name": name})
    while True:
        history = (answer(client, path_of("leadership", f"app:{name}", "why")) or {}).get("history") or ()
        last = history[0] if history and int(history[0]["epoch"]) >= first else {"phases": {}}
        if "routed" in last["phases"]:
            return str(last["to_node"]), float(sum(last["phases"].values())) if int(last["epoch"]) == first else 0.0
        app = _look(client, name) or {"name": name}
        progress.see(str(app.get("state")), str(app.get("reason") or ""))
        leader = app.get("leader") or {}
        if app.get("state") == "running" and int(leader.get("epoch") or 0) >= first and progress.lasts(_UNTOLD_S):
            return str(leader.get("node")), 0.0
        if clock.now() + _LOOK_S > end_at:
            raise _too_late(app, session.patience_s)
        time.sleep(_LOOK_S)


def is_up(app: dict[str, Any]) -> bool:
    return app.get("state") in _UP


def _look(client: Client, name: str) -> dict[str, Any] | None:
    return answer(client, path_of("apps", name))


def answer(client: Client, path: str, *passing: type[PiccoloError]) -> dict[str, Any] | None:
    """None while the API is being restarted, or says one of `passing`: the answer comes with the next look."""
    try:
        found: dict[str, Any] = client.get(path)
    except Unavailable:
        return None
    except Refusal as refusal:
        if isinstance(refusal.error, (Unavailable, *passing)):
            return None
        raise
    return found


def _settled(app: dict[str, Any], progress: Progress) -> bool:
    state = app.get("state")
    if state == "pending" or (state == "degraded" and unbound(app)):
        return progress.lasts(_PENDING_S)
    if state not in _RESTING:
        return False
    if state in _UP and app.get("desired") == "stopped":
        return False
    return progress.moved or progress.lasts(_OLD_NEWS_S)


def _too_late(app: dict[str, Any], seconds: float) -> DeadlineExceeded:
    name, state, reason = app.get("name"), app.get("state") or "not seen", app.get("reason")
    return DeadlineExceeded(
        f"{name} is still {state} after {seconds:.1f} s" + (f": {reason}" if reason else ""),
        hint=f"it goes on without us: `piccoloctl apps show {name}`; wait longer with --timeout",
    )

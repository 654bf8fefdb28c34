"""The supervisor's control socket: JSON lines, for root and for the api module. Never blocks, bounded in every way.

Whoever asks waits for a turn. There is one in a turn of the loop, for each in order, and all of them together have a share
of the supervisor's time: a flood delays its own answers and nothing else.

{"id": 1, "cmd": "modules"}                          -> {"id": 1, "ok": true, "result": [...]}
{"cmd": "restart", "name": "api"}                       {"id": null, "ok": true, "result": null}
{"cmd": "logs", "name": "api", "tail": 100}             {"ok": true, "result": ["line", ...]}
{"cmd": "why", "name": "api"}                           {"ok": true, "result": [death, ...]}, newest first
{"cmd": "etcd", "do": "reload"}                         also "stop" and "alarms", see etcd.py
{"cmd": "tree"}  {"cmd": "stop", "apps": false}         errors: {"ok": false, "error": {code, detail, hint, ...}}
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from piccolod import clock
from piccolod.errors import Invalid, NotFound, PiccoloError
from piccolod.paths import Paths
from piccolod.supervisor.allowance import Allowance
from piccolod.supervisor.control_client import Client
from piccolod.supervisor.loop import Loop, Timer
from piccolod.supervisor.rundir import group_id
from piccolod.supervisor.sockets import unix_listener

Command = Callable[[dict[str, Any]], Any]

_PEER: Final = struct.Struct("3i")
_CLIENTS: Final = 64
_CLIENTS_OF_ONE: Final = 48  # process: the other one that may ask finds room
_UNREAD_BYTES: Final = 4 << 20  # of all answers together
_IDLE_S: Final = 60.0
_UNREAD_S: Final = 10.0
_SWEEP_S: Final = 5.0
_SHARE: Final = 0.3  # of the supervisor's time
_BURST_S: Final = 0.15


class Control:
    def __init__(self, loop: Loop, paths: Paths, commands: dict[str, Command], pid_of_api: Callable[[], int]) -> None:
        self._loop = loop
        self._commands = commands
        self._pid_of_api = pid_of_api
        self._clients: list[Client] = []
        self._waiting: deque[Client | None] = deque()  # for a turn; None is the listener, for whoever comes next
        self._turn: Timer | None = None
        self._allowance = Allowance(_SHARE, _BURST_S, clock.now())
        self._path = paths.supervisor_socket
        self._listener = unix_listener(self._path, 0o660, group_id())
        self._watch_listener()
        self._sweep_timer = loop.after(_SWEEP_S, self._sweep)

    def close(self) -> None:
        self._sweep_timer.cancel()
        if self._turn is not None:
            self._turn.cancel()
        for client in self._clients:
            client.close()
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def answer(self, line: bytes) -> dict[str, Any]:
        number: Any = None
        try:
            request = _parsed(line)
            if isinstance(request.get("id"), int | str):
                number = request["id"]
            command = self._commands.get(str(request.get("cmd")))
            if command is None:
                raise NotFound(f"no command {str(request.get('cmd'))[:40]!r}", hint=", ".join(self._commands))
            return {"id": number, "ok": True, "result": command(request)}
        except PiccoloError as error:
            return {"id": number, "ok": False, "error": error.to_wire()}

    # --- turns

    def _wants_turn(self, client: Client | None) -> None:
        self._waiting.append(client)
        if self._turn is None:
            self._turn = self._loop.after(self._allowance.wait_s(clock.now()), self._give_turn)

    def _give_turn(self) -> None:
        self._turn = None
        began_s = time.thread_time()
        try:
            client = self._waiting.popleft()
            if client is None:
                self._accept()
            elif not client.closed:
                client.turn()
            self._make_room()
        finally:
            self._allowance.spend(time.thread_time() - began_s)
            if self._waiting and self._turn is None:
                self._turn = self._loop.after(self._allowance.wait_s(clock.now()), self._give_turn)

    def _watch_listener(self) -> None:
        self._loop.watch(self._listener.fileno(), self._someone_comes)

    def _someone_comes(self, _events: int) -> None:
        self._loop.forget(self._listener.fileno())
        self._wants_turn(None)

    def _accept(self) -> None:
        self._watch_listener()
        try:
            peer, _ = self._listener.accept()
        except OSError:  # it is gone again, or no descriptor is left
            return
        pid, uid, _gid = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        may_ask = uid == 0 or (pid > 0 and pid == self._pid_of_api())
        if may_ask and len(self._clients) < _CLIENTS and sum(each.pid == pid for each in self._clients) < _CLIENTS_OF_ONE:
            self._clients.append(Client(self._loop, peer, pid, self.answer, self._wants_turn))
        else:
            peer.close()

    # --- room

    def _make_room(self) -> None:
        """Who has not read for the longest loses its answer when all of them together are too much."""
        self._clients = [each for each in self._clients if not each.closed]
        while sum(each.unread_bytes for each in self._clients) > _UNREAD_BYTES:
            slowest = min((each for each in self._clients if each.unread_bytes), key=lambda each: each.moved_at)
            slowest.close()
            self._clients.remove(slowest)

    def _sweep(self) -> None:
        now = clock.now()
        for each in self._clients:
            if now - each.moved_at > (_UNREAD_S if each.unread_bytes else _IDLE_S):
                each.close()
        self._make_room()
        self._sweep_timer = self._loop.after(_SWEEP_S, self._sweep)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise Invalid("a request is one JSON object a line") from None
    if not isinstance(request, dict):
        raise Invalid("a request is one JSON object a line")
    return request

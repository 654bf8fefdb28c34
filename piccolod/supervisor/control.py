"""The supervisor's control socket: JSON lines, for root and for the api module. Never blocks, bounded in every way.

{"id": 1, "cmd": "modules"}                          -> {"id": 1, "ok": true, "result": [...]}
{"cmd": "restart", "name": "api"}                       {"id": null, "ok": true, "result": null}
{"cmd": "logs", "name": "api", "tail": 100}             {"ok": true, "result": ["line", ...]}
{"cmd": "why", "name": "api"}                           {"ok": true, "result": [death, ...]}, newest first
{"cmd": "etcd", "do": "reload"}                         also "stop" and "alarms", see etcd.py
{"cmd": "tree"}  {"cmd": "stop", "apps": false}         errors: {"ok": false, "error": {code, detail, hint, ...}}
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from piccolod.errors import Invalid, NotFound, PiccoloError, TooLarge
from piccolod.paths import Paths
from piccolod.supervisor.loop import Loop, Timer
from piccolod.supervisor.rundir import group_id
from piccolod.supervisor.sockets import unix_listener

Command = Callable[[dict[str, Any]], Any]

_PEER: Final = struct.Struct("3i")
_LINE_BYTES: Final = 4096
_OUT_BYTES: Final = 1 << 20
_CLIENTS: Final = 32
_IDLE_S: Final = 60.0


class Control:
    def __init__(self, loop: Loop, paths: Paths, commands: dict[str, Command], pid_of_api: Callable[[], int]) -> None:
        self._loop = loop
        self._commands = commands
        self._pid_of_api = pid_of_api
        self._clients: set[_Client] = set()
        self._path = paths.supervisor_socket
        self._listener = unix_listener(self._path, 0o660, group_id())
        loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        for client in list(self._clients):
            client.close()
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def answer(self, line: bytes) -> dict[str, Any]:
        number: Any = None
        try:
            request = _parsed(line)
            number = request.get("id")
            command = self._commands.get(str(request.get("cmd")))
            if command is None:
                raise NotFound(f"no command {str(request.get('cmd'))[:40]!r}", hint=", ".join(self._commands))
            return {"id": number, "ok": True, "result": command(request)}
        except PiccoloError as error:
            return {"id": number, "ok": False, "error": error.to_wire()}

    def _accept(self, _events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:  # it is gone again, or no descriptor is left
            return
        pid, uid, _gid = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if (uid == 0 or (pid > 0 and pid == self._pid_of_api())) and len(self._clients) < _CLIENTS:
            self._clients.add(_Client(self._loop, peer, self.answer, self._clients.discard))
        else:
            peer.close()


class _Client:
    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        answer: Callable[[bytes], dict[str, Any]],
        closed: Callable[[_Client], None],
    ) -> None:
        peer.setblocking(False)
        self._loop = loop
        self._peer = peer
        self._answer = answer
        self._closed = closed
        self._in = b""
        self._out = b""
        self._idle: Timer = loop.after(_IDLE_S, self.close)
        loop.watch(peer.fileno(), self._ready)

    def close(self) -> None:
        if self._peer.fileno() >= 0:
            self._idle.cancel()
            self._loop.forget(self._peer.fileno())
            self._peer.close()
            self._closed(self)

    def _ready(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._flush()
            elif not self._read():
                self.close()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _read(self) -> bool:
        got = self._peer.recv(_LINE_BYTES)
        self._in += got
        self._idle.cancel()
        self._idle = self._loop.after(_IDLE_S, self.close)
        while b"\n" in self._in and not self._out:
            line, _, self._in = self._in.partition(b"\n")
            self._say(self._answer(line))
        if len(self._in) > _LINE_BYTES and not self._out:
            self._say({"id": None, "ok": False, "error": TooLarge(f"a line has at most {_LINE_BYTES} bytes").to_wire()})
            return False
        return bool(got)

    def _say(self, answer: dict[str, Any]) -> None:
        out = json.dumps(answer, separators=(",", ":")).encode() + b"\n"
        if len(out) > _OUT_BYTES:
            out = json.dumps({"id": answer["id"], "ok": False, "error": TooLarge("ask for less").to_wire()}).encode() + b"\n"
        self._out = out
        self._flush()

    def _flush(self) -> None:
        try:
            self._out = self._out[self._peer.send(self._out, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass
        # While an answer is on its way no other question is read.
        self._loop.modify(self._peer.fileno(), select.EPOLLOUT if self._out else select.EPOLLIN)
        if not self._out and b"\n" in self._in:
            line, _, self._in = self._in.partition(b"\n")
            self._say(self._answer(line))


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise Invalid("a request is one JSON object a line") from None
    if not isinstance(request, dict):
        raise Invalid("a request is one JSON object a line")
    return request

"""The pair between the supervisor and one module: a SOCK_SEQPACKET socket, JSON messages, descriptors beside them.

Not the bus: a dead broker must not look like nine hung modules. Both ends use this file. A message is
`{"t": TYPE, ...}`; the types and their fields (beats are none of them, see pulse.py):

    module -> supervisor
      READY      {applied_rev, reloads}           the module does its work from now on; it understands RELOAD
      STATUS     {level, reason}                  for `piccoloctl modules`
      EXTEND     {seconds}                        the start takes longer, for a stated reason
      STOPPING   {}                               STOP was understood
      LISTEN     {id, proto, address, port}       bind or find a socket that clients use
      UNLISTEN   {proto, address, port}
      DEPOSIT    {id, name} + fd                  keep a sealed memfd for my successor, unread
      LOCK       {id}                             drop every deposit, restart the modules that hold keys (not the sender)
      VERIFIED   {rev, collections, leader}       persistence: the local store is verified up to rev
      APPLIED    {rev}                            this module acts on rev
      BUSY       {on}                             a restart that only a rev asks for is put off: it would cut work
      RIGHTS     {missing}                        before START: what this host did not let it give up
    supervisor -> module
      ENTRY      {target, path, rights}           to a process that is no module yet (supervisor/entry.py)
      START      {module, inst, config, peers, fds} + fds     `fds` names the descriptors in order
      PEERS      {peers}                          which pid and which instance is which module now
      STOP       {seconds, apps, all}             `apps`: containers and volumes end too; `all`: every module stops
      RELOAD     {rev}
      DONE       {id, error} [+ fd]               the answer to LISTEN, DEPOSIT, LOCK
      EVENT      {type, key, body}                to the broker alone: the supervisor's own voice
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any, Final

Message = dict[str, Any]

MAX_BYTES: Final = 160 * 1024  # below the default socket buffer of Linux (208 KiB)
_MAX_FDS: Final = 16
# One for all links of a process: a fresh buffer of this size for each message costs six times the call (measured).
_BUFFER: Final = bytearray(MAX_BYTES)


class LinkClosed(Exception):
    """The other end is gone."""


class Link:
    """One end of a pair. Non-blocking; never raises for garbage from the other side but skips it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    @classmethod
    def pair(cls) -> tuple[Link, socket.socket]:
        """(this end, the raw socket to hand to a child)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Sends one message whole. False: the other end does not read (its queue is full); nothing was sent.

        Raises LinkClosed.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_BYTES:
            raise ValueError(f"message {message.get('t')} has {len(data)} bytes, the limit is {MAX_BYTES}")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise LinkClosed(str(error)) from error
        return True

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message with its descriptors (close-on-exec, owned by the caller), or None when there is none now.

        Raises LinkClosed.
        """
        while True:
            try:
                count, ancillary, _flags, _ = self.sock.recvmsg_into(
                    [_BUFFER], socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise LinkClosed(str(error)) from error
            fds = _descriptors(ancillary)
            if not count:
                raise LinkClosed("end of file")
            try:
                message = json.loads(_BUFFER[:count])
            except (ValueError, RecursionError):  # a deep nest of brackets is the latter
                message = None
            if isinstance(message, dict) and isinstance(message.get("t"), str):
                return message, fds
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        self.sock.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)

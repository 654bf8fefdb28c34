"""A leash: a dead man's switch that kills led containers whose term is over, whatever else is frozen or dead.

    python -IS leash.py PAGE TABLE INDEX

Two run beside each other. A leash adopts the whole table at start, learns of new containers by `ARM`, looks at the page each
guard tick, and outlives its supervisor. What killing needs is opened when a container is armed; nothing here waits for a
disk, a reader of its log or another process. After SIGTERM it ends as soon as it guards nobody.

Socket (SEQPACKET, root only): `ARM <file>` -> `ACK`; `DISARM <file>` -> `ACK` once proven dead, else `ALIVE`;
`PING` -> `PONG <pid>`; anything else -> `NAK <why>`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress

if not __package__:  # run by its path in isolated mode, where no folder of ours is on the search path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from piccolod import clock
from piccolod.leadership import leash_lock, leash_table
from piccolod.leadership.grip import Grip, rehearse
from piccolod.leadership.guard import next_look_s, overdue
from piccolod.leadership.hardening import harden
from piccolod.leadership.leash_table import Entry
from piccolod.leadership.page import PageReader

_PEER = struct.Struct("3i")


class Leash:
    def __init__(self, page: str, table: str, index: int) -> None:
        self._boot_id = clock.boot_id()
        self._reader = PageReader(page)
        self._table = table
        self._held: dict[str, tuple[Entry, Grip]] = {}
        self._ending = False
        self._poll = select.epoll()
        self._peers: dict[int, socket.socket] = {}
        self._listener = _listen(f"{table}/{index}.sock")
        self._poll.register(self._listener, select.EPOLLIN)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        for name in leash_table.read(self._table):
            self._arm(name)
        rehearse()
        gc.collect()
        gc.freeze()
        gc.disable()
        while True:
            if self._ending:
                self._end()
            now = clock.now()
            page = self._reader.read()
            for entry in overdue(page, [entry for entry, _ in self._held.values()], now, self._boot_id):
                self._kill(entry, self._held[entry.file][1])
            for fd, _ in self._poll.poll(next_look_s(page, now) if self._held else None):
                with suppress(OSError):  # a peer that is gone, or no descriptor left: the guarded ones come first
                    self._accept() if fd == self._listener.fileno() else self._serve(self._peers[fd])

    def _kill(self, entry: Entry, grip: Grip) -> None:
        if not grip.proven_dead():
            grip.kill()
            _log(f"killed {entry.container}: epoch {entry.epoch} of {entry.resource} is over")

    def _accept(self) -> None:
        peer, _ = self._listener.accept()
        _pid, uid, _gid = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid == 0:
            self._peers[peer.fileno()] = peer
            self._poll.register(peer, select.EPOLLIN)
        else:
            peer.close()

    def _serve(self, peer: socket.socket) -> None:
        with suppress(OSError):
            if message := peer.recv(512, socket.MSG_DONTWAIT).decode(errors="replace"):
                peer.send(self._answer(*message.partition(" ")[::2]).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
        self._poll.unregister(peer)
        self._peers.pop(peer.fileno()).close()

    def _answer(self, verb: str, name: str) -> str:
        if verb == "ARM":
            return "ACK" if self._arm(name) else f"NAK no readable {name} in the table"
        if verb == "DISARM":
            return "ACK" if self._disarm(name) else "ALIVE"
        return f"PONG {os.getpid()}" if verb == "PING" else "NAK unknown verb"

    def _arm(self, name: str) -> bool:
        if "/" in name or (entry := leash_table.read_entry(f"{self._table}/{name}")) is None:
            return False
        grip = leash_table.grip(entry)
        self._drop(name)
        self._held[name] = (entry, grip)
        self._ending = False
        return True

    def _disarm(self, name: str) -> bool:
        if (held := self._held.get(name)) and not held[1].proven_dead():
            return False
        self._drop(name)
        return True

    def _drop(self, name: str) -> None:
        if held := self._held.pop(name, None):
            held[1].close()

    def _end(self, *_: object) -> None:
        self._ending = True
        if all(grip.proven_dead() for _, grip in self._held.values()):
            raise SystemExit(0)


def _listen(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        os.unlink(path)  # we hold the lock, so it is a dead leash's
    os.umask(0o177)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    return listener


def _log(line: str) -> None:
    with suppress(OSError):  # a full or closed pipe loses the line, never the next kill
        os.write(2, f"leash: {line}\n".encode())


def main(page: str, table: str, index: int) -> None:
    if leash_lock.take(table, index) is None:
        raise SystemExit(0)
    leash = Leash(page, table, index)
    for missing in harden():
        _log(f"runs without {missing}")
    leash.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

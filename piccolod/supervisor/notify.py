"""The service manager's side: sd_notify(3), the watchdog, and its store of descriptors. Silent without NOTIFY_SOCKET."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

_FIRST_FD: Final = 3  # sd_listen_fds(3)
_PREFIX: Final = "key."


class Notify:
    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ)
        self._stored = _stored(environ)
        self._status = ""

    @property
    def present(self) -> bool:
        return bool(self._address)

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self, seconds: float) -> None:
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    # --- descriptors that outlive us

    def store(self, module: str, name: str, fd: int) -> None:
        self.unstore(module, name)
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_PREFIX}{module}.{name}", fd)

    def unstore(self, module: str, name: str) -> None:
        self._send(f"FDSTOREREMOVE=1\nFDNAME={_PREFIX}{module}.{name}")

    def take_stored(self) -> dict[tuple[str, str], int]:
        """What an earlier supervisor stored: (module, name) -> descriptor, the caller's. Once."""
        stored, self._stored = self._stored, {}
        return stored

    def _send(self, text: str, fd: int = -1) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendmsg([text.encode()], ancillary, socket.MSG_NOSIGNAL, address)


def _watchdog_s(environ: MutableMapping[str, str]) -> float:
    """How often to show life; 0: nobody waits for it."""
    micros, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not micros.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(micros) / 1e6 / 3


def _stored(environ: MutableMapping[str, str]) -> dict[tuple[str, str], int]:
    count, pid, names = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDNAMES", "")
    if not count.isdigit() or pid != str(os.getpid()):
        return {}
    stored: dict[tuple[str, str], int] = {}
    for fd, name in zip(range(_FIRST_FD, _FIRST_FD + int(count)), names.split(":"), strict=False):
        with suppress(OSError):
            os.set_inheritable(fd, False)
            module, dot, key = name.removeprefix(_PREFIX).rpartition(".")
            if name.startswith(_PREFIX) and dot:
                stored[module, key] = fd
            else:
                os.close(fd)
    return stored

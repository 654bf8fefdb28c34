"""The sockets that clients use: bound here, kept over restarts of modules, handed out as descriptors.

A socket belongs to a family of modules (`router.0` and `router.1` are one) and is closed when none of it wants it any more.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import resource
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from piccolod.errors import Failed, Invalid, TooMany

_BACKLOG: Final = 4096
_MOST_OF_ONE: Final = 2048  # sockets of one family
_OF_DESCRIPTORS: Final = 4  # and never more than this part of what the process may have open
_UNIX_BYTES: Final = 107


@dataclass(frozen=True, slots=True)
class Address:
    proto: str
    host: str  # for unix: the path
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.host if self.proto == "unix" else f"{host}:{self.port}/{self.proto}"


@dataclass(slots=True)
class _Kept:
    socket: socket.socket
    family: str
    wanted_by: set[str] = field(default_factory=set)


class Taken(Failed):
    """Another program holds the port. Who it is takes a while to find: `holder.py`."""

    def __init__(self, address: Address, holder: str = "") -> None:
        by = f" by {holder}" if holder else " by another program"
        super().__init__(f"{address} is taken{by}", hint="stop that program, or choose another port")
        self.address = address


class Sockets:
    def __init__(self, run: Path) -> None:
        self._run = run
        self._kept: dict[Address, _Kept] = {}

    def listen(self, module: str, proto: object, address: object, port: object) -> tuple[int, Address]:
        """The descriptor of a bound, listening socket; ours. Raises a PiccoloError that says why there is none."""
        where = self._checked(proto, address, port)
        family = module.partition(".")[0]
        kept = self._kept.get(where)
        if kept is not None and kept.family != family:
            raise Failed(f"{where} is held by {kept.family}", hint="choose another port")
        if kept is None:
            self._check_room(family)
            kept = self._kept[where] = _Kept(self._bind(where), family)
        kept.wanted_by.add(module)
        return kept.socket.fileno(), where

    def unlisten(self, module: str, proto: object, address: object, port: object) -> Address:
        """Returns what it was. Raises Invalid for what is no address."""
        where = self._checked(proto, address, port)
        self._unwant(where, module)
        return where

    def wanted(self, module: str) -> set[Address]:
        return {where for where, kept in self._kept.items() if module in kept.wanted_by}

    def forget(self, module: str, all_but: set[Address]) -> list[Address]:
        """`module` wants only `all_but`. Returns what was closed."""
        closed = []
        for where in self.wanted(module) - all_but:
            self._unwant(where, module)
            if where not in self._kept:
                closed.append(where)
        return closed

    def close(self) -> None:
        for where in list(self._kept):
            self._close(where)

    def _unwant(self, where: Address, module: str) -> None:
        kept = self._kept.get(where)
        if kept is not None:
            kept.wanted_by.discard(module)
            if not kept.wanted_by:
                self._close(where)

    def _close(self, where: Address) -> None:
        self._kept.pop(where).socket.close()
        if where.proto == "unix":
            with suppress(OSError):
                os.unlink(where.host)

    def _check_room(self, family: str) -> None:
        most = min(_MOST_OF_ONE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _OF_DESCRIPTORS)
        if sum(kept.family == family for kept in self._kept.values()) >= most:
            raise TooMany(f"{family} listens on {most} sockets already, which is the most", hint="close some listeners")

    # --- binding

    def _checked(self, proto: object, address: object, port: object) -> Address:
        if proto not in ("tcp", "udp", "unix") or not isinstance(address, str) or not isinstance(port, int):
            raise Invalid("a socket is tcp, udp or unix, with an address and a port")
        if proto == "unix":
            path = Path(address)
            # A module may ask for a name in the node's own folder and nowhere else.
            if path.parent != self._run or not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,40}", path.name):
                raise Invalid(f"{address!r} is not a socket's name in {self._run}")
            if len(os.fsencode(address)) > _UNIX_BYTES:
                raise Invalid(f"{address!r} is too long for a unix socket")
            return Address("unix", address, 0)
        try:
            host = str(ipaddress.ip_address(address))
        except ValueError:
            raise Invalid(f"{address!r} is not an IP address") from None
        if not 0 <= port <= 65535:
            raise Invalid(f"port {port} is not 0 to 65535")
        return Address(str(proto), host, port)

    def _bind(self, where: Address) -> socket.socket:
        try:
            if where.proto == "unix":
                return unix_listener(Path(where.host), 0o600)
            if where.host == "::":
                try:
                    return self._bind_inet(where)
                except OSError as error:
                    if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise
                    return self._bind_inet(Address(where.proto, "0.0.0.0", where.port))  # noqa: S104
            return self._bind_inet(where)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Taken(where) from error
            raise Failed(f"{where} cannot be opened: {error.strerror}", hint="see `piccoloctl modules logs`") from error

    def _bind_inet(self, where: Address) -> socket.socket:
        six = ":" in where.host
        kind = socket.SOCK_STREAM if where.proto == "tcp" else socket.SOCK_DGRAM
        made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind)
        try:
            if where.proto == "tcp":  # for udp it would share the port with a stranger
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if six:
                # `::` serves both, unless the port is held apart for IPv4 already.
                alone = where.host != "::" or Address(where.proto, "0.0.0.0", where.port) in self._kept  # noqa: S104
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(alone))
            made.bind((where.host, where.port))
            if where.proto == "tcp":
                made.listen(_BACKLOG)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        return made


def unix_listener(path: Path, mode: int, gid: int = -1) -> socket.socket:
    """A listening stream socket with exactly `mode`; a stale one of that name is replaced, any other file is not touched."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "it exists and is no socket", str(path))
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # from its first instant on
    try:
        made.bind(str(path))
        if gid >= 0:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(before)
    return made

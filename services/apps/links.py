"""The interfaces of this host: what is there, what goes away, and a way to take one away (rtnetlink(7), netdevice(7))."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from services.apps import subnets
from services.apps.bridge import Bridge

_SIOCGIFFLAGS: Final = 0x8913
_IFREQ: Final = struct.Struct("16sh22x")
_UP: Final = 0x1
_RUNNING: Final = 0x40
_NEWLINK, _DELLINK, _DELADDR = 16, 17, 21
_REQUEST_ACK: Final = 0x1 | 0x4
_MESSAGE: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_GROUPS: Final = 0x1 | 0x10  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR
_MOST_BYTES: Final = 1 << 16
_OURS: Final = re.compile(rb"pic[0-9a-f]{12}")


def look(name: str) -> Bridge | None:
    """`None` when there is no such interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
    flags = _IFREQ.unpack(answer)[1]
    routes = tuple(subnets.host_routes(interface=name))
    return Bridge(up=bool(flags & _UP), carrier=bool(flags & _RUNNING), routes=routes)


def delete(name: str) -> None:
    """Ends an interface; nothing when it is not there. What was attached to a bridge is let go. Raises OSError."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(5.0)
        sock.send(_MESSAGE.pack(_MESSAGE.size + len(body), _DELLINK, _REQUEST_ACK, 1, 0) + body)
        (code,) = struct.unpack_from("=i", sock.recv(_MOST_BYTES), _MESSAGE.size)
    if code and -code != errno.ENODEV:
        raise OSError(-code, os.strerror(-code), name)


async def watch(lost: Callable[[str], None]) -> None:
    """Calls `lost(bridge)` when the bridge of an app went away, went down, or lost its address or its last container.

    A hint: what the kernel drops because we are slow is found by the timers.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, _GROUPS))
        while True:
            try:
                told = await loop.sock_recv(sock, _MOST_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            for name in _losses(told):
                lost(name)


def _losses(told: bytes) -> Iterator[str]:
    at = 0
    while at + _MESSAGE.size + _LINK.size <= len(told):
        length, kind, *_ = _MESSAGE.unpack_from(told, at)
        flags = _LINK.unpack_from(told, at + _MESSAGE.size)[3]
        well = kind == _NEWLINK and flags & _UP and flags & _RUNNING
        if kind in (_NEWLINK, _DELLINK, _DELADDR) and not well and (found := _OURS.search(told, at, at + length)):
            yield found[0].decode()
        at += max((length + 3) & ~3, _MESSAGE.size)

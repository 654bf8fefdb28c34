"""PROXY protocol version 2: the client's address, told to the container before its first byte.

https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt, section 2.2.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_2_PROXY: Final = 0x21
_TCP4: Final = 0x11
_TCP6: Final = 0x21


def unmapped(address: str) -> str:
    """`::ffff:192.0.2.1`, as a dual-stack socket shows an IPv4 client, as `192.0.2.1`."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address.partition("%")[0]


def header_v2(client: tuple[str, int], server: tuple[str, int]) -> bytes:
    """The header for a TCP connection from `client` to `server`, both of one family."""
    source, destination = unmapped(client[0]), unmapped(server[0])
    v6 = ":" in source
    family = socket.AF_INET6 if v6 else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    body = addresses + struct.pack("!HH", client[1], server[1])
    return _SIGNATURE + struct.pack("!BBH", _VERSION_2_PROXY, _TCP6 if v6 else _TCP4, len(body)) + body

"""What travels in `POST /forward`, as MessagePack: one request of a node's API, and its answer."""

from __future__ import annotations

from typing import Final

import msgspec

# The largest body of a route that writes is a manifest's, 512 KiB; its answer is a document of the app.
BODY_BYTES: Final = 1 << 20
ANSWER_BYTES: Final = 8 << 20
MEDIA_TYPE: Final = "application/x-msgpack"

Headers = list[tuple[bytes, bytes]]


class Forwarded(msgspec.Struct, frozen=True, kw_only=True):
    """`as_root`: it came by the unix socket of the node that sends it, from uid 0. `source`: who that node saw.

    `secure`: the client spoke TLS with it.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    as_root: bool
    source: str
    secure: bool
    request_id: str


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    headers: Headers
    body: bytes

"""What travels between nodes: how each request is read, and that of `POST /forward`, as MessagePack, with its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from piccolod.errors import Invalid

# The largest body of a route that writes is a manifest's, 512 KiB; its answer is a document of the app.
BODY_BYTES: Final = 1 << 20
ANSWER_BYTES: Final = 8 << 20
MEDIA_TYPE: Final = "application/x-msgpack"

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")


def decoded(body: bytes, kind: type[T], what: str, decode: Callable[..., Any]) -> T:
    """A request of another node, by msgspec's `decode` of its media type. Raises Invalid: it is no `what`."""
    try:
        found: T = decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(f"this is no {what}: {error}", hint="is the other node a newer piccolod?") from None
    return found


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

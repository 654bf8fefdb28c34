"""What two routers say to each other inside TLS before the bytes of a client: a preamble, and one answer. Pure.

Everything is in frames: four bytes of length, with which a TLS record begins, then so many bytes. An empty frame ends a
direction, because the end of a TLS stream in one direction alone is not dependable. The preamble and the answer are one frame
each, MessagePack.
"""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum
from typing import Final

import msgspec

from piccolod.errors import Invalid

HEAD: Final = struct.Struct("!I")
# Of a frame of a client's bytes. Nothing is kept of it, so this only tells garbage apart.
FRAME_BYTES: Final = 1 << 20
WORDS_BYTES: Final = 2048  # of a preamble, of an answer
_REASON_CHARACTERS: Final = 400


class Verdict(IntEnum):
    """What becomes of a client, as the serving node says it."""

    SERVED = 0  # its container is connected, bytes may follow
    LATER = 1  # nothing was done for it, and it may be served soon: here, or where the next route leads
    NEVER = 2  # nothing was done for it, and asking again would not help


class Preamble(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a connection is for. `epoch` is of the leader that the sender means; `address` and `port` are the client's."""

    app: str
    listener: str
    epoch: int
    address: str
    port: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` is empty when it is served."""

    verdict: Verdict
    reason: str = ""


SERVED: Final = msgspec.msgpack.encode(Answer(verdict=Verdict.SERVED))


def refusal(verdict: Verdict, reason: str) -> bytes:
    return msgspec.msgpack.encode(Answer(verdict=verdict, reason=reason[:_REASON_CHARACTERS]))


def preamble_of(words: bytes) -> Preamble:
    """Fields of a newer router are passed over. Raises Invalid."""
    try:
        preamble = _PREAMBLE.decode(words)
        ipaddress.ip_address(preamble.address.partition("%")[0])
    except (ValueError, msgspec.MsgspecError) as error:
        raise Invalid(f"this is no preamble: {error}") from None
    if not 0 <= preamble.port <= 65535 or preamble.epoch < 0:
        raise Invalid("this is no preamble: a number out of bounds")
    return preamble


def answer_of(words: bytes) -> Answer:
    """Raises Invalid."""
    try:
        return _ANSWER.decode(words)
    except (ValueError, msgspec.MsgspecError) as error:
        raise Invalid(f"this is no answer: {error}") from None


_PREAMBLE: Final = msgspec.msgpack.Decoder(Preamble)
_ANSWER: Final = msgspec.msgpack.Decoder(Answer)

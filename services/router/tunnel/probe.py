"""One client's way to another node's container and no further, for `router.test`."""

from __future__ import annotations

import asyncio
import errno
import ssl

import msgspec

from services.router.route import Leader
from services.router.tunnel.security import Security
from services.router.tunnel.wire import HEAD, WORDS_BYTES, Answer, Preamble, answer_of


async def probe(security: Security, leader: Leader, preamble: Preamble) -> Answer:
    """Raises OSError (ssl.SSLError is one), EOFError, PiccoloError."""
    reader, writer = await asyncio.open_connection(leader.address, leader.port, ssl=security.client())
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        peer = security.peer(tls)
        if peer.node != leader.node:
            raise OSError(errno.EACCES, f"{peer.node} answers there")
        words = msgspec.msgpack.encode(preamble)
        writer.write(HEAD.pack(len(words)) + words)
        (count,) = HEAD.unpack(await reader.readexactly(HEAD.size))
        if count > WORDS_BYTES:
            raise OSError(errno.EPROTO, "it sent what is no answer")
        return answer_of(await reader.readexactly(count))
    finally:
        writer.transport.abort()

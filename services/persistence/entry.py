"""An entry is one committed write, sealed and chained; a snapshot is the state after one, sealed the same way.

    header  {cluster, gen, rev, epoch, parent, author, wall_ms, idem}   plain, authenticated
    sealed  AES-256-GCM(key, random 96-bit nonce, aad = header)         MessagePack of [op, collection, id, document]...
    digest  SHA-256(header | nonce | sealed)                            parent = digest of rev - 1, 32 zero bytes before rev 1

The same bytes are committed, stored, replicated, exported and audited: they are kept as they were made and never encoded again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from piccolod.errors import TooLarge

ENTRY_LIMIT_BYTES: Final = 384 * 1024
NONCE_BYTES: Final = 12
DIGEST_BYTES: Final = 32
GENESIS: Final = bytes(DIGEST_BYTES)


class OpKind(StrEnum):
    PUT = "put"
    DELETE = "delete"


class Op(msgspec.Struct, frozen=True, array_like=True):
    """One change of one document. `document` is its MessagePack, nil for a delete."""

    op: OpKind
    collection: str
    id: str
    document: msgspec.Raw


class EntryHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cluster: str
    gen: int
    rev: int
    epoch: int
    parent: bytes
    author: str
    wall_ms: int
    idem: str


class SnapshotHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`of` is the digest of the entry `rev`, after which the state was taken: what rev + 1 names as its parent."""

    kind: Literal["snapshot"]
    cluster: str
    gen: int
    rev: int
    epoch: int
    of: bytes
    wall_ms: int


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """An entry or a snapshot as it rests and travels."""

    rev: int
    header: bytes
    nonce: bytes
    sealed: bytes
    digest: bytes


class CannotOpen(Exception):
    """The key does not fit these bytes, or the bytes are not what was sealed."""


_encoder = msgspec.msgpack.Encoder()
_ops = msgspec.msgpack.Decoder(list[Op])
_entry_header = msgspec.msgpack.Decoder(EntryHeader)
_snapshot_header = msgspec.msgpack.Decoder(SnapshotHeader)


def digest_of(header: bytes, nonce: bytes, sealed: bytes) -> bytes:
    hasher = hashlib.sha256(header)
    hasher.update(nonce)
    hasher.update(sealed)
    return hasher.digest()


def seal_bytes(cipher: AESGCM, rev: int, header: bytes, body: bytes) -> Sealed:
    nonce = os.urandom(NONCE_BYTES)
    sealed = cipher.encrypt(nonce, body, header)
    return Sealed(rev, header, nonce, sealed, digest_of(header, nonce, sealed))


def open_bytes(cipher: AESGCM, item: Sealed) -> bytes:
    """The plain body. Raises CannotOpen."""
    try:
        return cipher.decrypt(item.nonce, item.sealed, item.header)
    except (InvalidTag, ValueError) as error:
        raise CannotOpen from error


def seal_entry(cipher: AESGCM, header: EntryHeader, ops: Sequence[Op]) -> Sealed:
    """Raises TooLarge when the entry would pass ENTRY_LIMIT_BYTES."""
    entry = seal_bytes(cipher, header.rev, _encoder.encode(header), _encoder.encode(ops))
    size = len(entry.header) + len(entry.nonce) + len(entry.sealed)
    if size > ENTRY_LIMIT_BYTES:
        raise TooLarge(
            f"the write has {size} bytes and one write may have {ENTRY_LIMIT_BYTES}",
            hint="make the document smaller, or write several documents one by one",
        )
    return entry


def open_entry(cipher: AESGCM, entry: Sealed) -> list[Op]:
    """The operations of an entry. Raises CannotOpen, also for a body that is no list of operations."""
    try:
        return _ops.decode(open_bytes(cipher, entry))
    except msgspec.MsgspecError as error:
        raise CannotOpen from error


def encode_snapshot_header(header: SnapshotHeader) -> bytes:
    return _encoder.encode(header)


def entry_header(item: Sealed) -> EntryHeader:
    """Raises msgspec.MsgspecError."""
    return _entry_header.decode(item.header)


def snapshot_header(item: Sealed) -> SnapshotHeader:
    """Raises msgspec.MsgspecError."""
    return _snapshot_header.decode(item.header)

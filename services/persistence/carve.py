"""Finds sealed rows in the raw bytes of a SQLite file and its write-ahead log, when SQLite cannot or will not read them.

A row that proves itself by its digest needs no help of the tables' structure: each leaf page of a table (file format, 1.6)
is looked at for itself, wherever it lies; a row that is larger than a page follows its overflow pages. What does not prove
itself is passed over, so that any garbage is safe to look at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from services.persistence.entry import DIGEST_BYTES, NONCE_BYTES, Sealed, digest_of

_LEAF: Final = 0x0D
_PAGE_SIZES: Final = frozenset(1 << power for power in range(9, 16))
_DEFAULT_PAGE: Final = 4096
_FILE_HEADER: Final = 100
_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
# No snapshot of a store of megabytes comes near; a damaged length must not ask for more.
_PAYLOAD_LIMIT: Final = 256 * 1024 * 1024

_Pages = Mapping[int, bytes]


def carve(db: Path) -> Iterator[Sealed]:
    """Every whole entry and snapshot in `db` and its write-ahead log, in no order, repeated where it lies twice."""
    content, wal = _content(db), _content(Path(f"{db}-wal"))
    size = _page_size(content, wal)
    in_file = {number + 1: content[at : at + size] for number, at in enumerate(range(0, len(content) - size + 1, size))}
    frames = list(_frames(wal, size))
    current = dict(in_file)
    current.update((number, page) for number, page in frames)
    for leaf in [*in_file.items(), *frames]:
        for pages in (current, in_file):
            yield from _rows(leaf[0], leaf[1], pages, size)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _page_size(content: bytes, wal: bytes) -> int:
    for found in (int.from_bytes(content[16:18], "big"), int.from_bytes(wal[8:12], "big")):
        if found in _PAGE_SIZES:
            return found
    return _DEFAULT_PAGE


def _frames(wal: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Page number and page of every frame, those behind a damaged one too."""
    for at in range(_WAL_HEADER, len(wal) - _FRAME_HEADER - size + 1, _FRAME_HEADER + size):
        yield int.from_bytes(wal[at : at + 4], "big"), wal[at + _FRAME_HEADER : at + _FRAME_HEADER + size]


def _rows(number: int, page: bytes, pages: _Pages, size: int) -> Iterator[Sealed]:
    start = _FILE_HEADER if number == 1 else 0
    if len(page) < size or page[start] != _LEAF:
        return
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    for index in range(min(count, size // 4)):
        at = start + 8 + 2 * index
        try:
            row = _row(page, int.from_bytes(page[at : at + 2], "big"), pages, size)
        except (IndexError, KeyError, struct.error):
            continue
        if row is not None:
            yield row


def _row(page: bytes, at: int, pages: _Pages, size: int) -> Sealed | None:
    length, at = _varint(page, at)
    rev, at = _varint(page, at)
    if not 0 < length <= _PAYLOAD_LIMIT:
        return None
    payload = _payload(page, at, length, pages, size)
    header_length, place = _varint(payload, 0)
    kinds: list[int] = []
    while place < header_length:
        kind, place = _varint(payload, place)
        kinds.append(kind)
    # rev is the row's key, so its column is null; four blobs follow.
    if len(kinds) != 5 or kinds[0] != 0 or any(kind < 12 or kind % 2 for kind in kinds[1:]):
        return None
    blobs: list[bytes] = []
    for kind in kinds[1:]:
        end = place + (kind - 12) // 2
        blobs.append(payload[place:end])
        place = end
    header, nonce, sealed, digest = blobs
    if len(nonce) != NONCE_BYTES or len(digest) != DIGEST_BYTES or digest_of(header, nonce, sealed) != digest:
        return None
    return Sealed(rev, header, nonce, sealed, digest)


def _payload(page: bytes, at: int, length: int, pages: _Pages, size: int) -> bytes:
    """The row's bytes: those on the page, then those on its overflow pages."""
    most = size - 35
    if length <= most:
        return page[at : at + length]
    least = (size - 12) * 32 // 255 - 23
    local = least + (length - least) % (size - 4)
    if local > most:
        local = least
    parts, left = [page[at : at + local]], length - local
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    while left > 0:
        overflow = pages[following]
        parts.append(overflow[4 : 4 + min(left, size - 4)])
        left -= size - 4
        following = int.from_bytes(overflow[:4], "big")
    return b"".join(parts)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """SQLite's: seven bits a byte, most significant first, all eight of a ninth."""
    value = 0
    for _ in range(8):
        byte = content[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | content[at], at + 1

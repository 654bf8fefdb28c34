"""The deadline page: what this node leads and until when, readable by any process without asking anyone.

One small file in `run_dir`, created by the supervisor, written by consensus alone through a mapping, replaced only when
something has taken it away (page_keeper.py). Two slots, each with its sequence number and checksum. A writer fills the
*older* slot, records first and its header last; readers take the newest slot that is whole. So a writer that is frozen or
killed between any two bytes leaves the other slot as it was.

File: 64 bytes {magic, version, slots' size, capacity}; from 4096 on two slots {seq, crc, count, gen, sid, lease_id, soft_at,
hard_at, boot_id} with `count` records {resource, token, epoch, closing}. All little-endian. Standard library only, as the
leashes and the supervisor are.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from contextlib import suppress
from types import MappingProxyType

from piccolod import clock
from piccolod.named_tuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Final, Mapping  # noqa: UP035

    Read = Callable[[int, int], bytes]  # (at, count) of the file

VERSION: Final = 1
CAPACITY: Final = 1024
RESOURCE_BYTES: Final = 64

_FILE: Final = struct.Struct("<8sIII")
_MAGIC: Final = b"PICCPAGE"
_SEQ: Final = struct.Struct("<Q")
_HEAD: Final = struct.Struct("<QIIQQqdd36s")
_RECORD: Final = struct.Struct(f"<{RESOURCE_BYTES}sQQB7x")
_CRC_AT: Final = 8
_HEAD_BYTES: Final = 128
_SLOT_BYTES: Final = -(-(_HEAD_BYTES + CAPACITY * _RECORD.size) // 4096) * 4096
_SLOTS: Final = (4096, 4096 + _SLOT_BYTES)
_MADV_POPULATE_READ: Final = 22
_FILE_BYTES: Final = 4096 + 2 * _SLOT_BYTES
# Both slots look broken only while a writer laps the reader twice; each try takes well below a writer's shortest pause.
_TRIES: Final = 3


class Term(NamedTuple):
    """A term on the page. `closing`: it is being stopped, nothing of it may start."""

    token: int
    epoch: int
    closing: bool = False


class Page(NamedTuple):
    """One whole state of the page. The deadlines are CLOCK_BOOTTIME; a node alone has `clock.FOREVER`."""

    seq: int
    gen: int
    sid: int
    lease_id: int
    boot_id: str
    soft_at: float
    hard_at: float
    terms: Mapping[str, Term]


def create(path: str | os.PathLike[str]) -> None:
    """Makes the page, or adopts the one that is there: the terms of this boot live on, those of an earlier one are dropped.

    For the supervisor, before any reader or writer starts.
    """
    boot_id = clock.boot_id()
    reader = PageReader(path)
    page = reader.read()
    reader.close()
    if not _is_page_at(path):
        replace(path)
    elif page is None or page.boot_id != boot_id:
        writer = PageWriter(path)
        writer.write(_nothing(boot_id))
        writer.close()


def replace(path: str | os.PathLike[str]) -> None:
    """Puts a page without terms there at once, whatever is there. Raises OSError."""
    draft = f"{os.fspath(path)}.new"
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.fchmod(fd, 0o644)  # whatever the umask: routers read it under a user of their own
        # Every block is allocated now: a full tmpfs must not become a SIGBUS in a writer later.
        os.posix_fallocate(fd, 0, _FILE_BYTES)
        os.pwrite(fd, _FILE.pack(_MAGIC, VERSION, _SLOT_BYTES, CAPACITY), 0)
        for at, part in _parts(_nothing(clock.boot_id())._replace(seq=1)):
            os.pwrite(fd, part, _SLOTS[0] + at)
    finally:
        os.close(fd)
    # No fsync, which could wait for a disk: after a power cut it is the page of another boot, whatever is left of it.
    os.replace(draft, path)


def is_page(fd: int) -> bool:
    return os.fstat(fd).st_size == _FILE_BYTES and os.pread(fd, _FILE.size, 0) == _FILE.pack(
        _MAGIC, VERSION, _SLOT_BYTES, CAPACITY
    )


class PageReader:
    """Reads the page. Never blocks, needs no living writer, and survives that the file is removed, cut short and made anew.

    Not through a mapping, where the end of a file that was cut short is the end of the process. For one thread; another one
    takes a reader of its own.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._page: Page | None = None

    def read(self) -> Page | None:
        """The newest whole state; `None` when the page is absent, torn or of another version."""
        if self._fd < 0 or not self._is_there():
            self._open()
        if self._fd < 0:
            return None
        try:
            if self._page is None or self._page.seq != self._newest_seq():
                self._page = newest(self._at)
        except (OSError, struct.error):  # cut short between two reads
            self.close()
        return self._page

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._map, self._fd, self._page = None, -1, None

    __del__ = close

    def _is_there(self) -> bool:
        found = os.fstat(self._fd)
        return found.st_nlink > 0 and found.st_size == _FILE_BYTES

    def _newest_seq(self) -> int:
        first: int = _SEQ.unpack(os.pread(self._fd, _SEQ.size, _SLOTS[0]))[0]
        second: int = _SEQ.unpack(os.pread(self._fd, _SEQ.size, _SLOTS[1]))[0]
        return max(first, second)

    def _at(self, at: int, count: int) -> bytes:
        return os.pread(self._fd, count, at)

    def _open(self) -> None:
        self.close()
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        if not is_page(fd):
            os.close(fd)
            return
        self._fd = fd
        # Never touched by us: a guard that locks its memory keeps the page in it, and waits for no disk when it reads. A file
        # that was cut short meanwhile is an error here, not a signal.
        with suppress(OSError, ValueError):
            self._map = mmap.mmap(fd, _FILE_BYTES, prot=mmap.PROT_READ)
            self._map.madvise(_MADV_POPULATE_READ)


class PageWriter:
    """The only writer of the page while it lives. Raises BlockingIOError when another one does.

    When the file is cut short under it, its process dies of SIGBUS: started again, it finds the page that was made anew.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # A consensus that outlived its supervisor for a moment must not write beside the next one.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_page(self._fd):
                raise OSError(f"{os.fspath(path)} is not a deadline page of version {VERSION}")
            self._map = mmap.mmap(self._fd, _FILE_BYTES)
        except BaseException:
            os.close(self._fd)
            raise

    def read(self) -> Page | None:
        return newest(self._at)

    def write(self, page: Page) -> Page:
        """Puts a whole new state on the page and returns it with its sequence number.

        Raises ValueError for what does not fit, and for a deadline that has passed and would move: a late
        acknowledgement never revives a session.
        """
        current, slot = _older_slot(self._at)
        if current is not None and _revives(current, page, clock.now()):
            raise ValueError("the session's deadline has passed: it cannot move any more")
        page = page._replace(seq=(current.seq if current else 0) + 1, terms=MappingProxyType(dict(page.terms)))
        for at, part in _parts(page):
            self._map[slot + at : slot + at + len(part)] = part
        return page

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)

    def _at(self, at: int, count: int) -> bytes:
        return self._map[at : at + count]


def _nothing(boot_id: str) -> Page:
    return Page(0, 0, 0, 0, boot_id, 0.0, 0.0, {})


def _revives(current: Page, page: Page, now: float) -> bool:
    same_session = current.sid == page.sid != 0 and current.boot_id == page.boot_id
    return same_session and current.hard_at <= now and page.hard_at > current.hard_at


def newest(read: Read) -> Page | None:
    """The newest whole slot."""
    for _ in range(_TRIES):
        for slot in sorted(_SLOTS, key=lambda slot: _seq(read, slot), reverse=True):
            if (page := _decode(read, slot)) is not None:
                return page
    return None


def _seq(read: Read, slot: int) -> int:
    return int(_SEQ.unpack(read(slot, _SEQ.size))[0])


def _decode(read: Read, slot: int) -> Page | None:
    head = read(slot, _HEAD_BYTES)
    seq, crc, count, gen, sid, lease_id, soft_at, hard_at, boot_id = _HEAD.unpack_from(head)
    if seq == 0 or count > CAPACITY:
        return None
    body = read(slot + _HEAD_BYTES, count * _RECORD.size)
    if crc != _checksum(head, body):
        return None
    terms = {
        name.rstrip(b"\0").decode(): Term(token, epoch, bool(closing))
        for name, token, epoch, closing in _RECORD.iter_unpack(body)
    }
    return Page(seq, gen, sid, lease_id, boot_id.decode(), soft_at, hard_at, MappingProxyType(terms))


def _parts(page: Page) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    """The bytes of a slot in the order in which they must be written: the header, which makes it newest, comes last."""
    if len(page.terms) > CAPACITY:
        raise ValueError(f"the deadline page holds at most {CAPACITY} resources")
    body = b"".join(_RECORD.pack(_name(name), term.token, term.epoch, term.closing) for name, term in page.terms.items())
    values = (page.gen, page.sid, page.lease_id, page.soft_at, page.hard_at, page.boot_id.encode())
    head = _HEAD.pack(page.seq, 0, len(page.terms), *values).ljust(_HEAD_BYTES, b"\0")
    head = _HEAD.pack(page.seq, _checksum(head, body), len(page.terms), *values).ljust(_HEAD_BYTES, b"\0")
    return (_HEAD_BYTES, body), (0, head)


def _name(resource: str) -> bytes:
    name = resource.encode()
    if not 0 < len(name) <= RESOURCE_BYTES:
        raise ValueError(f"a resource's name has 1 to {RESOURCE_BYTES} bytes: {resource!r}")
    return name


def _checksum(head: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(head[_CRC_AT + 4 :], zlib.crc32(head[:_CRC_AT])))


def _older_slot(read: Read) -> tuple[Page | None, int]:
    """The newest whole state, and the slot that does not hold it."""
    pages = [(_decode(read, slot), slot) for slot in _SLOTS]
    (first, first_slot), (second, second_slot) = pages
    if second is None or (first is not None and first.seq > second.seq):
        return first, second_slot
    return second, first_slot


def _is_page_at(path: str | os.PathLike[str]) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return is_page(fd)
    finally:
        os.close(fd)

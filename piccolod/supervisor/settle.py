"""Readies the zygote's memory for a fork: children share its pages until one of both writes to them.

A reference count is a write too. What is done here spares every child half a MiB of copied pages (measured).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.malloc.argtypes = (ctypes.c_size_t,)
_LIBC.free.argtypes = (ctypes.c_void_p,)
_MADV_DONTNEED: Final = 4
_ALIGNMENT: Final = 16
_LARGEST: Final = 512  # above it malloc serves
_LARGE: Final = 64 * 1024
_SMALL: Final = 24  # the smallest that malloc has
_MOST_BYTES: Final = 16 * 2**20  # as for the blocks: a bound, should this be another malloc
_BYTES_HEAD: Final = sys.getsizeof(b"")
_POOL_BYTES: Final = 16 * 1024
_POOL_HEAD: Final = 48
_NEIGHBOURS: Final = 4  # two can be places that were freed one after the other
_MOST_BLOCKS: Final = 20_000  # of a size: a bound, should an allocator of another kind never show a fresh pool

_filling: list[Any] = []


def fill_holes() -> None:
    """Once, after the last import: takes the free places between the objects, so that children allocate on fresh pages."""
    for size in range(_ALIGNMENT, _LARGEST + 1, _ALIGNMENT):
        _filling.append(_fill(size))


def fill_heap() -> None:
    """The same for what malloc serves: takes the free places before the end of the heap (measured: 0.7 MiB a child)."""
    end = _LIBC.malloc(_LARGE) or 0
    size, taken_bytes = _LARGE, 0
    while size >= _SMALL and taken_bytes < _MOST_BYTES:
        at = _LIBC.malloc(size) or end
        if at < end:
            taken_bytes += size
        else:
            _LIBC.free(at if at != end else None)
            size -= _ALIGNMENT if size <= 1024 else size // 8 // _ALIGNMENT * _ALIGNMENT
    _LIBC.free(end)


def unmap_code() -> None:
    """Once, after the last import: lets go of the pages of libraries that only their loading needed (6 MiB, measured).

    They come back from the page cache where they are used. A mapping with pages of its own (relocated data) is left alone.
    """
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
        for begin, size in list(_untouched(smaps)):
            _LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_DONTNEED)


def _untouched(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of each read-only mapping of a file in which no page was ever written to (smaps(5), `Anonymous`)."""
    begin = end = 0
    for line in smaps:
        match line.split():
            case [span, rights, _, _, inode, *_] if not span.endswith(":"):
                begin, end = (int(address, 16) for address in span.split("-"))
                if "w" in rights or inode == "0":
                    begin = end
            case ["Anonymous:", "0", _] if begin < end:
                yield begin, end - begin


def settle() -> None:
    """Before each fork."""
    gc.freeze()  # what was imported is never written to by a collector, neither here nor in the children
    clear = getattr(sys, "_clear_type_cache", None)
    if clear is not None:
        clear()  # it holds a reference to each name looked up before: the next look-up would write to that name's page


def _fill(size: int) -> list[Any]:
    """Objects of one size of pymalloc's, up to the first neighbours at the begin of a pool, which was empty then."""
    taken: list[Any] = []
    before = run = 0
    for _ in range(_MOST_BLOCKS):
        made = _object(size)
        taken.append(made)
        at = id(made)
        run = 1 if at % _POOL_BYTES == _POOL_HEAD else run + 1 if run and at == before + size else 0
        if run == _NEIGHBOURS:
            break
        before = at
    return taken


def _object(size: int) -> Any:
    if size == _ALIGNMENT:
        return object()
    if size == 2 * _ALIGNMENT:
        return float(size) / 7
    return bytes(size - _BYTES_HEAD)

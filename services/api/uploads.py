"""Large bodies become files below state_dir, for `apps` to read: bounded by size and by room, gone when the call ends."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from piccolod.errors import Invalid, StoreFull, TooLarge, Unavailable
from piccolod.units import format_size

MAX_BYTES: Final = 8 * 2**30
_KEEP_FREE_BYTES: Final = 64 * 2**20
_BLOCK_BYTES: Final = 2**20


def clear(folder: Path) -> None:
    """The folder, without what an earlier life left; made where no supervisor did. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.iterdir():
        left.unlink()


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """An empty file that is gone when the block ends. Raises Unavailable."""
    file = folder / f"{secrets.token_hex(8)}.upload"
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise Unavailable(f"uploads cannot be kept in {folder}: {error.strerror}", hint="see `piccoloctl health`") from error
    try:
        yield file
    finally:
        with suppress(FileNotFoundError):
            file.unlink()


@asynccontextmanager
async def received(
    body: AsyncIterator[bytes], announced_bytes: int | None, folder: Path, most_bytes: int = MAX_BYTES
) -> AsyncIterator[Path]:
    """The body as a file, while the block runs. Raises TooLarge, StoreFull, Unavailable, Invalid when it is empty."""
    _check_room(folder, announced_bytes or 0, most_bytes)
    with draft(folder) as file:
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise Unavailable(f"the upload cannot be kept: {error.strerror}", hint="see `piccoloctl health`") from error
        try:
            await _write(fd, body, folder, most_bytes)
        finally:
            os.close(fd)
        yield file


def room_bytes(folder: Path) -> int:
    """The largest archive that could be received now. Raises Unavailable."""
    return max(0, min(MAX_BYTES, _free_bytes(folder) - _KEEP_FREE_BYTES))


async def _write(fd: int, body: AsyncIterator[bytes], folder: Path, most_bytes: int) -> None:
    size_bytes, waiting, waiting_bytes = 0, [], 0
    async for part in body:
        waiting.append(part)
        waiting_bytes += len(part)
        if waiting_bytes >= _BLOCK_BYTES:
            size_bytes += waiting_bytes
            _check_room(folder, size_bytes, most_bytes, written=size_bytes)
            await asyncio.to_thread(_write_all, fd, b"".join(waiting))
            waiting, waiting_bytes = [], 0
    if size_bytes + waiting_bytes == 0:
        raise Invalid("the body is empty", hint="send the archive as the body")
    await asyncio.to_thread(_write_all, fd, b"".join(waiting))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise StoreFull(f"the upload cannot be kept: {error.strerror}", hint="make room below state_dir") from error


def _check_room(folder: Path, needed_bytes: int, most_bytes: int, written: int = 0) -> None:
    if needed_bytes > most_bytes:
        raise TooLarge(f"an upload has at most {format_size(most_bytes)}")
    free_bytes = _free_bytes(folder)
    if needed_bytes - written > free_bytes - _KEEP_FREE_BYTES:
        raise StoreFull(
            f"there is no room for the upload: {format_size(max(0, free_bytes))} are free in {folder}",
            hint="make room, or move state_dir to a larger file system",
        )


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise Unavailable(f"uploads cannot be kept in {folder}: {error.strerror}", hint="see `piccoloctl health`") from error

"""What is sent as it is read: a file, standard input, or a folder as a tar archive. Nothing is held in memory whole."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from piccolod.errors import Invalid

_BLOCK_BYTES: Final = 256 * 2**10

Blocks = Generator[bytes, None, None]


@dataclass(frozen=True, slots=True)
class Upload:
    """`open` begins a new reading; `again` is false when there can be only one. `size_bytes` is None while unknown."""

    open: Callable[[], Blocks]
    size_bytes: int | None
    again: bool = True


def of_file(name: str, progress: Callable[[int], None]) -> Upload:
    """`-` is standard input. `progress` is called with the bytes of each block as it leaves."""
    if name == "-":
        if sys.stdin.isatty():
            raise Invalid("there is nothing on standard input", hint="name a file, or pipe one in: ... < FILE")
        return Upload(lambda: _blocks(sys.stdin.buffer, progress), None, again=False)
    path = Path(name)
    try:
        with path.open("rb"):
            size_bytes = path.stat().st_size
    except OSError as error:
        raise Invalid(f"cannot read {name}: {error.strerror}") from error
    regular = path.is_file()
    return Upload(lambda: _file_blocks(path, progress), size_bytes if regular else None, again=regular)


def of_folder(name: str, progress: Callable[[int], None]) -> Upload:
    """A build context: the folder as a tar, owners left out, so that it does not matter whose clone of it is built."""
    folder = Path(name)
    if not folder.is_dir():
        raise Invalid(f"{name} is not a folder", hint="name the folder that holds the Containerfile")
    if not any((folder / file).is_file() for file in ("Containerfile", "Dockerfile")):
        raise Invalid(f"{name} holds neither a Containerfile nor a Dockerfile")
    return Upload(lambda: _tar_blocks(folder, progress), None)


def _blocks(file: BinaryIO, progress: Callable[[int], None]) -> Blocks:
    while block := file.read(_BLOCK_BYTES):
        yield block
        progress(len(block))


def _file_blocks(path: Path, progress: Callable[[int], None]) -> Blocks:
    with path.open("rb") as file:
        yield from _blocks(file, progress)


def _tar_blocks(folder: Path, progress: Callable[[int], None]) -> Blocks:
    """tarfile writes and HTTP reads: a pipe between a thread of the one and the other."""
    readable, writable = os.pipe()
    failures: list[OSError] = []
    writer = threading.Thread(target=_write_tar, args=(folder, writable, failures), name="tar", daemon=True)
    writer.start()
    with closing(os.fdopen(readable, "rb")) as pipe:
        yield from _blocks(pipe, progress)
    writer.join()
    if failures:
        error = failures[0]
        raise Invalid(f"cannot read {error.filename or folder}: {error.strerror or error}")


def _write_tar(folder: Path, writable: int, failures: list[OSError]) -> None:
    import tarfile

    def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    try:
        with os.fdopen(writable, "wb") as pipe, tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for entry in sorted(folder.iterdir()):
                tar.add(entry, arcname=entry.name, filter=without_owner)
    except OSError as error:
        with suppress(BrokenPipeError):
            failures.append(error)

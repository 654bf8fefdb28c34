"""The limiter's counts, kept over restarts of this module: who can make it crash must not get fresh guesses by that.

One small file in `run_dir`, replaced whole before a guess is tried. It holds who asked how often, and nothing of what was
guessed. It counts in this boot only, as its times do; a file that says nothing sensible is as good as none.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from piccolod import clock
from services.persistence.limiter import SOURCES_KEPT, Counts, Limiter

FILE_LIMIT_BYTES: Final = 512 * 1024
_SOURCE_BYTES: Final = 255


class _Book(msgspec.Struct, frozen=True):
    boot_id: str
    counts: Counts


class Guesses:
    """A limiter that knows the time and remembers. `path` None: it forgets with the process."""

    def __init__(self, path: Path | None = None, limiter: Limiter | None = None) -> None:
        self._path = path
        self._boot_id = clock.boot_id()
        self._limiter = limiter or Limiter()
        if (counts := self._load()) is not None:
            self._limiter.resume(counts, clock.now())

    def admit(self, source: str) -> None:
        """Charges an attempt, before it is made. Raises TooMany, and then nothing is charged."""
        self._limiter.admit(source[:_SOURCE_BYTES], clock.now())
        self._keep()

    def right(self, source: str) -> None:
        self._limiter.right(source[:_SOURCE_BYTES])
        self._keep()

    def excuse(self, source: str) -> None:
        self._limiter.excuse(source[:_SOURCE_BYTES])
        self._keep()

    def _load(self) -> Counts | None:
        if self._path is None:
            return None
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        with open(fd, "rb") as file:
            about = os.fstat(fd)
            ours = about.st_uid in (0, os.geteuid()) and stat.S_ISREG(about.st_mode)
            if not ours or about.st_size > FILE_LIMIT_BYTES:
                return None
            try:
                book = msgspec.json.decode(file.read(FILE_LIMIT_BYTES), type=_Book)
            except (OSError, ValueError):
                return None
        fits = book.boot_id == self._boot_id and len(book.counts.sources) <= SOURCES_KEPT
        return book.counts if fits else None

    def _keep(self) -> None:
        """Best effort: a run folder that takes no file must not keep the owner out."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        content = msgspec.json.encode(_Book(self._boot_id, self._limiter.counts()))
        with contextlib.suppress(OSError):
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb") as file:
                file.write(content)
            new.replace(self._path)

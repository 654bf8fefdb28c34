"""That a person locked this node on purpose: then no peer unlocks it, until a person does or the machine boots anew.

One small file in `run_dir`; it counts in its boot only. A file that cannot be read counts as one that says so.
"""

from __future__ import annotations

from pathlib import Path

from piccolod import clock, durable
from piccolod.errors import StoreUnavailable


class LockMark:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot_id = clock.boot_id()

    @property
    def is_set(self) -> bool:
        try:
            return self._path.read_text() == self._boot_id
        except FileNotFoundError:
            return False
        except (OSError, UnicodeDecodeError):
            return True

    def set(self) -> None:
        """Raises StoreUnavailable: a lock that is forgotten by a crash would not stay."""
        try:
            durable.replace(self._path, self._boot_id.encode())
        except OSError as error:
            raise StoreUnavailable(
                f"the lock cannot be remembered, and peers would unlock this node again: {self._path}: {error.strerror}",
                hint="make room there, or `piccoloctl settings set auto_unlock=never` first",
            ) from error

    def clear(self) -> None:
        """Raises nothing: at worst a person unlocks this node once more."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return

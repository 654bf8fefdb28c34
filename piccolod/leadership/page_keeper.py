"""Keeps the deadline page where everybody looks for it: made at start, made anew when something has taken it away.

For the supervisor. The new page holds no term, which is right: nobody could see those of the lost one any more. Consensus
writes to the file that it has open, so it is restarted then and puts its terms on the new one.
"""

from __future__ import annotations

import os
from pathlib import Path

from piccolod.leadership import page


class PageKeeper:
    def __init__(self, path: Path) -> None:
        """Makes the page, or adopts the one that is there. Raises OSError."""
        page.create(path)
        self._path = path
        self._fd = self._open()

    def lost(self) -> str:
        """What happened to the page; empty when it is there."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except OSError as error:
            return f"it is gone: {error.strerror}"
        if not os.path.samestat(found, os.fstat(self._fd)):
            return "another file is in its place"
        return "" if page.is_page(self._fd) else "it was cut short or overwritten"

    def renew(self) -> None:
        """An empty page in its place. Whoever reads or writes the lost one is cut off from it. Raises OSError."""
        page.replace(self._path)
        fd, self._fd = self._fd, self._open()
        try:
            # It was moved: for those who have it open it is still the page, with terms that nobody ends.
            if os.fstat(fd).st_nlink:
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def close(self) -> None:
        os.close(self._fd)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

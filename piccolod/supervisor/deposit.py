"""What a module leaves for its successor: sealed memory, held by descriptor and never read here."""

from __future__ import annotations

import fcntl
import os
import re
from typing import Final

from piccolod.errors import Forbidden, Invalid

PREFIX: Final = "key:"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_MOST: Final = 8  # a module
_MOST_BYTES: Final = 64 * 1024
# linux/fcntl.h; Python names them from 3.12 on
_F_GET_SEALS: Final = 1034
_SEALED: Final = 0x0001 | 0x0002 | 0x0004 | 0x0008  # seal, shrink, grow, write


class Deposits:
    def __init__(self) -> None:
        self._held: dict[str, dict[str, int]] = {}

    def keep(self, module: str, name: object, fds: list[int]) -> None:
        """Takes the descriptor over. Raises Invalid or Forbidden, and leaves it the caller's, when it is none to keep."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Invalid("a deposit has a name of small letters, digits, `_` and `-`")
        if len(fds) != 1:
            raise Invalid(f"a deposit is one descriptor, not {len(fds)}")
        held = self._held.setdefault(module, {})
        if name not in held and len(held) >= _MOST:
            raise Forbidden(f"{module} has {_MOST} deposits already")
        if not _is_sealed_memory(fds[0]):
            raise Invalid("a deposit is a memfd with all its seals")
        if (old := held.pop(name, None)) is not None:
            os.close(old)
        held[name] = fds[0]

    def of(self, module: str) -> dict[str, int]:
        """Its deposits by name; ours to close."""
        return dict(self._held.get(module, {}))

    def drop_all(self) -> list[tuple[str, str]]:
        """Forgets every one. Returns (module, name) of each."""
        dropped = [(module, name) for module, held in self._held.items() for name in held]
        for held in self._held.values():
            for fd in held.values():
                os.close(fd)
        self._held.clear()
        return dropped

    def close(self) -> None:
        self.drop_all()


def _is_sealed_memory(fd: int) -> bool:
    try:
        # Only memory files have seals; the answer needs no look inside.
        return fcntl.fcntl(fd, _F_GET_SEALS) & _SEALED == _SEALED and 0 < os.fstat(fd).st_size <= _MOST_BYTES
    except OSError:
        return False

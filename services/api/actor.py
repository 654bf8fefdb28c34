"""Who makes a call, and what that lets them do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final


class Scope(IntEnum):
    """Each includes the ones below it."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        return self.name.lower()


class Kind(StrEnum):
    NOBODY = "nobody"
    SOCKET = "socket"  # the unix socket, uid 0
    SESSION = "session"  # a browser's cookie
    TOKEN = "token"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Actor:
    """`name` goes into the audit and is the author of what is committed."""

    kind: Kind
    name: str
    scope: Scope | None = None
    session: str = ""  # the id of the session
    csrf: str = ""  # what a session must repeat in X-CSRF-Token
    expires_ms: int = 0

    @property
    def caller(self) -> str:
        """Whose retries are retries: the root of every node is one caller on the cluster, though the audit tells them apart."""
        return ROOT.name if self.kind is Kind.SOCKET else self.name

    def may(self, needed: Scope) -> bool:
        return self.scope is not None and self.scope >= needed


def root_of(node: str) -> Actor:
    """The admin of one node of a cluster: the same name at whatever node its call arrives, so that a retry is known as one."""
    return Actor(Kind.SOCKET, f"root@{node}", Scope.ADMIN)


NOBODY: Final = Actor(Kind.NOBODY, "nobody")
ROOT: Final = Actor(Kind.SOCKET, "root", Scope.ADMIN)

"""What a join that did not come to its end leaves for the next one with the same token: who this node said it was.

With the same key the cluster knows it as the node that it has let in already, and answers as before. A member of etcd that ran
here has lost its data since, and what it acknowledged with it: its id is spent, and the next attempt gets another.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from piccolod import durable
from piccolod.paths import Paths
from piccolod.pki import authority
from piccolod.pki.token import JoinToken


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """`key`: PEM. `spent`: the id of the last member of etcd that may have run here under this token; 0: none."""

    token: str
    fingerprint: str
    node: str
    key: str
    spent: int = 0


class AttemptFile:
    def __init__(self, paths: Paths) -> None:
        self._path = paths.consensus / "join.json"

    def begin(self, token: JoinToken, node: str) -> Attempt:
        """The one that was begun with this token under this name, or a new one, which is on the disk then. Raises OSError."""
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            found = msgspec.json.decode(self._path.read_bytes(), type=Attempt)
            if (found.token, found.fingerprint, found.node) == (token.id, token.fingerprint, node):
                return found
        key = authority.make_key().decode()
        return self._keep(Attempt(token=token.id, fingerprint=token.fingerprint, node=node, key=key))

    def spend(self, attempt: Attempt, member: int) -> None:
        """Before that member of etcd runs here for the first time. Raises OSError."""
        self._keep(msgspec.structs.replace(attempt, spent=member))

    def forget(self) -> None:
        """Once this node is a member."""
        self._path.unlink(missing_ok=True)

    def _keep(self, attempt: Attempt) -> Attempt:
        durable.replace(self._path, msgspec.json.encode(attempt))
        return attempt

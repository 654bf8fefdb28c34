"""Where the other nodes are: `members.json`, which consensus keeps up to date, and what is heard of the leader."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from piccolod.config import split_listen
from piccolod.errors import LeaderHint, Unavailable
from piccolod.protocol.cluster import KnownMember
from services.api.rpc.client import Place


class Places:
    def __init__(self, folder: Path, default_port: int) -> None:
        self._file: Final = folder / "members.json"
        self._default_port = default_port

    def of(self, hint: LeaderHint) -> Place:
        """Raises Unavailable when nothing is known of it."""
        known = self._members().get(hint.node)
        if known is not None and known.rpc:
            try:
                return Place(hint.node, *split_listen(known.rpc))
            except ValueError:
                pass  # of a newer version
        if not hint.address:
            raise Unavailable(f"it is not known where {hint.node} is", hint="see `piccoloctl cluster list`")
        return Place(hint.node, hint.address, self._default_port)

    def members(self, but: str) -> list[Place]:
        """All that are known and have keys, without one."""
        known = [name for name, each in self._members().items() if name != but and each.role == "member" and each.rpc]
        return [self.of(LeaderHint(name, "", "", 0)) for name in known]

    def _members(self) -> dict[str, KnownMember]:
        """Read anew each time: it is small, and written whole."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, KnownMember])
        except (OSError, msgspec.MsgspecError):
            return {}

"""Whether a member's certificate still counts: the cluster's list says so, which is asked once for many connections.

While the store is locked or does not answer, the members that this node knew last are believed: their traffic is not to end
with a lock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from piccolod import clock
from piccolod.errors import Forbidden, PiccoloError
from piccolod.module import Module
from piccolod.protocol.cluster import KnownMember
from piccolod.protocol.joining import CheckNode
from services.router.tunnel.security import Peer

REMEMBERED_S: Final = 1.0  # a node that was removed comes through for so long
_BELIEVED_S: Final = 5.0  # what could not be asked is asked again after this
_ASK_S: Final = 1.0
_PEERS: Final = 256

Then = Callable[[str], None]


class Verdict(NamedTuple):
    """`reason`: why it may not come, empty if it may. `believed`: the list could not be asked."""

    reason: str
    until: float
    believed: bool


class Vetting:
    """`folder` is `state_dir/cluster`."""

    def __init__(self, module: Module, folder: Path) -> None:
        self._module = module
        self._members = folder / "members.json"
        self._known: dict[Peer, Verdict] = {}
        self._asking: dict[Peer, list[Then]] = {}

    def vet(self, peer: Peer, then: Then) -> None:
        """Calls `then` with why it may not come, empty if it may: at once when that was asked lately.

        Who is believed is not kept waiting each time that the list is asked in vain.
        """
        known = self._known.get(peer)
        fresh = known is not None and clock.now() < known.until
        answered = known is not None and (fresh or known.believed)
        if not fresh and peer not in self._asking:
            self._asking[peer] = []
            self._module.spawn(self._ask(peer), name="look up a node")
        if answered and known is not None:
            then(known.reason)
        else:
            self._asking[peer].append(then)

    async def _ask(self, peer: Peer) -> None:
        verdict = await self._verdict(peer)
        if len(self._known) >= _PEERS:
            self._known.clear()
        self._known[peer] = verdict
        for then in self._asking.pop(peer):
            then(verdict.reason)

    async def _verdict(self, peer: Peer) -> Verdict:
        reason = ""
        try:
            await self._module.call(CheckNode(node=peer.node, key=peer.key), timeout_s=_ASK_S)
        except Forbidden as error:
            reason = error.detail
        except PiccoloError as error:
            if self._was_member(peer.node):
                return Verdict("", clock.now() + _BELIEVED_S, believed=True)
            reason = f"{peer.node} is not known here, and the store cannot be asked: {error.detail}"
        return Verdict(reason, clock.now() + REMEMBERED_S, believed=False)

    def _was_member(self, node: str) -> bool:
        try:
            members = msgspec.json.decode(self._members.read_bytes(), type=dict[str, KnownMember])
        except (OSError, msgspec.MsgspecError):
            return False
        return node in members and members[node].role == "member"

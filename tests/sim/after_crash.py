"""The release hook of the service manager: shuts the page, kills by the leash table, proves it, and only then releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolod.leadership import transactions
from piccolod.leadership.actions import Send
from piccolod.leadership.events import PageState

if TYPE_CHECKING:
    from tests.sim.node import Node


class AfterCrash:
    """Ends the node's session, so that others need not wait for it. No supervisor starts before this has ended."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.alive = True

    def feed(self, _answer: object) -> None:
        """Whatever became of END, the next process finds out."""

    def run(self, boot: int) -> None:
        node = self._node
        if not node.up or node.boots != boot or node.page is None:
            return
        sid = node.page.sid
        if node.rules.hook_proves:
            self._shut()
            self._wait(boot, sid)
        else:
            self._end(sid)
            node.world.after(node.world.between(0.05, 0.3), self._late, boot)

    def _shut(self) -> None:
        node = self._node
        node.write_page(PageState(node.page.gen if node.page else 0, 0, 0, 0.0, 0.0, {}))
        for container in list(node.table):
            node.kill(container)

    def _late(self, boot: int) -> None:
        if self._node.boots == boot and self._node.up:
            self._shut()
            self._wait(boot, 0)

    def _wait(self, boot: int, sid: int) -> None:
        node = self._node
        if not node.up or node.boots != boot:
            return
        if node.table or node.is_frozen("podman"):
            node.world.after(0.02, self._wait, boot, sid)
            return
        self._end(sid)
        node.world.after(node.world.between(0.1, 0.5), node.start_tree)

    def _end(self, sid: int) -> None:
        if sid:
            self._node.link.send(self, Send(0, transactions.end(self._node.name, sid), self._node.timing.rpc_s))

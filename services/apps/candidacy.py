"""What this node and the others say of how they stand to each app: sent each second, and at once when it changes.

On the node that leads the kernel it also writes down how an update went on another one: only that node may write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from piccolod.errors import Conflict, PiccoloError
from piccolod.protocol.consensus import GetStandings, Stand
from services.apps import desired as change
from services.apps.app import App
from services.apps.desired import Desired
from services.apps.node import Node
from services.apps.situation import Do

EVERY_S: Final = 1.0
_PAUSE_S: Final = 0.02  # what changes together is said together


class Candidacy:
    def __init__(self, node: Node, apps: Mapping[str, App]) -> None:
        self._node = node
        self._apps = apps
        self._news = asyncio.Event()

    def changed(self) -> None:
        self._news.set()

    async def run(self) -> None:
        """For as long as the process lives."""
        while True:
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._news.wait()
                    await asyncio.sleep(_PAUSE_S)
            except TimeoutError:
                pass
            self._news.clear()
            try:
                await self._stand()
                self._node.told = (await self._node.module.call(GetStandings())).nodes
                await self._judge_others()
            except PiccoloError as error:  # consensus is away for a moment: what it was told holds for 3 s
                self._node.module.log.debug("could not stand", reason=error.detail)

    async def _stand(self) -> None:
        standings = {name: app.standing for name, app in self._apps.items() if app.standing is not None}
        await self._node.module.call(Stand(apps=standings))

    async def _judge_others(self) -> None:
        tried = {name: app for name, app in self._apps.items() if app.stored.desired.candidate is not None}
        if not tried or not self._node.writes:
            return
        for name, app in tried.items():
            for node, standings in self._node.told.items():
                found = standings.get(name)
                if node != self._node.name and found is not None and found.generation == app.stored.desired.generation:
                    await self._judge(app, found.verdict, node)

    async def _judge(self, app: App, verdict: str, node: str) -> None:
        after = _judged(app.stored.desired, verdict, node)
        if after is None:
            return
        try:
            app.want(await self._node.documents.put(app.stored, after, "apps"))
        except Conflict:  # somebody changed it meanwhile: then it is another trial, or none
            return


def _judged(desired: Desired, verdict: str, node: str) -> Desired | None:
    if verdict == Do.PROMOTE:
        return change.promote(desired, f"updated, as {node} runs it")
    if verdict == Do.GIVE_UP:
        return change.give_up(desired, f"the update was not possible or not well on {node}: its log says why")
    return None

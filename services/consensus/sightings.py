"""When each other member was last seen unlocked, by this node's own eyes and wall clock, kept over restarts and reboots.

Unlocked is who asks to lead (`cand/<node>` is eligible) while it is in session. A locked node that comes back after days is in
session too, and is not seen by that: only a person's unlock makes it count again. `auto_unlock_within` is judged by this.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec

from piccolod import clock, durable
from piccolod.leadership.state import Leadership
from services.consensus.driver import Driver
from services.consensus.facts import Facts

LOOK_S: Final = 5.0
# How much of what was seen a power loss may take: small against the hour that it is compared with.
KEEP_MS: Final = 60_000


def seen_now(state: Leadership, facts: Facts) -> set[str]:
    """The other nodes that are in session and ask to lead. Pure."""
    able = {name for name, candidate in facts.candidates.items() if candidate.eligible}
    return (able & state.view.sessions.keys()) - {state.config.node}


class Sightings:
    def __init__(self, driver: Driver, file: Path, log: Any) -> None:
        self._driver = driver
        self._file = file
        self._log = log
        self._seen_ms = _load(file)
        self._kept_ms: dict[str, int] = dict(self._seen_ms)
        self._said = False

    def last_ms(self, node: str) -> int:
        """Wall clock; 0: never."""
        return self._seen_ms.get(node, 0)

    async def run(self) -> None:
        while True:
            await self.look()
            await self._driver.until(self._has_news, LOOK_S)

    def _has_news(self) -> bool:
        return self._can_look() and bool(seen_now(self._driver.state, self._driver.facts) - self._seen_ms.keys())

    def _can_look(self) -> bool:
        """News that could not be taken up would be news for ever, and nothing else would get its turn."""
        return not self._driver.state.restored and bool(self._driver.state.settled)

    async def look(self) -> None:
        if not self._can_look():
            return
        now_ms = clock.wall_ms()
        self._seen_ms.update(dict.fromkeys(seen_now(self._driver.state, self._driver.facts), now_ms))
        if any(abs(at - self._kept_ms.get(node, 0)) >= KEEP_MS for node, at in self._seen_ms.items()):
            await self._keep(dict(self._seen_ms))

    async def _keep(self, seen: dict[str, int]) -> None:
        try:
            await asyncio.to_thread(durable.replace, self._file, msgspec.json.encode(seen))
            self._kept_ms, self._said = seen, False
        except OSError as error:
            if not self._said:
                self._said = True
                self._log.warning("cannot note who was seen", reason=str(error))


def _load(file: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return {}  # then nobody was seen: a person unlocks

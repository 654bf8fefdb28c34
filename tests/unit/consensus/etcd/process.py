"""The consensus of one node as a process: `python -m tests.unit.consensus.etcd.process FOLDER INDEX`. Asks to lead until killed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

from piccolod.errors import PiccoloError
from piccolod.protocol.consensus import Campaign
from tests.unit.consensus.etcd.member import Node, living

_ASK_S = 0.2


async def main(folder: Path, index: int) -> None:
    node = Node(folder, index)
    node.log.info = node.log.warning = node.log.error = _say
    async with living(node) as live:
        while True:
            with contextlib.suppress(PiccoloError):
                await live.ask(Campaign(resource="kernel"))
            await asyncio.sleep(_ASK_S)


def _say(event: str, **facts: Any) -> None:
    print(event, facts, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))

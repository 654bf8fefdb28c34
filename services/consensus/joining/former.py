"""Those who were members before the cluster was recovered: the control store's list still has them, until this leads.

A machine of that list has to join anew, and is refused while it is on it under its former key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from piccolod.errors import Busy, PiccoloError
from piccolod.module import Module
from piccolod.protocol.joining import ForgetNode
from services.consensus.joining.recovery_journal import JournalFile

_AGAIN_S: Final = 0.5
_FORGET_S: Final = 5.0
_AUTHOR: Final = "recover"


class FormerMembers:
    def __init__(self, module: Module, leads: Callable[[], bool]) -> None:
        """Raises PiccoloError for a journal that cannot be read."""
        self._module = module
        self._leads = leads
        self._file = JournalFile(module.paths)
        journal = self._file.read()
        self._left = list(journal.former) if journal is not None else []
        self._pending = journal is not None

    def check_forgotten(self) -> None:
        """Raises Busy: a node that is let in now could be taken for its former self."""
        if self._pending:
            raise Busy(f"{', '.join(self._left)}: still being taken off the list of nodes", hint="try again in a moment")

    async def forget(self) -> None:
        """Goes on until it is done: again after each failure, and in the next life."""
        while self._pending:
            try:
                await self._forget_all()
            except (PiccoloError, OSError) as error:
                self._module.log.debug("could not forget a former member yet", reason=str(error))
            await asyncio.sleep(_AGAIN_S)

    async def _forget_all(self) -> None:
        while self._left and self._leads():
            await self._module.call(ForgetNode(node=self._left[0], author=_AUTHOR), timeout_s=_FORGET_S)
            self._module.log.info("forgot a former member", node=self._left.pop(0))
        if not self._left and self._leads():
            await asyncio.to_thread(self._file.remove)
            self._pending = False

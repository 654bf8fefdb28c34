"""A node without its other modules: what the tests of the leaser run on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from piccolod import clock
from piccolod.leadership.page import PageReader, PageWriter, Term, create
from services.consensus.static_leaser import StaticLeaser


class Node:
    """A node's disk and run folder; `run` gives it a consensus for a while."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "terms.db"
        self.page = folder / "page"
        create(self.page)

    def run(self, work: Callable[[StaticLeaser], Awaitable[Any]]) -> Any:
        async def live() -> Any:
            writer = PageWriter(self.page)
            leaser = StaticLeaser(self.file, writer, "n1")
            try:
                await leaser.open()
                return await work(leaser)
            finally:
                await leaser.end()
                writer.close()

        return asyncio.run(live())

    def terms(self) -> dict[str, Term]:
        page = PageReader(self.page).read()
        assert page is not None
        return dict(page.terms)

    def gen(self) -> int:
        page = PageReader(self.page).read()
        assert page is not None
        return page.gen

    def reboot(self, monkeypatch: pytest.MonkeyPatch, boot_id: str) -> None:
        monkeypatch.setattr(clock, "boot_id", lambda: boot_id.ljust(36, "0"))
        create(self.page)

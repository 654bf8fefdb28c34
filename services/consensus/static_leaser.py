"""The leaser of a node alone: every campaign is granted, terms never run out, all of it in SQLite on its own disk.

Order, whatever crashes between two steps: a term is on the disk before it is open on the page; it is closing on the page
before it is closing on the disk; it is closing on the disk before it leaves the page; it left the page before it is released
on the disk. So a restart never opens what was being closed, and never closes what was open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import msgspec

from piccolod import clock
from piccolod.errors import Busy, Conflict, Exists, NotFound, TooMany
from piccolod.leadership.page import CAPACITY, Page, PageWriter, Term
from piccolod.leadership.placement import Standing
from piccolod.leadership.records import ChangeRecord, TermRecord, TermState
from piccolod.leadership.roles import Reason
from piccolod.protocol.consensus import Candidate
from services.consensus.leaser import Place
from services.consensus.term_store import TermStore, open_store

T = TypeVar("T")


class StaticLeaser:
    """Leads on this node alone. See `Leaser` for what each method promises."""

    def __init__(self, file: Path, page: PageWriter, node: str, address: str = "") -> None:
        self._file = file
        self._page = page
        self._node = node
        self._address = address
        self._boot_id = clock.boot_id()
        self._sid = 0
        self._records: Mapping[str, TermRecord] = MappingProxyType({})
        # One thread: changes are in one order, and a caller that is cancelled leaves none of them half done.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="terms")
        self._store: TermStore | None = None

    async def open(self) -> None:
        await self._run(self._open)

    def records(self) -> Mapping[str, TermRecord]:
        return self._records

    def hard_at(self, record: TermRecord) -> float:
        return clock.FOREVER

    def place(self, node: str) -> Place:
        return Place(self._address, "")

    def nodes(self) -> Mapping[str, str]:
        return {self._node: ""}

    def candidates(self, resource: str) -> tuple[Candidate, ...]:
        record = self._records.get(resource)
        if record is None:
            return (Candidate(node=self._node, eligible=False, reason="has not campaigned yet"),)
        if record.state is TermState.OPEN:
            return (Candidate(node=record.node, eligible=True, reason="leads it"),)
        if record.state is TermState.CLOSING:
            return (Candidate(node=record.node, eligible=False, reason="its term is being closed"),)
        return (Candidate(node=self._node, eligible=False, reason=f"does not campaign: {record.reason}"),)

    async def switchover(self, resource: str, to: str) -> None:
        """There is nobody to hand over to: each refusal says which of the reasons it is."""
        if to == self._node:
            raise Exists(f"{self._node} is the only node and keeps {resource}")
        if to:
            raise NotFound(f"there is no node {to}", hint=f"this is a node alone: {self._node}")
        raise Conflict(f"{self._node} is a node alone: there is nobody to hand {resource} over to")

    async def give_away(self, resource: str) -> None:
        raise Conflict(f"{self._node} is a node alone: nobody could take {resource}")

    async def pause(self, on: bool, author: str) -> None:
        raise Conflict(f"{self._node} is a node alone: nothing moves anyway")

    async def drain(self, node: str, on: bool, author: str) -> None:
        raise Conflict(f"{self._node} is a node alone: there is nobody to hand over to")

    def trouble(self) -> str:
        return ""

    def stand(self, apps: Mapping[str, Standing]) -> None:
        """Every campaign is granted, and nobody else hears it."""

    async def tell_phases(self, resource: str, token: int, at: Mapping[str, float]) -> None:
        """The history of a node alone says who led."""

    def standings(self) -> Mapping[str, Mapping[str, Standing]]:
        return {}

    async def campaign(self, resource: str, reason: Reason) -> TermRecord:
        return await self._run(lambda: self._campaign(resource, reason))

    async def close(self, resource: str, token: int) -> None:
        await self._run(lambda: self._close(resource, token))

    async def release(self, resource: str, token: int, reason: Reason) -> None:
        await self._run(lambda: self._release(resource, token, reason))

    async def history(self, resource: str | None, limit: int) -> tuple[ChangeRecord, ...]:
        return await self._run(lambda: self._opened.history(resource, limit))

    async def leave(self) -> None:
        """Nobody waits for the terms of a node alone; the next start goes on in them."""

    async def end(self) -> None:
        if self._store is not None:
            await self._run(self._store.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @property
    def _opened(self) -> TermStore:
        assert self._store is not None, "open() comes first"
        return self._store

    # --- everything below runs in the one thread

    def _open(self) -> None:
        page = self._page.read()
        self._store = store = open_store(self._file, page.gen if page is not None else 0)
        on_page = page.terms if page is not None and page.boot_id == self._boot_id else {}
        boot_id, sid = store.session()
        records = store.terms()
        found = resumed(records, on_page, self._node, store.gen) if boot_id == self._boot_id else ended(records)
        if boot_id != self._boot_id or found != records:
            with store.change() as revision:
                if boot_id != self._boot_id:
                    sid = revision
                    store.set_session(self._boot_id, sid)
                    for record in (records[name] for name in records if records[name].held):
                        store.add_history(_change(record, record.node, "", Reason.EXPIRED))
                    # A store of terms that was lost in mid-flight: the containers of this boot live, so do their terms.
                    found = resumed(found, on_page, self._node, store.gen)
                for record in found.values():
                    store.put(record)
                store.raise_revision(max((record.token for record in found.values()), default=0))
        self._sid = sid
        self._show(found)

    def _campaign(self, resource: str, reason: Reason) -> TermRecord:
        last = self._records.get(resource)
        if last is not None and last.state is TermState.OPEN:
            return last
        if last is not None and last.state is TermState.CLOSING:
            raise Busy(f"epoch {last.epoch} of {resource} is being closed", hint="it can be led again once that is done")
        if sum(record.held for record in self._records.values()) >= CAPACITY:
            raise TooMany(f"this node leads {CAPACITY} resources already", hint="uninstall or stop an app")
        if last is not None and reason is Reason.BOOTSTRAP:
            reason = last.reason
        with self._opened.change() as revision:
            record = TermRecord(
                resource=resource, gen=self._opened.gen, epoch=last.epoch + 1 if last else 1, token=revision, sid=self._sid,
                node=self._node, state=TermState.OPEN, reason=reason, since_ms=clock.wall_ms(),
            )  # fmt: skip
            self._opened.put(record)
            self._opened.add_history(_change(record, last.node if last else "", self._node, reason))
        self._show({**self._records, resource: record})
        return record

    def _close(self, resource: str, token: int) -> None:
        record = self._current(resource, token)
        if record is None or not record.held:
            return
        if record.state is TermState.OPEN:
            record = msgspec.structs.replace(record, state=TermState.CLOSING, closing_at=clock.now())
            self._show({**self._records, resource: record})
        elif self._opened.terms().get(resource) == record:  # else the disk refused it the last time
            return
        with self._opened.change():
            self._opened.put(record)

    def _release(self, resource: str, token: int, reason: Reason) -> None:
        record = self._current(resource, token)
        if record is None or not record.held:
            return
        closing_at = record.closing_at or clock.now()
        record = msgspec.structs.replace(record, state=TermState.CLOSING, closing_at=closing_at)
        self._show({**self._records, resource: record})
        with self._opened.change():
            self._opened.put(record)
        self._write_page({name: other for name, other in self._records.items() if name != resource})
        over = msgspec.structs.replace(
            record, state=TermState.RELEASED, reason=reason, since_ms=clock.wall_ms(), closing_at=None
        )
        with self._opened.change():
            self._opened.put(over)
            phases = {"closing": round((clock.now() - closing_at) * 1000, 3)}
            self._opened.add_history(_change(over, self._node, "", reason, phases))
        self._show({**self._records, resource: over})

    def _current(self, resource: str, token: int) -> TermRecord | None:
        """The term that `token` names; `None` when it is over. Raises Conflict for a token that never was."""
        record = self._records.get(resource)
        if record is None or token > record.token:
            raise Conflict(f"{token} is no token of {resource}", hint="campaign first")
        return record if record.token == token else None

    def _show(self, records: Mapping[str, TermRecord]) -> None:
        self._write_page(records)
        self._records = MappingProxyType(dict(records))

    def _write_page(self, records: Mapping[str, TermRecord]) -> None:
        """Puts the held terms on the page; leaves it untouched when it says so already."""
        terms = {
            record.resource: Term(record.token, record.epoch, record.state is TermState.CLOSING)
            for record in records.values()
            if record.held
        }
        wanted = Page(0, self._opened.gen, self._sid, 0, self._boot_id, clock.FOREVER, clock.FOREVER, terms)
        current = self._page.read()
        if current is None or current._replace(seq=0) != wanted:
            self._page.write(wanted)


def resumed(records: Mapping[str, TermRecord], on_page: Mapping[str, Term], node: str, gen: int) -> dict[str, TermRecord]:
    """The terms of the same boot after a crash, from the disk and the page: the higher token wins, closing beats open."""
    found = dict(records)
    for resource, term in on_page.items():
        record = found.get(resource)
        if record is None or record.token < term.token:
            found[resource] = TermRecord(
                resource=resource, gen=gen, epoch=term.epoch, token=term.token, sid=0, node=node,
                state=TermState.CLOSING if term.closing else TermState.OPEN,
                reason=Reason.BOOTSTRAP, since_ms=clock.wall_ms(),
            )  # fmt: skip
        elif record.token == term.token and term.closing and record.state is TermState.OPEN:
            found[resource] = msgspec.structs.replace(record, state=TermState.CLOSING)
    return found


def ended(records: Mapping[str, TermRecord]) -> dict[str, TermRecord]:
    """The terms after a reboot: what was held has expired with the boot, for all its effects died."""
    return {
        name: msgspec.structs.replace(
            record, state=TermState.RELEASED, reason=Reason.EXPIRED, since_ms=clock.wall_ms(), closing_at=None
        )
        if record.held
        else record
        for name, record in records.items()
    }


def _change(
    record: TermRecord, from_node: str, to_node: str, reason: Reason, phases: dict[str, float] | None = None
) -> ChangeRecord:
    return ChangeRecord(
        resource=record.resource, epoch=record.epoch, at_ms=clock.wall_ms(),
        from_node=from_node, to_node=to_node, reason=reason, phases=phases or {},
    )  # fmt: skip

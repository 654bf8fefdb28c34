"""Lives of a leaser that end by kill -9: whatever the instant, the next one knows all that was said, and no more than that."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from piccolod.leadership.page import Page, PageReader, PageWriter, Term
from piccolod.leadership.records import TermRecord, TermState
from piccolod.leadership.roles import Reason
from services.consensus.static_leaser import StaticLeaser
from services.consensus.term_store import TermStore

from .nodes import Node

_FIRST_LINE_S = 10.0
# The opening and a step pass at most 14: so these are all instants of the first steps, whatever they are.
_INSTANTS = range(1, 61)


class Known(NamedTuple):
    """How far a resource has come."""

    epoch: int
    token: int
    state: TermState


def follows(before: Known | None, after: Known) -> bool:
    """Whether one call of the leaser leads from one to the other."""
    if before is None:
        return after.epoch == 1 and after.state is TermState.OPEN
    if after.token == before.token:
        order = list(TermState)
        return after.epoch == before.epoch and order.index(after.state) > order.index(before.state)
    opened = after.token > before.token and after.epoch == before.epoch + 1 and after.state is TermState.OPEN
    return opened and before.state is TermState.RELEASED


class Witness:
    """Runs lives on a node and holds each against all that was said and seen before.

    A life ends in at most one call whose answer nobody heard. What is seen after it is known from then on: else such calls
    of two lives would add up to a term that ended and another that began, and nothing of it said.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.known: dict[str, Known] = {}
        self.tokens: dict[int, tuple[str, int]] = {}
        self.said = 0

    def live(self, life: Callable[[int], None], wait: Callable[[int, int], None]) -> None:
        """`life` gets where to report, `wait` gets where its reports come from and its pid, and returns when to kill it."""
        receive, report = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                life(report)
            finally:
                os._exit(1)
        os.close(report)
        with os.fdopen(receive) as lines:
            try:
                wait(receive, child)
            finally:
                os.kill(child, signal.SIGKILL)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == -signal.SIGKILL, "it lives until it is killed"
            for line in lines:
                self._hear(*json.loads(line))
        self._look()

    def _hear(self, resource: str, epoch: int, token: int, state: str) -> None:
        self.said += 1
        heard = Known(epoch, token, TermState(state))
        assert follows(self.known.get(resource), heard)
        assert self.tokens.setdefault(token, (resource, epoch)) == (resource, epoch), "no token names two terms"
        self.known[resource] = heard

    def _look(self) -> None:
        page = PageReader(self.node.page).read()
        assert page is not None, "the page is whole at every instant"
        disk = self._disk()
        records: dict[str, TermRecord] = self.node.run(_records)
        seen = {name: Known(record.epoch, record.token, record.state) for name, record in records.items()}
        assert self.known.keys() <= seen.keys()
        ahead = [name for name in seen if seen[name] != self.known.get(name)]
        assert len(ahead) <= 1, "one call was under way"
        for name in ahead:
            assert follows(self.known.get(name), seen[name])
        for name, now in seen.items():
            on_page = page.terms.get(name)
            if on_page is not None and not on_page.closing:
                assert now == Known(on_page.epoch, on_page.token, TermState.OPEN), "what was open is not closed by a crash"
                assert name in disk and disk[name].token == on_page.token, "it was on the disk before it was open"
            elif now.state is TermState.OPEN:
                assert now.token not in self.tokens, "what was shut, or had left the page, does not open again"
            assert self.tokens.setdefault(now.token, (name, now.epoch)) == (name, now.epoch), "no token names two terms"
        held = {name: now for name, now in seen.items() if now.state is not TermState.RELEASED}
        assert self.node.terms() == {
            name: Term(now.token, now.epoch, now.state is TermState.CLOSING) for name, now in held.items()
        }
        self.known = seen

    def _disk(self) -> dict[str, TermRecord]:
        """What lies on the disk, read from a copy: the next life has to recover the log by itself."""
        copy = self.node.file.with_name("copy.db")
        for suffix in ("", "-wal"):
            part = self.node.file.with_name(self.node.file.name + suffix)
            if part.exists():
                shutil.copyfile(part, copy.with_name(copy.name + suffix))
        store = TermStore(copy, lambda: 1)
        terms = store.terms()
        store.close()
        return terms


async def _records(leaser: StaticLeaser) -> dict[str, TermRecord]:
    return dict(leaser.records())


def _say(report: int, resource: str, record: TermRecord, state: TermState) -> None:
    os.write(report, json.dumps([resource, record.epoch, record.token, state]).encode() + b"\n")


def _step_by_chance(node: Node, report: int, rng: random.Random) -> None:
    async def work(leaser: StaticLeaser) -> None:
        while True:
            resource = f"app:{rng.choice('abc')}"
            record = leaser.records().get(resource)
            if record is None or not record.held:
                _say(report, resource, await leaser.campaign(resource, Reason.BOOTSTRAP), TermState.OPEN)
            elif record.state is TermState.OPEN and rng.random() < 0.7:
                await leaser.close(resource, record.token)
                _say(report, resource, record, TermState.CLOSING)
            else:
                await leaser.release(resource, record.token, Reason.RELEASED)
                _say(report, resource, record, TermState.RELEASED)

    node.run(work)


def _die_at(instant: int) -> None:
    """This process ends at the so-manyth instant between two writes to the disk or to the page."""
    passed = itertools.count(1)
    change, write = TermStore.change, PageWriter.write

    def pass_instant() -> None:
        if next(passed) == instant:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def mortal_change(store: TermStore) -> Iterator[int]:
        pass_instant()
        with change(store) as revision:
            yield revision
            pass_instant()
        pass_instant()

    def mortal_write(writer: PageWriter, page: Page) -> Page:
        pass_instant()
        written = write(writer, page)
        pass_instant()
        return written

    TermStore.change = mortal_change  # type: ignore[method-assign, assignment]
    PageWriter.write = mortal_write  # type: ignore[method-assign, assignment]


def _until_it_dies(receive: int, child: int) -> None:
    died = os.pidfd_open(child)
    try:
        assert select.select([died], [], [], _FIRST_LINE_S)[0], "it reaches its last instant"
    finally:
        os.close(died)


def test_kill_9_at_any_instant_forgets_nothing_that_was_said(node: Node) -> None:
    witness = Witness(node)
    for life in range(40):

        def at_random(receive: int, child: int, after_a_word: bool = life % 2 == 1) -> None:
            if after_a_word:
                assert select.select([receive], [], [], _FIRST_LINE_S)[0], "it does something"
            time.sleep(random.uniform(0, 0.06))  # a random instant is the point

        rng = random.Random(life)
        witness.live(lambda report, rng=rng: _step_by_chance(node, report, rng), at_random)  # type: ignore[misc]
    assert witness.said >= 20, "every second life said something"


@pytest.mark.parametrize("seed", [1, 2])
def test_death_between_any_two_writes_of_any_life_leaves_what_was_said_and_at_most_one_step_more(node: Node, seed: int) -> None:
    witness = Witness(node)
    rng = random.Random(seed)
    for instant in itertools.chain(_INSTANTS, _INSTANTS):

        def life(report: int, instant: int = instant, rng: random.Random = rng) -> None:
            _die_at(instant)
            _step_by_chance(node, report, rng)

        witness.live(life, _until_it_dies)
        rng = random.Random(rng.random())
    assert witness.said > len(_INSTANTS)


@pytest.mark.parametrize("resource", ["kernel", "app:a"])
def test_a_term_may_end_and_the_next_begin_unsaid_when_each_answer_is_cut_off_by_a_death(node: Node, resource: str) -> None:
    witness = Witness(node)

    async def begin(leaser: StaticLeaser, report: int) -> None:
        _say(report, resource, await leaser.campaign(resource, Reason.BOOTSTRAP), TermState.OPEN)

    async def end_unheard(leaser: StaticLeaser, report: int) -> None:
        await leaser.release(resource, leaser.records()[resource].token, Reason.RELEASED)

    async def begin_unheard(leaser: StaticLeaser, report: int) -> None:
        await leaser.campaign(resource, Reason.BOOTSTRAP)

    for call in (begin, end_unheard, begin_unheard):

        def life(report: int, call: Callable[[StaticLeaser, int], Awaitable[None]] = call) -> None:
            async def work(leaser: StaticLeaser) -> None:
                await call(leaser, report)
                os.kill(os.getpid(), signal.SIGKILL)

            node.run(work)

        witness.live(life, _until_it_dies)
    assert witness.said == 1
    assert (witness.known[resource].epoch, witness.known[resource].state) == (2, TermState.OPEN)

"""A loop of consensus whose news cannot be taken up yet lets everything else have its turn: a stuck one is killed after 0.4 s."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from piccolod.leadership.placement import Standing
from services.consensus.cluster_records import CandidateRecord
from services.consensus.draining import Drainer
from services.consensus.registration import Registration
from services.consensus.sightings import Sightings


class Driver:
    """Stands for the real one, whose `until` returns without a pause when the condition is true already."""

    def __init__(self, **state: Any) -> None:
        view = SimpleNamespace(sessions={"n1": None, "n2": None}, shape=1)
        self.state = SimpleNamespace(config=SimpleNamespace(node="n1"), view=view, restored=False, session=None, lease_id=0,
                                     **state)  # fmt: skip
        self.facts = SimpleNamespace(
            candidates={"n2": CandidateRecord(True, "")}, nodes={}, paused=False, drained={}, known=True
        )

    async def until(self, condition: Any, within_s: float | None = None) -> bool:
        if condition():
            return True
        await asyncio.sleep(within_s or 0)
        return bool(condition())


async def lets_others_run(work: Any) -> None:
    task = asyncio.create_task(work)
    try:
        async with asyncio.timeout(1):
            await asyncio.sleep(0.01)
    finally:
        task.cancel()
    assert not task.done()


def test_sightings_while_nothing_is_settled(tmp_path: Path) -> None:
    async def main() -> None:
        sightings = Sightings(Driver(settled=False), tmp_path / "sightings.json", None)  # type: ignore[arg-type]
        await lets_others_run(sightings.run())

    asyncio.run(main())


def test_what_a_node_says_of_itself_is_no_news_while_it_has_no_session_or_lease() -> None:
    registration = Registration.__new__(Registration)
    registration._driver = Driver(settled=True)  # type: ignore[assignment]
    registration._put_at, registration._nodes, registration._paused = float("-inf"), {}, False
    registration._drained = False
    registration._wishes, registration.standings = {}, {"blog": Standing()}
    assert not registration._has_news()
    registration._driver.state.session, registration._driver.state.lease_id = SimpleNamespace(sid=1), 7  # type: ignore[misc]
    assert registration._has_news()


def test_that_no_node_is_listed_any_more_is_no_news_that_could_be_taken_up() -> None:
    registration = Registration.__new__(Registration)
    registration._driver = Driver(settled=True)  # type: ignore[assignment]
    registration._put_at, registration._paused, registration._drained = float("-inf"), False, False
    registration._wishes, registration.standings = {}, {}
    registration._nodes = {"n1": None}  # type: ignore[dict-item]
    assert not registration._has_news()


def test_a_drained_node_that_keeps_what_it_leads() -> None:
    async def main() -> None:
        driver = Driver(terms={"app:blog": None})
        driver.facts.drained = {"n1": None}
        driver.state.view.epochs = {}
        await lets_others_run(Drainer(driver, "n1", None, None, dict, None).run())  # type: ignore[arg-type]

    asyncio.run(main())

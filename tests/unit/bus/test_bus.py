"""Events and commands between real processes over the real broker."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq

from piccolod import errors
from piccolod.bus.envelope import Header, encode
from piccolod.link import Link
from piccolod.module import Module, await_start
from piccolod.protocol.base import Level
from piccolod.protocol.consensus import Campaign
from piccolod.protocol.events import Audit, HealthChanged, LockStateChanged, NodeStateChanged
from piccolod.protocol.telemetry import GetEvents, GetMetrics
from tests.unit.bus.nursery import Nursery


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        nursery = Nursery(Path(folder))
        try:
            nursery.start("broker", "broker.__main__:main")
            nursery.await_message("broker", "READY")
            yield nursery
        finally:
            nursery.close()


@asynccontextmanager
async def api(nursery: Nursery) -> AsyncIterator[Module]:
    """This very process as the module `api`."""
    link, theirs = Link.pair()
    nursery.admit("api", os.getpid(), link)
    ours = Link(theirs)
    start, fds = await_start(ours)
    async with asyncio.TaskGroup() as tasks:
        module = Module(ours, start, fds, tasks)
        module.open()
        try:
            yield module
        finally:
            module.close()
            ours.close()


_FINE = HealthChanged(component="broker", level=Level.OK)


def _explode(event: HealthChanged) -> None:
    raise ZeroDivisionError(event.component)


async def until(condition: Callable[[], bool], what: str, within_s: float = 5.0) -> None:
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.005)


def in_loop(test: Callable[[Nursery], Awaitable[None]]) -> Callable[[Nursery], None]:
    def run(nursery: Nursery) -> None:
        asyncio.run(test(nursery))  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_loop
async def test_a_command_is_answered_and_the_caller_is_known_by_its_process(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        reply = await module.call(GetMetrics())
        assert reply.text == f"api {os.getpid()}"


@in_loop
async def test_an_error_arrives_as_it_was_raised(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        with pytest.raises(errors.NotFound) as caught:
            await module.call(GetEvents(type="missing"))
        assert caught.value.hint == "look elsewhere"
        assert caught.value.errors == (errors.Problem("a.b", "bad", 3, 4),)


@in_loop
async def test_a_bug_in_a_handler_is_named_without_its_data_and_the_module_lives(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        with pytest.raises(errors.Failed) as caught:
            await module.call(GetEvents(type="bug"))
        assert "KeyError" in caught.value.detail
        assert "secret" not in caught.value.detail
        assert (await module.call(GetEvents())).last_id == 2


@in_loop
async def test_what_the_caller_may_not_call_is_refused(nursery: Nursery) -> None:
    nursery.start("consensus", "tests.unit.bus.samples:consensus")
    async with api(nursery) as module:
        with pytest.raises(errors.Forbidden):
            await module.call(Campaign(resource="kernel"))


@in_loop
async def test_a_call_ends_at_its_deadline(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        await module.call(GetMetrics())
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            await module.call(GetEvents(type="slow"), timeout_s=0.2)
        assert 0.15 < time.monotonic() - began < 1.0


@in_loop
async def test_a_command_that_waited_too_long_for_its_module_is_not_run(nursery: Nursery) -> None:
    async with api(nursery) as module:
        with pytest.raises(errors.DeadlineExceeded):
            await module.call(GetEvents(), timeout_s=0.1)
        nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
        assert (await module.call(GetEvents())).last_id == 1


@in_loop
async def test_a_retry_with_the_same_key_gets_the_first_result(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        first = await module.call(GetEvents(), idem="k1")
        again = await module.call(GetEvents(), idem="k1")
        other = await module.call(GetEvents(), idem="k2")
        assert (first.last_id, again.last_id, other.last_id) == (1, 1, 2)


@in_loop
async def test_a_call_in_flight_fails_at_once_when_its_module_is_replaced(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        await module.call(GetMetrics())
        call = asyncio.ensure_future(module.call(GetEvents(type="slow"), timeout_s=20))
        await asyncio.sleep(0.1)
        nursery.kill("telemetry")
        began = time.monotonic()
        nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
        with pytest.raises(errors.PeerRestarted):
            await call
        assert time.monotonic() - began < 2.0
        assert (await module.call(GetEvents())).last_id == 1


@in_loop
async def test_a_late_joiner_gets_the_last_value_of_a_state(nursery: Nursery) -> None:
    nursery.start("consensus", "tests.unit.bus.samples:consensus")
    nursery.await_message("consensus", "READY")
    await asyncio.sleep(0.2)
    seen: list[NodeStateChanged] = []
    async with api(nursery) as module:
        module.on(NodeStateChanged, seen.append)
        await until(lambda: bool(seen), "the last value")
        assert seen == [NodeStateChanged(node="n1", state="alive")]


@in_loop
async def test_state_is_said_again_after_the_broker_died(nursery: Nursery) -> None:
    nursery.start("consensus", "tests.unit.bus.samples:consensus")
    resynced: list[bool] = []
    seen: list[NodeStateChanged] = []
    async with api(nursery) as module:
        module.on(NodeStateChanged, seen.append)
        module.on_resync(lambda: resynced.append(True))
        await until(lambda: bool(seen), "the first value")
        seen.clear()
        nursery.kill("broker")
        nursery.start("broker", "broker.__main__:main")
        await until(lambda: bool(seen), "the value after the new broker")
        await until(lambda: bool(resynced), "the word that something may be lost")


@in_loop
async def test_a_reader_that_lost_events_is_told_and_ends_with_the_last_value(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        seen: list[HealthChanged] = []
        resynced: list[bool] = []
        module.on(HealthChanged, seen.append, key="api")
        module.on_resync(lambda: resynced.append(True))
        module.health(Level.OK, "0")
        await until(lambda: bool(seen), "the first")
        # far more than the high-water marks hold, in one go: most are dropped on the way
        for number in range(20_000):
            module.health(Level.OK, str(number))
        module.health(Level.WARN, "end")
        await until(lambda: seen[-1].reason == "end" or bool(resynced), "loss noticed", within_s=10)
        module.health(Level.WARN, "end")
        await until(lambda: seen[-1].reason == "end", f"the last value, saw {seen[-1].reason}", within_s=10)


@in_loop
async def test_an_event_that_its_sender_does_not_own_reaches_nobody_and_is_named(nursery: Nursery) -> None:
    seen: list[object] = []
    health: dict[str, HealthChanged] = {}
    async with api(nursery) as module:
        module.on(LockStateChanged, seen.append)
        module.on(Audit, seen.append)
        module.on(HealthChanged, lambda event: health.update({event.component: event}))
        nursery.start("router.0", "tests.unit.bus.samples:forger")
        await until(lambda: "router.0" in health, "the forger's own event, which it may send")
        await until(lambda: health["broker"].level is Level.WARN, "the broker's warning")
        assert "LockStateChanged" in health["broker"].reason
        assert seen == []
        assert "persistence" not in health


@in_loop
async def test_the_broker_outlives_garbage_and_deep_nests_from_strangers(nursery: Nursery) -> None:
    nest = b"\x9b" + b"\x01" * 10 + b"\x91" * 200_000 + b"\x01"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publish, snapshot = context.socket(zmq.XPUB), context.socket(zmq.DEALER)
    try:
        publish.connect(f"ipc://{nursery.paths.bus_publish}")
        snapshot.connect(f"ipc://{nursery.paths.bus_snapshot}")
        assert await asyncio.to_thread(publish.poll, 3000), "connected"
        for frames in ([b"x"], [b"HealthChanged/|", nest, nest], [b"a", b"b", b"c", b"d"], [b"\xff", b"\xff", b"\xff"]):
            publish.send_multipart(frames)
        for frame in (b"", b"\xc1", nest):
            snapshot.send(frame)
        nursery.start("consensus", "tests.unit.bus.samples:consensus")
        seen: list[NodeStateChanged] = []
        async with api(nursery) as module:
            module.on(NodeStateChanged, seen.append)
            await until(lambda: bool(seen), "an event through the same broker")
        assert nursery.children["broker"].poll() is None
    finally:
        context.destroy(0)


@in_loop
async def test_one_bad_body_does_not_spoil_the_snapshot_of_others(nursery: Nursery) -> None:
    nursery.start("consensus", "tests.unit.bus.samples:consensus")
    nursery.await_message("consensus", "READY")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    forged = context.socket(zmq.XPUB)
    seen: list[NodeStateChanged] = []
    health: dict[str, HealthChanged] = {}
    try:
        async with api(nursery) as module:
            forged.connect(f"ipc://{nursery.paths.bus_publish}")  # this process is `api` to the broker
            assert await asyncio.to_thread(forged.poll, 3000), "connected"
            header = Header(1, "HealthChanged", "api", "api", 1, 0, 0, 0, 0, "")
            forged.send_multipart([b"HealthChanged/api|", encode(header), b"\xc1"])
            module.on(HealthChanged, lambda event: health.update({event.component: event}))
            await until(lambda: health.get("broker", _FINE).level is Level.WARN, "the broker's warning")
            module.on(NodeStateChanged, seen.append)
            await until(lambda: bool(seen), "the last value of another topic")
    finally:
        context.destroy(0)


@in_loop
async def test_an_event_callback_that_raises_ends_the_module_and_loses_nothing_for_others(nursery: Nursery) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with api(nursery) as module:
            module.on(HealthChanged, _explode, key="api")
            module.health(Level.OK)
            await asyncio.sleep(5)
    assert caught.group_contains(ZeroDivisionError)


@in_loop
async def test_an_answer_that_cannot_be_sent_is_a_failure_and_not_silence(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    async with api(nursery) as module:
        with pytest.raises(errors.Failed):
            await module.call(GetEvents(type="unsendable"), timeout_s=3)


@in_loop
async def test_the_very_first_call_to_a_module_fails_at_once_when_it_is_replaced(nursery: Nursery) -> None:
    nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    nursery.await_message("telemetry", "READY")
    async with api(nursery) as module:
        call = asyncio.ensure_future(module.call(GetEvents(type="slow"), timeout_s=20))
        await asyncio.sleep(0.2)
        nursery.kill("telemetry")
        nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
        with pytest.raises(errors.PeerRestarted):
            await asyncio.wait_for(call, 5)


@in_loop
async def test_a_module_ends_at_once_when_its_supervisor_is_gone(nursery: Nursery) -> None:
    child = nursery.start("telemetry", "tests.unit.bus.samples:telemetry")
    nursery.await_message("telemetry", "READY")
    nursery.links.pop("telemetry").close()
    assert child.wait(0.5) == 70

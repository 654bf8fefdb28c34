"""The proof that nothing of a resource acts here: by the leash table, and for the kernel by persistence."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from piccolod.errors import DeadlineExceeded, PeerRestarted
from piccolod.leadership import leash_table
from piccolod.paths import Paths
from piccolod.protocol.log import Drain
from services.consensus.prover import Prover, running


@pytest.fixture
def paths() -> Iterator[Paths]:
    folder = Path(tempfile.mkdtemp(prefix="prove"))
    made = Paths(state=folder / "state", run=folder / "run")
    made.leash.mkdir(parents=True)
    yield made
    shutil.rmtree(folder)


@pytest.fixture
def container() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


class Persistence:
    """Answers to each drain what the test says, in turn; the last again and again."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers) or [None]
        self.asked = 0

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        assert isinstance(request, Drain)
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            await asyncio.sleep(0)
            raise answer


def proven(paths: Paths, resource: str, store: Persistence, *, lives: bool = True, within_s: float = 0.3) -> bool:
    async def main() -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await Prover(paths, store.call, lambda: lives).prove(resource)
                return True
        return False

    return asyncio.run(main())


def arm(paths: Paths, process: subprocess.Popen[bytes], resource: str) -> None:
    leash_table.write(paths.leash, leash_table.entry_of("c1", resource, 7, 1, pid=process.pid, cgroup=""))


def test_nothing_is_proven_while_a_container_of_it_lives(paths: Paths, container: subprocess.Popen[bytes]) -> None:
    arm(paths, container, "app:blog")
    assert running(paths) == {"app:blog"}
    assert not proven(paths, "app:blog", Persistence())
    assert proven(paths, "app:other", Persistence())
    container.kill()
    container.wait()
    assert proven(paths, "app:blog", Persistence())
    assert running(paths) == set()


def test_a_proof_that_waits_ends_when_the_container_does(paths: Paths, container: subprocess.Popen[bytes]) -> None:
    arm(paths, container, "app:blog")

    async def main() -> None:
        proof = asyncio.create_task(Prover(paths, Persistence().call, lambda: True).prove("app:blog"))
        await asyncio.sleep(0.05)
        assert not proof.done()
        container.kill()
        container.wait()
        async with asyncio.timeout(2):
            await proof

    asyncio.run(main())


def test_the_kernel_is_proven_once_persistence_has_drained(paths: Paths) -> None:
    store = Persistence(DeadlineExceeded("silent"), None)
    assert proven(paths, "kernel", store)
    assert store.asked == 2
    assert not proven(paths, "kernel", Persistence(DeadlineExceeded("silent"))), "doubt is silence"


def test_a_persistence_that_died_has_nothing_on_its_way(paths: Paths) -> None:
    assert proven(paths, "kernel", Persistence(PeerRestarted("it died")))
    store = Persistence(DeadlineExceeded("silent"))
    assert proven(paths, "kernel", store, lives=False)
    assert store.asked == 0

"""The leaser of a member of a cluster, on real etcd: claimed, kept, resumed, handed over, lost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

import pytest

from piccolod.protocol.consensus import Campaign
from piccolod.protocol.log import Append, GetEntries, GetHead, SealedEntry
from tests.etcd import Cluster
from tests.unit.consensus.etcd.conftest import eventually
from tests.unit.consensus.etcd.member import GEN, House, house, living


@pytest.fixture
def home(etcd: Cluster) -> Iterator[House]:
    with house(etcd) as made:
        yield made


def entry(rev: int, size: int = 200) -> SealedEntry:
    body = rev.to_bytes(8, "big") * (size // 8)
    return SealedEntry(rev, b"header", b"nonce", body, hashlib.sha256(body).digest())


def test_one_node_claims_the_kernel_appends_and_resumes_its_term_after_a_crash(home: House) -> None:
    async def main() -> None:
        (node,) = await home.begin(1)
        async with living(node) as live:
            term = await live.lead()
            assert (term.gen, term.epoch, term.token) == (GEN, 1, node.token())
            head = await live.ask(GetHead())
            assert (head.rev, head.token, head.leader, head.gen) == (0, term.token, "n1", GEN)
            appended = await live.ask(Append(token=term.token, head_rev=0, head_digest=b"", entries=(entry(1), entry(2))))
            assert appended.rev == 2
            found = await live.ask(GetEntries(after=0))
            assert (found.entries, found.first_rev, found.head_rev) == ((entry(1), entry(2)), 1, 2)
            await eventually(lambda: live.revs() == [2], "the hint of rev 2")
        before = node.page()
        async with living(node) as live:
            again = await live.ask(Campaign(resource="kernel"))
            assert again == term and node.page().sid == before.sid
            appended = await live.ask(Append(token=term.token, head_rev=2, head_digest=entry(2).digest, entries=(entry(3),)))
            assert (await live.ask(GetHead())).rev == 3

    asyncio.run(main())

"""What is asked of an owner's etcd before a node hangs on it, and what a founding that failed leaves there. On real etcd."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from piccolod import clock
from piccolod.config import Etcd
from piccolod.errors import Conflict, Invalid, PiccoloError, StoreFull, StoreUnavailable
from piccolod.leadership import keys
from piccolod.paths import Paths
from piccolod.protocol.cluster import KnownMember
from services.consensus import access, seed
from services.consensus.cluster_records import prefix
from services.consensus.etcd import status
from services.consensus.etcd.client import Client
from services.consensus.etcd.transaction import Put, Transaction
from services.consensus.joining import outside
from services.consensus.joining.folder import Draft
from tests.etcd import Authority, Cluster
from tests.node import free_port

pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")

CLUSTER = "c1"
PREFIX = prefix(CLUSTER)
DRAFT = Draft(cluster=CLUSTER, mark="mine")
ME = KnownMember(address="10.77.0.2", client_url="", rpc="10.77.0.2:7444")


@pytest.fixture(scope="module")
def one() -> Iterator[Cluster]:
    with Cluster(1) as etcd:
        yield etcd


@pytest.fixture(autouse=True)
def _empty(one: Cluster) -> Iterator[None]:
    yield
    one.members[0].ctl("del", "--prefix", "/")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", run=tmp_path / "run")


def owners(*clusters: Cluster) -> Etcd:
    return Etcd(mode="external", endpoints=[f"http://{endpoint}" for etcd in clusters for endpoint in etcd.endpoints])


def names(etcd: Cluster) -> list[str]:
    return etcd.members[0].ctl("get", "--prefix", "--keys-only", "/").split()


@asynccontextmanager
async def opened(paths: Paths, etcd: Etcd) -> AsyncIterator[Client]:
    client = access.external(paths, etcd).client(outside.RPC_S)
    try:
        yield client
    finally:
        await client.close()


def asked(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work()

    return asyncio.run(main())


# --- before a node hangs on it


def refused(paths: Paths, etcd: Etcd, kind: type[PiccoloError]) -> PiccoloError:
    with pytest.raises(kind) as refusal:
        asked(lambda: outside.look(paths, etcd))
    return refusal.value


def test_one_that_will_do_is_known_by_its_id(paths: Paths, one: Cluster) -> None:
    found = asked(lambda: outside.look(paths, owners(one)))
    status_line = one.members[0].ctl("endpoint", "status", "-w", "json")
    assert f'"cluster_id":{found}' in status_line and found
    assert names(one) == [], "a look writes nothing"


def test_every_endpoint_has_to_answer(paths: Paths, one: Cluster) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    etcd = owners(one)
    error = refused(paths, Etcd(mode="external", endpoints=[*etcd.endpoints, nobody]), StoreUnavailable)
    assert f"{nobody.removeprefix('http://')} cannot be reached" in error.detail and "[etcd]" in error.hint


def test_endpoints_of_two_are_not_taken_for_one(paths: Paths, one: Cluster) -> None:
    with Cluster(1) as other:
        error = refused(paths, owners(one, other), Invalid)
        assert f"etcd at {other.endpoints[0]} is another one than that at {one.endpoints[0]}" in error.detail


def test_one_without_a_quorum_is_refused(paths: Paths) -> None:
    with Cluster(3, heartbeat_ms=50, election_ms=400) as three:
        for member in three.members[1:]:
            member.kill()
        single = Etcd(mode="external", endpoints=[f"http://{three.endpoints[0]}"])
        assert "quorum" in refused(paths, single, StoreUnavailable).detail


def test_one_that_is_full_is_refused_by_the_name_of_its_alarm(paths: Paths) -> None:
    with Cluster(1, quota_bytes=4 << 20) as small:
        member = small.members[0]
        for number in range(8):
            member.ctl("put", f"/big{number}", check=False, stdin="x" * 1_000_000)
        error = refused(paths, owners(small), StoreFull)
        assert "alarm NOSPACE" in error.detail and "its owner" in error.hint


def test_one_of_before_3_4_is_refused(paths: Paths, one: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real = status.status

    async def older(client: Client, endpoint: str) -> status.Status:
        import msgspec

        return msgspec.structs.replace(await real(client, endpoint), version="3.3.27")

    monkeypatch.setattr(status, "status", older)
    assert "3.3.27, and 3.4 is the oldest" in refused(paths, owners(one), Invalid).detail


def test_certificates_that_are_not_of_its_authority_are_of_no_use(paths: Paths, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "pki"), Authority(tmp_path / "other")
    with Cluster(1, authority) as etcd:
        url = f"https://{etcd.endpoints[0]}"
        good = Etcd(mode="external", endpoints=[url], ca=str(authority.ca), **files(authority))
        assert asked(lambda: outside.look(paths, good))
        for wrong in (
            Etcd(mode="external", endpoints=[url], ca=str(authority.ca), **files(stranger)),
            Etcd(mode="external", endpoints=[url], ca=str(stranger.ca), **files(authority)),
        ):
            assert "one of us refuses the other" in refused(paths, wrong, StoreUnavailable).detail
        absent = Etcd(mode="external", endpoints=[url], ca=str(tmp_path / "none.pem"), **files(authority))
        assert "none.pem: No such file" in refused(paths, absent, StoreUnavailable).detail


def files(authority: Authority) -> dict[str, str]:
    cert, key = authority.sign("n1")
    return {"cert": str(cert), "key": str(key)}


# --- a founding


def test_a_founding_that_failed_takes_away_what_it_wrote_and_nothing_else(paths: Paths, one: Cluster) -> None:
    etcd = owners(one)

    async def main() -> None:
        async with opened(paths, etcd) as client:
            others = Transaction((), (Put(prefix("c2") + keys.GEN, b"another cluster"), Put("/other", b"x")))
            await client.transact(others, 2.0)
            assert 0 < await outside.claim(client, DRAFT) < 2.0
            await seed.put_gen(client, PREFIX, 7)
            await seed.put_node(client, PREFIX, "n1", ME)
        await outside.forget(DRAFT, paths, etcd)

    asyncio.run(main())
    assert sorted(names(one)) == ["/other", "/piccolo/c2/gen"]


def test_a_cluster_of_the_same_id_is_neither_founded_over_nor_taken_away(paths: Paths, one: Cluster) -> None:
    """A copy of the node's disk from before it founded its cluster has the same id."""
    etcd = owners(one)

    async def main() -> None:
        async with opened(paths, etcd) as client:
            await outside.claim(client, DRAFT)
            copy = Draft(cluster=CLUSTER, mark="a copy's")
            with pytest.raises(Conflict, match="holds the cluster c1 already") as refusal:
                await outside.claim(client, copy)
            assert f"etcdctl del --prefix {PREFIX}" in refusal.value.hint
            await outside.forget(copy, paths, etcd)
            await seed.put_gen(client, PREFIX, 7)
            await outside.settle(client, DRAFT)
            with pytest.raises(Conflict, match="holds the cluster c1 already"):
                await outside.claim(client, copy)
        await outside.forget(DRAFT, paths, etcd)  # it is founded: the mark counts no more

    asyncio.run(main())
    assert names(one) == [PREFIX + keys.GEN]


def test_what_cannot_be_taken_away_now_is_said(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "_GIVE_UP_S", 0.5)
    nobody = Etcd(mode="external", endpoints=[f"http://127.0.0.1:{free_port()}"])
    began_at = clock.now()
    with pytest.raises(StoreUnavailable, match="what was begun in etcd is still there"):
        asked(lambda: outside.forget(DRAFT, paths, nobody))
    assert clock.now() - began_at < 5


# --- a join


def test_a_joiner_finds_the_cluster_that_let_it_in_or_says_that_it_is_not_there(paths: Paths, one: Cluster) -> None:
    etcd = owners(one)

    async def main() -> None:
        with pytest.raises(Conflict, match="the cluster c1 that let it in: it is not there"):
            await outside.enter(paths, etcd, CLUSTER, "n2", ME)
        async with opened(paths, etcd) as client:
            await seed.put_gen(client, PREFIX, 7)
            with pytest.raises(Conflict, match="the cluster c1 that let it in: it is not there"):
                await outside.enter(paths, etcd, CLUSTER, "n2", ME)
            await seed.put_node(client, PREFIX, "n2", ME)
        await outside.enter(paths, etcd, CLUSTER, "n2", ME)

    asyncio.run(main())


def test_one_that_lets_a_node_read_and_not_write_is_no_etcd_for_a_member(paths: Paths, tmp_path: Path) -> None:
    """By the roles of etcd itself, which it has from the name in a certificate."""
    authority = Authority(tmp_path / "pki")
    with Cluster(1, authority) as etcd:
        ctl = etcd.members[0].ctl
        ctl("user", "add", "root:x")
        ctl("user", "grant-role", "root", "root")
        for name, kind in (("n1", "readwrite"), ("n2", "read")):
            ctl("user", "add", f"{name}:x")
            ctl("role", "add", name)
            ctl("role", "grant-permission", "--prefix=true", name, kind, "/piccolo/")
            ctl("user", "grant-role", name, name)
        ctl("auth", "enable")

        def of(name: str) -> Etcd:
            cert, key = authority.sign(name)
            return Etcd(
                mode="external", endpoints=[f"https://{etcd.endpoints[0]}"], ca=str(authority.ca), cert=str(cert), key=str(key)
            )

        async def main() -> None:
            assert await outside.look(paths, of("n1")) == await outside.look(paths, of("n2"))
            async with opened(paths, of("n1")) as client:
                await outside.claim(client, DRAFT)
                await seed.put_gen(client, PREFIX, 7)
                await seed.put_node(client, PREFIX, "n2", ME)
            with pytest.raises(Conflict, match="permission denied") as refusal:
                await outside.enter(paths, of("n2"), CLUSTER, "n2", ME)
            assert "nodes remove n2" in refusal.value.hint
            await outside.enter(paths, of("n1"), CLUSTER, "n2", ME)

        asyncio.run(main())

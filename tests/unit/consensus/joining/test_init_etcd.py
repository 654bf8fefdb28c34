"""`cluster init` against a real etcd, with persistence and the terms of the node alone played: what it moves, and when it gives up."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from piccolod import clock, cluster_mode, config
from piccolod.errors import Conflict
from piccolod.leadership import keys, page
from piccolod.leadership.page import Page, PageWriter, Term
from piccolod.leadership.records import TermRecord, TermState
from piccolod.leadership.roles import Reason
from piccolod.leadership.timing import PROFILES, Choice
from piccolod.pki.authority import Authority
from piccolod.pki.identity import Identity
from piccolod.protocol.cluster import InitCluster
from piccolod.protocol.joining import IssueCertificate, Issued
from piccolod.protocol.log import Exported, ExportLog, SealedEntry
from piccolod.protocol.persistence import CryptoStatus
from services.consensus import cluster_records, wire
from services.consensus.etcd.client import Client
from services.consensus.joining import init, measure
from services.consensus.joining.folder import Folder
from services.consensus.joining.init import Init
from tests.etcd import Cluster

pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")
CLUSTER = "c"
PAGE_GEN = 7
STATUS = CryptoStatus(
    initialized=True, locked=False, has_recovery=True, keyset_version=1, cluster_id=CLUSTER, reason=""
)  # fmt: skip


@pytest.fixture
def etcd() -> Iterator[Cluster]:
    with Cluster(1) as cluster:
        yield cluster


class Alone:
    """A node that leads its own store. At each held export a write is there that came since, while the term is open.

    `late`: one more comes at that export after the term was closed, as one does whose sync took long.
    """

    def __init__(self, folder: Path, gen: int = PAGE_GEN, extra_config: str = "") -> None:
        self.config = config.parse(
            f'[node]\nname = "n1"\naddress = "10.0.0.1"\nstate_dir = "{folder}/state"\nrun_dir = "{folder}/run"\n{extra_config}'
        )
        self.paths = self.config.paths
        self.paths.run.mkdir()
        self.paths.consensus.mkdir(parents=True)
        page.create(self.paths.page)
        self.log = structlog.get_logger()
        self.authority = Authority.create(CLUSTER)
        self.gen = gen
        self.rev = 5
        self.open = True
        self.late = 0
        self.did: list[str] = []
        writer = PageWriter(self.paths.page)
        terms = {"kernel": Term(1_000, 3, False)}
        writer.write(Page(0, PAGE_GEN, 900, 0, clock.boot_id(), clock.FOREVER, clock.FOREVER, terms))
        writer.close()

    # --- the module

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        if isinstance(request, IssueCertificate):
            signed = self.authority.sign(request.csr, Identity(CLUSTER, "n1"), request.address, time.time())
            return Issued(certificate=signed, ca=self.authority.pem)
        assert isinstance(request, ExportLog)
        self.did.append("held export" if request.hold_s else "export")
        since = 0 if self.open else len(self.did) - self.did.index("close") - 1
        self.rev += (self.open and request.hold_s > 0) + (0 < since == self.late)
        revs = range(request.after + 1, min(self.rev, request.after + request.limit) + 1)
        return Exported(
            cluster=CLUSTER, gen=self.gen, head_rev=self.rev, head_digest=b"digest of %d" % self.rev, snapshot=None,
            entries=tuple(SealedEntry(rev, b"h", b"n", b"s", b"digest of %d" % rev) for rev in revs), keyset=b"keyset",
        )  # fmt: skip

    # --- its leaser

    def records(self) -> dict[str, TermRecord]:
        kernel = TermRecord(
            resource="kernel", gen=PAGE_GEN, epoch=3, token=1_000, sid=900, node="n1", state=TermState.OPEN,
            reason=Reason.BOOTSTRAP, since_ms=1,
        )  # fmt: skip
        return {"kernel": kernel}

    async def close(self, resource: str, token: int) -> None:
        assert (resource, token) == ("kernel", 1_000)
        self.open = False
        self.did.append("close")


def found(etcd: Cluster, node: Alone, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Runs it. What etcd has afterwards."""
    timing = PROFILES["balanced"]
    monkeypatch.setattr(measure, "choice", lambda *_: Choice(timing, "test"))
    monkeypatch.setattr(init, "local_client", lambda _: Client(etcd.endpoints, None, rpc_s=2.0))

    async def done() -> None: ...

    async def measured(_: Any) -> measure.Stop:
        return measure.Stop(0.02, "of a container")

    monkeypatch.setattr(measure, "hard_stop", measured)

    supervised: Any = SimpleNamespace(etcd_as_written=done, etcd_ready=done, etcd_gone=done)
    founding = Init(node, node, Folder(node.paths), supervised, InitCluster(profile="auto"))  # type: ignore[arg-type]

    async def main() -> dict[str, bytes]:
        await founding.run(STATUS)
        client = Client(etcd.endpoints, None, rpc_s=2.0)
        try:
            items, _ = await client.list(cluster_records.prefix(CLUSTER), 5)
        finally:
            await client.close()
        return {item.key.removeprefix(cluster_records.prefix(CLUSTER)): item.value for item in items}

    return asyncio.run(main())


def test_the_term_is_closed_before_the_last_of_the_log_is_moved(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that is parked and outlives the hold finds no term, so that nobody is told yes for what no cluster has."""
    node = Alone(tmp_path)
    seen = found(etcd, node, monkeypatch)
    assert node.did[node.did.index("close") :] == ["close", "held export", "held export"]
    head = wire.decode(keys.KERNEL_HEAD, seen[keys.KERNEL_HEAD])
    assert (head.rev, head.digest, head.gen) == (node.rev, b"digest of %d" % node.rev, PAGE_GEN)
    assert cluster_records.log_key(node.rev) in seen
    assert cluster_mode.load(node.paths.cluster) is not None


def test_a_write_that_comes_after_the_log_was_moved_stops_it(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Alone(tmp_path)
    node.late = 2
    with pytest.raises(Conflict, match="while it was moved"):
        found(etcd, node, monkeypatch)
    assert cluster_mode.load(node.paths.cluster) is None and not node.paths.cluster.exists()


@pytest.mark.parametrize(("gen", "kept"), [(PAGE_GEN, True), (PAGE_GEN + 1, False)])
def test_the_gen_of_the_cluster_is_not_below_the_one_that_wrote_last(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gen: int, kept: bool
) -> None:
    """A repair that lost revs raises it: the cluster could never write on such a log under the gen of the terms."""
    node = Alone(tmp_path, gen)
    seen = found(etcd, node, monkeypatch)
    begun = wire.decode(keys.GEN, seen[keys.GEN]).gen
    assert begun >= gen and (begun == PAGE_GEN) is kept
    assert wire.decode(keys.EPOCH + "kernel", seen[keys.EPOCH + "kernel"]).held is kept


def test_a_log_whose_gen_rises_while_it_moves_is_moved_again(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Alone(tmp_path)
    close = node.close

    async def closed(resource: str, token: int) -> None:
        await close(resource, token)
        node.gen = PAGE_GEN + 1

    monkeypatch.setattr(node, "close", closed)
    with pytest.raises(Conflict, match="another gen"):
        found(etcd, node, monkeypatch)
    assert cluster_mode.load(node.paths.cluster) is None

"""A recovery against a real etcd that stands for the new one, with persistence played: what it holds, and what a failure leaves."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from piccolod import clock, cluster_mode, config, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.errors import Failed, StoreCorrupt
from piccolod.leadership import keys
from piccolod.leadership.events import Memory
from piccolod.leadership.keys import EpochRecord, GenRecord
from piccolod.protocol.cluster import KnownMember, Timing
from piccolod.protocol.log import Exported, ExportLog, SealedEntry
from services.consensus import cluster_records, members_file, wire
from services.consensus.etcd.client import Client
from services.consensus.joining import recovery
from services.consensus.joining.folder import Folder
from services.consensus.joining.recovery import Plan, Recovering
from services.consensus.joining.recovery_journal import Journal, JournalFile, Stage
from services.consensus.memory import MemoryFile
from tests.etcd import Cluster

pytestmark = pytest.mark.skipif(not shutil.which("etcd"), reason="needs etcd")

CLUSTER = "c"
PREFIX = cluster_records.prefix(CLUSTER)
MODE = Mode(cluster=CLUSTER, node="n1", since_ms=1)
FORMER_GEN = 1 << 62  # above what time makes
BEFORE = Memory(5, 100_000, FORMER_GEN)
PLAN = Plan(FORMER_GEN, {"kernel": 41, "app:blog": 7}, ("n2", "n3"))
REVS = 70
WAIT_S = 0.3


@pytest.fixture
def etcd() -> Iterator[Cluster]:
    with Cluster(1) as cluster:
        yield cluster


class Left:
    """The member that is left. `fails`: the export at which its log shows damage."""

    def __init__(self, folder: Path, fails: int = 0) -> None:
        self.config = config.parse(
            f'[node]\nname = "n1"\naddress = "10.0.0.1"\nstate_dir = "{folder}/state"\nrun_dir = "{folder}/run"'
        )
        self.paths = self.config.paths
        self.paths.run.mkdir()
        self.paths.consensus.mkdir(parents=True)
        self.paths.etcd_data.mkdir()
        (self.paths.etcd_data / "db").write_text("former")
        self.log = structlog.get_logger()
        self.folder = Folder(self.paths)
        cluster_mode.make_folder(self.paths.cluster)
        self.folder.keep_timing(Timing(profile="fast", stop_s=0.1))
        members = {name: KnownMember(address="", client_url=f"https://{name}", rpc="") for name in ("n1", "n2", "n3")}
        members_file.write(self.paths, members)
        etcd_conf.write(
            etcd_conf.Settings("n1", "http://10.0.0.1:2380", "http://10.0.0.1:2379", "former"), self.paths.etcd_conf
        )
        MemoryFile(self.paths.cluster / "seen.json").write(BEFORE)
        cluster_mode.enter(self.paths.cluster, MODE)
        self.fails = fails
        self.exports = 0
        self.did: list[tuple[str, float]] = []

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        assert isinstance(request, ExportLog) and request.recovers and not request.hold_s
        self.exports += 1
        if self.exports == self.fails:
            raise StoreCorrupt("control.db is damaged")
        revs = range(request.after + 1, min(REVS, request.after + min(request.limit, 50)) + 1)
        return Exported(
            cluster=CLUSTER, gen=FORMER_GEN, head_rev=REVS, head_digest=b"digest of %d" % REVS, snapshot=None,
            entries=tuple(SealedEntry(rev, b"h", b"n", b"s", b"digest of %d" % rev) for rev in revs), keyset=b"keyset",
        )  # fmt: skip

    # --- the supervisor

    async def etcd_as_written(self) -> None:
        self.did.append(("run" if self.paths.etcd_conf.exists() else "end", clock.now()))
        self.paths.etcd_data.mkdir(exist_ok=True)  # whatever runs there makes it

    async def etcd_gone(self) -> None: ...

    async def etcd_ready(self) -> None: ...


def recovered(etcd: Cluster, node: Left, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs it. What etcd has afterwards, each with its mod revision."""
    monkeypatch.setattr(recovery, "local_client", lambda _: Client(etcd.endpoints, None, rpc_s=2.0))
    monkeypatch.setattr(recovery, "wait_s", lambda _: WAIT_S)
    monkeypatch.setattr(recovery, "Supervised", lambda _: node)

    async def main() -> dict[str, Any]:
        await Recovering(node, MODE).run(PLAN)  # type: ignore[arg-type]
        client = Client(etcd.endpoints, None, rpc_s=2.0)
        try:
            items, _ = await client.list(PREFIX, 5)
        finally:
            await client.close()
        return {item.key.removeprefix(PREFIX): item for item in items}

    return asyncio.run(main())


def test_it_holds_the_whole_log_under_a_gen_above_all_and_nothing_of_the_others(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Left(tmp_path)
    seen = recovered(etcd, node, monkeypatch)
    gen = wire.decode(keys.GEN, seen[keys.GEN].value)
    memory = MemoryFile(node.paths.cluster / "seen.json").read()
    assert memory is not None and gen == GenRecord(memory.gen, memory.cluster_id)
    assert gen.gen > FORMER_GEN and memory.cluster_id != BEFORE.cluster_id and memory.rev < BEFORE.rev
    head = wire.decode(keys.KERNEL_HEAD, seen[keys.KERNEL_HEAD].value)
    assert (head.rev, head.digest, head.gen) == (REVS, b"digest of %d" % REVS, gen.gen)
    assert [key for key in seen if key.startswith("ctl/log/")] == [cluster_records.log_key(rev) for rev in range(1, REVS + 1)]
    assert seen[keys.KEYSET].value == b"keyset"
    assert [key for key in seen if key.startswith("node/")] == ["node/n1"]
    assert {name: wire.decode(keys.EPOCH, seen[keys.EPOCH + name].value) for name in PLAN.epochs} == {
        name: EpochRecord(epoch, "n1", 0, 3.0, held=False) for name, epoch in PLAN.epochs.items()
    }
    assert max(item.mod_revision for item in seen.values()) == seen[keys.GEN].mod_revision, "what is half filled is nobody's"


def test_what_the_node_knows_follows_and_the_former_data_lies_aside(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Left(tmp_path)
    recovered(etcd, node, monkeypatch)
    assert list(members_file.read(node.paths)) == ["n1"]
    journal = JournalFile(node.paths).read()
    assert journal is not None and (journal.stage, journal.former) == (Stage.SETTLED, ("n2", "n3"))
    assert [(aside / "db").read_text() for aside in node.paths.state.glob("etcd.before-*")] == ["former"]
    settings = etcd_conf.read(node.paths.etcd_conf)
    assert settings is not None and settings.state == "new" and list(settings.cluster) == ["n1"]
    assert settings.token not in ("", "former") and cluster_mode.load(node.paths.cluster) == MODE
    assert node.folder.owes_restarts(), "whoever acted under the former tokens starts again"


def test_nothing_new_begins_before_w_is_over(etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Left(tmp_path)
    recovered(etcd, node, monkeypatch)
    (ended, ended_at), (began, began_at) = node.did
    assert (ended, began) == ("end", "run")
    assert began_at - ended_at >= WAIT_S


@pytest.mark.parametrize("fails", [1, 2, 4])
def test_whatever_fails_on_the_way_everything_is_as_it_was(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    node = Left(tmp_path, fails)
    with pytest.raises(StoreCorrupt):
        recovered(etcd, node, monkeypatch)
    assert node.exports == fails
    assert JournalFile(node.paths).read() is None and not node.folder.owes_restarts()
    assert sorted(members_file.read(node.paths)) == ["n1", "n2", "n3"]
    assert MemoryFile(node.paths.cluster / "seen.json").read() == BEFORE
    assert (node.paths.etcd_data / "db").read_text() == "former" and not list(node.paths.state.glob("etcd.before-*"))
    settings = etcd_conf.read(node.paths.etcd_conf)
    assert settings is not None and settings.token == "former"
    assert [did for did, _ in node.did] == ["end", "run", "end", "run"]


def test_whom_an_earlier_recovery_has_not_forgotten_is_forgotten_after_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Left(tmp_path)
    monkeypatch.setattr(recovery, "Supervised", lambda _: node)
    file = JournalFile(node.paths)
    seen: list[Any] = []
    file.write(Journal(stage=Stage.SETTLED, aside="etcd.before-1", etcd="{}", former=("n3", "n4")))

    async def ends() -> None:
        if not seen:
            seen.append(file.read())
            raise Failed("the supervisor is away")

    monkeypatch.setattr(node, "etcd_gone", ends)
    with pytest.raises(Failed):
        asyncio.run(Recovering(node, MODE).run(PLAN))  # type: ignore[arg-type]
    (moving,), left = seen, file.read()
    assert (moving.stage, moving.former) == (Stage.MOVING, ("n2", "n3", "n4"))
    assert left is not None and (left.stage, left.former) == (Stage.SETTLED, ("n3", "n4"))


def test_a_disk_that_fails_after_the_commit_is_left_to_the_next_start(
    etcd: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Left(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recovery, "finish", full)
    recovered(etcd, node, monkeypatch)
    journal = JournalFile(node.paths).read()
    assert journal is not None and journal.stage is Stage.BEGUN and journal.memory is not None

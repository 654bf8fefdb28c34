"""What the other members have, as asked for before a recovery: also of locked nodes, and no silence goes untold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod.errors import Conflict, StoreCorrupt
from piccolod.pki.identity import Role
from piccolod.protocol.recovery import GetLogEnd, GetStoreView, Heard, LogEnd, Recover, Recovery, Standing, Store, StoreView
from tests.unit.api.node import running
from tests.unit.api.rpc.cluster import Cluster, answering, formed, impostor
from tests.unit.api.rpc.test_unlocking import Caller

VIEW = StoreView(store=Store.SILENT, gen=7, log_rev=12)
END = LogEnd(rev=10, digest=b"d" * 32, gen=7, epoch=3, at_ms=1, locked=True)
TOLD = Recovery(node="n1", done=False, rev=10, at_ms=1, former=("n2",), lost=("what n2 has",))
YEAR_S = 365 * 86_400.0


def known(cluster: Cluster, *names: str, to: str = "n1") -> None:
    """In the order of names."""
    places = {
        name: {"address": "", "client_url": "", "rpc": f"{cluster.address(name)}:{cluster.rpc_port}", "role": "member"}
        for name in names
    }
    witness = {"n8": {"address": "", "client_url": "", "rpc": "127.0.0.18:1", "role": "witness"}}
    (cluster[to].module.paths.cluster / "members.json").write_text(json.dumps(places | witness))


@pytest.fixture
def pair() -> Iterator[Cluster]:
    with formed("n1", "n2") as cluster:
        cluster["n2"].modules.replies |= {GetStoreView: VIEW, GetLogEnd: END}
        cluster["n1"].modules.replies[Recover] = TOLD
        known(cluster, "n1", "n2")
        yield cluster


def heard(cluster: Cluster, **body: bool) -> tuple[Heard, ...]:
    """What n1 brought to consensus when it was told to recover."""
    with cluster["n1"].unix() as client:
        answer = client.post("/cluster/recover", json=body)
    assert answer.status_code == 200 and answer.json()["lost"] == ["what n2 has"]
    request: Recover = cluster["n1"].modules.asked(Recover)[-1]
    assert request.force is body.get("force", False)
    return request.heard


@pytest.mark.parametrize("force", [False, True])
def test_what_another_member_has_is_brought_though_it_is_locked(pair: Cluster, force: bool) -> None:
    pair["n2"].modules.locked = True
    assert heard(pair, force=force) == (Heard(node="n2", standing=Standing(node="n2", view=VIEW, end=END)),)


def test_without_a_word_on_force_nothing_is_forced(pair: Cluster) -> None:
    assert heard(pair) != ()


def test_a_log_that_cannot_be_vouched_for_is_told_with_why(pair: Cluster) -> None:
    pair["n2"].modules.fail_kinds[GetLogEnd] = StoreCorrupt("control.db is damaged")
    assert heard(pair) == (Heard(node="n2", standing=Standing(node="n2", view=VIEW, problem="control.db is damaged")),)


def test_one_that_is_off_fails_or_talks_nonsense_is_named_with_its_silence(pair: Cluster) -> None:
    known(pair, "n2", "n3", "n4")
    pair["n2"].modules.fail_kinds[GetStoreView] = Conflict("n2 is a node alone")
    with impostor(pair, "n4", answering(b"nonsense")):
        two, three, four = heard(pair)
    assert [each.node for each in (two, three, four)] == ["n2", "n3", "n4"]
    assert [each.standing for each in (two, three, four)] == [None] * 3
    assert two.silence == "n2 is a node alone"
    assert "cannot be reached" in three.silence
    assert "cannot be read" in four.silence


def test_what_stands_against_it_is_told_and_the_order_is_given_once(pair: Cluster) -> None:
    pair["n1"].modules.fail_kinds[Recover] = Conflict("n2 has the log up to rev 12, and this node up to 10")
    with pair["n1"].unix() as client:
        answer = client.post("/cluster/recover", json={"force": True})
    assert answer.status_code == 409 and "n2 has the log" in answer.json()["detail"]
    assert len(pair["n1"].modules.asked(Recover)) == 1


def test_a_node_alone_asks_nobody() -> None:
    with running() as node:
        node.modules.fail_kinds[Recover] = Conflict("n1 is a node alone")
        with node.unix() as client:
            assert client.post("/cluster/recover").status_code == 409
        assert node.modules.asked(Recover) == [Recover(heard=())]


def test_a_member_is_told_and_a_witness_is_not(pair: Cluster, tmp_path: Path) -> None:
    for role, status in ((Role.WITNESS, 403), (Role.MEMBER, 200)):
        (tmp_path / role).mkdir()
        found, content = Caller(pair, tmp_path / role, role=role).post(b"", path="/standing")
        assert (found, isinstance(content, bytes)) == (status, status == 200)


def test_a_certificate_that_has_ended_meanwhile_is_no_hindrance() -> None:
    def old(cluster: Cluster) -> dict[str, str]:
        return {name: cluster.certificate(name, now_s=time.time() - YEAR_S) for name in ("n1", "n2")}

    with formed("n1", "n2", certificates=old) as cluster:
        cluster["n2"].modules.replies |= {GetStoreView: VIEW, GetLogEnd: END}
        cluster["n1"].modules.replies[Recover] = TOLD
        known(cluster, "n2")
        assert heard(cluster)[0].standing is not None

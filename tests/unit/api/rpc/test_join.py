"""POST /join, as a real joiner knocks: by the token's fingerprint alone, on the port of a member."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from piccolod.config import parse
from piccolod.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    Exists,
    Failed,
    Forbidden,
    Invalid,
    Locked,
    NoLeader,
    OutcomeUnknown,
    PiccoloError,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from piccolod.paths import Paths
from piccolod.pki import authority as pki
from piccolod.pki.authority import make_key, make_request
from piccolod.pki.identity import Identity, Role
from piccolod.protocol.cluster import AddMember, Admission, Timing, Welcome
from piccolod.protocol.joining import ForgetNode, GetJoinTokens, JoinBody, JoinTokens, JoinTokenView, Redeem, TokenState
from services.api.rpc import join as joining
from services.api.rpc.pace import PER_SOURCE, Pace
from services.consensus.joining import door
from services.consensus.joining import join as joiner
from tests.unit.api.rpc.cluster import CLUSTER, Cluster, codes, formed, impostor


class NewerBody(JoinBody, frozen=True, kw_only=True):
    """Of a newer joiner."""

    newer: str = "field"


BODY = JoinBody(
    id="01234567", secret="s" * 32, node="n9", role=Role.MEMBER, address="127.0.0.19", csr=make_request(make_key()),
    rpc="127.0.0.19:7444", client_url="https://127.0.0.19:2379", peer_url="https://127.0.0.19:2380",
    api_url="http://127.0.0.19:8080", spent=2**64 - 1,
)  # fmt: skip

PATHS = Paths(state=Path("/nowhere"), run=Path("/nowhere"))


@pytest.fixture
def two() -> Iterator[Cluster]:
    with formed("n1", "n2") as cluster:
        cluster.elect("n1")
        yield cluster


def token(id: str, state: TokenState = TokenState.OPEN) -> JoinTokenView:
    return JoinTokenView(id=id, role=Role.MEMBER, state=state, node="", author="admin", created_ms=1, expires_ms=2)


def knock(cluster: Cluster, name: str, **other: Any) -> Welcome:
    return send(cluster, name, msgspec.structs.replace(BODY, **other))


def send(cluster: Cluster, name: str, body: JoinBody) -> Welcome:
    answer = door.knock(cluster.address(name), cluster.rpc_port, cluster.authority.fingerprint, body, 20)
    return msgspec.json.decode(answer, type=Welcome)


def test_the_leader_lets_a_node_in(two: Cluster) -> None:
    welcome = knock(two, "n1")
    assert pki.read(welcome.certificate).identity == Identity(CLUSTER, "n9")
    assert welcome.ca == two.authority.pem and welcome.admission.initial_cluster == {"n9": "https://127.0.0.19:2380"}
    redeem, again = two["n1"].modules.asked(Redeem)
    assert again == redeem, "another attempt of it may have been given up meanwhile, and taken it off the list"
    assert (redeem.id, redeem.secret, redeem.node, redeem.csr) == ("01234567", "s" * 32, "n9", BODY.csr)
    (add,) = two["n1"].modules.asked(AddMember)
    assert (add.node, add.api_url, add.peer_url, add.spent, add.etcd_id) == (
        "n9", BODY.api_url, BODY.peer_url, 2**64 - 1, 0,
    )  # fmt: skip
    assert codes(two["n1"], "POST rpc/join") == [("nobody", 200, "")]
    assert two["n1"].modules.asked(ForgetNode) == []


def test_which_etcd_a_node_speaks_to_is_asked_of_both_who_decide(two: Cluster) -> None:
    knock(two, "n1", etcd_id=2**63 + 7)  # etcd's ids have 64 bits
    (redeem, _), (add,) = two["n1"].modules.asked(Redeem), two["n1"].modules.asked(AddMember)
    assert redeem.etcd_id == add.etcd_id == 2**63 + 7


def test_a_follower_asks_the_leader(two: Cluster) -> None:
    assert knock(two, "n2").admission.cluster == CLUSTER
    assert two["n2"].modules.asked(Redeem) == [] and len(two["n1"].modules.asked(Redeem)) == 2
    assert codes(two["n1"], "POST rpc/join") == [("node:n2", 200, "")]


@pytest.mark.parametrize("name", ["n1", "n2"])
@pytest.mark.parametrize(
    "error", [Unauthenticated("not one of this cluster", hint="make one"), Exists("n9 is the name", hint="h")]
)
def test_what_persistence_refuses_reaches_the_joiner_in_its_words(two: Cluster, name: str, error: PiccoloError) -> None:
    two["n1"].modules.fail_kinds[Redeem] = error
    with pytest.raises(type(error), match=error.detail) as refusal:
        knock(two, name)
    assert refusal.value.hint == error.hint
    assert two["n1"].modules.asked(AddMember) == []
    assert (codes(two["n1"], "POST rpc/join")[0][1:]) == (error.status, error.code)


def test_a_joiner_that_was_cut_off_in_the_middle_asks_again_with_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The member restarts, as an api on a follower does when a setting changes: the token is used up by then."""
    monkeypatch.setattr(joiner, "PAUSE_S", 0.01)
    heard: list[bytes] = []

    def behave(tls: ssl.SSLSocket) -> None:
        request = b""
        while not request.endswith(b"}"):
            request += tls.recv(65536)
        heard.append(request.partition(b"\r\n\r\n")[2])
        if len(heard) > 1:
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with formed("n2") as cluster, impostor(cluster, "n1", behave):
        module: Any = SimpleNamespace(config=cluster["n2"].module.config, log=cluster["n2"].module.log, paths=PATHS)
        join = joiner.Join(module, None, None)  # type: ignore[arg-type]
        asking = join._answer(cluster.address("n1"), cluster.rpc_port, cluster.authority.fingerprint, BODY)
        assert asyncio.run(asking) == b"ok"
    assert len(heard) == 2 and heard[0] == heard[1]


@pytest.mark.parametrize(("silent", "kind"), [(True, DeadlineExceeded), (False, OutcomeUnknown)], ids=["silent", "cut"])
def test_a_joiner_that_may_have_been_let_in_is_told_that_the_same_token_goes_on(silent: bool, kind: type[PiccoloError]) -> None:
    ended = threading.Event()

    def behave(tls: ssl.SSLSocket) -> None:
        tls.recv(65536)
        if silent:
            ended.wait(10)

    with formed("n2") as cluster, impostor(cluster, "n1", behave):
        with pytest.raises(kind) as refusal:
            door.knock(cluster.address("n1"), cluster.rpc_port, cluster.authority.fingerprint, BODY, 0.5)
        ended.set()
    assert "join again with the same token" in refusal.value.hint


def test_who_takes_the_connection_and_says_nothing_was_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_CONNECT_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        pytest.raises(Unavailable, match=r"cannot be reached: .*timed out") as refusal,
    ):
        door.knock("127.0.0.1", mute.getsockname()[1], "0" * 64, BODY, 20)
    assert "let this node in" not in refusal.value.hint


def test_a_member_that_ran_out_of_time_is_asked_again_with_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joiner, "PAUSE_S", 0.01)
    answers: list[Any] = [DeadlineExceeded("it took too long"), b"ok"]
    asked: list[JoinBody] = []

    def answer(host: str, port: int, fingerprint: str, body: JoinBody, within_s: float) -> bytes:
        asked.append(body)
        if isinstance(found := answers.pop(0), PiccoloError):
            raise found
        return bytes(found)

    monkeypatch.setattr(door, "knock", answer)
    log = SimpleNamespace(info=lambda *_, **__: None)
    module: Any = SimpleNamespace(config=parse('[node]\nname = "n9"'), log=log, paths=PATHS)
    join = joiner.Join(module, None, None)  # type: ignore[arg-type]
    assert asyncio.run(join._answer("127.0.0.99", 1, "0" * 64, BODY)) == b"ok"
    assert asked == [BODY, BODY]


def test_a_joiner_whose_member_cannot_be_reached_says_so_at_once() -> None:
    module: Any = SimpleNamespace(config=parse('[node]\nname = "n2"'), log=None, paths=PATHS)
    join = joiner.Join(module, None, None)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="cannot be reached"):
        asyncio.run(join._answer("127.0.0.99", 1, "0" * 64, BODY))


@pytest.mark.parametrize(("of_cluster", "own"), [(7, 0), (0, 7), (7, 8)])
def test_a_joiner_that_was_let_in_without_being_asked_does_not_enter_another_kind_of_cluster(of_cluster: int, own: int) -> None:
    """A member of before external etcds looks at nothing of that."""
    module: Any = SimpleNamespace(config=parse('[node]\nname = "n2"'), log=None, paths=PATHS)
    join = joiner.Join(module, None, None)  # type: ignore[arg-type]
    timing = Timing(profile="fast", stop_s=0.1)
    admission = Admission(cluster="c", initial_cluster={}, etcd_token="", members={}, timing=timing, etcd_id=of_cluster)
    with pytest.raises(Conflict, match="kept another way") as refusal:
        join._check_etcd(admission, own)
    assert "nodes remove n2" in refusal.value.hint
    join._check_etcd(admission, of_cluster)


def test_without_a_leader_nobody_is_let_in(two: Cluster) -> None:
    two.elect(None)
    with pytest.raises(NoLeader, match="nobody is known to lead"):
        knock(two, "n2")


def test_a_node_that_is_taken_for_the_leader_and_is_not_asks_nobody_else(two: Cluster) -> None:
    """Two followers that point at each other must not send a joiner round and round."""
    two.elect(None)
    two.believe("n1", leader="n2")
    two.believe("n2", leader="n1")
    with pytest.raises(NoLeader):
        knock(two, "n2")
    assert two["n1"].modules.asked(Redeem) == two["n2"].modules.asked(Redeem) == []


def test_the_authority_of_another_token_is_not_talked_to(two: Cluster) -> None:
    with pytest.raises(Forbidden, match="not of the cluster"):
        door.knock(two.address("n1"), two.rpc_port, "0" * 64, BODY, 20)
    assert two["n1"].modules.asked(Redeem) == []


def test_a_member_change_that_etcd_does_not_take_yet_is_tried_again(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_PAUSE_S", 0.01)
    answers = iter([Busy("another one is joining"), None])

    def add(request: AddMember) -> Any:
        if error := next(answers):
            raise error
        return two.add_member(request)

    two["n1"].modules.replies[AddMember] = add
    assert knock(two, "n1").admission.cluster == CLUSTER
    assert len(two["n1"].modules.asked(AddMember)) == 2 and two["n1"].modules.asked(ForgetNode) == []


@pytest.mark.parametrize("again", [False, True])
def test_a_node_that_could_not_be_admitted_leaves_its_name_free(two: Cluster, again: bool) -> None:
    """But one that was let in before, whose answer was lost, is a node and stays one."""
    modules = two["n1"].modules
    modules.replies[Redeem] = lambda request: msgspec.structs.replace(two.redeem(request), again=again)
    modules.fail_kinds[AddMember] = Failed("etcd says no")
    with pytest.raises(Failed, match="etcd says no"):
        knock(two, "n1")
    assert [(each.node, each.token) for each in modules.asked(ForgetNode)] == ([] if again else [("n9", BODY.id)])


def test_knocking_has_a_pace(two: Cluster) -> None:
    two["n1"].modules.fail_kinds[Redeem] = Unauthenticated("wrong")
    for _ in range(PER_SOURCE):
        with pytest.raises(Unauthenticated):
            knock(two, "n1")
    with pytest.raises(TooMany):
        knock(two, "n1")
    assert len(two["n1"].modules.asked(Redeem)) == PER_SOURCE


@contextmanager
def crowded(monkeypatch: pytest.MonkeyPatch, per_source: int = 10) -> Iterator[Cluster]:
    """n1 leads, and a stranger has just taken the one place that there is for all."""
    monkeypatch.setattr(joining, "Pace", lambda: Pace(per_source=per_source, all_sources=1, window_s=600.0))
    with formed("n1") as cluster:
        cluster.elect("n1")
        with pytest.raises(Invalid):
            knock(cluster, "n1", role="king")
        yield cluster


def test_strangers_at_the_door_do_not_keep_out_who_brings_a_token_of_this_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_LOOK_S", 600.0)
    tokens = token("01234567"), token("used0000", TokenState.USED), token("ended000", TokenState.EXPIRED)
    with crowded(monkeypatch) as cluster:
        modules = cluster["n1"].modules
        modules.replies[GetJoinTokens] = lambda request: JoinTokens(tokens=tokens)
        for stranger in ({"id": "guessed0"}, {"id": "ended000"}, {"role": "king"}):
            with pytest.raises(TooMany):
                knock(cluster, "n1", **stranger)
        assert modules.asked(Redeem) == []
        for known in ("01234567", "used0000"):
            assert knock(cluster, "n1", id=known).admission.cluster == CLUSTER
        assert len(modules.asked(GetJoinTokens)) == 1, "however many knock"


def test_a_token_is_no_way_around_the_pace_of_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    with crowded(monkeypatch, per_source=2) as cluster:
        cluster["n1"].modules.replies[GetJoinTokens] = lambda request: JoinTokens(tokens=(token("01234567"),))
        knock(cluster, "n1")
        with pytest.raises(TooMany):
            knock(cluster, "n1")


def test_a_locked_member_knows_no_token_and_keeps_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    with crowded(monkeypatch) as cluster:
        cluster["n1"].modules.fail_kinds[GetJoinTokens] = Locked("the control store is locked")
        with pytest.raises(TooMany):
            knock(cluster, "n1")


def test_what_is_no_request_to_join_is_refused(two: Cluster) -> None:
    with pytest.raises(Invalid, match="no request to join"):
        knock(two, "n1", role="king")
    with pytest.raises(TooLarge):
        knock(two, "n1", csr="x" * 20_000)
    assert two["n1"].modules.asked(Redeem) == []
    assert send(two, "n1", NewerBody(**msgspec.structs.asdict(BODY))).admission.cluster == CLUSTER


def test_those_with_a_token_have_a_share_of_their_own() -> None:
    pace = Pace(per_source=2, all_sources=1, known=2, window_s=10)
    pace.admit("a", 0.0)
    with pytest.raises(TooMany):
        pace.admit("b", 1.0)
    pace.admit("b", 1.0, known=True)
    pace.admit("c", 1.0, known=True)
    with pytest.raises(TooMany):
        pace.admit("d", 1.0, known=True)
    pace.admit("d", 11.0, known=True)


def test_a_pace_is_kept_by_source_and_for_all_and_forgets() -> None:
    pace = Pace(per_source=2, all_sources=3, window_s=10)
    pace.admit("a", 0.0)
    pace.admit("a", 1.0)
    with pytest.raises(TooMany) as refusal:
        pace.admit("a", 2.0)
    assert refusal.value.retry_after_s == pytest.approx(8.0)
    pace.admit("b", 2.0)
    with pytest.raises(TooMany):
        pace.admit("c", 2.0)
    pace.admit("a", 10.0)

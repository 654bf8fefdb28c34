"""Writes on a node that does not lead, sessions and tokens on every node, and certificates: three machines and one alone."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from piccolod.pki import authority as pki
from piccolod.pki import channel
from piccolod.pki import token as tokens
from piccolod.pki.authority import Authority, Signed
from services.persistence import cluster_ca
from services.persistence import keyset as keysets
from services.persistence.verify import load
from tests.bed import faults
from tests.bed.cluster import Cluster
from tests.bed.forming import found, join, said, token, unlock, wait_leader
from tests.bed.machine import API_PORT, Machine
from tests.node import PASSWORD, Reply, until

_RPC_PORT = 7444
_DAY_S = 86400.0


@pytest.fixture(scope="module")
def formed_with(cluster: Callable[[int], Cluster]) -> tuple[Cluster, str]:
    """n1, n2 and n3 are one cluster; n4 is alone. And the token that let n3 in, by a member that did not lead."""
    made = cluster(4)
    made.start()
    found(made["n1"])
    join(made["n2"], made["n1"])
    used = token(made["n1"])
    said(made["n3"], "cluster", "join", made["n2"].address, "--token", used, timeout_s=130)
    unlock(made["n3"])
    return made, used


@pytest.fixture
def four(formed_with: tuple[Cluster, str]) -> Cluster:
    return formed_with[0]


@pytest.fixture
def used(formed_with: tuple[Cluster, str]) -> str:
    return formed_with[1]


@pytest.fixture
def leading(four: Cluster) -> Machine:
    return wait_leader(four, four["n4"])


@pytest.fixture
def follower(four: Cluster, leading: Machine) -> Machine:
    return next(machine for machine in four.machines[:3] if machine is not leading)


def tcp(machine: Machine, method: str, path: str, body: object = None, **headers: str) -> Reply:
    """By its address, as a program or a browser on another machine."""
    connection = http.client.HTTPConnection(machine.address, API_PORT, timeout=10)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, f"/api/v1{path}", data, {"Content-Type": "application/json", **fields})
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def title(machine: Machine, rev: str) -> str:
    return str(machine.api("GET", "/settings", headers={"Piccolo-Min-Rev": rev}).json["title"])


# --- writes


def test_the_command_line_on_a_follower_changes_the_cluster(four: Cluster, leading: Machine, follower: Machine) -> None:
    said(follower, "settings", "set", "title=By the command line")
    rev = str(leading.get("/store/revision")["rev"])
    assert {title(machine, rev) for machine in four.machines[:3]} == {"By the command line"}
    entry = leading.get("/store/log?limit=1")[0]
    assert entry["author"] == f"root@{follower.name}"


def test_the_command_line_does_not_follow_when_told_so(leading: Machine, follower: Machine) -> None:
    done = follower.ctl("--no-redirect", "settings", "set", "title=no")
    assert done.returncode == 5, done
    assert f"the leader is {leading.name} at http://{leading.address}:{API_PORT}" in done.stderr


def test_a_program_is_sent_to_the_leader_and_its_token_holds_there(leading: Machine, follower: Machine) -> None:
    made = leading.api("POST", "/auth/tokens", {"name": "ci", "scope": "admin"})
    bearer = f"Bearer {made.json['token']}"
    assert until(
        lambda: tcp(follower, "GET", "/settings", Authorization=bearer).status == 200, "the token holds on the follower"
    )
    reply = tcp(follower, "PUT", "/settings", {"title": "x"}, Authorization=bearer)
    assert reply.status == 307
    assert reply.headers["location"] == f"http://{leading.address}:{API_PORT}/api/v1/settings"
    assert reply.headers["piccolo-leader"] == leading.name and int(reply.headers["piccolo-epoch"]) > 0
    never = tcp(follower, "PUT", "/settings", {"title": "x"}, Authorization=bearer, Piccolo_Redirect="never")
    assert (never.status, never.json["leader"]["node"]) == (409, leading.name)
    url = f"http://{follower.address}:{API_PORT}"
    done = leading.ctl("--url", url, "--token", bearer.removeprefix("Bearer "), "settings", "set", "title=By a token")
    assert done.returncode == 0, done
    assert leading.get("/settings")["title"] == "By a token"


def test_a_session_of_one_node_holds_on_another_which_forwards_its_writes(leading: Machine, follower: Machine) -> None:
    session = _session_cookie(leading)
    rev = str(leading.get("/store/revision")["rev"])
    follower.api("GET", "/settings", headers={"Piccolo-Min-Rev": rev})
    who = tcp(follower, "GET", "/auth/session", Cookie=session)
    assert (who.status, who.json["user"]) == (200, "admin")
    assert tcp(follower, "PUT", "/settings", {"title": "x"}, Cookie=session).status == 403, "without the page's own value"
    reply = tcp(follower, "PUT", "/settings", {"title": "By a browser"}, Cookie=session, X_CSRF_Token=who.json["csrf"])
    assert reply.status == 200, reply
    assert title(leading, reply.headers["piccolo-rev"]) == "By a browser"


def _session_cookie(machine: Machine) -> str:
    connection = http.client.HTTPConnection(machine.address, API_PORT, timeout=10)
    try:
        body = json.dumps({"password": PASSWORD}).encode()
        connection.request("POST", "/api/v1/auth/login", body, {"Content-Type": "application/json"})
        cookies = connection.getresponse().headers.get_all("set-cookie") or []
    finally:
        connection.close()
    return next(each.partition(";")[0] for each in cookies if each.startswith("piccolo_session="))


@pytest.mark.parametrize("at_the_leader", [False, True])
def test_a_retry_through_another_node_gets_the_first_result(leading: Machine, follower: Machine, at_the_leader: bool) -> None:
    """Also of root, who is one caller on all machines."""
    key, body = {"Idempotency-Key": f"once-{at_the_leader}"}, {"title": f"Once {at_the_leader}"}
    first = follower.api("PUT", "/settings", body, headers=key)
    leading.api("PUT", "/settings", {"title": "Between"})
    again = (leading if at_the_leader else follower).api("PUT", "/settings", body, headers=key)
    assert first.status == again.status == 200
    assert first.headers["piccolo-rev"] == again.headers["piccolo-rev"]
    assert title(leading, first.headers["piccolo-rev"]) == "Between", "it was not written a second time"


def test_only_the_leader_answers_a_load_balancer(four: Cluster, leading: Machine) -> None:
    found = {machine.name: tcp(machine, "HEAD", "/leader/kernel").status for machine in four.machines[:3]}
    assert found == {machine.name: 200 if machine is leading else 409 for machine in four.machines[:3]}


def test_a_switchover_costs_writes_through_another_node_time_and_no_errors(four: Cluster, leading: Machine) -> None:
    other, asked = (machine for machine in four.machines[:3] if machine is not leading)
    done: list[tuple[int, float]] = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            began = time.monotonic()
            done.append((other.api("PUT", "/settings", {"title": str(began)}).status, time.monotonic() - began))

    def more(count: int) -> None:
        enough = len(done) + count
        until(lambda: len(done) > enough, f"{count} more writes", 20)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        more(10)
        said(asked, "leaders", "switchover", "kernel", "--to", other.name)
        more(20)
        said(other, "leaders", "switchover", "kernel", "--to", asked.name)
        more(20)
    finally:
        over.set()
        writer.join(30)
    print(f"{len(done)} writes, the longest {max(took_s for _, took_s in done) * 1000:.0f} ms")
    assert {status for status, _ in done} == {200}


def test_without_a_quorum_a_write_is_503_and_says_when_to_come_back(four: Cluster, follower: Machine) -> None:
    names = [machine.name for machine in four.machines[:3]]
    faults.partition(four, [follower.name], [name for name in names if name != follower.name])
    try:
        reply = until(lambda: _refused(follower), "503", 20)
        assert reply.json["code"] in ("no_leader", "store_unavailable") and int(reply.headers["retry-after"]) >= 1
        assert follower.get("/settings")["title"], "what was verified is read on"
    finally:
        faults.heal(four)
    until(lambda: follower.api("PUT", "/settings", {"title": "Whole"}).status == 200, "writes go on", 20, 0.2)


def _refused(machine: Machine) -> Reply | None:
    with suppress(OSError):
        reply = machine.api("PUT", "/settings", {"title": "lost"}, timeout_s=20)
        return reply if reply.status == 503 else None
    return None


# --- tokens


def test_each_token_that_does_not_fit_is_refused_in_its_own_words(
    four: Cluster, used: str, leading: Machine, follower: Machine
) -> None:  # fmt: skip
    alone, name = four["n4"], four["n4"].name
    revoked, witness, good = token(leading), token(leading, "--witness"), token(leading)
    said(leading, "cluster", "tokens", "revoke", "-y", revoked.split(".")[1])
    mistyped = good[:20] + ("a" if good[20] != "a" else "b") + good[21:]
    foreign = Authority.create("another cluster").fingerprint

    def refusal(text: str, *options: str) -> tuple[int, str]:
        done = alone.ctl("cluster", "join", follower.address, "--token", text, *options)
        return done.returncode, done.stderr

    for text, code, words in (
        (mistyped, 8, "has a typo"),
        (used, 1, "was used already, by n3"),
        (revoked, 9, "was revoked"),
        (witness, 9, f"is for a witness, and {name} wants to be a member"),
        (tokens.issue(tokens.parse(good).fingerprint).text, 9, "is not one of this cluster"),
        (tokens.issue(foreign).text, 9, "not of the cluster that the token names"),
    ):
        found_code, told = refusal(text)
        assert (found_code, words in told) == (code, True), told
    assert name not in {each["id"] for each in leading.get("/nodes")}
    states = {each["id"]: (each["state"], each["node"]) for each in follower.get("/cluster/tokens")}
    assert states[tokens.parse(used).id] == ("used", "n3")
    assert states[tokens.parse(revoked).id] == ("revoked", "") and states[tokens.parse(good).id] == ("open", "")


# --- certificates


def authority_of(machine: Machine) -> Authority:
    """The cluster's, read from a copy of a member's sealed store with the password: for certificates of other times."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "store")
        shutil.copytree(machine.state / "store", copy)
        keyset = keysets.load(copy / "keyset.json")
        assert keyset is not None
        loaded = load(copy / "control.db", keyset.cluster, keysets.open_by_password(keyset, PASSWORD))
    found = cluster_ca.find(loaded.state)
    assert found is not None
    return found


def age(machine: Machine, authority: Authority, days: float) -> None:
    """Makes the certificate of a machine one that was signed so long ago."""
    folder = machine.state / "cluster"
    request = pki.make_request((folder / "node.key").read_bytes())
    identity = pki.read((folder / "node.pem").read_text()).identity
    draft = folder / "node.pem.test"
    draft.write_text(authority.sign(request, identity, machine.address, time.time() - days * _DAY_S))
    draft.rename(folder / "node.pem")


def shown(machine: Machine, fingerprint: str) -> Signed | None:
    """What a machine shows to those who call it."""
    context = channel.pinned_context(fingerprint)
    with suppress(OSError, ssl.SSLError), socket.create_connection((machine.address, _RPC_PORT), timeout=2) as plain:
        with context.wrap_socket(plain) as tls:
            return pki.read(tls.getpeercert(binary_form=True) or b"")
    return None


def fresh(machine: Machine, fingerprint: str) -> bool:
    found = shown(machine, fingerprint)
    return found is not None and found.ends_s - time.time() > 89 * _DAY_S


@pytest.fixture
def _old_ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pki, "FLOOR", datetime(2001, 1, 1, tzinfo=UTC))
    yield


@pytest.mark.usefixtures("_old_ones")
def test_certificates_renew_themselves_on_the_leader_and_on_a_follower(leading: Machine, follower: Machine) -> None:
    authority = authority_of(leading)
    for machine in (leading, follower):
        age(machine, authority, 61)
        faults.kill(machine, "api")  # its next life looks at once; this one would within a minute
        until(lambda machine=machine: fresh(machine, authority.fingerprint), f"{machine.name} shows a new certificate", 30)
        assert pki.read((machine.state / "cluster" / "node.pem").read_text()).ends_s > time.time() + 89 * _DAY_S
    assert follower.api("PUT", "/settings", {"title": "After the renewal"}).status == 200


@pytest.mark.usefixtures("_old_ones")
def test_a_machine_that_was_off_until_its_certificate_ended_comes_back(
    four: Cluster, leading: Machine, follower: Machine
) -> None:  # fmt: skip
    authority = authority_of(leading)
    age(follower, authority, 120)
    faults.power_off(follower)
    rev = leading.api("PUT", "/settings", {"title": "Meanwhile"}).headers["piccolo-rev"]
    faults.power_on(follower, within_s=0)
    until(lambda: fresh(follower, authority.fingerprint), f"{follower.name} shows a new certificate", 60, 0.2)
    until(lambda: _unlocked(follower), "unlocked", 60, 0.5)
    assert title(follower, rev) == "Meanwhile"
    assert until(lambda: follower.api("PUT", "/settings", {"title": "Back"}).status == 200, "it writes", 30, 0.3)


def _unlocked(machine: Machine) -> bool:
    with suppress(OSError):
        return machine.api("POST", "/crypto/unlock", {"password": PASSWORD}, timeout_s=20).status == 200
    return False


@pytest.mark.usefixtures("_old_ones")
def test_a_cluster_that_was_off_until_all_certificates_have_ended_comes_back(four: Cluster, leading: Machine) -> None:
    """etcd takes none of them: no quorum, no leader, until the members, once unlocked, sign for one another."""
    three = four.machines[:3]
    leading.api("PUT", "/settings", {"title": "Before"})
    authority = authority_of(leading)
    for machine in three:
        age(machine, authority, 120)
    for machine in three:
        faults.power_off(machine)
    for machine in three:
        faults.power_on(machine, within_s=0)
    for machine in three:
        until(lambda machine=machine: _unlocked(machine), f"{machine.name} unlocked", 60, 0.5)
    for machine in three:
        until(lambda machine=machine: fresh(machine, authority.fingerprint), f"{machine.name}: a new certificate", 90, 0.5)
    leader = wait_leader(four, four["n4"], within_s=60)
    assert leader.get("/settings")["title"] == "Before"
    assert until(lambda: leader.api("PUT", "/settings", {"title": "Back"}).status == 200, "it writes", 30, 0.3)

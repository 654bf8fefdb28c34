"""Certificates that renew themselves, and are taken up while everything runs."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from datetime import UTC, datetime

import pytest

from piccolod.errors import Failed, Forbidden, Locked, NotFound, PiccoloError
from piccolod.pki import authority as pki
from piccolod.pki import channel
from piccolod.pki.identity import Role
from piccolod.protocol.joining import IssueCertificate, KeepCertificate
from services.api.rpc import renewal
from tests.unit.api.node import Node
from tests.unit.api.rpc.cluster import Cluster, answering, formed, impostor

DAY_S = 86400.0


@pytest.fixture(autouse=True)
def _old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates of former months can be signed now."""
    monkeypatch.setattr(pki, "FLOOR", datetime(2001, 1, 1, tzinfo=UTC))


def aged(cluster: Cluster, name: str, days: float) -> dict[str, str]:
    return {name: cluster.certificate(name, now_s=time.time() - days * DAY_S)}


def renew(node: Node) -> None:
    """One look of the loop, now."""
    rpc = node.service._rpc
    assert rpc is not None
    asyncio.run_coroutine_threadsafe(rpc.renewal.once(), node.loop).result(20)


def shown(cluster: Cluster, name: str) -> float:
    """When the certificate ends that a new connection is shown."""
    context = channel.pinned_context(cluster.authority.fingerprint)
    with socket.create_connection((cluster.address(name), cluster.rpc_port), timeout=10) as plain:
        with context.wrap_socket(plain) as tls:
            certificate = tls.getpeercert(binary_form=True)
    assert certificate is not None
    return pki.read(certificate).ends_s


def asked(node: Node) -> int:
    return len(node.modules.asked(IssueCertificate))


def days_left(cluster: Cluster, name: str) -> float:
    return (shown(cluster, name) - time.time()) / DAY_S


@pytest.mark.parametrize(("days", "renewed"), [(59.5, False), (60.5, True)])
def test_a_certificate_is_renewed_when_two_thirds_of_its_life_are_over(days: float, renewed: bool) -> None:
    with formed("n1", certificates=lambda cluster: aged(cluster, "n1", days)) as cluster:
        cluster.elect("n1")
        renew(cluster["n1"])
        assert bool(asked(cluster["n1"])) is renewed
        assert days_left(cluster, "n1") == pytest.approx(90 if renewed else 90 - days, abs=0.1)


def test_it_is_taken_up_without_a_restart_and_what_is_connected_goes_on() -> None:
    with formed("n1", certificates=lambda cluster: aged(cluster, "n1", 61)) as cluster:
        cluster.elect("n1")
        context = channel.pinned_context(cluster.authority.fingerprint)
        with socket.create_connection((cluster.address("n1"), cluster.rpc_port), timeout=10) as plain:
            with context.wrap_socket(plain) as before:
                assert days_left(cluster, "n1") == pytest.approx(29, abs=0.1)
                renew(cluster["n1"])
                assert days_left(cluster, "n1") == pytest.approx(90, abs=0.1)
                before.sendall(b"POST /nothing HTTP/1.1\r\nHost: n1\r\nContent-Length: 0\r\n\r\n")
                assert before.recv(12) == b"HTTP/1.1 400"
        renew(cluster["n1"])
        assert asked(cluster["n1"]) == 1, "a fresh one is left alone"


def test_a_follower_asks_the_leader() -> None:
    with formed("n1", "n2", certificates=lambda cluster: aged(cluster, "n2", 61)) as cluster:
        cluster.elect("n1")
        renew(cluster["n2"])
        assert (asked(cluster["n1"]), asked(cluster["n2"])) == (1, 0)
        (request,) = cluster["n1"].modules.asked(IssueCertificate)
        assert (request.node, request.role) == ("n2", Role.MEMBER)
        assert days_left(cluster, "n2") == pytest.approx(90, abs=0.1)
        assert cluster["n2"].module.healths[-1] == ("OK", "")


def test_a_node_that_was_off_until_its_certificate_ended_comes_back() -> None:
    with formed("n1", "n2", certificates=lambda cluster: aged(cluster, "n2", 200)) as cluster:
        cluster.elect("n1")
        renew(cluster["n2"])
        assert asked(cluster["n1"]) == 1 and days_left(cluster, "n2") == pytest.approx(90, abs=0.1)


def test_a_node_comes_back_from_a_leader_whose_own_certificate_has_ended() -> None:
    with formed(
        "n1", "n2", certificates=lambda cluster: aged(cluster, "n1", 200) | aged(cluster, "n2", 200)
    ) as cluster:  # fmt: skip
        cluster["n1"].modules.fail_kinds[KeepCertificate] = Failed("the disk is full")  # or it would renew its own first
        cluster.elect("n1")
        renew(cluster["n2"])
        assert days_left(cluster, "n2") == pytest.approx(90, abs=0.1)
        assert days_left(cluster, "n1") < 0


def test_a_node_whose_certificate_has_ended_knows_no_leader_and_asks_one_member_after_the_other() -> None:
    """etcd does not take it any more, so consensus cannot know who leads."""
    with formed("n1", "n2", certificates=lambda cluster: aged(cluster, "n2", 200)) as cluster:
        cluster["n1"].modules.fail_kinds[IssueCertificate] = Locked("the control store is locked")
        members = {
            name: {"address": "", "client_url": "", "rpc": f"{cluster.address(name)}:{cluster.rpc_port}", "role": "member"}
            for name in ("n2", "n7", "n1")
        }
        (cluster["n2"].module.paths.cluster / "members.json").write_text(json.dumps(members))
        renew(cluster["n2"])
        assert asked(cluster["n1"]) == 1 and days_left(cluster, "n2") < 0, "n7 is off, n1 is locked"
        del cluster["n1"].modules.fail_kinds[IssueCertificate]
        renew(cluster["n2"])
        assert days_left(cluster, "n2") == pytest.approx(90, abs=0.1) and asked(cluster["n2"]) == 0


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff\xfe", b'{"ca": 1}', b'{"ca": "\xff"}'])
def test_an_answer_that_is_no_certificate_ends_neither_the_loop_nor_the_certificate(garbage: bytes) -> None:
    with formed("n2", certificates=lambda cluster: aged(cluster, "n2", 61)) as cluster:
        cluster.believe("n2", leader="n1")
        with impostor(cluster, "n1", answering(garbage)):
            renew(cluster["n2"])
        level, reason = cluster["n2"].module.healths[-1]
        assert level == "WARN" and "could not be renewed: the answer of n1 is no certificate" in reason
        assert days_left(cluster, "n2") == pytest.approx(29, abs=0.1)


def test_who_answers_garbage_does_not_keep_a_node_from_asking_the_next() -> None:
    with formed("n1", "n2", certificates=lambda cluster: aged(cluster, "n2", 200)) as cluster:
        members = {
            name: {"address": "", "client_url": "", "rpc": f"{cluster.address(name)}:{cluster.rpc_port}", "role": "member"}
            for name in ("n2", "n7", "n1")
        }
        (cluster["n2"].module.paths.cluster / "members.json").write_text(json.dumps(members))
        with impostor(cluster, "n7", answering(b"garbage")):
            renew(cluster["n2"])
        assert days_left(cluster, "n2") == pytest.approx(90, abs=0.1) and asked(cluster["n2"]) == 0


def test_when_all_have_ended_and_nobody_answers_a_node_signs_for_itself_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd takes no ended certificate: without this there would be no leader for ever."""
    with formed("n1", certificates=lambda cluster: aged(cluster, "n1", 91)) as cluster:
        renew(cluster["n1"])
        renew(cluster["n1"])
        assert asked(cluster["n1"]) == 0, "the others may just be starting"
        monkeypatch.setattr(renewal, "PATIENCE_S", 0.0)
        renew(cluster["n1"])
        assert asked(cluster["n1"]) == 1 and days_left(cluster, "n1") == pytest.approx(90, abs=0.1)


def test_while_it_lasts_nobody_signs_for_himself() -> None:
    with formed("n1", certificates=lambda cluster: aged(cluster, "n1", 80)) as cluster:
        cluster.elect(None)
        renew(cluster["n1"])
        assert asked(cluster["n1"]) == 0
        level, reason = cluster["n1"].module.healths[-1]
        assert level == "WARN" and "could not be renewed" in reason


@pytest.mark.parametrize("refusal", [Forbidden("n2 is listed with another key"), NotFound("n2 is no node")])
def test_a_node_that_the_leader_has_removed_does_not_sign_for_itself(
    refusal: PiccoloError, monkeypatch: pytest.MonkeyPatch
) -> None:
    with formed("n1", "n2", certificates=lambda cluster: aged(cluster, "n2", 91)) as cluster:
        cluster.elect("n1")
        monkeypatch.setattr(renewal, "PATIENCE_S", 0.0)
        cluster["n1"].modules.fail_kinds[IssueCertificate] = refusal
        renew(cluster["n2"])
        assert asked(cluster["n2"]) == 0 and asked(cluster["n1"]) == 1
        assert refusal.detail in cluster["n2"].module.healths[-1][1]


def test_a_locked_node_says_why_it_has_not_renewed_and_does_so_later() -> None:
    with formed("n1", certificates=lambda cluster: aged(cluster, "n1", 91)) as cluster:
        cluster.elect("n1")
        cluster["n1"].modules.fail_kinds[IssueCertificate] = Locked("the control store is locked")
        renew(cluster["n1"])
        assert "the control store is locked" in cluster["n1"].module.healths[-1][1]
        del cluster["n1"].modules.fail_kinds[IssueCertificate]
        renew(cluster["n1"])
        assert cluster["n1"].module.healths[-1] == ("OK", "")


def test_a_certificate_that_somebody_else_put_there_is_taken_up() -> None:
    with formed("n1", certificates=lambda cluster: aged(cluster, "n1", 20)) as cluster:
        cluster.elect("n1")
        cluster.keep(cluster["n1"].module.config, KeepCertificate(certificate=cluster.certificate("n1")))
        renew(cluster["n1"])
        assert asked(cluster["n1"]) == 0 and days_left(cluster, "n1") == pytest.approx(90, abs=0.1)


def test_a_certificate_of_another_key_is_not_taken_up_and_the_former_goes_on() -> None:
    with formed("n1") as cluster:
        cluster.elect("n1")
        before = shown(cluster, "n1")
        other = cluster.certificate("n1", key=pki.make_key(), now_s=time.time() + 5 * DAY_S)
        cluster.keep(cluster["n1"].module.config, KeepCertificate(certificate=other))
        renew(cluster["n1"])
        assert "key values mismatch" in cluster["n1"].module.healths[-1][1]
        assert shown(cluster, "n1") == before


def test_the_loop_does_it_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "PATIENCE_S", 0.0)
    with formed("n1", certificates=lambda cluster: aged(cluster, "n1", 91)) as cluster:
        # Its first look is when it starts, before anybody leads: it signs for itself.
        give_up_at = time.monotonic() + 10
        while days_left(cluster, "n1") < 89:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)

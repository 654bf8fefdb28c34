"""Values of etcd's keys: one encoding for each, and whatever cannot be read counts as absent."""

from __future__ import annotations

import msgspec
import pytest

from piccolod.leadership import keys
from piccolod.leadership.keys import AckRecord, EpochRecord, GenRecord, IntentRecord, LeadRecord, SessionRecord
from piccolod.leadership.records import ChangeRecord
from piccolod.leadership.roles import Reason
from piccolod.protocol.cluster import KnownMember
from services.consensus import cluster_records, wire
from services.consensus.cluster_records import CandidateRecord, DrainRecord, HeadRecord, PauseRecord, SnapshotRecord

VALUES = {
    keys.SESSION + "n1": SessionRecord(2**62, "boot", 3, 3.0, 7),
    keys.EPOCH + "app:blog": EpochRecord(4, "n1", 17, 3.0, held=True),
    keys.LEAD + "kernel": LeadRecord("n1", 4, "10.77.0.1", Reason.EXPIRED, 5),
    keys.ACK + "n1": AckRecord(("n1", "n2")),
    keys.INTENT + "kernel": IntentRecord(4, "n2", "10.77.0.2", "op"),
    keys.HISTORY + "kernel/4/end": ChangeRecord(
        resource="kernel", epoch=4, at_ms=5, from_node="n1", to_node="", reason=Reason.DRAIN, phases={"closing": 1.5}
    ),
    keys.GEN: GenRecord(2**61, 2**64 - 1),
    keys.KERNEL_HEAD: HeadRecord(9, b"digest", 7),
    cluster_records.NODE + "n1": KnownMember(
        address="10.77.0.1", client_url="https://10.77.0.1:2379", rpc="10.77.0.1:7444", api_url="http://10.77.0.1:8080"
    ),
    cluster_records.CANDIDATE + "n1": CandidateRecord(False, "locked"),
    cluster_records.SNAPSHOT: SnapshotRecord(9, 3, 1000),
    cluster_records.PAUSE: PauseRecord("admin", 5),
    cluster_records.DRAIN + "n1": DrainRecord("admin", 5),
}


@pytest.mark.parametrize("key", VALUES)
def test_a_value_comes_back_as_it_was_and_always_as_the_same_bytes(key: str) -> None:
    encoded = wire.encode(VALUES[key])
    assert wire.decode(key, encoded) == VALUES[key]
    assert wire.encode(wire.decode(key, encoded)) == encoded


def test_the_bytes_of_a_node_are_those_that_members_of_former_versions_compare() -> None:
    fields = {"address": "10.77.0.1", "client_url": "u", "rpc": "r", "api_url": "a", "role": "witness"}
    assert wire.encode(KnownMember(**fields)) == msgspec.msgpack.encode(fields)


def test_what_is_for_people_gets_its_time_when_it_is_sent() -> None:
    lead = LeadRecord("n1", 4, "10.77.0.1", Reason.EXPIRED)
    assert wire.decode(keys.LEAD + "kernel", wire.encode(lead)).at_ms > 1_700_000_000_000


@pytest.mark.parametrize("key", ["ctl/log/00000000000000000001", "ctl/snap/1/0", "keyset", "sess", "other/x", ""])
def test_keys_of_other_kinds_have_no_value_here(key: str) -> None:
    assert wire.decode(key, wire.encode(GenRecord(1, 2))) is None


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x80", wire.encode(GenRecord(1, 2))])
def test_bytes_that_are_none_of_ours_count_as_absent(garbage: bytes) -> None:
    assert wire.decode(keys.EPOCH + "kernel", garbage) is None


def test_sealed_bytes_are_carried_as_they_are() -> None:
    assert wire.encode(b"\x00sealed") == b"\x00sealed"


def test_keys_of_the_log_sort_as_its_revs() -> None:
    revs = [1, 9, 10, 99, 100, 10**18]
    assert sorted(map(cluster_records.log_key, revs)) == [cluster_records.log_key(rev) for rev in revs]

"""etcd's messages and methods: the generated `etcdrpc` of the package etcd3, and nothing else of that package.

Its generated code is of 2016: a current protobuf takes it in its pure Python implementation alone, which is chosen by an
environment variable before the first import of protobuf, for the whole process: no other file imports it. The messages
are those of etcd 3.2; what later versions added travels as unknown fields.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import warnings
from dataclasses import dataclass
from typing import Any, Final

from piccolod.errors import Bug

_IMPLEMENTATION: Final = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"


def _generated() -> tuple[Any, Any]:
    """`kv_pb2` and `rpc_pb2`. Raises Bug when protobuf is here already, in an implementation that cannot take them."""
    os.environ[_IMPLEMENTATION] = "python"
    from google.protobuf.internal import api_implementation  # reads it, once

    del os.environ[_IMPLEMENTATION]  # no business of programs that we start
    if api_implementation.Type() != "python":
        raise Bug(f"protobuf was imported before {_IMPLEMENTATION} could be set for this process")
    if "etcd3" not in sys.modules:
        # The package's own code (a client, locks, retries) is not wanted: its folder stands in for it. Saves 3 MiB.
        package = types.ModuleType("etcd3")
        spec = importlib.util.find_spec("etcd3")
        package.__path__ = list(spec.submodule_search_locations or ()) if spec is not None else []
        sys.modules["etcd3"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from etcd3.etcdrpc import kv_pb2, rpc_pb2
    return kv_pb2, rpc_pb2


kv, rpc = _generated()


def newer_fields(message: Any) -> dict[int, int]:
    """The numbers that this message does not know, by field."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    return {field.field_number: field.data for field in UnknownFieldSet(message) if isinstance(field.data, int)}


@dataclass(frozen=True, slots=True)
class Method:
    """One remote procedure: its path, how the request is written and the answer read."""

    path: str
    request: Any
    answer: Any


RANGE: Final = Method("/etcdserverpb.KV/Range", rpc.RangeRequest, rpc.RangeResponse)
TXN: Final = Method("/etcdserverpb.KV/Txn", rpc.TxnRequest, rpc.TxnResponse)
COMPACT: Final = Method("/etcdserverpb.KV/Compact", rpc.CompactionRequest, rpc.CompactionResponse)
WATCH: Final = Method("/etcdserverpb.Watch/Watch", rpc.WatchRequest, rpc.WatchResponse)
LEASE_GRANT: Final = Method("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest, rpc.LeaseGrantResponse)
LEASE_REVOKE: Final = Method("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest, rpc.LeaseRevokeResponse)
LEASE_KEEP_ALIVE: Final = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse
)  # fmt: skip
MEMBER_LIST: Final = Method("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest, rpc.MemberListResponse)
MEMBER_ADD: Final = Method("/etcdserverpb.Cluster/MemberAdd", rpc.MemberAddRequest, rpc.MemberAddResponse)
MEMBER_REMOVE: Final = Method("/etcdserverpb.Cluster/MemberRemove", rpc.MemberRemoveRequest, rpc.MemberRemoveResponse)
# etcd 3.4 has it, the messages do not; both of its messages have the fields of these two, under the same numbers.
MEMBER_PROMOTE: Final = Method("/etcdserverpb.Cluster/MemberPromote", rpc.MemberRemoveRequest, rpc.MemberRemoveResponse)
STATUS: Final = Method("/etcdserverpb.Maintenance/Status", rpc.StatusRequest, rpc.StatusResponse)
ALARM: Final = Method("/etcdserverpb.Maintenance/Alarm", rpc.AlarmRequest, rpc.AlarmResponse)
DEFRAGMENT: Final = Method("/etcdserverpb.Maintenance/Defragment", rpc.DefragmentRequest, rpc.DefragmentResponse)
SNAPSHOT: Final = Method("/etcdserverpb.Maintenance/Snapshot", rpc.SnapshotRequest, rpc.SnapshotResponse)
MOVE_LEADER: Final = Method("/etcdserverpb.Maintenance/MoveLeader", rpc.MoveLeaderRequest, rpc.MoveLeaderResponse)

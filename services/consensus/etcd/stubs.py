"""etcd's messages and methods: the definitions in the generated code of the package etcd3, and nothing else of that package.

That code is of 2016, and no current protobuf runs it but in its pure Python implementation, for the whole process. The
definitions in it are as good as ever: they are taken out of its text and given to protobuf as it is, whose messages are then
those of its C implementation. They are those of etcd 3.2; what later versions added travels as unknown fields.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet

from piccolod.errors import Bug

# In the order in which they need each other.
_FILES: Final = ("auth", "kv", "rpc")
_DEFINITION: Final = re.compile(r"serialized_pb=_b\(('.*?')\)\s*$", re.MULTILINE)


def _messages() -> dict[str, Any]:
    """The messages of each file, by their names. Raises Bug when the package is not the one that is known."""
    spec = importlib.util.find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise Bug("the package etcd3 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "etcdrpc"
    pool = descriptor_pool.DescriptorPool()
    found: dict[str, Any] = {}
    for name in _FILES:
        definition = _DEFINITION.search((folder / f"{name}_pb2.py").read_text(encoding="utf-8"))
        if definition is None:
            raise Bug(f"{folder / name}_pb2.py has no definition of messages")
        pool.AddSerializedFile(ast.literal_eval(definition.group(1)).encode("latin1"))
        described = pool.FindFileByName(f"{name}.proto").message_types_by_name
        found[name] = SimpleNamespace(**{each: message_factory.GetMessageClass(kind) for each, kind in described.items()})
    return found


_found: Final = _messages()
kv: Final[Any] = _found["kv"]
rpc: Final[Any] = _found["rpc"]


def newer_fields(message: Any) -> dict[int, int]:
    """The numbers that this message does not know, by field."""
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

"""Commands of persistence: the control store, its keys and its lock."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from piccolod.protocol.base import Nothing, Request


class CryptoStatus(msgspec.Struct, frozen=True, kw_only=True):
    initialized: bool
    locked: bool
    has_recovery: bool
    keyset_version: int
    cluster_id: str
    reason: str  # why it is locked, or what is wrong with the store


class GetCryptoStatus(Request[CryptoStatus], frozen=True, kw_only=True):
    command: ClassVar[str] = "persistence.crypto_status"
    reply: ClassVar[type] = CryptoStatus


class Setup(Request[CryptoStatus], frozen=True, kw_only=True):
    """The first password. Refused with Exists when there is a keyset. The node is unlocked afterwards."""

    command: ClassVar[str] = "persistence.setup"
    reply: ClassVar[type] = CryptoStatus
    password: str


class Unlock(Request[CryptoStatus], frozen=True, kw_only=True):
    """WrongPassword, TooMany. Unlocking what is unlocked checks the password all the same."""

    command: ClassVar[str] = "persistence.unlock"
    reply: ClassVar[type] = CryptoStatus
    password: str
    source: str  # who asks, for the limiter: an address or "uid:0"


class Lock(Request[CryptoStatus], frozen=True, kw_only=True):
    """`stays`: a person wants it so; no peer unlocks this node before a person did, or it booted anew. StoreUnavailable."""

    command: ClassVar[str] = "persistence.lock"
    reply: ClassVar[type] = CryptoStatus
    stays: bool = True


class VerifyPassword(Request[Nothing], frozen=True, kw_only=True):
    """Admin login is unwrapping the keyset. WrongPassword, TooMany, Locked."""

    command: ClassVar[str] = "persistence.verify_password"
    reply: ClassVar[type] = Nothing
    password: str
    source: str


class ChangePassword(Request[CryptoStatus], frozen=True, kw_only=True):
    command: ClassVar[str] = "persistence.change_password"
    reply: ClassVar[type] = CryptoStatus
    old: str
    new: str
    source: str


class RecoveryWords(msgspec.Struct, frozen=True, kw_only=True):
    words: str


class NewRecovery(Request[RecoveryWords], frozen=True, kw_only=True):
    """24 words that open the store without the password. The former words stop to work."""

    command: ClassVar[str] = "persistence.new_recovery"
    reply: ClassVar[type] = RecoveryWords
    password: str
    source: str


class ResetPassword(Request[CryptoStatus], frozen=True, kw_only=True):
    """A new password by the recovery words; unlocks. Invalid for a typo, WrongPassword for other words."""

    command: ClassVar[str] = "persistence.reset_password"
    reply: ClassVar[type] = CryptoStatus
    words: str
    new: str
    source: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    generation: int  # the rev of its last change
    body: dict[str, Any]


class Documents(msgspec.Struct, frozen=True, kw_only=True):
    rev: int
    documents: tuple[Document, ...]


class Read(Request[Document], frozen=True, kw_only=True):
    """One document. NotFound, Locked, Forbidden."""

    command: ClassVar[str] = "persistence.read"
    reply: ClassVar[type] = Document
    collection: str
    id: str


class List(Request[Documents], frozen=True, kw_only=True):
    """All documents of a collection, ordered by id, as of `rev`."""

    command: ClassVar[str] = "persistence.list"
    reply: ClassVar[type] = Documents
    collection: str


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """One change: `body` None deletes. A delete of what is absent is no change."""

    collection: str
    id: str
    body: dict[str, Any] | None


class Expect(msgspec.Struct, frozen=True, kw_only=True):
    """A precondition: the document has this generation; 0 means that it is absent."""

    collection: str
    id: str
    generation: int


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """`repeated`: the idempotency key was known; `rev` is of the first time, and nothing was written now."""

    rev: int
    repeated: bool = False


class Commit(Request[Committed], frozen=True, kw_only=True):
    """All writes in one entry, or none. Conflict, Locked, NotLeader, TooLarge, StoreFull, StoreUnavailable.

    The command's `idem` is committed with the entry: a retry gets the first result.
    """

    command: ClassVar[str] = "persistence.commit"
    reply: ClassVar[type] = Committed
    writes: tuple[Write, ...]
    expect: tuple[Expect, ...] = ()
    author: str


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    rev: int
    announced: int
    verified: int
    digest: str
    locked: bool


class GetRevision(Request[Revision], frozen=True, kw_only=True):
    command: ClassVar[str] = "persistence.revision"
    reply: ClassVar[type] = Revision


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    rev: int
    epoch: int
    author: str
    wall_ms: int
    digest: str
    parent: str
    size_bytes: int
    changed: tuple[str, ...]  # "put apps/hello"; empty while locked


class LogEntries(msgspec.Struct, frozen=True, kw_only=True):
    entries: tuple[LogEntry, ...]


class GetLog(Request[LogEntries], frozen=True, kw_only=True):
    """Entries after `after`, oldest first; `after` < 0: the last `limit`."""

    command: ClassVar[str] = "persistence.log"
    reply: ClassVar[type] = LogEntries
    after: int = -1
    limit: int = 100


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """`ok` false: `problem` names file and place, `good_rev` is the last rev that verifies."""

    ok: bool
    file: str
    entries: int
    first_rev: int
    good_rev: int
    head_rev: int
    problem: str = ""
    set_aside: str = ""  # after a repair: where the damaged file went
    lost_revs: int = 0


class Check(Request[StoreReport], frozen=True, kw_only=True):
    command: ClassVar[str] = "persistence.check"
    reply: ClassVar[type] = StoreReport


class Repair(Request[StoreReport], frozen=True, kw_only=True):
    """Sets a damaged file aside and keeps every entry up to the damage. Deletes nothing."""

    command: ClassVar[str] = "persistence.repair"
    reply: ClassVar[type] = StoreReport


class VolumeKey(msgspec.Struct, frozen=True, kw_only=True):
    key: bytes

    def __repr__(self) -> str:
        return "VolumeKey(…)"


class GetVolumeKey(Request[VolumeKey], frozen=True, kw_only=True):
    """The 256-bit key of a volume; `create` makes one for a new volume, otherwise NotFound. For volumes alone."""

    command: ClassVar[str] = "persistence.volume_key"
    reply: ClassVar[type] = VolumeKey
    app: str
    volume: str
    create: bool = False


class ForgetVolumeKey(Request[Committed], frozen=True, kw_only=True):
    """After a purge: without its key the volume's ciphertext is noise."""

    command: ClassVar[str] = "persistence.forget_volume_key"
    reply: ClassVar[type] = Committed
    app: str
    volume: str

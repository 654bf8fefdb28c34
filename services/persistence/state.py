"""The documents of the control store, as a fold over its entries. No I/O, no clock, no key.

A document is known by (collection, id) and carries its generation: the rev that wrote it last. `State` changes only by
`apply`, with what is already durable; `Draft` is where a batch of writes is decided before any of it is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from piccolod.errors import Conflict, Invalid, Problem
from services.persistence.entry import GENESIS, EntryHeader, Op, OpKind

# A retry comes within seconds; this many writes are many minutes of the busiest cluster. Kept small: it is in each snapshot.
IDEM_KEPT: Final = 4096
NAME_LIMIT_BYTES: Final = 255
ABSENT: Final = 0
_ROOT: Final = "root"

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_NIL: Final = msgspec.Raw(_encoder.encode(None))

Key = tuple[str, str]


class Document(msgspec.Struct, frozen=True, array_like=True):
    """`body` is MessagePack, so that no reader can change what another one reads."""

    generation: int
    body: bytes


class _Row(msgspec.Struct, frozen=True, array_like=True):
    collection: str
    id: str
    generation: int
    body: bytes


class _Image(msgspec.Struct, frozen=True):
    """The body of a snapshot."""

    documents: list[_Row]
    idem: list[tuple[str, str, int]]


_image = msgspec.msgpack.Decoder(_Image)


def encode_document(document: Any) -> bytes:
    """Equal documents give equal bytes, whatever the order of their keys. Raises Invalid for what MessagePack cannot say."""
    try:
        return _encoder.encode(document)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Invalid("a document holds a value that cannot be stored", hint="use maps, lists, text, numbers, bytes") from error


def put(collection: str, id: str, document: Any) -> Op:
    return Op(OpKind.PUT, collection, id, msgspec.Raw(encode_document(document)))


def delete(collection: str, id: str) -> Op:
    return Op(OpKind.DELETE, collection, id, _NIL)


class State:
    """What all entries up to `rev` make together."""

    def __init__(self, rev: int = 0, digest: bytes = GENESIS) -> None:
        self.rev = rev
        self.digest = digest
        self._collections: dict[str, dict[str, Document]] = {}
        self._idem: dict[Key, int] = {}
        self._idem_order: deque[Key] = deque()

    def get(self, collection: str, id: str) -> Document | None:
        return self._collections.get(collection, {}).get(id)

    def list(self, collection: str) -> Mapping[str, Document]:
        return self._collections.get(collection, {})

    def documents(self) -> Iterator[tuple[str, str, Document]]:
        for collection, documents in self._collections.items():
            for id, document in documents.items():
                yield collection, id, document

    def committed(self, author: str, idem: str) -> int | None:
        """The rev of the write that `author` made under this key, while it is remembered."""
        return self._idem.get((_caller(author), idem)) if idem else None

    def apply(self, header: EntryHeader, digest: bytes, ops: Sequence[Op]) -> None:
        """Folds the entry rev + 1. The caller has verified it."""
        for op in ops:
            if op.op is OpKind.PUT:
                self._collections.setdefault(op.collection, {})[op.id] = Document(header.rev, bytes(op.document))
            else:
                self._remove(op.collection, op.id)
        self.rev, self.digest = header.rev, digest
        if header.idem:
            self._remember((_caller(header.author), header.idem), header.rev)

    def _remove(self, collection: str, id: str) -> None:
        documents = self._collections.get(collection)
        if documents is not None and documents.pop(id, None) is not None and not documents:
            del self._collections[collection]

    def _remember(self, key: Key, rev: int) -> None:
        if key not in self._idem:
            self._idem_order.append(key)
        self._idem[key] = rev
        while len(self._idem_order) > IDEM_KEPT:
            del self._idem[self._idem_order.popleft()]

    def image(self) -> bytes:
        """The whole state as the body of a snapshot."""
        rows = [_Row(collection, id, document.generation, document.body) for collection, id, document in self.documents()]
        idem = [(author, key, self._idem[author, key]) for author, key in self._idem_order]
        return _encoder.encode(_Image(rows, idem))

    @classmethod
    def from_image(cls, rev: int, digest: bytes, body: bytes) -> State:
        """The inverse of `image`. Raises msgspec.MsgspecError."""
        image = _image.decode(body)
        state = cls(rev, digest)
        for row in image.documents:
            state._collections.setdefault(row.collection, {})[row.id] = Document(row.generation, row.body)
        for author, key, at in image.idem:
            state._remember((_caller(author), key), at)
        return state


def _caller(author: str) -> str:
    """`root@NODE` of a cluster and `root` of a node alone are one caller: a retry may come by another node's unix socket."""
    return _ROOT if author.startswith(f"{_ROOT}@") else author


class Draft:
    """Writes that are decided one after the other on top of a state and become true together, or not at all."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._changed: dict[Key, Document | None] = {}
        self._idem: dict[Key, int] = {}
        self.rev = state.rev

    def get(self, collection: str, id: str) -> Document | None:
        key = (collection, id)
        return self._changed[key] if key in self._changed else self._state.get(collection, id)

    def committed(self, author: str, idem: str) -> int | None:
        at = self._idem.get((_caller(author), idem)) if idem else None
        return at if at is not None else self._state.committed(author, idem)

    def plan(self, ops: Sequence[Op], expect: Mapping[Key, int]) -> tuple[Op, ...]:
        """The operations that change something; empty when the write changes nothing.

        `expect` names the generation that a document must have now, ABSENT for one that must not exist. Raises Conflict
        naming each document that is otherwise, and Invalid for operations that contradict themselves.
        """
        _check_shape(ops)
        if expect and (problems := tuple(self._unmet(expect))):
            raise Conflict("a document changed since it was read", hint="read it again and repeat the change", errors=problems)
        return tuple(op for op in ops if self._changes(op))

    def add(self, author: str, idem: str, ops: Sequence[Op]) -> int:
        """Takes a planned write in as rev + 1, for the plans after it."""
        self.rev += 1
        for op in ops:
            document = Document(self.rev, bytes(op.document)) if op.op is OpKind.PUT else None
            self._changed[op.collection, op.id] = document
        if idem:
            self._idem[_caller(author), idem] = self.rev
        return self.rev

    def _unmet(self, expect: Mapping[Key, int]) -> Iterator[Problem]:
        for (collection, id), generation in expect.items():
            found = self.get(collection, id)
            actual = ABSENT if found is None else found.generation
            if actual != generation:
                yield Problem(f"{collection}/{id}", f"expected {_generation(generation)}, found {_generation(actual)}")

    def _changes(self, op: Op) -> bool:
        found = self.get(op.collection, op.id)
        if op.op is OpKind.DELETE:
            return found is not None
        return found is None or found.body != bytes(op.document)


def _generation(generation: int) -> str:
    return "no such document" if generation == ABSENT else f"generation {generation}"


def is_name(text: str, limit_bytes: int = NAME_LIMIT_BYTES) -> bool:
    """Whether `text` is printable and has 1 to `limit_bytes` bytes of UTF-8."""
    return 0 < len(text) <= limit_bytes and text.isprintable() and (text.isascii() or len(text.encode()) <= limit_bytes)


def _check_shape(ops: Sequence[Op]) -> None:
    problems = [
        Problem(f"{op.collection}/{op.id}", f"a name must be printable and have 1 to {NAME_LIMIT_BYTES} bytes")
        for op in ops
        if not (is_name(op.collection) and is_name(op.id))
    ]
    if len(ops) > 1:
        counts = Counter((op.collection, op.id) for op in ops)
        problems += [Problem(f"{c}/{i}", "one write changes a document once") for (c, i), n in counts.items() if n > 1]
    if problems:
        raise Invalid("the write is not well formed", errors=tuple(problems))

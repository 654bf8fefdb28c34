"""The fold: any history of writes gives what a dictionary would hold, and says honestly what each write did."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piccolod.errors import Conflict, Invalid
from services.persistence import state as state_module
from services.persistence.entry import EntryHeader, Op, OpKind
from services.persistence.state import Draft, State, delete, encode_document, put

Key = tuple[str, str]


def header(rev: int, idem: str = "", author: str = "admin") -> EntryHeader:
    return EntryHeader(cluster="c", gen=1, rev=rev, epoch=1, parent=b"", author=author, wall_ms=0, idem=idem)


def commit(state: State, ops: list[Op], expect: dict[Key, int] | None = None, idem: str = "", author: str = "admin") -> int:
    """A write as the store does it: planned on a draft, then folded."""
    draft = Draft(state)
    known = draft.committed(author, idem)
    if known is not None:
        return known
    planned = draft.plan(ops, expect or {})
    if not planned:
        return state.rev
    rev = draft.add(author, idem, planned)
    state.apply(header(rev, idem, author), rev.to_bytes(32, "big"), planned)
    return rev


names = st.sampled_from(["a", "b", "c"])
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text("aé\x00", max_size=3) | st.binary(max_size=3)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text("xy", max_size=2), scalars, max_size=2)
writes = st.lists(st.dictionaries(st.tuples(names, names), st.none() | values.map(lambda v: {"v": v}), max_size=4), max_size=8)


def as_ops(write: dict[Key, Any]) -> list[Op]:
    return [delete(*key) if value is None else put(*key, value) for key, value in write.items()]


@given(writes)
def test_any_history_folds_to_what_a_dictionary_holds(history: list[dict[Key, Any]]) -> None:
    state, model, generations = State(), dict[Key, Any](), dict[Key, int]()
    for write in history:
        before = state.rev
        changed = {
            key
            for key, value in write.items()
            if (encode_document(value) if value is not None else None)
            != (encode_document(model[key]) if key in model else None)
        }
        rev = commit(state, as_ops(write))
        assert rev == before + (1 if changed else 0)
        for key in changed:
            if write[key] is None:
                del model[key], generations[key]
            else:
                model[key], generations[key] = write[key], rev
    found = {(c, i): msgspec.msgpack.decode(d.body) for c, i, d in state.documents()}
    assert {k: encode_document(v) for k, v in found.items()} == {k: encode_document(v) for k, v in model.items()}
    assert {(c, i): d.generation for c, i, d in state.documents()} == generations


@given(writes)
def test_an_image_gives_the_same_state_back(history: list[dict[Key, Any]]) -> None:
    state = State()
    for number, write in enumerate(history):
        commit(state, as_ops(write), idem=f"k{number}")
    again = State.from_image(state.rev, state.digest, state.image())
    assert list(again.documents()) == list(state.documents())
    assert (again.rev, again.digest) == (state.rev, state.digest)
    assert again.image() == state.image()
    for number in range(len(history)):
        assert again.committed("admin", f"k{number}") == state.committed("admin", f"k{number}")


@given(writes, st.randoms())
def test_a_batch_decides_like_writes_one_by_one(history: list[dict[Key, Any]], random: Any) -> None:
    one_by_one, batched = State(), State()
    for write in history:
        commit(one_by_one, as_ops(write))
    while history:
        count = random.randint(1, len(history))
        draft, planned = Draft(batched), []
        for write in history[:count]:
            ops = draft.plan(as_ops(write), {})
            if ops:
                planned.append((draft.add("admin", "", ops), ops))
        for rev, ops in planned:
            batched.apply(header(rev), rev.to_bytes(32, "big"), ops)
        history = history[count:]
    assert list(batched.documents()) == list(one_by_one.documents())
    assert batched.rev == one_by_one.rev


def test_a_generation_is_the_rev_of_the_last_change() -> None:
    state = State()
    commit(state, [put("apps", "a", {"v": 1}), put("apps", "b", {"v": 1})])
    commit(state, [put("apps", "a", {"v": 2}), put("apps", "b", {"v": 1})])
    a, b = state.get("apps", "a"), state.get("apps", "b")
    assert a is not None and b is not None
    assert (a.generation, b.generation) == (2, 1)


def test_a_precondition_that_does_not_hold_refuses_the_whole_write_and_names_the_document() -> None:
    state = State()
    commit(state, [put("apps", "a", {"v": 1})])
    with pytest.raises(Conflict) as caught:
        commit(state, [put("apps", "b", {"v": 1}), put("apps", "a", {"v": 2})], {("apps", "a"): 7, ("ports", "x"): 3})
    assert [(p.path, p.message) for p in caught.value.errors] == [
        ("apps/a", "expected generation 7, found generation 1"),
        ("ports/x", "expected generation 3, found no such document"),
    ]
    assert state.get("apps", "b") is None
    assert state.rev == 1


def test_absent_is_a_precondition_that_only_one_of_two_writers_meets() -> None:
    state = State()
    draft = Draft(state)
    draft.add("admin", "", draft.plan([put("ports", "35000", {"app": "a"})], {("ports", "35000"): 0}))
    with pytest.raises(Conflict):
        draft.plan([put("ports", "35000", {"app": "b"})], {("ports", "35000"): 0})


def test_a_retry_gets_the_first_rev_even_when_its_precondition_no_longer_holds() -> None:
    state = State()
    first = commit(state, [put("apps", "a", {"v": 1})], {("apps", "a"): 0}, idem="k")
    commit(state, [put("apps", "a", {"v": 2})])
    assert commit(state, [put("apps", "a", {"v": 1})], {("apps", "a"): 0}, idem="k") == first
    assert state.rev == 2


def test_the_same_key_of_another_author_is_another_write() -> None:
    state = State()
    assert commit(state, [put("apps", "a", {"v": 1})], idem="k", author="one") == 1
    assert commit(state, [put("apps", "a", {"v": 2})], idem="k", author="two") == 2


def test_the_root_of_every_node_is_one_author_also_from_a_snapshot() -> None:
    state = State()
    assert commit(state, [put("apps", "a", {"v": 1})], idem="k", author="root@n1") == 1
    for author in ("root@n2", "root"):
        assert commit(state, [put("apps", "a", {"v": 2})], idem="k", author=author) == 1
    assert commit(state, [put("apps", "a", {"v": 2})], idem="k", author="rooter") == 2
    again = State.from_image(state.rev, state.digest, state.image())
    assert again.committed("root@n3", "k") == 1


def test_only_the_newest_idempotency_keys_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "IDEM_KEPT", 3)
    state = State()
    for number in range(5):
        commit(state, [put("apps", "a", {"v": number})], idem=f"k{number}")
    assert [state.committed("admin", f"k{number}") for number in range(5)] == [None, None, 3, 4, 5]


def test_the_order_of_keys_in_a_document_is_no_change() -> None:
    state = State()
    commit(state, [put("apps", "a", {"x": 1, "y": {"p": 1, "q": 2}})])
    assert commit(state, [put("apps", "a", {"y": {"q": 2, "p": 1}, "x": 1})]) == 1


def test_deleting_what_is_absent_and_writing_nothing_are_no_change() -> None:
    state = State()
    assert commit(state, []) == 0
    assert commit(state, [delete("apps", "a")]) == 0


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\x00", "\ud800", "é" * 128])
def test_a_name_that_is_not_printable_or_too_long_is_refused(name: str) -> None:
    for op in (Op(OpKind.PUT, name, "a", msgspec.Raw(b"\xc0")), Op(OpKind.PUT, "apps", name, msgspec.Raw(b"\xc0"))):
        with pytest.raises(Invalid):
            Draft(State()).plan([op], {})


def test_one_write_cannot_change_a_document_twice() -> None:
    with pytest.raises(Invalid):
        Draft(State()).plan([put("apps", "a", {"v": 1}), delete("apps", "a")], {})


def test_a_value_that_cannot_be_stored_is_refused_by_name() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), {"n": 2**70}, {"t": "\ud800"}, deep):
        with pytest.raises(Invalid):
            put("apps", "a", value)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_garbage_is_no_image(garbage: bytes) -> None:
    try:
        State.from_image(1, bytes(32), garbage)
    except msgspec.MsgspecError:
        pass

from __future__ import annotations

import msgspec
import pytest

from piccolod import errors
from services.api import problem


@pytest.mark.parametrize("kind", list(errors.BY_CODE.values()), ids=lambda kind: kind.code)
def test_an_error_survives_the_wire(kind: type[errors.PiccoloError]) -> None:
    error = kind(
        "it failed",
        hint="do this",
        errors=(errors.Problem("a.b", "bad", 1, 2),),
        leader=errors.LeaderHint("n1", "10.0.0.1", "https://10.0.0.1", 7),
        retry_after_s=2.5,
    )
    back = errors.from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(error.to_wire())))
    assert type(back) is kind
    assert back.to_wire() == error.to_wire()


def test_an_unknown_code_of_a_newer_peer_is_a_failure() -> None:
    back = errors.from_wire({"code": "from_the_future", "detail": "x"})
    assert type(back) is errors.Failed
    assert back.detail == "x"


def test_a_problem_document_becomes_the_error_that_it_tells_of() -> None:
    leader = errors.LeaderHint("n2", "10.77.0.2", "https://10.77.0.2:8080", 9)
    body = problem.encode(errors.NotLeader("n2 leads", hint="ask n2", leader=leader), "id")
    for where, detail in (("", "n2 leads"), ("10.0.0.1:7444", "10.0.0.1:7444: n2 leads")):
        error = errors.from_problem(409, body, where)
        assert type(error) is errors.NotLeader
        assert (error.detail, error.hint, error.leader) == (detail, "ask n2", leader)
    assert errors.from_problem(429, b'{"code": "too_many", "detail": "x"}').to_wire() == errors.TooMany("x").to_wire()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b'{"code": "busy"}', b'{"code": "x", "detail": "", "leader": 1}'])
def test_what_is_no_problem_document_is_a_failure_of_who_answered(body: bytes) -> None:
    error = errors.from_problem(502, body, "10.0.0.1:7444")
    assert type(error) is errors.Failed and error.detail.startswith("10.0.0.1:7444 answered 502")


def test_every_error_stands_in_the_tree_of_the_docstring() -> None:
    for kind in errors.BY_CODE.values():
        assert f"{kind.__name__} " in (errors.__doc__ or ""), kind

from __future__ import annotations

import msgspec
import pytest

from piccolod import errors


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


def test_every_error_stands_in_the_tree_of_the_docstring() -> None:
    for kind in errors.BY_CODE.values():
        assert f"{kind.__name__} " in (errors.__doc__ or ""), kind

from __future__ import annotations

import msgspec
import pytest

from piccolod.errors import Invalid
from services.router.tunnel.wire import SERVED, WORDS_BYTES, Answer, Preamble, Verdict, answer_of, preamble_of, refusal

PREAMBLE = Preamble(app="notes", listener="web", epoch=4, address="192.0.2.7", port=50000)


def encoded(**fields: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.to_builtins(PREAMBLE) | fields)


def test_a_preamble_and_an_answer_come_back_as_they_were_said() -> None:
    assert preamble_of(msgspec.msgpack.encode(PREAMBLE)) == PREAMBLE
    assert answer_of(SERVED) == Answer(verdict=Verdict.SERVED)
    assert answer_of(refusal(Verdict.LATER, "its gate is shut")) == Answer(verdict=Verdict.LATER, reason="its gate is shut")


def test_a_preamble_of_a_newer_router_is_understood() -> None:
    assert preamble_of(encoded(colour="blue")) == PREAMBLE


def test_the_longest_reason_fits_into_an_answer() -> None:
    assert len(refusal(Verdict.NEVER, "\N{SNOWMAN}" * 5000)) <= WORDS_BYTES


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xc1" * 40,
        encoded(address="web.example.org"),
        encoded(port=70000),
        encoded(port=-1),
        encoded(epoch=-1),
        encoded(epoch="4"),
        encoded(app=None),
    ],
)
def test_what_is_no_preamble_is_refused(words: bytes) -> None:
    with pytest.raises(Invalid, match="no preamble"):
        preamble_of(words)


@pytest.mark.parametrize(
    "words", [b"", b"\xc1", msgspec.msgpack.encode({"verdict": 9}), msgspec.msgpack.encode({"reason": ""})]
)
def test_what_is_no_answer_is_refused(words: bytes) -> None:
    with pytest.raises(Invalid, match="no answer"):
        answer_of(words)

from __future__ import annotations

import pytest

from piccolod.errors import Invalid
from piccolod.pki import token

FINGERPRINT = "0123456789abcdef" * 4


def test_a_token_is_read_back_from_its_text_however_it_was_pasted() -> None:
    made = token.issue(FINGERPRINT)
    assert token.parse(made.text) == made and made.fingerprint == FINGERPRINT
    torn = f"  {made.text[:30]}\n{made.text[30:].upper()} \r\n"
    assert token.parse(torn) == made
    parts = made.text.split(".")
    assert parts[0] == "piccolo1" and [len(part) for part in parts[1:]] == [8, 32, 64]
    assert made.secret not in repr(made) and token.issue(FINGERPRINT).secret != made.secret


def test_a_typo_anywhere_is_found_before_anything_is_sent() -> None:
    text = token.issue(FINGERPRINT).text
    for at in range(len("piccolo1."), len(text)):
        other = "b" if text[at] != "b" else "c"
        with pytest.raises(Invalid, match="typo" if text[at] != "." else "part of it is missing"):
            token.parse(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize("text", ["", "piccolo1", "piccolo2.a.b.c", "x" * 10_000])
def test_what_is_no_token_is_told_apart_from_a_typo(text: str) -> None:
    with pytest.raises(Invalid, match="no join token"):
        token.parse(text)
    with pytest.raises(Invalid, match="no join token"):
        token.parse(token.issue(FINGERPRINT).text[:-1])


def test_another_secret_does_not_fit_the_digest_that_is_kept() -> None:
    mine, other = token.issue(FINGERPRINT), token.issue(FINGERPRINT)
    kept = token.digest(mine.secret)
    assert token.fits(mine.secret, kept) and not token.fits(other.secret, kept)
    assert mine.secret not in kept

"""The recovery key as 24 BIP-39 words: 256 bits and a checksum that tells a typo from a wrong key."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Final

from mnemonic import Mnemonic

from piccolod.errors import Invalid, Problem

WORDS: Final = 24
_HINT: Final = "write the 24 words in their order, with spaces between them"


@cache
def _list() -> Mnemonic:
    return Mnemonic("english")


def to_words(entropy: bytes) -> str:
    return str(_list().to_mnemonic(entropy))


def from_words(text: str) -> bytes:
    """The 256 bits. Case, accents of input methods, line ends and doubled spaces do not matter.

    Raises Invalid for a typo; the error names the place of a word and never the word.
    """
    words = unicodedata.normalize("NFKD", text).lower().split()
    if len(words) != WORDS:
        raise Invalid(f"the recovery key has {WORDS} words, these are {len(words)}", hint=_HINT)
    known = frozenset(_list().wordlist)
    problems = tuple(
        Problem(f"word {place}", "is not a word of the list") for place, word in enumerate(words, 1) if word not in known
    )
    if problems:
        raise Invalid(f"the recovery key has {len(problems)} mistyped word(s)", hint=_HINT, errors=problems)
    sentence = " ".join(words)
    if not _list().check(sentence):
        raise Invalid("the recovery words do not fit together: a word is mistaken or two are swapped", hint=_HINT)
    return bytes(_list().to_entropy(sentence))

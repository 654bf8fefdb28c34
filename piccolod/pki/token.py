"""What a person carries to a new node: `piccolo1.<id>.<secret>.<fingerprint of the authority>`. Pure.

The last six characters of the secret are a checksum over the whole text: a typo is found where it was made, before anything
is sent. The store keeps a digest; 130 random bits need no stretching.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final

import msgspec

from piccolod.errors import Invalid

_FORM: Final = re.compile(r"piccolo1\.([0-9a-f]{8})\.([a-z2-7]{26})([a-z2-7]{6})\.([0-9a-f]{64})")
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_RANDOM: Final = 26
_CHECK: Final = 6
_HINT: Final = "copy the whole text that `piccoloctl cluster tokens create` printed"


class JoinToken(msgspec.Struct, frozen=True):
    """`fingerprint`: SHA-256 of the authority's certificate in hex."""

    id: str
    secret: str
    fingerprint: str

    @property
    def text(self) -> str:
        return f"piccolo1.{self.id}.{self.secret}.{self.fingerprint}"

    def __repr__(self) -> str:
        return f"JoinToken({self.id})"


def issue(fingerprint: str) -> JoinToken:
    id = secrets.token_hex(4)
    random = "".join(secrets.choice(_LETTERS) for _ in range(_RANDOM))
    return JoinToken(id, random + _checksum(id, random, fingerprint), fingerprint)


def parse(text: str) -> JoinToken:
    """White space and case do not matter. Raises Invalid, for what is no token and for a typo."""
    match = _FORM.fullmatch("".join(text.split()).lower())
    if match is None:
        raise Invalid("this is no join token, or a part of it is missing", hint=_HINT)
    id, random, check, fingerprint = match.groups()
    if not hmac.compare_digest(check, _checksum(id, random, fingerprint)):
        raise Invalid("the join token has a typo in it", hint=_HINT)
    return JoinToken(id, random + check, fingerprint)


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def fits(secret: str, kept: str) -> bool:
    """Whether `kept` is the digest of this secret, in a time that says nothing."""
    return hmac.compare_digest(digest(secret), kept)


def _checksum(id: str, random: str, fingerprint: str) -> str:
    whole = hashlib.sha256(f"piccolo1.{id}.{random}.{fingerprint}".encode()).digest()
    return base64.b32encode(whole).decode().lower()[:_CHECK]

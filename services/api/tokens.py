"""Bearer tokens of programs: `pic_<id>_<secret>`. The store keeps a hash; the secret is shown once. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Any, Final

import msgspec

from services.api.actor import Actor, Kind, Scope

_FORM: Final = re.compile(r"pic_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens/<id>` in the control store. `hash` is SHA-256: the secret has 256 random bits, stretching adds nothing."""

    name: str
    hash: str
    scope: str
    created_ms: int
    expires_ms: int  # 0 = never
    created_by: str


def mint() -> tuple[str, str, str]:
    """(id, the whole token, the hash of its secret)."""
    number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return number, f"pic_{number}_{secret}", _hash(secret)


def parse(token: str) -> tuple[str, str] | None:
    """(id, secret), or None when it is no token."""
    match = _FORM.fullmatch(token)
    return None if match is None else (match[1], match[2])


def record_of(body: dict[str, Any]) -> TokenRecord:
    return msgspec.convert(body, TokenRecord)


def judge(number: str, secret: str, record: TokenRecord, now_ms: int) -> Actor | None:
    """Who presents `secret`; None when it is wrong or the token has expired."""
    if not hmac.compare_digest(_hash(secret), record.hash):
        return None
    if record.expires_ms and now_ms >= record.expires_ms:
        return None
    return Actor(Kind.TOKEN, f"token:{record.name}/{number}", Scope[record.scope.upper()], expires_ms=record.expires_ms)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

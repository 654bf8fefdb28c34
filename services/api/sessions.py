"""Sessions of browsers: signed, stateless cookies. Only the key and the revocations are stored. Pure.

A cookie is `<sid>.<issued>.<expires>.<mac>`, seconds of the wall clock: it must hold over reboots and on other nodes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

SESSION_COOKIE: Final = "piccolo_session"
CSRF_COOKIE: Final = "piccolo_csrf"
CSRF_HEADER: Final = "x-csrf-token"

_FORM: Final = re.compile(r"([0-9a-f]{32})\.(\d{1,12})\.(\d{1,12})\.([0-9a-f]{64})")
_AHEAD_S: Final = 300  # how far the clock of the node that signed may be ahead of ours


@dataclass(frozen=True, slots=True)
class Session:
    sid: str
    issued_s: int
    expires_s: int


def new_key() -> str:
    return secrets.token_hex(32)


def bound(key: str, keyset_version: int) -> str:
    """The key that signs while the keyset has this version: another password makes every former cookie void by itself."""
    return _mac(key, "keyset", str(keyset_version))


def issue(key: str, now_s: int, lifetime_s: int) -> tuple[Session, str]:
    """A session, and its cookie."""
    session = Session(secrets.token_hex(16), now_s, now_s + lifetime_s)
    body = f"{session.sid}.{session.issued_s}.{session.expires_s}"
    return session, f"{body}.{_mac(key, 'session', body)}"


def read(key: str, cookie: str, now_s: int) -> Session | None:
    """The session of a cookie that this key signed and that has not expired; None for anything else."""
    match = _FORM.fullmatch(cookie)
    if match is None:
        return None
    body = cookie.rpartition(".")[0]
    if not hmac.compare_digest(match[4], _mac(key, "session", body)):
        return None
    session = Session(match[1], int(match[2]), int(match[3]))
    return session if session.issued_s - _AHEAD_S <= now_s < session.expires_s else None


def csrf(key: str, session: Session) -> str:
    """What the page of this session repeats in a header, which a foreign page cannot."""
    return _mac(key, "csrf", session.sid)


def _mac(key: str, purpose: str, text: str) -> str:
    return hmac.new(bytes.fromhex(key), f"piccolo {purpose} {text}".encode(), hashlib.sha256).hexdigest()

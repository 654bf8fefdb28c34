"""The code that lets another machine do the first setup: made anew by each start, void after too many wrong tries."""

from __future__ import annotations

import hmac
import secrets
from typing import Final

_LETTERS: Final = "ABCDEFGHJKMNPQRSTVWXYZ23456789"  # none that is read as another
_LENGTH: Final = 10  # 49 bits
_WRONG_TRIES: Final = 20


class SetupCode:
    def __init__(self, enabled: bool) -> None:
        self.text = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH)) if enabled else ""
        self._left = _WRONG_TRIES

    @property
    def enabled(self) -> bool:
        return bool(self.text)

    def fits(self, code: str) -> bool:
        if not self.text or self._left <= 0:
            return False
        fits = hmac.compare_digest(code.strip().upper().encode(), self.text.encode())
        self._left -= not fits
        return fits

"""Key bytes that do not show themselves: not in a repr, an exception's locals or a log line."""

from __future__ import annotations

import os
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32


class SecretKey:
    """256 bits. Compare and print reveal nothing; `raw` is for the two places that must hand them on."""

    __slots__ = ("_raw", "cipher")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._raw = raw
        self.cipher = AESGCM(raw)

    @classmethod
    def random(cls) -> SecretKey:
        return cls(os.urandom(KEY_BYTES))

    def raw(self) -> bytes:
        return self._raw

    def __repr__(self) -> str:
        return "SecretKey(…)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")

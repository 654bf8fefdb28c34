"""The keyset: the SDEK, which seals the store, wrapped by what a person knows.

    SDEK            256 random bits, made once; never changes, so that no new password encrypts anything again
    by password     AES-256-GCM(Argon2id(password, salt, parameters), SDEK)
    by recovery     AES-256-GCM(HKDF-SHA256(24 words), SDEK), when there is a recovery key

    proof           HMAC-SHA256(HKDF-SHA256(SDEK), all the rest): who holds the SDEK believes no keyset of a stranger

One JSON file, replaced whole: temp in the same folder, fsync, rename, fsync of the folder. A process that dies anywhere in
between leaves the old or the new keyset, each of them complete. `version` grows with each replacement; the highest wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import time
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from piccolod import durable
from piccolod.errors import Invalid, NotFound, StoreCorrupt, StoreFull, StoreUnavailable, WrongPassword
from services.persistence import words
from services.persistence.secret import KEY_BYTES, SecretKey

FORMAT: Final = 1
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
PASSWORD_MIN_CHARS: Final = 8
PASSWORD_MAX_BYTES: Final = 1024
_ENOSPC: Final = frozenset({28, 122})  # ENOSPC, EDQUOT


class Kdf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of Argon2id."""

    memory_kib: int
    iterations: int
    lanes: int


class Wrap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The SDEK under one key. `kdf` is null where the key has 256 bits of its own."""

    salt: bytes
    nonce: bytes
    sealed: bytes
    kdf: Kdf | None = None


class Keyset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    cluster: str
    version: int
    password: Wrap
    recovery: Wrap | None = None
    proof: bytes = b""  # by the SDEK, over all the rest: made by somebody who had it


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is on the disk: the checksum tells a damaged file from a wrong password."""

    keyset: msgspec.Raw
    sha256: str


def check_policy(password: str) -> None:
    """Raises Invalid for a password that may not be set."""
    if len(password.strip()) < PASSWORD_MIN_CHARS:
        raise Invalid(f"a password needs at least {PASSWORD_MIN_CHARS} characters", hint="a few words make a good one")
    if len(_password_bytes(password)) > PASSWORD_MAX_BYTES:
        raise Invalid(f"a password may have at most {PASSWORD_MAX_BYTES} bytes")


def create(cluster: str, password: str, kdf: Kdf) -> tuple[Keyset, SecretKey]:
    """A first keyset around a new SDEK."""
    check_policy(password)
    sdek = SecretKey.random()
    return _proven(Keyset(FORMAT, cluster, 1, _wrap_by_password(cluster, sdek, password, kdf)), sdek), sdek


def open_by_password(keyset: Keyset, password: str) -> SecretKey:
    """The SDEK. Raises WrongPassword. Takes 0.3 to 0.5 s and up to 256 MiB: off the event loop, one at a time."""
    wrap = keyset.password
    assert wrap.kdf is not None
    secret = _password_bytes(password)
    if len(secret) > PASSWORD_MAX_BYTES:
        raise WrongPassword("the password is wrong")
    try:
        return _unwrap(keyset.cluster, wrap, _stretch(secret, wrap.salt, wrap.kdf))
    except InvalidTag:
        raise WrongPassword("the password is wrong") from None


def open_by_words(keyset: Keyset, text: str) -> SecretKey:
    """The SDEK. Raises Invalid for a typo, WrongPassword for the words of another key, NotFound when there are none."""
    entropy = words.from_words(text)
    if keyset.recovery is None:
        raise NotFound("this store has no recovery key", hint="make one with `piccoloctl keys recovery new`")
    try:
        return _unwrap(keyset.cluster, keyset.recovery, _from_entropy(entropy, keyset.recovery.salt))
    except InvalidTag:
        raise WrongPassword("these recovery words are well formed, but they are not the words of this store") from None


def with_password(keyset: Keyset, sdek: SecretKey, password: str, kdf: Kdf) -> Keyset:
    check_policy(password)
    wrap = _wrap_by_password(keyset.cluster, sdek, password, kdf)
    return _proven(msgspec.structs.replace(keyset, version=keyset.version + 1, password=wrap), sdek)


def with_new_recovery(keyset: Keyset, sdek: SecretKey) -> tuple[Keyset, str]:
    """The keyset and the 24 words, which are nowhere else: they are shown once."""
    entropy, salt = os.urandom(KEY_BYTES), os.urandom(SALT_BYTES)
    wrap = _wrap(keyset.cluster, sdek, _from_entropy(entropy, salt), salt, None)
    made = msgspec.structs.replace(keyset, version=keyset.version + 1, recovery=wrap)
    return _proven(made, sdek), words.to_words(entropy)


def is_genuine(keyset: Keyset, sdek: SecretKey) -> bool:
    """Whether somebody who had the SDEK made it. False also for one of before there were proofs."""
    return hmac.compare_digest(keyset.proof, _proof(keyset, sdek))


def load(path: Path) -> Keyset | None:
    """The keyset on the disk, None when there is none. Raises StoreCorrupt, StoreUnavailable."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
    keyset = decode(content)
    if keyset is None:
        raise StoreCorrupt(
            f"{path} is damaged", hint="put back a copy of this file from a backup; the password opens nothing without it"
        )
    return keyset


def decode(content: bytes) -> Keyset | None:
    """The keyset that a file's text says; None for one that is damaged or none at all."""
    try:
        file = msgspec.json.decode(content, type=_File)
        if hashlib.sha256(file.keyset).hexdigest() == file.sha256:
            return _valid(msgspec.json.decode(file.keyset, type=Keyset))
    except msgspec.MsgspecError:
        pass
    return None


def encode(keyset: Keyset) -> bytes:
    """The file's text: the same keyset gives the same bytes."""
    body = msgspec.json.encode(keyset)
    return msgspec.json.encode(_File(msgspec.Raw(body), hashlib.sha256(body).hexdigest()))


def save(path: Path, keyset: Keyset) -> None:
    """Replaces the keyset on the disk. Raises StoreFull, StoreUnavailable; then `load` says which of the two is there."""
    content = encode(keyset)
    try:
        durable.replace(path, content)
    except OSError as error:
        kind = StoreFull if error.errno in _ENOSPC else StoreUnavailable
        raise kind(
            f"cannot replace {path}: {error.strerror}", hint="unless said otherwise the former keys are still valid"
        ) from error


def replace_damaged(path: Path, keyset: Keyset) -> None:
    """Puts a keyset that is known to be whole in the place of a damaged file, which is kept under another name."""
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    with contextlib.suppress(OSError):
        os.link(path, aside)
    save(path, keyset)


def _valid(keyset: Keyset) -> Keyset:
    wraps = [keyset.password, *([keyset.recovery] if keyset.recovery else [])]
    sane = all(len(wrap.nonce) == NONCE_BYTES and len(wrap.salt) == SALT_BYTES for wrap in wraps)
    if keyset.format != FORMAT or keyset.password.kdf is None or not sane:
        raise msgspec.ValidationError("not a keyset of this format")
    return keyset


def _proven(keyset: Keyset, sdek: SecretKey) -> Keyset:
    return msgspec.structs.replace(keyset, proof=_proof(keyset, sdek))


def _proof(keyset: Keyset, sdek: SecretKey) -> bytes:
    key = HKDF(SHA256(), KEY_BYTES, None, b"piccolo keyset proof").derive(sdek.raw())
    return hmac.digest(key, msgspec.json.encode(msgspec.structs.replace(keyset, proof=b"")), "sha256")


def _password_bytes(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


def _stretch(secret: bytes, salt: bytes, kdf: Kdf) -> bytes:
    return Argon2id(salt=salt, length=KEY_BYTES, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory_kib).derive(
        secret
    )


def _from_entropy(entropy: bytes, salt: bytes) -> bytes:
    """256 random bits need no stretching."""
    return HKDF(SHA256(), KEY_BYTES, salt, b"piccolo recovery key").derive(entropy)


def _wrap_by_password(cluster: str, sdek: SecretKey, password: str, kdf: Kdf) -> Wrap:
    salt = os.urandom(SALT_BYTES)
    return _wrap(cluster, sdek, _stretch(_password_bytes(password), salt, kdf), salt, kdf)


def _wrap(cluster: str, sdek: SecretKey, kek: bytes, salt: bytes, kdf: Kdf | None) -> Wrap:
    nonce = os.urandom(NONCE_BYTES)
    return Wrap(salt, nonce, AESGCM(kek).encrypt(nonce, sdek.raw(), _bound(cluster, salt, kdf)), kdf)


def _unwrap(cluster: str, wrap: Wrap, kek: bytes) -> SecretKey:
    return SecretKey(AESGCM(kek).decrypt(wrap.nonce, wrap.sealed, _bound(cluster, wrap.salt, wrap.kdf)))


def _bound(cluster: str, salt: bytes, kdf: Kdf | None) -> bytes:
    """What the wrap is bound to, so that weaker parameters or another cluster's name cannot be put beside it."""
    use = b"recovery" if kdf is None else b"password"
    return b"piccolo keyset\0" + use + b"\0" + msgspec.msgpack.encode((cluster, salt, kdf))

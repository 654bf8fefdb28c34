"""The keyset at work: who knows the password or the words gets the key; everyone else waits.

Argon2id takes half a second and 256 MiB: it runs in one thread of its own, one guess after the other, behind the limiter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from piccolod.errors import Invalid, NotFound, PiccoloError, TooMany
from services.persistence import keyset as keysets
from services.persistence import tuning
from services.persistence.guesses import Guesses
from services.persistence.keyset import Kdf, Keyset
from services.persistence.secret import SecretKey

T = TypeVar("T")

# Guesses that wait for the one thread: at 0.5 s each more than these would miss their callers' deadlines anyway.
WAITING: Final = 8
RETRY_S: Final = 1.0


class Passwords:
    """`keyset` is None before the setup. Every change is on the disk before it is believed."""

    def __init__(self, path: Path, keyset: Keyset | None, guesses: Guesses | None = None) -> None:
        self._path = path
        self.keyset = keyset
        self._guesses = guesses or Guesses()
        self.waiting = 0  # guesses that are being made or wait to be
        self._changing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="argon2")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def set_up(self, cluster: str, password: str, kdf: Kdf | None = None) -> tuple[Keyset, SecretKey]:
        """A first keyset, not saved yet: the log comes first. Raises Invalid."""
        keysets.check_policy(password)
        return await self._run(lambda: keysets.create(cluster, password, kdf or tuning.tune()))

    async def keep(self, keyset: Keyset) -> None:
        """Puts a keyset on the disk and believes what is there then. Raises StoreFull, StoreUnavailable."""
        try:
            await self._run(lambda: keysets.save(self._path, keyset))
        except PiccoloError:
            # If only the last sync failed, the new one is in place and a power loss may bring the former one back.
            self.keyset = await self._run(lambda: keysets.load(self._path))
            raise
        self.keyset = keyset

    async def by_password(self, password: str, source: str) -> SecretKey:
        """The key. Raises WrongPassword, TooMany."""
        keyset = self._made()
        return await self._guess(source, lambda: keysets.open_by_password(keyset, password))

    async def by_words(self, words: str, source: str) -> SecretKey:
        """The key. Raises Invalid for a typo, WrongPassword, NotFound, TooMany."""
        keyset = self._made()
        return await self._guess(source, lambda: keysets.open_by_words(keyset, words))

    async def change(self, old: str, new: str, source: str) -> None:
        """Raises Invalid, WrongPassword, TooMany, StoreFull, StoreUnavailable."""
        keysets.check_policy(new)
        async with self._changing:
            sdek = await self.by_password(old, source)
            await self._replace_password(sdek, new)

    async def reset(self, words: str, new: str, source: str) -> SecretKey:
        """A new password by the recovery words; returns the key."""
        keysets.check_policy(new)
        async with self._changing:
            sdek = await self.by_words(words, source)
            await self._replace_password(sdek, new)
        return sdek

    async def new_recovery(self, password: str, source: str) -> str:
        """24 new words, on the disk before they are shown."""
        async with self._changing:
            sdek = await self.by_password(password, source)
            keyset, words = keysets.with_new_recovery(self._made(), sdek)
            await self.keep(keyset)
        return words

    async def _replace_password(self, sdek: SecretKey, new: str) -> None:
        keyset = self._made()
        kdf = keyset.password.kdf
        assert kdf is not None
        await self.keep(await self._run(lambda: keysets.with_password(keyset, sdek, new, kdf)))

    def _made(self) -> Keyset:
        assert self.keyset is not None, "asked for a password before the setup"
        return self.keyset

    async def _guess(self, source: str, open_keyset: Callable[[], SecretKey]) -> SecretKey:
        if self.waiting >= WAITING:
            raise TooMany("too many passwords are being checked", hint="try again in a moment", retry_after_s=RETRY_S)
        self._guesses.admit(source)
        self.waiting += 1
        guess = self._thread.submit(open_keyset)
        loop = asyncio.get_running_loop()
        # Counted until it has really run: a caller that leaves does not make room for the next one.
        guess.add_done_callback(lambda _: loop.call_soon_threadsafe(self._guessed))
        try:
            sdek = await asyncio.shield(asyncio.wrap_future(guess))
        except (Invalid, NotFound):
            # A typo in the words says nothing about them.
            self._guesses.excuse(source)
            raise
        self._guesses.right(source)
        return sdek

    def _guessed(self) -> None:
        self.waiting -= 1

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

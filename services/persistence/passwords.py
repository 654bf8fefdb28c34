"""The keyset at work: who knows the password or the words gets the key; everyone else waits.

Argon2id takes half a second and 256 MiB: it runs in one thread of its own, one guess after the other, behind the limiter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeVar

from piccolod.errors import Invalid, NotFound, PiccoloError, StoreCorrupt, TooMany, WrongPassword
from services.persistence import keyset as keysets
from services.persistence import tuning
from services.persistence.guesses import Guesses
from services.persistence.keyset import Kdf, Keyset
from services.persistence.secret import SecretKey

T = TypeVar("T")

# Guesses that wait for the one thread: at 0.5 s each more than these would miss their callers' deadlines anyway.
WAITING: Final = 8
RETRY_S: Final = 1.0


class Shared(Protocol):
    """Where the nodes of a cluster agree on one keyset before any of them believes it."""

    async def prepare(self) -> None:
        """Before a change: this node may make it, and has the newest. Raises NotLeader, NoLeader, StoreUnavailable."""

    async def publish(self, keyset: Keyset) -> None:
        """Raises Conflict, NotLeader, StoreFull, StoreUnavailable: not changed; OutcomeUnknown."""


class Passwords:
    """`keyset` is None before the setup. Every change is on the disk before it is believed; in a cluster in etcd.

    `offered`: the cluster's newer one that a locked member cannot prove. The genuine one stays until the right password, or
    the key, proves its successor: whoever can write etcd must not be able to take the keys away.
    """

    def __init__(
        self,
        path: Path,
        keyset: Keyset | None,
        guesses: Guesses | None = None,
        shared: Shared | None = None,
        fits: Callable[[SecretKey], bool] = lambda _: True,
    ) -> None:
        """`fits`: whether a key opens what this node has of the log. Called in the thread."""
        self._path = path
        self.keyset = keyset
        self.offered: Keyset | None = None
        self._offer_path = path.with_name(f"{path.stem}.offered{path.suffix}")
        self._shared = shared
        self._fits = fits
        self._unsaved = False
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
        """Puts a keyset on the disk and believes what is there then. Raises StoreFull, StoreUnavailable.

        In a cluster it goes to etcd first, and what that took is believed whatever this disk says.
        """
        if self._shared is not None:
            await self._shared.publish(keyset)
            await self.adopt(keyset)
            return
        try:
            await self._run(lambda: keysets.save(self._path, keyset))
        except PiccoloError:
            # If only the last sync failed, the new one is in place and a power loss may bring the former one back.
            self.keyset = await self._run(lambda: keysets.load(self._path))
            raise
        self.keyset = keyset

    async def adopt(self, keyset: Keyset) -> None:
        """Believes a proven keyset of the cluster. A disk that refuses it is asked again by `save_again`."""
        self.keyset, self.offered, self._unsaved = keyset, None, True
        await self.save_again()

    async def save_again(self) -> None:
        """Safe to call at any time."""
        if self._unsaved and self.keyset is not None:
            keyset = self.keyset
            try:
                await self._run(lambda: keysets.save(self._path, keyset))
                await self._run(lambda: self._offer_path.unlink(missing_ok=True))
            except (PiccoloError, OSError):
                return
            self._unsaved = self.keyset is not keyset

    async def load_offer(self) -> None:
        """What a former life was offered."""
        try:
            self.offered = await self._run(lambda: keysets.load(self._offer_path))
        except PiccoloError:
            self.offered = None  # the cluster offers it again

    async def consider(self, found: Keyset, key: SecretKey | None) -> None:
        """The cluster's keyset: the highest version wins once it is proven. Raises StoreCorrupt for one that is a stranger's.

        StoreFull, StoreUnavailable when the offer could not be written down.
        """
        known = self._made()
        if found.version <= known.version:
            self.offered = None
        elif key is None:
            if found != self.offered:
                await self._run(lambda: keysets.save(self._offer_path, found))
                self.offered = found
        elif keysets.is_genuine(found, key):
            await self.adopt(found)
        else:
            raise StoreCorrupt("the cluster's keyset was not made by who had this store's key: the former one stays")

    async def by_password(self, password: str, source: str) -> SecretKey:
        """The key. Raises WrongPassword, TooMany."""
        return await self._opened(source, lambda keyset: keysets.open_by_password(keyset, password))

    async def by_words(self, words: str, source: str) -> SecretKey:
        """The key. Raises Invalid for a typo, WrongPassword, NotFound, TooMany."""
        return await self._opened(source, lambda keyset: keysets.open_by_words(keyset, words))

    async def _opened(self, source: str, open_keyset: Callable[[Keyset], SecretKey]) -> SecretKey:
        genuine, offered = self._made(), self.offered
        if offered is None:
            return await self._guess(source, lambda: (open_keyset(genuine), genuine))
        return await self._guess(source, lambda: _of_two(genuine, offered, open_keyset, self._fits))

    async def change(self, old: str, new: str, source: str) -> None:
        """Raises Invalid, WrongPassword, TooMany, StoreFull, StoreUnavailable."""
        keysets.check_policy(new)
        async with self._changing:
            await self._prepare()
            sdek = await self.by_password(old, source)
            await self._replace_password(sdek, new)

    async def reset(self, words: str, new: str, source: str) -> SecretKey:
        """A new password by the recovery words; returns the key."""
        keysets.check_policy(new)
        async with self._changing:
            sdek = await self.by_words(words, source)
            await self._replace_password(sdek, new)
        return sdek

    async def replace(self, sdek: SecretKey, new: str) -> None:
        """A new password by who has the key. Raises as `change`."""
        keysets.check_policy(new)
        async with self._changing:
            await self._prepare()
            await self._replace_password(sdek, new)

    async def new_recovery(self, password: str, source: str) -> str:
        """24 new words, on the disk before they are shown."""
        async with self._changing:
            await self._prepare()
            sdek = await self.by_password(password, source)
            keyset, words = keysets.with_new_recovery(self._made(), sdek)
            await self.keep(keyset)
        return words

    async def _prepare(self) -> None:
        if self._shared is not None:
            await self._shared.prepare()

    async def _replace_password(self, sdek: SecretKey, new: str) -> None:
        keyset = self._made()
        kdf = keyset.password.kdf
        assert kdf is not None
        await self.keep(await self._run(lambda: keysets.with_password(keyset, sdek, new, kdf)))

    def _made(self) -> Keyset:
        assert self.keyset is not None, "asked for a password before the setup"
        return self.keyset

    async def _guess(self, source: str, open_keyset: Callable[[], tuple[SecretKey, Keyset]]) -> SecretKey:
        """The key, and what it proved of the keyset that was offered."""
        if self.waiting >= WAITING:
            raise TooMany("too many passwords are being checked", hint="try again in a moment", retry_after_s=RETRY_S)
        self._guesses.admit(source)
        self.waiting += 1
        guess = self._thread.submit(open_keyset)
        loop = asyncio.get_running_loop()
        # Counted until it has really run: a caller that leaves does not make room for the next one.
        guess.add_done_callback(lambda _: loop.call_soon_threadsafe(self._guessed))
        try:
            sdek, proven = await asyncio.shield(asyncio.wrap_future(guess))
        except (Invalid, NotFound):
            # A typo in the words says nothing about them.
            self._guesses.excuse(source)
            raise
        self._guesses.right(source)
        if proven is self.offered:
            await self.adopt(proven)
        return sdek

    def _guessed(self) -> None:
        self.waiting -= 1

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _of_two(
    genuine: Keyset, offered: Keyset, open_keyset: Callable[[Keyset], SecretKey], fits: Callable[[SecretKey], bool]
) -> tuple[SecretKey, Keyset]:
    """The key, by the keyset that proved itself. The former one's secret opens nothing any more if its successor is genuine."""
    try:
        sdek = open_keyset(offered)
        if fits(sdek):
            return sdek, offered
    except (WrongPassword, NotFound):
        pass
    sdek = open_keyset(genuine)
    if keysets.is_genuine(offered, sdek):
        raise WrongPassword("the password is wrong: it was changed")
    return sdek, genuine

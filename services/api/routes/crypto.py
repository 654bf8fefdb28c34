"""The lock: first password, unlock, lock, another password, recovery words. persistence limits wrong guesses by source."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import Annotated, Final

import msgspec
from litestar import Response
from litestar.params import JSONBody

from piccolod.errors import DeadlineExceeded, Exists, Failed, Forbidden, PiccoloError
from piccolod.protocol.apps import Quiesce, Resume
from piccolod.protocol.persistence import (
    ChangePassword,
    CryptoStatus,
    GetCryptoStatus,
    Lock,
    NewRecovery,
    ResetPassword,
    Setup,
    Unlock,
)
from services.api import cookies
from services.api.actor import Kind, Scope
from services.api.asked import BASE, Req, actor_of, core_of, source_of
from services.api.call import call_of
from services.api.core import Core
from services.api.documents import LockView, Words
from services.api.endpoint import COMMIT, JSON, PASSWORD, STORE, endpoint

_QUIESCE_S: Final = 20.0  # the longest grace of most apps is half of it
_LOCK_S: Final = 40.0
_KEY_S: Final = 30.0  # Argon2id, one at a time, and the fold of the log behind it

Password = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class SetupBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`code`: what piccolod printed at start, needed from other machines."""

    password: Password
    code: str = ""

    def __repr__(self) -> str:
        return "SetupBody(…)"


class PasswordBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    password: Password

    def __repr__(self) -> str:
        return "PasswordBody(…)"


class ChangeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    old: Password
    new: Password

    def __repr__(self) -> str:
        return "ChangeBody(…)"


class ResetBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    words: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    new: Password

    def __repr__(self) -> str:
        return "ResetBody(…)"


@endpoint("GET", f"{BASE}/crypto/status", scope=None, tag="crypto")
async def status(request: Req) -> CryptoStatus:
    """Whether a password was set, and whether the store is locked."""
    core = core_of(request)
    found = await core.ask(GetCryptoStatus())
    if not found.locked or not core.seen.locked_because:
        return found
    return msgspec.structs.replace(found, reason=f"{found.reason}; {core.seen.locked_because}")


@endpoint("POST", f"{BASE}/crypto/setup", scope=None, fails=(Exists, *COMMIT), accepts=JSON, status=201, tag="crypto")
async def setup(request: Req, data: JSONBody[SetupBody]) -> CryptoStatus:
    """The first password. By the unix socket, from loopback, or with the code that piccolod printed."""
    core = core_of(request)
    _check_setup_place(core, request, data.code)
    return await core.order(Setup(password=data.password), timeout_s=_KEY_S)


@endpoint("POST", f"{BASE}/crypto/unlock", scope=None, fails=(*PASSWORD, *STORE), accepts=JSON, tag="crypto")
async def unlock(request: Req, data: JSONBody[PasswordBody]) -> CryptoStatus:
    """Opens the store; apps come back by themselves."""
    return await core_of(request).order(Unlock(password=data.password, source=source_of(request)), timeout_s=_KEY_S)


@endpoint("POST", f"{BASE}/crypto/lock", scope=Scope.ADMIN, fails=STORE, tag="crypto")
async def lock(request: Req) -> LockView:
    """Stops led apps, detaches volumes and drops the keys. What still runs is named; the keys are dropped all the same."""
    core = core_of(request)
    wish = secrets.token_hex(8)
    left, warning = await quiesce(core, wish)
    try:
        locked = await core.order(Lock(), timeout_s=_LOCK_S)
    except PiccoloError as error:
        await call_off(core, wish, error)
        raise
    return LockView(**msgspec.structs.asdict(locked), still_running=left, warning=warning)


@endpoint("POST", f"{BASE}/crypto/password", scope=Scope.ADMIN, fails=(*PASSWORD, *COMMIT), accepts=JSON, tag="crypto")
async def password(request: Req, data: JSONBody[ChangeBody]) -> Response[CryptoStatus]:
    """Another password. Every session ends; the caller's own is renewed."""
    core = core_of(request)
    order = ChangePassword(old=data.old, new=data.new, source=source_of(request))
    return await _sessions_ended(request, await core.order(order, timeout_s=_KEY_S))


@endpoint("POST", f"{BASE}/crypto/recovery", scope=Scope.ADMIN, fails=(*PASSWORD, *COMMIT), accepts=JSON, tag="crypto")
async def recovery(request: Req, data: JSONBody[PasswordBody]) -> Response[Words]:
    """24 words that open the store without the password, shown this once. Former words stop to work, other sessions end."""
    core = core_of(request)
    order = NewRecovery(password=data.password, source=source_of(request))
    response = Response(Words(words=(await core.order(order, timeout_s=_KEY_S)).words))
    if actor_of(request).kind is Kind.SESSION:
        with suppress(PiccoloError):  # the words are made and shown only now: a login is easier to come by
            await cookies.renew(core, request, response)
    return response


@endpoint("POST", f"{BASE}/crypto/reset", scope=None, fails=(*PASSWORD, *COMMIT), accepts=JSON, tag="crypto")
async def reset(request: Req, data: JSONBody[ResetBody]) -> Response[CryptoStatus]:
    """A new password by the recovery words; unlocks. Every session ends."""
    core = core_of(request)
    order = ResetPassword(words=data.words, new=data.new, source=source_of(request))
    return await _sessions_ended(request, await core.order(order, timeout_s=_KEY_S))


async def _sessions_ended(request: Req, changed: CryptoStatus) -> Response[CryptoStatus]:
    """Who knew only the old password must not stay: told to the caller when that could not be done."""
    core, actor = core_of(request), actor_of(request)
    response = Response(changed)
    try:
        rev = await core.credentials.end_all_sessions(actor.name)
        response.headers["Piccolo-Rev"] = str(rev)
        if actor.kind is Kind.SESSION:
            await cookies.renew(core, request, response)
    except PiccoloError as error:
        raise Failed(
            f"the password was changed, but open sessions could not be ended: {error.detail}",
            hint="log out everywhere, or change the password once more",
        ) from error
    return response


async def quiesce(core: Core, wish: str) -> tuple[tuple[str, ...], str]:
    """(What still runs, why that is not known). Never raises: who wants the keys gone gets them gone."""
    if not core.config.module("apps").enabled:
        return (), ""
    try:
        async with asyncio.timeout(_QUIESCE_S):
            return (await core.ask(Quiesce(wish=wish), timeout_s=_QUIESCE_S)).still_running, ""
    except PiccoloError as error:
        return (), f"apps may still run, they could not be asked to stop: {error.detail}"
    except TimeoutError:
        return (), f"apps may still run: they did not answer within {_QUIESCE_S:g} s"


async def call_off(core: Core, wish: str, error: PiccoloError) -> None:
    """Brings the apps back after a lock that has failed for certain. One that may still come is waited for by apps itself."""
    if isinstance(error, DeadlineExceeded) or not core.config.module("apps").enabled:
        return
    with suppress(PiccoloError):
        if not (await core.ask(GetCryptoStatus())).locked:
            await core.order(Resume(wish=wish))


def _check_setup_place(core: Core, request: Req, code: str) -> None:
    if call_of(request).origin.local or core.setup_code.fits(code):
        return
    if core.setup_code.enabled:
        raise Forbidden("the first setup from another machine needs the code", hint="piccolod printed it at its start")
    raise Forbidden(
        "the first setup is done on the machine itself",
        hint='piccoloctl setup there, or security.setup_from = "code" in the configuration',
    )


ROUTES = (status, setup, unlock, lock, password, recovery, reset)

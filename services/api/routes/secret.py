"""Secrets of apps. What goes in never comes back: this module has not even the right to read it.

The names live in `settings/secret:<name>`, committed with the secret, so that they can be listed.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import msgspec
from litestar import Response
from litestar.params import FromPath, JSONBody

from piccolod import clock
from piccolod.errors import Invalid, NotFound
from piccolod.protocol.persistence import Commit, Document, List, Read, Write
from services.api import settings
from services.api.actor import Scope
from services.api.asked import BASE, Req, actor_of, core_of, idem_of, written
from services.api.core import Core
from services.api.documents import SecretView
from services.api.endpoint import COMMIT, JSON, STORE, UNKNOWN, endpoint

SECRETS: Final = "secrets"
_PREFIX: Final = "secret:"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_VALUE_BYTES: Final = 128 * 1024
_BODY_BYTES: Final = 192 * 1024  # a value in base64, with room for the rest
_PATH: Final = f"{BASE}/secrets/{{name:str}}"


class SecretBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`value` as text, or `value_base64` for bytes that are none."""

    value: str | None = None
    value_base64: str | None = None

    def __repr__(self) -> str:
        return "SecretBody(…)"


@endpoint("GET", f"{BASE}/secrets", scope=Scope.READ, fails=STORE, tag="secrets")
async def list_secrets(request: Req) -> tuple[SecretView, ...]:
    """Names, sizes and times; no values."""
    found = await core_of(request).ask(List(collection=settings.COLLECTION))
    return tuple(_view(each) for each in found.documents if each.id.startswith(_PREFIX))


@endpoint("GET", _PATH, scope=Scope.READ, fails=(*STORE, *UNKNOWN), tag="secrets")
async def show(request: Req, name: FromPath[str]) -> SecretView:
    """That a secret exists; its value never comes back."""
    return _view(await _known(core_of(request), name))


@endpoint("PUT", _PATH, scope=Scope.ADMIN, fails=COMMIT, accepts=JSON, body_bytes=_BODY_BYTES, tag="secrets")
async def put(request: Req, name: FromPath[str], data: JSONBody[SecretBody]) -> Response[SecretView]:
    """Sets a secret. Apps that use it get the value with their next start."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name[:80]!r} is not a name", hint="lowercase letters, digits, dot, hyphen, underscore; at most 63")
    value = _value(data)
    meta: dict[str, Any] = {"updated_ms": clock.wall_ms(), "size_bytes": len(value)}
    writes = (
        Write(collection=SECRETS, id=name, body={"value": value}),
        Write(collection=settings.COLLECTION, id=f"{_PREFIX}{name}", body=meta),
    )
    order = Commit(writes=writes, author=actor_of(request).name)
    rev = (await core_of(request).order(order, idem=await idem_of(request))).rev
    return written(SecretView(name=name, **meta), rev)


@endpoint("DELETE", _PATH, scope=Scope.ADMIN, fails=(*COMMIT, *UNKNOWN), status=204, tag="secrets")
async def remove(request: Req, name: FromPath[str]) -> Response[None]:
    """Removes a secret. What runs keeps its copy until it is restarted."""
    core = core_of(request)
    await _known(core, name)
    writes = (
        Write(collection=SECRETS, id=name, body=None),
        Write(collection=settings.COLLECTION, id=f"{_PREFIX}{name}", body=None),
    )
    rev = (await core.order(Commit(writes=writes, author=actor_of(request).name), idem=await idem_of(request))).rev
    return written(None, rev, 204)


async def _known(core: Core, name: str) -> Document:
    try:
        return await core.ask(Read(collection=settings.COLLECTION, id=f"{_PREFIX}{name}"))
    except NotFound:
        raise NotFound(f"there is no secret {name[:80]!r}", hint="`piccoloctl secrets list` shows the names") from None


def _view(document: Document) -> SecretView:
    return SecretView(
        name=document.id.removeprefix(_PREFIX),
        updated_ms=int(document.body["updated_ms"]),
        size_bytes=int(document.body["size_bytes"]),
    )


def _value(data: SecretBody) -> bytes:
    if (data.value is None) == (data.value_base64 is None):
        raise Invalid("give either `value` or `value_base64`")
    if data.value is not None:
        value = data.value.encode()
    else:
        try:
            value = base64.b64decode(data.value_base64 or "", validate=True)
        except (binascii.Error, ValueError):
            raise Invalid("`value_base64` is not base64") from None
    if len(value) > _VALUE_BYTES:
        raise Invalid(f"a secret has at most {_VALUE_BYTES // 1024} KiB")
    return value


ROUTES = (list_secrets, show, put, remove)

"""Apps: what is installed, and what an admin does with it. `apps` decides; a change is committed when the answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from litestar import Response
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from piccolod import clock
from piccolod.errors import Forbidden, Invalid, PiccoloError, TooMany
from piccolod.protocol.apps import (
    AppDocument,
    ApplyApp,
    ChangeApp,
    Changed,
    GetAppLogs,
    GetManifestSchema,
    InstallApp,
    ListApps,
    LogLines,
    Manifest,
    Plan,
    PlanApp,
    ShowApp,
    UninstallApp,
    UpdateApp,
    Validated,
    ValidateManifest,
)
from services.api import access
from services.api.actor import Scope
from services.api.asked import BASE, Req, actor_of, core_of, idem_of, written
from services.api.core import Core
from services.api.documents import JsonObject
from services.api.endpoint import COMMIT, ELSEWHERE, JSON, MANIFEST, STORE, UNKNOWN, YAML, endpoint

_MANIFEST_BYTES: Final = 512 * 1024  # the manifest's own limit is 256 KiB, and says so by name
_MANIFEST_SCHEMA: Final[dict[str, Any]] = {"description": "A manifest, `piccolo/v1`", "type": "object"}
_TAIL_MOST: Final = 1000
_FOLLOW_S: Final = 0.5
_CHANGE_S: Final = 30.0
_PATH: Final = f"{BASE}/apps/{{name:str}}"

Consent = Annotated[bool, QueryParameter(description="The admin agrees to `privileged`.")]


@endpoint("GET", f"{BASE}/apps", scope=Scope.READ, fails=STORE, tag="apps")
async def list_apps(request: Req) -> tuple[AppDocument, ...]:
    """All apps."""
    return (await core_of(request).ask(ListApps())).apps


@endpoint("GET", f"{BASE}/app-schema", scope=None, tag="apps")
async def schema(request: Req) -> JsonObject:
    """JSON Schema of the manifest, for editors."""
    return (await core_of(request).ask(GetManifestSchema())).document


@endpoint(
    "POST", f"{BASE}/apps/validate", scope=Scope.READ, fails=MANIFEST, accepts=(*YAML, *JSON), tag="apps",
    leads=False, body_bytes=_MANIFEST_BYTES, raw_body=_MANIFEST_SCHEMA,
)  # fmt: skip
async def validate(request: Req, consent: Consent = False) -> Validated:
    """Checks a manifest and changes nothing. 400 lists every mistake with line and column."""
    return await core_of(request).ask(ValidateManifest(manifest=await _manifest(request), consent=consent), timeout_s=10.0)


@endpoint(
    "POST", f"{BASE}/apps", scope=Scope.WRITE, fails=MANIFEST, accepts=(*YAML, *JSON), status=201, tag="apps",
    body_bytes=_MANIFEST_BYTES, raw_body=_MANIFEST_SCHEMA,
)  # fmt: skip
async def install(request: Req, consent: Consent = False) -> Response[Changed]:
    """Installs a new app. The answer comes when it is committed; watch its state for the rest."""
    _check_consent(request, consent)
    order = InstallApp(manifest=await _manifest(request), author=actor_of(request).name, consent=consent)
    changed = await core_of(request).order(order, timeout_s=_CHANGE_S, idem=await idem_of(request))
    return written(changed, changed.rev, 201, {"Location": f"{BASE}/apps/{changed.app.name}"})


@endpoint("GET", _PATH, scope=Scope.READ, fails=(*STORE, *UNKNOWN), tag="apps")
async def show(request: Req, name: FromPath[str]) -> AppDocument:
    """One app."""
    return await core_of(request).ask(ShowApp(name=name))


@endpoint(
    "PUT", _PATH, scope=Scope.WRITE, fails=MANIFEST, accepts=(*YAML, *JSON), tag="apps",
    body_bytes=_MANIFEST_BYTES, raw_body=_MANIFEST_SCHEMA,
)  # fmt: skip
async def apply(request: Req, name: FromPath[str], consent: Consent = False) -> Response[Changed]:
    """Makes the app what the manifest says: installs it, or changes what runs."""
    _check_consent(request, consent)
    order = ApplyApp(manifest=await _manifest(request), author=actor_of(request).name, name=name, consent=consent)
    changed = await core_of(request).order(order, timeout_s=_CHANGE_S, idem=await idem_of(request))
    return written(changed, changed.rev)


@endpoint("DELETE", _PATH, scope=Scope.WRITE, fails=(*COMMIT, *UNKNOWN), status=204, tag="apps")
async def uninstall(request: Req, name: FromPath[str], purge: FromQuery[bool] = False) -> Response[None]:
    """Removes the app; its volumes stay, unless `purge`."""
    core = core_of(request)
    order = UninstallApp(name=name, author=actor_of(request).name, purge=purge)
    await core.order(order, timeout_s=60.0, idem=await idem_of(request))
    return written(None, await core.rev(), 204)


@endpoint(
    "POST", f"{_PATH}/plan", scope=Scope.READ, fails=(*MANIFEST, *UNKNOWN), accepts=(*YAML, *JSON), tag="apps",
    leads=False, body_bytes=_MANIFEST_BYTES, raw_body=_MANIFEST_SCHEMA,
)  # fmt: skip
async def plan(request: Req, name: FromPath[str], consent: Consent = False) -> Plan:
    """What `apply` would do, without doing it."""
    found = await core_of(request).ask(PlanApp(manifest=await _manifest(request), consent=consent), timeout_s=10.0)
    if found.name != name:
        raise Invalid(f"the manifest is of the app {found.name!r}, the path says {name!r}", hint="use the same name in both")
    return found


class UpdateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`image` empty: the same tag is looked up again."""

    image: str = ""
    without_snapshot: bool = False


class RevertBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    without_snapshot: bool = False


@endpoint("POST", f"{_PATH}/update", scope=Scope.WRITE, fails=(*MANIFEST, *UNKNOWN), accepts=JSON, tag="apps")
async def update(
    request: Req, name: FromPath[str], data: JSONBody[UpdateBody | None] = None, consent: Consent = False
) -> Response[Changed]:
    """Another image, behind the health gate; goes back by itself when the new one does not get healthy."""
    _check_consent(request, consent)
    body = data or UpdateBody()
    order = UpdateApp(
        name=name,
        author=actor_of(request).name,
        image=body.image,
        without_snapshot=body.without_snapshot,
        consent=consent,
    )
    changed = await core_of(request).order(order, timeout_s=_CHANGE_S, idem=await idem_of(request))
    return written(changed, changed.rev)


@endpoint("POST", f"{_PATH}/revert", scope=Scope.WRITE, fails=(*MANIFEST, *UNKNOWN), accepts=JSON, tag="apps")
async def revert(
    request: Req, name: FromPath[str], data: JSONBody[RevertBody | None] = None, consent: Consent = False
) -> Response[Changed]:
    """Back to the manifest before the last change."""
    _check_consent(request, consent)
    return await _change(request, name, "revert", (data or RevertBody()).without_snapshot, consent)


def _verb(verb: str, promise: str) -> Any:
    async def act(request: Req, name: FromPath[str]) -> Response[Changed]:
        return await _change(request, name, verb)

    act.__name__ = f"{verb}_app"
    act.__doc__ = promise
    return endpoint("POST", f"{_PATH}/{verb}", scope=Scope.WRITE, fails=(*MANIFEST, *UNKNOWN), tag="apps")(act)


@endpoint(
    "GET", f"{_PATH}/logs", scope=Scope.READ, fails=(*STORE, *UNKNOWN, *ELSEWHERE, TooMany), tag="apps",
)  # fmt: skip
async def logs(
    request: Req,
    name: FromPath[str],
    tail: Annotated[int, QueryParameter(ge=0, le=_TAIL_MOST)] = 200,
    since_ms: Annotated[int, QueryParameter(name="since", ge=0, description="Milliseconds since 1970.")] = 0,
    cursor: Annotated[str, QueryParameter(max_length=200)] = "",
    follow: Annotated[bool, QueryParameter(description="A stream of `application/x-ndjson`, one line an object.")] = False,
) -> Response[LogLines] | Stream:
    """What the app printed."""
    core = core_of(request)
    if follow:
        core.streams.check()
    first = await core.ask(GetAppLogs(name=name, tail=tail, since_ms=since_ms, cursor=cursor))
    if not follow:
        return Response(first)
    return Stream(_follow(request, core, name, first), media_type="application/x-ndjson")


async def _follow(request: Req, core: Core, name: str, lines: LogLines) -> AsyncIterator[bytes]:
    """Ends when the app is gone, the caller's right ends, or this module stops: who reads on asks again with a cursor."""
    look_at = clock.now() + access.LOOK_AGAIN_S
    with core.streams.seat():
        while not core.closing.is_set():
            for line in lines.lines:
                yield msgspec.json.encode(line) + b"\n"
            if clock.now() >= look_at:
                look_at = clock.now() + access.LOOK_AGAIN_S
                if not await access.still(core, request, request.route_handler):
                    return
            try:
                async with asyncio.timeout(_FOLLOW_S):
                    await core.closing.wait()
            except TimeoutError:
                pass
            try:
                lines = await core.ask(GetAppLogs(name=name, tail=_TAIL_MOST, cursor=lines.cursor))
            except PiccoloError:
                return


async def _change(
    request: Req, name: str, action: str, without_snapshot: bool = False, consent: bool = False
) -> Response[Changed]:
    order = ChangeApp(
        name=name, action=action, author=actor_of(request).name, without_snapshot=without_snapshot, consent=consent
    )  # fmt: skip
    changed = await core_of(request).order(order, timeout_s=_CHANGE_S, idem=await idem_of(request))
    return written(changed, changed.rev)


async def _manifest(request: Req) -> Manifest:
    body = await request.body()
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"the manifest is not UTF-8: byte {error.start}") from None
    if not text.strip():
        raise Invalid("the body is empty", hint="send the manifest as the body")
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Manifest(text=text, format="json" if sent in JSON else "yaml")


def _check_consent(request: Req, consent: bool) -> None:
    if consent and not actor_of(request).may(Scope.ADMIN):
        raise Forbidden("only an admin may consent to `privileged`", hint="use a token with the scope `admin`")


ROUTES = (
    list_apps,
    schema,
    validate,
    install,
    show,
    apply,
    uninstall,
    plan,
    update,
    revert,
    _verb("start", "Starts the app where it is to run."),
    _verb("stop", "Stops the app; it stays stopped until it is started."),
    _verb("restart", "Stops and starts the container."),
    _verb("enable", "Lets the app come back by itself after a reboot of the machine."),
    _verb("disable", "The app does not come back by itself after a reboot of the machine; what runs goes on."),
    logs,
)

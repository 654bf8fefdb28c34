"""The documents of apps in the control store: reading them, and changing an app with its ports in one entry."""

from __future__ import annotations

import msgspec

from piccolod.errors import Conflict, Invalid, NotFound, Problem
from piccolod.module import Module
from piccolod.protocol.persistence import Commit, Committed, Document, Expect, List, Read, Write
from services.apps import ports
from services.apps.desired import Desired, from_body, to_body
from services.apps.ports import PortDocument

APPS = "apps"
PORTS = "ports"
SECRETS = "secrets"
_COMMIT_S = 15.0


class Stored(msgspec.Struct, frozen=True):
    """A document as it was read: `generation` is the precondition of the next change."""

    desired: Desired
    generation: int


class Documents:
    def __init__(self, module: Module) -> None:
        self._module = module

    async def apps(self) -> tuple[int, dict[str, Stored], dict[str, str]]:
        """(rev, the apps, and for each document that is not understood why). Raises Locked."""
        answer = await self._module.call(List(collection=APPS))
        found: dict[str, Stored] = {}
        strange: dict[str, str] = {}
        for document in answer.documents:
            try:
                found[document.id] = _stored(document)
            except Invalid as error:
                strange[document.id] = error.detail
        return answer.rev, found, strange

    async def app(self, name: str) -> Stored:
        """Raises NotFound, Locked."""
        try:
            return _stored(await self._module.call(Read(collection=APPS, id=name)))
        except NotFound:
            raise NotFound(f"no app is called {name!r}", hint="`piccoloctl apps list` shows all") from None

    async def port_owners(self) -> dict[int, str]:
        answer = await self._module.call(List(collection=PORTS))
        return {ports.port_of(item.id): msgspec.convert(item.body, PortDocument).app for item in answer.documents}

    async def secret(self, name: str) -> bytes:
        """The value of a secret. Raises NotFound."""
        body = (await self._module.call(Read(collection=SECRETS, id=name))).body
        value = body.get("value")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return value.encode()
        raise Invalid(f"secret {name} has no value", hint=f"`piccoloctl secrets set {name}` gives it one")

    async def put(self, before: Stored | None, after: Desired, author: str, idem: str = "") -> Stored:
        """The app and its ports in one entry, if nobody changed it meanwhile. Raises Conflict."""
        old = before.desired.ports if before is not None else {}
        writes = [Write(collection=APPS, id=after.name, body=to_body(after))]
        expect = [Expect(collection=APPS, id=after.name, generation=before.generation if before is not None else 0)]
        owner = {port: name for name, port in after.ports.items()}
        for port in sorted(set(owner) - set(old.values())):
            body = msgspec.to_builtins(PortDocument(app=after.name, listener=owner[port]))
            writes.append(Write(collection=PORTS, id=ports.document_id(port), body=body))
            expect.append(Expect(collection=PORTS, id=ports.document_id(port), generation=0))
        writes += [_free(port) for port in sorted(set(old.values()) - set(owner))]
        done = await self._commit(tuple(writes), tuple(expect), author, idem)
        if done.repeated:
            return await self._written_then(after.name)
        return Stored(after, done.rev)

    async def _written_then(self, name: str) -> Stored:
        """What became of a change that the store says was made long ago. Raises Conflict when nothing of it is left."""
        try:
            return await self.app(name)
        except NotFound:
            problem = "this very request was carried out earlier, and the app was uninstalled since"
            hint = "send it with another Idempotency-Key"
            raise Conflict(f"{name}: {problem}", hint=hint, errors=(Problem(f"apps/{name}", problem),)) from None

    async def delete(self, before: Stored, author: str) -> None:
        """The app and its ports, for ever."""
        writes = [Write(collection=APPS, id=before.desired.name, body=None)]
        writes += [_free(port) for port in sorted(before.desired.ports.values())]
        expect = (Expect(collection=APPS, id=before.desired.name, generation=before.generation),)
        try:
            await self._commit(tuple(writes), expect, author, "")
        except Conflict:
            # The answer to an earlier try may be lost: what is not there any more needs no second end.
            try:
                await self.app(before.desired.name)
            except NotFound:
                return
            raise

    async def check_writable(self) -> None:
        """A write of nothing. Raises what a real one would: NotLeader, or the reason why nobody leads the store."""
        await self._commit((), (), "apps", "")

    async def _commit(self, writes: tuple[Write, ...], expect: tuple[Expect, ...], author: str, idem: str) -> Committed:
        request = Commit(writes=writes, expect=expect, author=author)
        return await self._module.call(request, timeout_s=_COMMIT_S, idem=idem)


def _stored(document: Document) -> Stored:
    return Stored(from_body(document.body), document.generation)


def _free(port: int) -> Write:
    return Write(collection=PORTS, id=ports.document_id(port), body=None)

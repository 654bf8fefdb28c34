"""Whether the cluster was begun anew without this node (`cluster recover`): another member's etcd has a higher `gen`.

The etcd that this node knows may answer again with its quorum, when two machines come back that were given up. It must lead
nothing by then, so the others are asked before the first session of a life, and then again and again. Those who were members
before this one was recovered are asked as well: of two that were recovered apart the higher `gen` counts. What is found is told
to the core as an answer of another etcd: from then on it believes nothing but a higher `gen` that names the etcd which answers.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from piccolod import etcd_conf
from piccolod.errors import PiccoloError
from piccolod.leadership import keys
from piccolod.leadership.events import Header, Memory
from piccolod.leadership.keys import GenRecord
from piccolod.paths import Paths
from services.consensus import access, members_file, wire
from services.consensus.etcd import header
from services.consensus.etcd.client import Client
from services.consensus.etcd.stubs import RANGE
from services.consensus.etcd.transaction import Found, Range

_ASK_S: Final = 1.0


class Seen(msgspec.Struct, frozen=True):
    """The etcd that the cluster was begun anew in, and the member that has it."""

    node: str
    header: Header


def is_successor(gen: GenRecord, answered: Header, known: Memory) -> bool:
    """A `gen` names the etcd that it was written for: a copy of it elsewhere names none that answers. Pure."""
    if not known.cluster_id:
        return False  # every etcd is new to this node
    return gen.etcd_cluster_id == answered.cluster_id != known.cluster_id and gen.gen > known.gen


class Successor:
    def __init__(self, paths: Paths, prefix: str) -> None:
        self._paths = paths
        self._key = prefix + keys.GEN

    async def look(self, known: Memory) -> Seen | None:
        """Asks every other member of etcd by itself, former ones and one without a quorum too. Raises nothing."""
        try:
            settings = etcd_conf.read(self._paths.etcd_conf)
            own = "" if settings is None else settings.client_url
            members = members_file.with_former(self._paths)
            others = {name: each for name, each in members.items() if each.client_url not in ("", own)}
            if not others:
                return None
            client = access.managed(self._paths, others, local=False).client(_ASK_S)
        except PiccoloError:  # a file that cannot be read now
            return None
        try:
            found = await asyncio.gather(*(self._ask(client, name, each.client_url, known) for name, each in others.items()))
        finally:
            await client.close()
        return next((each for each in found if each is not None), None)

    async def _ask(self, client: Client, node: str, url: str, known: Memory) -> Seen | None:
        try:
            answer = await client.ask(url.partition("://")[2], RANGE, Range(self._key, serializable=True).request(), _ASK_S)
        except PiccoloError:
            return None
        said, items = header.Header.of(answer), Found.of(answer).keys
        answered = Header(said.cluster_id, said.revision)
        gen = wire.decode(keys.GEN, items[0].value) if items else None
        return Seen(node, answered) if isinstance(gen, GenRecord) and is_successor(gen, answered, known) else None

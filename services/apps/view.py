"""An app as people see it: from what is wanted and the last look at what is."""

from __future__ import annotations

from typing import Any

from piccolod.protocol.apps import AppDocument, AppOnNode, LeaderDocument, ListenerDocument
from services.apps.app import App
from services.apps.images import reference
from services.apps.node import Node
from services.apps.reader import Reading
from services.apps.rules import Surroundings, check


def document(node: Node, app: App) -> AppDocument:
    desired, shown = app.stored.desired, app.shown
    manifest = desired.current.manifest
    unbound = node.routes.unbound(desired.name)
    leader = _leader(node, desired.name)
    nodes = {node.name: AppOnNode(state=shown.state, reason=shown.reason, container_id=shown.container_id)}
    nodes |= _elsewhere(node, desired.name)
    leads = nodes.get(leader.node if leader is not None else node.name, nodes[node.name])
    return AppDocument(
        name=desired.name,
        title=manifest.title,
        policy=manifest.cluster.policy,
        state=leads.state,
        reason=leads.reason,
        desired="running" if desired.running else "stopped",
        enabled=desired.enabled,
        generation=desired.generation,
        image=reference(manifest),
        image_id=desired.current.image_id,
        leader=leader,
        nodes=nodes,
        listeners=tuple(
            ListenerDocument(
                name=item.name,
                guest_port=item.guest_port,
                public_port=desired.ports.get(item.name, 0),
                bound=item.name not in unbound,
                flow=item.flow,
                protocol=item.protocol,
            )
            for item in manifest.listeners
        ),
        volumes=tuple(_volumes(app)),
        warnings=warnings(node, app),
        restarts=app.restarts,
    )


def _elsewhere(node: Node, app: str) -> dict[str, AppOnNode]:
    """As of what the other nodes said last, a second or two ago."""
    return {
        name: AppOnNode(state=each[app].state, reason=each[app].reason, container_id="")
        for name, each in node.told.items()
        if name != node.name and app in each
    }


def _leader(node: Node, app: str) -> LeaderDocument | None:
    if (term := node.term(app)) is not None:
        return LeaderDocument(node=node.name, address=node.module.config.node.address, epoch=term.epoch)
    if (other := node.leaders.get(app)) is not None:
        return LeaderDocument(node=other.node, address=other.address, epoch=other.epoch)
    return None


def warnings(node: Node, app: App) -> tuple[str, ...]:
    """What stays true of the app as long as it is installed so, and what became of the last update."""
    desired = app.stored.desired
    around = Surroundings(
        depends_on=dict.fromkeys(desired.current.manifest.depends_on, ()), consent=True, host=node.host, strict=False
    )
    found = check(desired.current.manifest, Reading(), around)
    if desired.note:
        found.append(desired.note)
    return tuple(found)


def _volumes(app: App) -> list[dict[str, Any]]:
    manifest = app.stored.desired.current.manifest
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "container": volume.container,
            "size_limit": volume.size_limit or "",
            "kind": "persistent",
            "attached": "rw" if name in app.attached else "no",
        }
        for name, volume in manifest.storage.persistent.items()
    ]
    found += [
        {"name": name, "container": volume.container, "size_limit": volume.size_limit, "kind": "temporary"}
        for name, volume in manifest.storage.temporary.items()
    ]
    return found

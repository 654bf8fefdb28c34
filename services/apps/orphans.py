"""Containers and terms of apps that the control store does not know: ended, and said so. Volumes are left to people."""

from __future__ import annotations

import asyncio

from piccolod.errors import PiccoloError
from piccolod.leadership import leash_table
from piccolod.leadership.resources import app_of, resource_for_app
from piccolod.protocol.consensus import Closing, Withdraw
from piccolod.protocol.volumes import Detach, ListVolumes
from services.apps import badge, links, spec
from services.apps.badge import NODE_LABEL, container_name
from services.apps.node import Node
from services.apps.podman import named


async def seen(node: Node) -> set[str]:
    """Apps of which something is on this node: a container, a term."""
    found = set()
    for container in await node.podman.containers(f"{NODE_LABEL}={node.name}"):
        mark = badge.read(container.get("Labels"))
        if mark is not None and mark.node == node.name:
            found.add(mark.app)
    page = node.pages.read()
    if page is not None and page.boot_id == node.boot_id:
        found |= {app for resource in page.terms if (app := app_of(resource)) is not None}
    return found


async def end(node: Node, app: str, *, uninstalled: bool = False) -> None:
    """Stops, proves, gives back. Raises PiccoloError when something resists; it is tried again at the next look."""
    term = node.term(app)
    if term is not None and not term.closing:
        await node.module.call(Closing(resource=resource_for_app(app), token=term.token))
    try:
        await node.podman.stop(container_name(app), grace_s=8.0)
    except PiccoloError as error:
        node.module.log.warning("kills a container that podman does not stop", app=app, reason=named(error))
    for entry in node.guarded(app):
        await asyncio.to_thread(leash_table.kill, entry)
        await node.leashes.disarm(entry)
    await node.podman.remove(container_name(app))
    for volume in (await node.module.call(ListVolumes(app=app))).volumes:
        if volume.attached != "no":
            await node.module.call(Detach(app=app, volume=volume.name), timeout_s=30.0)
    await asyncio.to_thread(links.delete, node.bridge(app))
    await node.podman.remove_network(spec.network_name(app))
    await asyncio.to_thread(node.files.remove, app)
    await node.routes.forget(app, 1.0)
    if term is not None:
        await node.module.call(Withdraw(resource=resource_for_app(app), token=term.token))
    if uninstalled:
        node.module.log.info("ended an app that was uninstalled", app=app)
    else:
        node.module.log.warning("ended an app that the control store does not know", app=app)

"""Who cannot become a member, and why: one sentence for each. Pure, but for the one look at what runs."""

from __future__ import annotations

import ipaddress

from piccolod import cluster_mode, etcd_conf
from piccolod.config import Config
from piccolod.errors import Conflict, Exists, Invalid, Locked
from piccolod.leadership import leash_table
from piccolod.protocol.persistence import CryptoStatus


def may_found_or_join(config: Config) -> None:
    """Raises Exists for a member, Invalid for an address that others cannot reach, Unavailable without etcd."""
    if (mode := cluster_mode.load(config.paths.cluster)) is not None:
        raise Exists(f"{mode.node} is a member of the cluster {mode.cluster} already", hint="`piccoloctl cluster list`")
    address = ipaddress.ip_address(config.node.address)
    if address.is_loopback or address.is_unspecified:
        raise Invalid(
            f"other machines cannot reach this one at {address}",
            hint="set node.address in the configuration to its address in your network, and restart piccolod",
        )
    if not config.etcd.is_external:
        etcd_conf.program()


def may_be(role: str, config: Config) -> None:
    """Raises Invalid for a witness without a vote."""
    if role == "witness" and config.etcd.is_external:
        raise Invalid(
            'a witness votes in the etcd that the nodes keep, and with etcd.mode = "external" they keep none: it has no vote',
            hint="join it without --witness, or leave this node out",
        )


def may_found(status: CryptoStatus) -> None:
    """Raises Conflict for a store that is not set up, Locked for one that is not open."""
    if not status.initialized:
        raise Conflict("this node has no password yet", hint="`piccoloctl setup` sets it, then found the cluster")
    if status.locked:
        raise Locked(f"the store is locked{f': {status.reason}' if status.reason else ''}", hint="`piccoloctl unlock`")


def may_give_up_data(config: Config, status: CryptoStatus, discard_local: bool) -> None:
    """Raises Conflict for what a join would lose without being told to, and for apps that run, in any case."""
    if running := sorted({entry.container for entry in leash_table.alive(leash_table.read(config.paths.leash).values())}):
        raise Conflict(f"apps of this node run: {', '.join(running)}", hint="`piccoloctl apps stop` or `uninstall` them first")
    if status.initialized and not discard_local:
        raise Conflict(
            "this node has a store of its own: users, settings, apps",
            hint="--discard-local sets it aside and takes the cluster's; the data of its apps cannot be read after that",
        )

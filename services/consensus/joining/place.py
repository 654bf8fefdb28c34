"""Where this node is found, and its member of etcd: what the configuration says, in the words of the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from piccolod import etcd_conf
from piccolod.config import Config, at_port
from piccolod.leadership.timing import Timing
from piccolod.module import Module
from piccolod.protocol.cluster import KnownMember
from services.consensus.joining.folder import Folder


def own_record(module: Module) -> KnownMember:
    config = module.config
    return KnownMember(
        address=config.node.address,
        client_url=f"https://{at_port(config.node.address, config.etcd.client_port)}",
        rpc=at_port(config.node.address, config.rpc_port),
        api_url=config.api_url,
    )


def peer_url(config: Config) -> str:
    return f"https://{at_port(config.node.address, config.etcd.peer_port)}"


def etcd_settings(
    module: Module, folder: Folder, token: str, timing: Timing, initial_cluster: Mapping[str, str]
) -> etcd_conf.Settings:
    """Without an `initial_cluster` the first member of a new one, else one more of an existing one."""
    config = module.config
    return etcd_conf.Settings(
        name=config.node.name,
        peer_url=peer_url(config),
        client_url=f"https://{at_port(config.node.address, config.etcd.client_port)}",
        token=token,
        cluster=dict(initial_cluster) or {config.node.name: peer_url(config)},
        state="existing" if initial_cluster else "new",
        heartbeat_ms=round(timing.etcd_heartbeat_s * 1000),
        election_ms=round(timing.election_s * 1000),
        ca=str(folder.ca), cert=str(folder.certificate), key=str(folder.key),
    )  # fmt: skip

"""Where this node is found, and its member of etcd: what the configuration says, in the words of the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from piccolod import clock, etcd_conf
from piccolod.cluster_mode import Mode
from piccolod.config import Config, at_port
from piccolod.leadership.timing import Timing
from piccolod.module import Module
from piccolod.protocol.cluster import KnownMember
from services.consensus.joining.folder import Folder


def own_record(module: Module) -> KnownMember:
    config = module.config
    return KnownMember(
        address=config.node.address,
        client_url=client_url(config),
        rpc=at_port(config.node.address, config.rpc_port),
        api_url=config.api_url,
    )


def client_url(config: Config) -> str:
    """Of its member of etcd; empty where it has none."""
    return "" if config.etcd.is_external else f"https://{at_port(config.node.address, config.etcd.client_port)}"


def peer_url(config: Config) -> str:
    """The same."""
    if config.etcd.is_external:
        return ""
    return f"https://{at_port(config.node.address, config.etcd.peer_port)}"


def mode(module: Module, cluster: str) -> Mode:
    """That of a member, from now on."""
    config, now_ms = module.config, clock.wall_ms()
    if not config.etcd.is_external:
        return Mode(cluster=cluster, node=config.node.name, since_ms=now_ms)
    rpc = at_port(config.node.address, config.rpc_port)
    return Mode(cluster=cluster, node=config.node.name, since_ms=now_ms, etcd="external", rpc=rpc)


def etcd_settings(
    module: Module, folder: Folder, token: str, timing: Timing, initial_cluster: Mapping[str, str]
) -> etcd_conf.Settings:
    """Without an `initial_cluster` the first member of a new one, else one more of an existing one."""
    config = module.config
    return etcd_conf.Settings(
        name=config.node.name,
        peer_url=peer_url(config),
        client_url=client_url(config),
        token=token,
        cluster=dict(initial_cluster) or {config.node.name: peer_url(config)},
        state="existing" if initial_cluster else "new",
        heartbeat_ms=round(timing.etcd_heartbeat_s * 1000),
        election_ms=round(timing.election_s * 1000),
        ca=str(folder.ca), cert=str(folder.certificate), key=str(folder.key),
    )  # fmt: skip

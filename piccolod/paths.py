"""Where everything lies. No other file of piccolod spells a path of the node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The two folders of a node and what is in them.

    `state` survives reboots and is the only thing to back up; `run` is recreated at each boot (tmpfs where it can be).
    """

    state: Path
    run: Path

    # --- run: sockets, the page, what a restart of piccolod adopts
    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def page(self) -> Path:
        return self.run / "page"

    @property
    def api_socket(self) -> Path:
        return self.run / "api.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def bus(self) -> Path:
        return self.run / "bus"

    @property
    def bus_publish(self) -> Path:
        return self.bus / "publish.sock"

    @property
    def bus_subscribe(self) -> Path:
        return self.bus / "subscribe.sock"

    @property
    def bus_snapshot(self) -> Path:
        return self.bus / "snapshot.sock"

    def command_socket(self, module: str) -> Path:
        return self.bus / f"{module}.cmd"

    @property
    def leash(self) -> Path:
        """The table: one file a led container, and the two leashes' sockets."""
        return self.run / "leash"

    def leash_socket(self, index: int) -> Path:
        return self.leash / f"{index}.sock"

    @property
    def ledger(self) -> Path:
        """Deaths of modules, kept over a restart of the supervisor."""
        return self.run / "ledger.json"

    @property
    def etcd_health(self) -> Path:
        """etcd's metrics listener. It wants a port in every name, also in that of a file."""
        return self.run / "etcd-health:0"

    @property
    def restarts_due(self) -> Path:
        """Somebody may act for a mode (piccolod/cluster_mode.py) that this node is not in any more. Outlives `cluster`."""
        return self.run / "restarts-due"

    @property
    def podman_socket(self) -> Path:
        return self.run / "podman.sock"

    @property
    def podman_run(self) -> Path:
        """A tmpfs: podman's run folder, and all that it knows of containers."""
        return self.run / "containers"

    @property
    def containers_conf(self) -> Path:
        return self.run / "containers.conf"

    @property
    def oci_hooks(self) -> Path:
        return self.run / "oci-hooks"

    @property
    def mounts(self) -> Path:
        """Plain text of volumes, only while attached."""
        return self.run / "mounts"

    @property
    def volume_journal(self) -> Path:
        return self.run / "volumes"

    @property
    def routes(self) -> Path:
        return self.run / "routes"

    @property
    def guesses(self) -> Path:
        """Who guessed the password how often in this boot."""
        return self.run / "guesses"

    @property
    def lock_mark(self) -> Path:
        """That a person locked this node in this boot. Beside the guesses: the folder that persistence has in `run_dir`."""
        return self.guesses / "locked"

    @property
    def silence(self) -> Path:
        """That apps are stopped for a lock."""
        return self.run / "silence.json"

    @property
    def app_files(self) -> Path:
        """Rendered app_config and secret files of running apps: memory only, never under `state`."""
        return self.run / "app-files"

    # --- state
    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def store(self) -> Path:
        return self.state / "store"

    @property
    def control_db(self) -> Path:
        return self.store / "control.db"

    @property
    def keyset(self) -> Path:
        return self.store / "keyset.json"

    @property
    def consensus(self) -> Path:
        return self.state / "consensus"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def podman_root(self) -> Path:
        """Images and layers."""
        return self.state / "containers"

    @property
    def uploads(self) -> Path:
        """Archives of images, which the api and apps hand to each other. Not in memory, which one can be larger than."""
        return self.state / "uploads"

    @property
    def podman_networks(self) -> Path:
        return self.state / "networks"

    @property
    def cluster(self) -> Path:
        """What `cluster init` and `cluster join` decided; absent on a node alone."""
        return self.state / "cluster"

    @property
    def etcd_conf(self) -> Path:
        """Only where a member of etcd lives."""
        return self.cluster / "etcd.json"

    @property
    def etcd_data(self) -> Path:
        return self.state / "etcd"

    @property
    def journal(self) -> Path:
        return self.state / "journal"

"""A node alone carries nothing of a cluster."""

from __future__ import annotations

import subprocess
import sys

CLUSTER_ONLY = {
    "membership", "member", "member_vault", "catch_up", "cluster_commit", "local_copy", "shared_keyset", "etcd_snapshot",
    "outcome", "export",
}  # fmt: skip


def test_the_service_of_a_node_alone_imports_nothing_that_only_a_member_needs() -> None:
    code = "import sys, services.persistence.service; print(*(n for n in sys.modules if n.startswith('services.')))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    loaded = {name.rpartition(".")[2] for name in names}
    assert "vault" in loaded
    assert not loaded & CLUSTER_ONLY

"""Members take clients of one another, by their own certificates and the list in the store.

No app is needed: a leader that has no route says so, after it has looked up who asks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.bed.cluster import Cluster
from tests.bed.forming import said, unlock, wait_leader
from tests.bed.machine import Machine
from tests.node import until

_ASK = """
import asyncio, sys
from pathlib import Path
from piccolod import cluster_mode
from piccolod.errors import PiccoloError
from piccolod.pki.node_files import NodeFiles
from services.router.route import Leader
from services.router.tunnel.probe import probe
from services.router.tunnel.security import Security
from services.router.tunnel.wire import Preamble

folder, node, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
mode = cluster_mode.load(folder)
security = Security(NodeFiles(folder), mode.cluster)
preamble = Preamble(app="notes", listener="web", epoch=1, address="192.0.2.7", port=50000)
try:
    print(asyncio.run(probe(security, Leader(node=node, address=address, port=7443), preamble)).reason)
except (OSError, EOFError, PiccoloError) as error:
    print("failed:", type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def two(formed: Callable[[int], Cluster]) -> Cluster:
    return formed(2)


def asked(own: Machine, other: Machine) -> str:
    """What a member answers to a preamble of another one."""
    command = own.inside(sys.executable, "-c", _ASK, str(own.state_dir / "cluster"), other.name, other.address)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def test_each_member_takes_clients_of_the_other(two: Cluster) -> None:
    n1, n2 = two.machines
    for own, other in ((n1, n2), (n2, n1)):
        until(
            lambda own=own, other=other: asked(own, other) == "it has no route for notes/web",
            f"{other.name} looks {own.name} up and answers",
            20,
        )


def test_a_locked_member_goes_on_with_those_that_it_knows(two: Cluster) -> None:
    lead = wait_leader(two)
    (other,) = [machine for machine in two.machines if machine is not lead]
    said(other, "lock")
    try:
        until(lambda: asked(lead, other) == "it has no route for notes/web", "it answers though it is locked", 20)
        assert other.get("/crypto/status")["locked"]
    finally:
        unlock(other)

"""What runs on a node alone runs on in the cluster that it founds: the same container, and a client that sees nothing of it."""

from __future__ import annotations

from collections.abc import Callable

from tests.bed.cluster import Cluster
from tests.bed.forming import said
from tests.node import until
from tests.poller import Poller


def test_an_app_and_its_clients_do_not_notice_that_a_cluster_is_founded(cluster: Callable[[int], Cluster]) -> None:
    bed = cluster(1)
    machine = bed.machines[0]
    machine.power_on(60)
    bed.load_demo_image()
    machine.unlock()
    machine.install(machine.demo_manifest("hello"))
    container = machine.podman("ps", "--quiet").split()
    leads = machine.get("/leadership/app:hello")
    with Poller(machine.public_port("hello"), host=machine.address) as client:
        said(machine, "cluster", "init", "--profile", "fast")
        seen = len(client.answers)
        until(lambda: len(client.answers) > seen + 50, "the client goes on")
    assert client.failures() == []
    assert machine.podman("ps", "--quiet").split() == container
    assert machine.wait_app("hello")["leader"]["node"] == "n1"
    after = machine.get("/leadership/app:hello")
    assert (after["role"], after["epoch"], after["token"]) == ("leader", leads["epoch"], leads["token"])

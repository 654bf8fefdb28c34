"""What podman is told."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from piccolod.errors import Failed
from piccolod.paths import Paths
from services.apps import badge, spec, subnets
from services.apps.badge import Badge
from services.apps.desired import Version
from services.apps.host import Host
from services.apps.manifest import Manifest
from services.apps.validate import Surroundings, validate

PATHS = Paths(state=Path("/s"), run=Path("/r"))
BADGE = Badge(cluster="c", node="n", app="a", epoch=3, generation=2, token=9, spec="x")


def manifest(more: str = "") -> Manifest:
    text = "name: a\nimage: b\nlisteners: [{name: web, guest_port: 80}]\n" + more
    return validate(text, around=Surroundings(consent=True)).manifest


def told(more: str = "", host: Host = Host(), **given: Any) -> dict[str, Any]:  # noqa: B008
    volumes, secrets = given.get("volumes", {}), given.get("secrets", {})
    return spec.container(Version(manifest=manifest(more), image_id="sha256:ab"), BADGE, host, PATHS, volumes, secrets)


def test_the_default_is_the_least() -> None:
    body = told()
    assert body["no_new_privileges"] is True
    assert body["cap_drop"] == ["ALL"]
    assert body["cap_add"] == []
    assert body["read_only_filesystem"] is True
    assert body["resource_limits"] == {"pids": {"limit": 2048}}
    assert body["image"] == "ab"
    assert "portmappings" not in body
    assert [mount["destination"] for mount in body["mounts"]] == ["/run", "/tmp", "/var/tmp"]
    assert badge.read(body["labels"]) == BADGE


def test_limits_are_what_the_host_can_hold_to() -> None:
    more = (
        "resources: {limits: {memory: 64MiB, cpu: 0.5}}\npermissions: {resources: {max_processes: 10, max_open_files: 100}}\n"
    )
    assert told(more)["resource_limits"] == {
        "memory": {"limit": 64 * 2**20, "swap": 64 * 2**20},
        "pids": {"limit": 10},
        "cpu": {"quota": 50_000, "period": 100_000},
    }
    assert told(more)["r_limits"][0] == {"type": "nofile", "soft": 100, "hard": 100}
    weak = Host(memory=False, cpu=False, pids=False, open_files=50)
    assert told(more, weak)["resource_limits"] == {}
    assert told(more, weak)["r_limits"][0]["hard"] == 50


def test_volumes_secrets_and_config_are_mounted() -> None:
    more = (
        "storage: {persistent: {d: {container: /d}}, temporary: {t: {container: /tmp, size_limit: 1MiB}}}\n"
        "secrets: [{name: p, file: /run/p}, {name: q, env: Q}]\napp_config: {a: 1}\n"
    )
    body = told(more, volumes={"d": "/r/mounts/a.d"}, secrets={"Q": "v"})
    mounts = {mount["destination"]: mount for mount in body["mounts"]}
    assert mounts["/d"]["source"] == "/r/mounts/a.d"
    assert "rw" in mounts["/d"]["options"]
    assert mounts["/run/p"]["source"] == "/r/app-files/a/secrets/p"
    assert "ro" in mounts["/run/p"]["options"]
    assert mounts["/piccolo/config/app.yaml"]["source"] == "/r/app-files/a/app.yaml"
    assert "size=1048576" in mounts["/tmp"]["options"]
    assert body["env"] == {"Q": "v"}


def test_a_led_container_names_its_term_to_the_runtime_and_another_none() -> None:
    assert told()["annotations"] == {"io.piccolo.resource": "app:a", "io.piccolo.token": "9", "io.piccolo.epoch": "3"}
    assert "annotations" not in told("cluster: {policy: always_on}\n")


def test_the_digest_changes_with_what_the_container_is_and_with_nothing_else() -> None:
    def digest(more: str = "", image: str = "1", restarts: int = 0) -> str:
        return spec.digest(Version(manifest=manifest(more), image_id=image), restarts)

    same = [
        "title: x\n",
        "update: {health_deadline: 1m}\n",
        "depends_on: []\n",
        "x-a: 1\n",
        "healthcheck: {tcp: {port: web}}\n",
    ]
    assert {digest(more) for more in same} == {digest()}
    other = [
        "environment: {A: b}\n",
        "app_config: 1\n",
        "storage: {persistent: {d: {container: /d}}}\n",
        "secrets: [{name: p, file: /p}]\n",
    ]
    other += [
        "permissions: {network: {internet: allow}}\n",
        "command: [x]\n",
        "stop: {grace: 9s}\n",
        "filesystem: {read_only_root: false}\n",
    ]
    assert len({digest(), digest(image="2"), digest(restarts=1), *map(digest, other)}) == 3 + len(other)


def test_an_internal_network_has_a_gateway_for_the_router() -> None:
    network = spec.network("a", "n", "10.89.1.0/24", "10.89.1.1", "pic0", internet=False)
    assert network["internal"] is True
    assert network["subnets"] == [{"subnet": "10.89.1.0/24", "gateway": "10.89.1.1"}]


def test_a_subnet_is_the_apps_own_and_overlaps_nothing() -> None:
    first, gateway = subnets.choose("a", [])
    assert subnets.choose("a", []) == (first, gateway)
    assert IPv4Network(first).network_address + 1 == IPv4Network(f"{gateway}/32").network_address
    second, _ = subnets.choose("a", [IPv4Network(first)])
    assert second != first
    with pytest.raises(Failed):
        subnets.choose("a", [IPv4Network("10.0.0.0/8")])


def test_the_hosts_routes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "route"
    file.write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert subnets.host_routes(file) == [IPv4Network("192.0.2.0/24")]


def test_labels_that_are_not_ours_are_nobodys() -> None:
    assert badge.read(None) is None
    assert badge.read({"io.piccolo.app": "a"}) is None
    assert badge.read({**BADGE.labels(), "io.piccolo.token": "x"}) is None


def test_two_nodes_on_one_host_never_name_a_bridge_alike_and_one_node_always_does() -> None:
    names = {spec.bridge_name(Path(f"/s{node}"), app) for node in range(3) for app in ("a", "b" * 63)}
    assert len(names) == 6
    assert max(map(len, names)) <= 15
    assert spec.bridge_name(Path("/s0"), "a") in names

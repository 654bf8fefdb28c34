"""A node whose modules run as the users of an installation, which the other tests' machines do not have.

The users are in copies of the host's lists, mounted over them where this node alone sees them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from piccolod.kernel import BY_NAME, MODULES
from tests.node import DEMO_IMAGE, ROOT, Node, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("podman") is None, reason="needs root and podman")
SYSUSERS = ROOT / "deploy/systemd/piccolod.sysusers.conf"
FIRST_ID = 64_100


def write_users(folder: Path) -> None:
    """`passwd` and `group` as systemd-sysusers would leave them."""
    lines = SYSUSERS.read_text().splitlines()
    groups = re.findall(r"^g (\S+)", SYSUSERS.read_text(), re.MULTILINE)
    users = [line.split()[1] for line in lines if line.startswith("u ")]
    ids = {name: FIRST_ID + number for number, name in enumerate((*groups, *users))}
    members = {name: [line.split()[1] for line in lines if line.startswith("m ") and line.split()[2] == name] for name in ids}
    ours = tuple(f"{name}:" for name in ids)
    passwd = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith(ours)]
    group = [line for line in Path("/etc/group").read_text().splitlines() if not line.startswith(ours)]
    passwd += [f"{name}:x:{ids[name]}:{ids[name]}::/:/usr/sbin/nologin" for name in users]
    group += [f"{name}:x:{number}:{','.join(members[name])}" for name, number in ids.items()]
    (folder / "passwd").write_text("\n".join([*passwd, ""]))
    (folder / "group").write_text("\n".join([*group, ""]))


def opened(folder: Path, aside: Path) -> list[str]:
    """Commands that show `folder` to every user where a folder above it, a home as a rule, is shut to them."""
    shut = next((above for above in reversed(folder.parents) if not above.stat().st_mode & stat.S_IXOTH), None)
    if shut is None:
        return []
    return [
        f"mkdir -p {aside}", f"mount --bind {folder} {aside}", f"mount -t tmpfs -o mode=0711 none {shut}",
        f"mkdir -p {folder}", f"mount --bind {aside} {folder}",
    ]  # fmt: skip


@contextmanager
def installed(node: Node, *namespaces: str, prepared: Sequence[str] = ()) -> Iterator[Node]:
    """A node that runs, its modules as their users. `prepared`: commands in its namespaces before it starts."""
    with node:
        node.folder.chmod(0o711)  # they pass through it, as through /var/lib and /run
        write_users(node.folder)
        mounts = [f"mount --bind {node.folder}/{name} /etc/{name}" for name in ("passwd", "group")]
        mounts += [*opened(Path(sys.base_prefix), node.folder / "python"), *opened(ROOT, node.folder / "root")]
        script = " && ".join([*mounts, *prepared, 'exec "$@"'])
        node.within = ["unshare", "--mount", *namespaces, "--propagation", "private", "sh", "-c", script, "sh"]
        node.start()
        yield node


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with installed(Node()) as node:
        yield node


class Reachable(Node):
    address = "10.9.9.9"


def user_of(node: Node, module: str) -> str:
    uid = re.findall(r"^Uid:\s+(\d+)", Path(f"/proc/{node.pid(module)}/status").read_text(), re.MULTILINE)[0]
    users = [line.split(":") for line in (node.folder / "passwd").read_text().splitlines()]
    return next(user[0] for user in users if user[2] == uid)


def archive_of_demo(node: Node, tmp_path: Path) -> Path:
    """The demo image, built apart from the node, so that it comes to it through the API alone."""
    with Node() as other:
        other.start()
        other.load_demo_image()
        file = tmp_path / "demo.tar"
        other.podman("save", "--output", str(file), DEMO_IMAGE)
    return file


def test_every_module_runs_as_the_user_of_its_row(node: Node) -> None:
    assert {spec.name: user_of(node, spec.name) for spec in MODULES} == {spec.name: spec.user for spec in MODULES}


def test_an_image_is_loaded_installed_and_serves(node: Node, tmp_path: Path) -> None:
    archive = archive_of_demo(node, tmp_path)
    node.unlock()
    done = node.ctl("images", "load", str(archive))
    assert done.returncode == 0, done.stderr
    assert DEMO_IMAGE in done.stdout
    node.install(node.demo_manifest())
    assert node.fetch(node.public_port("hello"), timeout_s=10).status == 200
    assert "uploads" not in node.ctl("health").stdout


@pytest.mark.parametrize("module", [spec.name for spec in MODULES])
def test_a_killed_module_comes_back_as_the_same_user_and_the_app_serves_on(node: Node, module: str) -> None:
    before = node.instance(module)
    node.signal(module, signal.SIGKILL)
    until(lambda: node.is_replaced(module, before), f"{module} replaced and ready", 20)
    assert user_of(node, module) == BY_NAME[module].user
    assert node.wait_app("hello")["state"] == "running"
    assert node.fetch(node.public_port("hello"), timeout_s=10).status == 200


def listens(node: Node, port: int) -> bool:
    assert node.process is not None
    lines = Path(f"/proc/{node.process.pid}/net/tcp").read_text().splitlines()[1:]
    return any(local.endswith(f":{port:04X}") and state == "0A" for _, local, _, state, *_ in map(str.split, lines))


def test_a_cluster_is_founded_and_the_key_of_its_certificate_is_readable_for_the_api_and_for_nobody_else() -> None:
    network = ["ip link set lo up", "ip address add 10.9.9.9/32 dev lo"]
    with installed(Reachable(), "--net", prepared=network) as node:
        node.unlock()
        done = node.ctl("cluster", "init", "--profile", "fast")
        assert done.returncode == 0, done.stderr
        until(lambda: listens(node, 7444), "the api serves the other nodes", 20)
        until(lambda: node.api("PUT", "/settings", {"title": "One"}).status == 200, "it leads", 20, 0.2)
        key = (node.state / "cluster" / "node.key").stat()
        group = next(line for line in (node.folder / "group").read_text().splitlines() if line.startswith("piccolo:"))
        assert (stat.S_IMODE(key.st_mode), key.st_uid, str(key.st_gid)) == (0o640, 0, group.split(":")[2])

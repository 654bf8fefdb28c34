"""Images that come without a registry: root file systems and folders with a Containerfile, as people and programs send them."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.node import PICCOLOD, Node, Reply, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.podman,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("podman") is None, reason="needs root and podman"),
]
TAR = "application/x-tar"
SERVES = "command: [/bin/sh, -c, 'busybox httpd -f -p 80 -h /www & trap \"exit 0\" TERM; wait']\n"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as node:
        node.start()
        node.unlock()
        yield node


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A folder that holds all that a container needs to serve one page."""
    root = tmp_path / "rootfs"
    for name in ("bin", "www", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for name in ("sh", "sleep", "cat", "touch", "mkdir", "id"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "www/index.html").write_text("as it was sent\n")
    return root


@pytest.fixture
def context(tmp_path: Path, rootfs: Path) -> Path:
    """A folder with a Containerfile, whose steps run in what it has copied."""
    folder = tmp_path / "context"
    folder.mkdir()
    shutil.copytree(rootfs, folder / "rootfs", symlinks=True)
    (folder / "Containerfile").write_text(
        "FROM scratch\nCOPY rootfs/ /\nRUN mkdir /www/made && echo by a step > /www/made/index.html\n"
        'EXPOSE 80\nCMD ["/bin/sh", "-c", "busybox httpd -f -p 80 -h /www & trap \'exit 0\' TERM; wait"]\n'
    )
    return folder


def archive(folder: Path, mode: str = "w") -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as tar:  # type: ignore[call-overload]
        for entry in sorted(folder.iterdir()):
            tar.add(entry, arcname=entry.name)
    return written.getvalue()


def add(node: Node, kind: str, body: bytes, name: str) -> Reply:
    return node.api("POST", f"/images?{urlencode({'kind': kind, 'name': name})}", body, kind=TAR, timeout_s=90)


def names(node: Node) -> set[str]:
    return {name for image in node.get("/images") for name in image["names"]}


def page(node: Node, app: str, path: str = "/index.html") -> str:
    """What the app says on its public port, once it is asked and answers."""
    port = node.public_port(app)
    return str(until(lambda: (reply := node.fetch(port, path, 5)).status == 200 and reply.body.decode(), f"{app} at {path}"))


def remove(node: Node, app: str) -> None:
    done = node.ctl("apps", "uninstall", app, "-y", "--purge")
    assert done.returncode == 0, done.stderr


def manifest(node: Node, app: str, image: str, extra: str = "") -> str:
    return node.demo_manifest(app, extra).replace("localhost/piccolo-demo:1", image)


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    """Whatever came of it, nothing that was sent lies about: neither on its way to podman nor where podman builds."""
    yield
    until(lambda: not list((node.state / "uploads").iterdir()), "no upload is left")
    until(lambda: not list((node.state / "containers/incoming").glob("libpod_builder*")), "no context is left", 30)


# --- import


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_root_file_system_sent_to_the_api_becomes_an_image_that_serves(node: Node, rootfs: Path, mode: str) -> None:
    name = f"localhost/imported:{mode.removeprefix('w:')}"
    reply = add(node, "import", archive(rootfs, mode), name)
    assert reply.status == 201, reply
    [image] = reply.json
    assert image["names"] == [name]
    assert image["size_bytes"] >= (rootfs / "bin/busybox").stat().st_size
    assert image in node.get("/images")
    app = node.install(manifest(node, "imported", name, SERVES))
    assert app["image_id"] == image["id"]
    assert page(node, "imported") == "as it was sent\n"
    assert next(one["used_by"] for one in node.get("/images") if one["id"] == image["id"]) == ["imported"]
    remove(node, "imported")


def test_piccoloctl_imports_a_file_and_what_is_piped_in(node: Node, rootfs: Path, tmp_path: Path) -> None:
    file = tmp_path / "rootfs.tar"
    file.write_bytes(archive(rootfs))
    done = node.ctl("images", "import", str(file), "localhost/by-file:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("localhost/by-file:1 is here: ")
    command = [PICCOLOD.with_name("piccoloctl"), "--socket", node.run / "api.sock", "-q", "images", "import", "-"]
    piped = subprocess.run(
        [*command, "localhost/by-pipe:1"], input=file.read_bytes(), capture_output=True, timeout=60, check=False
    )
    assert piped.returncode == 0, piped.stderr
    assert {"localhost/by-file:1", "localhost/by-pipe:1"} <= names(node)
    node.install(manifest(node, "piped", "localhost/by-pipe:1", SERVES))
    assert page(node, "piped") == "as it was sent\n"
    remove(node, "piped")


def test_a_name_without_a_registry_means_the_same_in_a_manifest(node: Node, rootfs: Path) -> None:
    reply = add(node, "import", archive(rootfs), "notes:1")
    assert reply.status == 201, reply
    app = node.install(manifest(node, "notes", "notes:1", SERVES))
    assert app["image_id"] == reply.json[0]["id"]
    assert page(node, "notes") == "as it was sent\n"
    remove(node, "notes")


# --- build


def test_a_context_sent_to_the_api_is_built_and_the_app_serves_what_its_steps_made(node: Node, context: Path) -> None:
    reply = add(node, "build", archive(context), "localhost/built:1")
    assert reply.status == 201, reply
    [image] = reply.json
    assert image["names"] == ["localhost/built:1"]
    app = node.install(manifest(node, "built", "localhost/built:1"))
    assert app["image_id"] == image["id"]
    assert page(node, "built") == "as it was sent\n"
    assert page(node, "built", "/made/index.html") == "by a step\n"
    remove(node, "built")


@pytest.mark.parametrize("file", ["Containerfile", "Dockerfile"])
def test_piccoloctl_builds_a_folder(node: Node, context: Path, file: str) -> None:
    (context / "Containerfile").rename(context / file)
    name = f"localhost/folder:{file.lower()}"
    done = node.ctl("images", "build", str(context), name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name} is here: ")
    node.install(manifest(node, "folder", name))
    assert page(node, "folder", "/made/index.html") == "by a step\n"
    remove(node, "folder")


def test_a_new_build_takes_the_name_and_prune_removes_what_had_it(node: Node, context: Path) -> None:
    def build() -> str:
        done = node.ctl("-q", "images", "build", str(context), "localhost/again:1")
        assert done.returncode == 0, done.stderr
        return next(str(image["id"]) for image in node.get("/images") if "localhost/again:1" in image["names"])

    first = build()
    (context / "rootfs/www/index.html").write_text("changed\n")
    second = build()
    assert second != first
    assert first in {image["id"] for image in node.get("/images") if not image["names"]}
    done = node.ctl("images", "prune")
    assert done.returncode == 0, done.stderr
    left = {image["id"]: image["names"] for image in node.get("/images")}
    assert first not in left
    assert left[second] == ["localhost/again:1"]


def test_a_new_build_of_the_name_is_what_an_update_starts(node: Node, context: Path) -> None:
    assert node.ctl("images", "build", str(context), "localhost/renewed:1").returncode == 0
    before = node.install(manifest(node, "renewed", "localhost/renewed:1"))
    (context / "rootfs/www/index.html").write_text("the second build\n")
    assert node.ctl("images", "build", str(context), "localhost/renewed:1").returncode == 0
    assert page(node, "renewed") == "as it was sent\n", "nothing changes under an app that runs"
    done = node.ctl("apps", "update", "renewed")
    assert done.returncode == 0, done.stderr
    until(lambda: page(node, "renewed") == "the second build\n", "the new image", 20)
    assert node.wait_app("renewed")["image_id"] != before["image_id"]
    remove(node, "renewed")


# --- what is refused


@pytest.mark.parametrize("kind", ["import", "build"])
@pytest.mark.parametrize("name", ["", "Not A Name", "localhost/x:1 --privileged"])
def test_what_cannot_be_a_name_is_refused(node: Node, rootfs: Path, kind: str, name: str) -> None:
    before = names(node)
    reply = add(node, kind, archive(rootfs), name)
    assert (reply.status, reply.json["code"]) == (400, "invalid"), reply
    assert names(node) == before


@pytest.mark.parametrize("kind", ["import", "build"])
def test_what_is_no_archive_is_refused(node: Node, kind: str) -> None:
    reply = add(node, kind, b"no archive" * 1000, "localhost/garbage:1")
    assert (reply.status, reply.json["code"]) == (400, "invalid"), reply
    assert f"podman cannot {kind} this file" in reply.json["detail"]
    assert "localhost/garbage:1" not in names(node)


def test_an_archive_that_ends_too_early_is_refused(node: Node, rootfs: Path) -> None:
    whole = archive(rootfs)
    for kind in ("import", "build"):
        reply = add(node, kind, whole[: len(whole) // 2], "localhost/half:1")
        assert (reply.status, reply.json["code"]) == (400, "invalid"), (kind, reply)
    assert "localhost/half:1" not in names(node)


def test_a_context_without_a_containerfile_is_refused_and_says_so(node: Node, rootfs: Path) -> None:
    reply = add(node, "build", archive(rootfs), "localhost/none:1")
    assert (reply.status, reply.json["code"]) == (400, "invalid"), reply
    assert "build/Containerfile: no such file" in reply.json["detail"]
    assert "Containerfile" in reply.json["hint"]
    done = node.ctl("images", "build", str(rootfs), "localhost/none:1")
    assert done.returncode == 8
    assert "Containerfile" in done.stderr


def test_a_step_that_fails_is_named_and_the_name_stays_with_the_image_that_had_it(node: Node, context: Path) -> None:
    assert node.ctl("images", "build", str(context), "localhost/failing:1").returncode == 0
    before = next(image["id"] for image in node.get("/images") if "localhost/failing:1" in image["names"])
    (context / "Containerfile").write_text("FROM scratch\nCOPY rootfs/ /\nRUN id && echo the third step && exit 7\n")
    done = node.ctl("images", "build", str(context), "localhost/failing:1")
    assert done.returncode == 8, done
    assert "exit 7" in done.stderr or "status 7" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert next(image["id"] for image in node.get("/images") if "localhost/failing:1" in image["names"]) == before
    assert node.podman("ps", "--all", "--external", "--format", "{{.Names}}").strip() == "", "no container of the build"


def test_a_base_image_that_is_not_here_is_named(node: Node, context: Path) -> None:
    (context / "Containerfile").write_text("FROM localhost/never-was:1\nCOPY rootfs/ /\n")
    done = node.ctl("images", "build", str(context), "localhost/orphan:1")
    assert done.returncode == 8, done
    assert "never-was" in done.stderr


def test_a_build_sees_nothing_of_the_machine(node: Node, context: Path) -> None:
    """Neither by a link out of its folder nor by the folder above."""
    (context / "secret").symlink_to("/etc/shadow")
    (context / "Containerfile").write_text("FROM scratch\nCOPY rootfs/ /\nCOPY secret /www/secret\n")
    done = node.ctl("images", "build", str(context), "localhost/curious:1")
    assert done.returncode == 8, done
    (context / "Containerfile").write_text("FROM scratch\nCOPY ../../../../etc/shadow /www/secret\n")
    done = node.ctl("images", "build", str(context), "localhost/curious:1")
    assert done.returncode == 8, done
    assert "localhost/curious:1" not in names(node)


# --- when something is wrong with the node


def test_nothing_is_taken_in_while_the_store_is_locked(node: Node, rootfs: Path, context: Path, tmp_path: Path) -> None:
    file = tmp_path / "rootfs.tar"
    file.write_bytes(archive(rootfs))
    assert node.ctl("lock").returncode == 0
    try:
        for kind, body in (("import", archive(rootfs)), ("build", archive(context))):
            reply = add(node, kind, body, "localhost/locked:1")
            assert (reply.status, reply.json["code"]) == (423, "locked"), (kind, reply)
        assert node.ctl("images", "import", str(file), "localhost/locked:1").returncode == 4
        assert node.ctl("images", "build", str(context), "localhost/locked:1").returncode == 4
    finally:
        node.unlock()
    assert "localhost/locked:1" not in names(node)


# podman builds on when it is apps that dies: each case has a step of its own to wait for
@pytest.mark.parametrize(("victim", "step_s"), [("apps", 20), ("podman", 21)])
def test_a_build_whose_maker_dies_ends_with_the_reason_and_the_next_one_succeeds(
    node: Node, context: Path, victim: str, step_s: int, tmp_path: Path
) -> None:
    good = (context / "Containerfile").read_text()
    (context / "Containerfile").write_text(f"FROM scratch\nCOPY rootfs/ /\nRUN sleep {step_s}\n")
    command = [PICCOLOD.with_name("piccoloctl"), "--socket", node.run / "api.sock"]
    building = subprocess.Popen(
        [*command, "images", "build", str(context), "localhost/cut:1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: sleeps(node, step_s), "the build has come to its long step", 30)
        before = node.instance(victim) if victim == "apps" else node.pid(victim)
        node.signal(victim, signal.SIGKILL)
        _, said = building.communicate(timeout=60)
    finally:
        building.kill()
        building.wait()
    assert building.returncode not in (0, None), said
    assert said.strip()
    assert "Traceback" not in said
    until(lambda: node.pid(victim) not in (0, before) and node.all_ready(), f"{victim} is back", 20)
    (context / "Containerfile").write_text(good)
    done = node.ctl("images", "build", str(context), "localhost/cut:2")
    assert done.returncode == 0, done.stderr
    assert "localhost/cut:1" not in names(node)


def sleeps(node: Node, step_s: int) -> bool:
    """Whether the step `RUN sleep` runs: nobody else on this machine sleeps so long under our folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == f"sleep\0{step_s}\0".encode() and str(node.folder) in (
                    entry / "mountinfo"
                ).read_text():
                    return True
            except OSError:
                continue
    return False

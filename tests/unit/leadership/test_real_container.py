"""The whole chain with podman's own container: hook, arm before the first instruction, kill, proof."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import clock, config, podman_conf
from piccolod.leadership import leash_table
from piccolod.leadership.guard import GUARD_TICK_S
from piccolod.leadership.leash_client import LeashClient
from piccolod.leadership.oci_hook import term_annotations, write_hook
from piccolod.leadership.page import PageWriter, create
from piccolod.paths import Paths

from .conftest import OPEN, Leashes, a_page, assert_alive, cmdline, gone, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.podman,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("podman"), reason="needs root and podman"),
]


class Podman:
    def __init__(self, settings: config.Config) -> None:
        self._podman = podman_conf.prepare(settings)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._podman.argv, *args], env=self._podman.env, capture_output=True, text=True, timeout=60, check=False
        )

    def ok(self, *args: str) -> str:
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def create(self) -> str:
        annotations = [f"--annotation={key}={value}" for key, value in term_annotations("app:notes", 7, 1).items()]
        return self.ok("create", "--network=none", *annotations, "localhost/bb:1", "/busybox", "sleep", "1000")

    def pid(self, container: str) -> int:
        return int(self.ok("inspect", container, "--format={{.State.Pid}}"))


@pytest.fixture
def paths() -> Iterator[Paths]:
    folder = Path(tempfile.mkdtemp(prefix="lp"))
    settings = config.parse(f'[node]\nstate_dir = "{folder}/state"\nrun_dir = "{folder}/run"')
    settings.paths.leash.mkdir(parents=True)
    settings.paths.state.mkdir()
    yield settings.paths
    shutil.rmtree(folder)


@pytest.fixture
def podman(paths: Paths) -> Iterator[Podman]:
    settings = config.parse(f'[node]\nstate_dir = "{paths.state}"\nrun_dir = "{paths.run}"')
    made = Podman(settings)
    write_hook(paths, sys.executable)
    archive = paths.run / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(Path(shutil.which("busybox") or "/bin/busybox").resolve(), "busybox")
    made.ok("import", str(archive), "localhost/bb:1")
    yield made
    made.run("rm", "--force", "--all", "--time=0")
    made.run("rmi", "--force", "--all")
    podman_conf.release(settings)


@pytest.fixture
def page_writer(paths: Paths) -> Iterator[PageWriter]:
    create(paths.page)
    writer = PageWriter(paths.page)
    yield writer
    writer.close()


def test_a_led_container_is_guarded_from_before_its_first_instruction_to_its_proven_end(
    paths: Paths, podman: Podman, page_writer: PageWriter, leashes: Leashes
) -> None:
    client = LeashClient(paths)
    leashes.start_all()
    container = podman.create()

    refused = podman.run("init", container)
    assert refused.returncode != 0 and "start refused" in refused.stderr
    # podman cleans up after the refusal when it likes, and would take a second init of the same container along.
    podman.ok("rm", "--force", "--time=0", container)
    container = podman.create()

    page_writer.write(a_page(OPEN))
    podman.ok("init", container)
    pid = podman.pid(container)
    assert b"busybox" not in cmdline(pid), "not one instruction of the app has run"
    entry = leash_table.entry_of(container, "app:notes", 7, 1, pid=pid)
    asyncio.run(client.arm(entry))
    podman.ok("start", container)
    wait_for(lambda: b"busybox" in cmdline(pid), "the app runs in the very process that was armed")

    for index in (0, 1):
        leashes.kill(index)
    assert_alive([pid])
    for index in (0, 1):
        leashes.start(index)

    asked_at = clock.now()
    page_writer.write(a_page({}))
    wait_for(lambda: gone(pid), "the guards killed it")
    assert clock.now() - asked_at < GUARD_TICK_S + 0.5
    wait_for(lambda: leash_table.proven_dead(entry), "its end is proven")
    asyncio.run(client.disarm(entry))

    again = podman.run("start", container)
    assert again.returncode != 0 and "does not lead it" in again.stderr


def test_a_container_that_podman_started_again_replaces_its_dead_self(
    paths: Paths, podman: Podman, page_writer: PageWriter, leashes: Leashes
) -> None:
    client = LeashClient(paths)
    leashes.start_all()
    page_writer.write(a_page(OPEN))
    container = podman.create()
    podman.ok("start", container)
    first = leash_table.entry_of(container, "app:notes", 7, 1, pid=podman.pid(container))
    asyncio.run(client.arm(first))
    leash_table.kill(first)
    wait_for(lambda: podman.ok("inspect", container, "--format={{.State.Status}}") == "exited", "podman has seen it")
    podman.ok("init", container)
    second = leash_table.entry_of(container, "app:notes", 7, 1, pid=podman.pid(container))
    asyncio.run(client.arm(second))
    assert leash_table.read(paths.leash) == {second.file: second}
    podman.ok("start", container)
    assert_alive([second.pid])

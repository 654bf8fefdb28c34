"""What podman knows of containers stays in memory, and what dead containers leave on the disk goes: with the real podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from piccolod import podman_conf, tmpfs
from piccolod.config import Config, Node, Podman
from piccolod.errors import Failed
from piccolod.podman_memory import Place
from tests.node import ROOT, on_the_disk, processes_of, unmount_below, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.podman,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("podman") is None or shutil.which("busybox") is None,
        reason="needs root, podman and busybox",
    ),
]
MARK = "marked-7f3a9c"
FIRST, SECOND = "localhost/first:1", "localhost/second:1"


class Storage:
    """A node's podman and nothing else of the node."""

    def __init__(self, folder: Path, driver: str) -> None:
        self.folder, self.driver = folder, driver
        self.config = Config(node=Node(name="n", state_dir=str(folder / "state"), run_dir=str(folder / "run")))
        self.root = self.config.paths.podman_root
        (self.root / driver).mkdir(parents=True)  # begun with it
        self.enter()
        self.build(FIRST, "one")
        self.build(SECOND, "two")

    def enter(self) -> None:
        self.podman = podman_conf.prepare(self.config)

    def call(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [*self.podman.argv, *arguments], env=self.podman.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode != 0) is fails, f"podman {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def build(self, tag: str, content: str) -> None:
        context = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copy(Path(shutil.which("busybox") or "").resolve(), context / "busybox")
        (context / "content").write_text(content)
        (context / "Containerfile").write_text('FROM scratch\nCOPY busybox /busybox\nCOPY content /content\nCMD ["/busybox"]\n')
        self.call("build", "--quiet", "--network", "none", "--tag", tag, str(context))
        shutil.rmtree(context)

    def run(self, name: str, image: str = FIRST, *arguments: str) -> str:
        command = arguments or ("/busybox", "sh", "-c", "trap 'exit 0' TERM; /busybox sleep 1000 & wait")
        return self.call("run", "--detach", "--name", name, "--network", "none", "--env", f"A={MARK}", image, *command)

    def answer(self, image: str) -> str:
        return self.call("run", "--rm", "--network", "none", image, "/busybox", "cat", "/content")

    def layers(self) -> set[str]:
        return {layer["id"] for layer in json.loads((self.root / f"{self.driver}-layers/layers.json").read_bytes())}

    def folders(self) -> set[str]:
        """Of layers, as they take room on the disk."""
        home = self.root / self.driver
        return {path.name for path in (home / "dir" if self.driver == "vfs" else home).iterdir() if len(path.name) == 64}

    def reboot(self) -> None:
        """What a reboot takes: every process, and every mount."""
        self.call("kill", "--all")
        until(lambda: not processes_of(self.folder), "the containers and their monitors have ended", 15)
        unmount_below(self.folder)

    def remove(self) -> None:
        subprocess.run([*self.podman.argv, "rm", "--all", "--force", "--time", "0"], env=self.podman.env, check=False)
        until(lambda: not processes_of(self.folder), "podman's monitors have ended", 15)
        unmount_below(self.folder)


@pytest.fixture(params=["overlay", "vfs"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    folder = Path(tempfile.mkdtemp(prefix="pm"))
    made = Storage(folder, request.param)
    try:
        yield made
    finally:
        made.remove()
        shutil.rmtree(folder)


def holders(folder: Path) -> list[Path]:
    return [file for file, content in on_the_disk(folder) if MARK.encode() in content]


def test_neither_environment_nor_command_nor_output_of_a_container_is_on_the_disk(storage: Storage) -> None:
    storage.run("a", FIRST, "/busybox", "sh", "-c", f"echo {MARK}-out; exec /busybox sleep 1000")
    assert f"{MARK}-out" in storage.call("logs", "a")
    assert MARK in storage.call("inspect", "a")
    assert holders(storage.folder) == []


def test_nothing_can_be_written_where_the_memory_is_not_mounted(storage: Storage) -> None:
    storage.reboot()
    storage.call("create", "--name", "a", "--network", "none", "--env", f"A={MARK}", FIRST, fails=True)
    assert holders(storage.folder) == []


def test_after_a_reboot_layers_of_dead_containers_are_gone_and_every_image_is_whole(storage: Storage) -> None:
    before, folders = storage.layers(), storage.folders()
    for name, image in (("a", FIRST), ("b", SECOND), ("c", FIRST)):
        storage.run(name, image)
    assert len(storage.layers()) == len(before) + 3
    storage.reboot()
    storage.enter()
    assert storage.layers() == before
    assert storage.folders() == folders
    assert storage.call("ps", "--all", "--external", "--quiet") == ""
    assert (storage.answer(FIRST), storage.answer(SECOND)) == ("one", "two")


def test_who_died_while_removing_them_is_followed_by_one_who_does(storage: Storage) -> None:
    before = storage.layers()
    storage.run("a")
    storage.reboot()
    tmpfs.mount(storage.config.paths.podman_run, "50%")  # the first thing that is done, and then it died
    storage.enter()
    assert storage.layers() == before
    storage.run("b")


def test_living_containers_are_adopted_and_no_layer_is_touched(storage: Storage) -> None:
    running, created = storage.run("a"), storage.call("create", "--name", "b", "--network", "none", SECOND)
    layers = storage.layers()
    storage.enter()
    podman_conf.release(storage.config)  # while one runs nothing is taken away
    storage.enter()
    assert storage.layers() == layers
    assert set(storage.call("ps", "--all", "--quiet", "--no-trunc").split()) == {running, created}
    assert storage.call("exec", "a", "/busybox", "echo", "lives") == "lives"


def test_what_was_stopped_can_be_deleted(storage: Storage) -> None:
    storage.run("a")
    storage.call("stop", "--time", "0", "a")
    podman_conf.release(storage.config)
    assert tmpfs.points_below(storage.folder) == []


def keep_on_the_disk(storage: Storage) -> None:
    """As earlier versions did: real folders in the place of the links."""
    storage.reboot()
    place = Place(storage.config.paths.podman_run, storage.root, storage.driver, ours=True)
    for link in place.links:
        link.unlink()
    (place.memory / "libpod").mkdir(exist_ok=True)


def test_a_node_of_an_earlier_version_keeps_its_images_and_loses_its_records(storage: Storage) -> None:
    before = storage.layers()
    keep_on_the_disk(storage)
    storage.run("a")
    storage.call("create", "--name", "b", "--network", "none", "--env", f"A={MARK}", SECOND)
    assert holders(storage.folder)
    storage.enter()
    assert holders(storage.folder) == []
    assert storage.call("ps", "--all", "--external", "--quiet") == ""
    assert storage.layers() == before
    assert (storage.answer(FIRST), storage.answer(SECOND)) == ("one", "two")


def test_containers_in_a_storage_that_somebody_chose_are_never_removed(storage: Storage) -> None:
    keep_on_the_disk(storage)
    container = storage.run("a")
    chosen = replace(storage.config, podman=Podman(root=str(storage.root)))
    with pytest.raises(Failed, match="holds containers on the disk"):
        podman_conf.prepare(chosen)
    assert storage.call("ps", "--quiet", "--no-trunc") == container


def test_a_run_folder_on_a_disk_is_refused(storage: Storage) -> None:
    chosen = replace(storage.config, podman=Podman(runroot=str(ROOT / "nowhere")))
    with pytest.raises(Failed, match="is on a disk"):
        podman_conf.prepare(chosen)


@pytest.mark.parametrize("storage", ["overlay"], indirect=True)
@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_without_a_list_of_images_nothing_is_removed(storage: Storage, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    storage.run("a")
    layers = storage.layers()
    storage.reboot()
    images = storage.root / "overlay-images/images.json"
    images.unlink() if damage == "missing" else images.write_text("{")
    storage.enter()
    assert storage.layers() == layers
    assert ("leaves unused layers" in capfd.readouterr().err) is (damage == "garbage")


@pytest.mark.parametrize("storage", ["overlay"], indirect=True)
def test_a_run_folder_behind_a_link_is_the_same_memory_at_the_next_start(storage: Storage) -> None:
    container = storage.run("a")
    (link := storage.folder / "link").symlink_to(storage.folder)
    node = replace(storage.config.node, state_dir=str(link / "state"), run_dir=str(link / "run"))
    before = tmpfs.points_below(storage.folder)
    podman_conf.prepare(replace(storage.config, node=node))
    assert tmpfs.points_below(storage.folder) == before, "another one was mounted over it"
    storage.enter()
    assert storage.call("ps", "--quiet", "--no-trunc") == container


@pytest.mark.parametrize("storage", ["overlay"], indirect=True)
def test_the_database_and_layers_of_a_podman_in_a_chosen_storage_are_never_removed(storage: Storage) -> None:
    keep_on_the_disk(storage)
    storage.call("volume", "create", "precious")
    chosen = replace(storage.config, podman=Podman(root=str(storage.root)))
    with pytest.raises(Failed, match="database of another podman"):
        podman_conf.prepare(chosen)
    assert storage.call("volume", "ls", "--quiet") == "precious"


@pytest.mark.parametrize("storage", ["overlay"], indirect=True)
def test_layers_without_an_image_in_a_chosen_storage_stay_at_the_first_entry(storage: Storage) -> None:
    storage.run("a")
    layers = storage.layers()
    keep_on_the_disk(storage)
    chosen = replace(storage.config, podman=Podman(root=str(storage.root)))
    podman_conf.prepare(chosen)
    assert storage.layers() == layers
    storage.reboot()
    podman_conf.prepare(chosen)
    assert len(storage.layers()) == len(layers) - 1, "now they are ours"

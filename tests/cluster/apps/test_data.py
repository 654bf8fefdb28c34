"""Secrets, configuration, volumes and images of apps."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from piccolod.errors import Invalid
from piccolod.protocol import apps as protocol
from tests.cluster.apps.world import IMAGE, MARKS, SERVE, Machine, life, manifest

pytestmark = MARKS


def test_secrets_and_config_lie_in_memory_and_are_read_by_the_app(machine: Machine) -> None:
    machine.documents["secrets", "password"] = (1, {"value": "hunter2"})

    async def story() -> None:
        async with life(machine) as world:
            await world.install(
                manifest(
                    secrets="[{name: password, file: /run/secrets/password}]",
                    app_config="{level: 3, names: [a, b], on: 'yes'}",
                    storage="{temporary: {cache: {container: /cache, size_limit: 1MiB}}}",
                )
            )
            await world.serving("hello")
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/run/secrets/password") == "hunter2"
            config = machine.run_podman("exec", "piccolo-hello", "cat", "/piccolo/config/app.yaml")
            assert json.loads(config) == {"level": 3, "names": ["a", "b"], "on": "yes"}
            assert os.path.ismount(machine.paths.app_files)
            found = subprocess.run(
                ["grep", "-rl", "hunter2", str(machine.paths.state)], capture_output=True, text=True, check=False
            )
            assert found.stdout == ""
            assert "1024" in machine.run_podman("exec", "piccolo-hello", "busybox", "df", "-k", "/cache")
            await world.ask(protocol.UninstallApp(name="hello", author="test"))
            assert not os.path.ismount(machine.paths.app_files)
            assert machine.documents.keys() == {("secrets", "password")}

    asyncio.run(story())


def test_a_volume_outlives_the_app_until_it_is_purged(machine: Machine) -> None:
    async def story() -> None:
        async with life(machine) as world:
            text = manifest(storage="{persistent: {data: {container: /data}}}")
            await world.install(text)
            await world.serving("hello")
            machine.run_podman("exec", "piccolo-hello", "sh", "-c", "echo kept > /data/file")
            await world.ask(protocol.UninstallApp(name="hello", author="test"))
            assert (machine.folder / "volumes/hello.data/file").read_text() == "kept\n"
            assert not (machine.folder / "volumes/hello.attached").exists()
            await world.install(text)
            await world.serving("hello")
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/data/file") == "kept"
            await world.ask(protocol.UninstallApp(name="hello", author="test", purge=True))
            assert not (machine.folder / "volumes/hello.data").exists()
            assert world.containers() == []
            assert "piccolo-hello" not in machine.run_podman("network", "ls", "--format", "{{.Name}}")

    asyncio.run(story())


def test_images_come_from_files_and_a_pending_app_starts_when_its_image_comes(machine: Machine, images: Path) -> None:
    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(image="localhost/apps-root:1", command="[/bin/serve]"))
            app = await world.until("hello", "pending", reason="is not on this node")
            assert app.image_id == ""
            uploads = machine.paths.uploads
            uploads.mkdir()
            upload = uploads / "upload.tar"
            with tarfile.open(upload, "w") as tar:
                for name in ("busybox", "sh", "mkdir", "sleep"):
                    tar.add(shutil.which("busybox") or "", f"bin/{name}")
                script = machine.folder / "serve"
                script.write_text(SERVE)
                script.chmod(0o755)
                tar.add(script, "bin/serve")
            answer = await world.ask(protocol.AddImage(kind="import", file=str(upload), name="localhost/apps-root:1"))
            assert answer.images[0].names == ("localhost/apps-root:1",)
            app = await world.serving("hello")
            assert app.image_id == answer.images[0].id
            shutil.copy(images, upload)
            answer = await world.ask(protocol.AddImage(kind="load", file=str(upload)))
            assert IMAGE in answer.images[0].names
            with pytest.raises(Invalid, match="not an uploaded file"):
                await world.ask(protocol.AddImage(kind="load", file="/etc/passwd"))
            (uploads / "link").symlink_to(images)
            shutil.copy(images, machine.paths.state / "beside.tar")
            for outside in (uploads / "link", machine.paths.state / "beside.tar", uploads / "sub/../../beside.tar"):
                with pytest.raises(Invalid, match="not an uploaded file"):
                    await world.ask(protocol.AddImage(kind="load", file=str(outside)))
            upload.write_bytes(b"garbage" * 1000)
            for kind in ("load", "import", "build"):
                with pytest.raises(Invalid, match=f"podman cannot {kind} this file: ."):
                    await world.ask(protocol.AddImage(kind=kind, file=str(upload), name="localhost/garbage:1"))
            machine.build("localhost/old:1", "LABEL old=1")
            machine.build("localhost/old:1", "LABEL old=2")  # takes the name, which leaves the first without
            before = {image.id: image.names for image in (await world.ask(protocol.ListImages())).images}
            unnamed = {image_id for image_id, names in before.items() if not names}
            assert len(unnamed) >= 1
            gone = await world.ask(protocol.PruneImages())
            assert {image.id for image in gone.images} >= unnamed
            assert not any(image.names for image in gone.images)
            gone = await world.ask(protocol.PruneImages(unused=True))
            assert "localhost/old:1" in {name for image in gone.images for name in image.names}
            left = {name for image in (await world.ask(protocol.ListImages())).images for name in image.names}
            assert "localhost/apps-root:1" in left, "an app needs it"
            assert "localhost/old:1" not in left
            assert (await world.show("hello")).state == "running"
            shutil.copy(images, upload)
            await world.ask(protocol.AddImage(kind="load", file=str(upload)))
            listed = await world.ask(protocol.ListImages())
            assert {image.used_by for image in listed.images} == {(), ("hello",)}
            await world.install(
                manifest("built", image="~", build="{containerfile: 'FROM localhost/apps-test:1'}").replace("image: ~\n", "")
            )
            await world.serving("built")

    asyncio.run(story())


def test_a_changed_secret_is_read_by_the_next_run_of_the_same_container(machine: Machine) -> None:
    machine.documents["secrets", "password"] = (1, {"value": "old"})

    async def story() -> None:
        async with life(machine) as world:
            await world.install(manifest(secrets="[{name: password, file: /run/secrets/password}]"))
            await world.serving("hello")
            before = world.inspect("hello")
            machine.documents["secrets", "password"] = (2, {"value": "new"})
            os.kill(before["State"]["Pid"], signal.SIGKILL)
            await world.eventually(lambda: machine.routes["hello"].mode == "hold", "the hold")
            await world.serving("hello")
            assert world.inspect("hello")["Id"] == before["Id"]
            assert machine.run_podman("exec", "piccolo-hello", "cat", "/run/secrets/password") == "new"

    asyncio.run(story())

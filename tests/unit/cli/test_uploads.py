"""Images on their way: to a node as they are, and from it to the others."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.unit.cli.api_double import ApiDouble
from tests.unit.cli.conftest import Ctl

IMAGE = {"id": "sha256:" + "ab" * 32, "names": ["localhost/x:1"], "size_bytes": 2048, "created_ms": 0, "used_by": []}


def test_load_sends_the_file_as_it_is(ctl: Ctl, double: ApiDouble, folder: Path) -> None:
    content = bytes(range(256)) * 9000
    (folder / "image.tar").write_bytes(content)
    double.on("POST", "/images", [IMAGE], status=201)
    done = ctl("images", "load", str(folder / "image.tar"))
    sent = double.sent[0]
    assert sent.body == content
    assert sent.query == {"kind": "load"}
    assert sent.headers["content-length"] == str(len(content))
    assert sent.headers["content-type"] == "application/x-tar"
    assert "localhost/x:1 is here" in done.out


def test_load_from_stdin_is_sent_as_it_comes(ctl: Ctl, double: ApiDouble) -> None:
    double.on("POST", "/images", [IMAGE], status=201)
    assert ctl("images", "import", "-", "localhost/x:1", stdin=b"\x00\xff" * 300_000).code == 0
    assert double.sent[0].body == b"\x00\xff" * 300_000
    assert double.sent[0].headers["transfer-encoding"] == "chunked"
    assert double.sent[0].query == {"kind": "import", "name": "localhost/x:1"}


@pytest.mark.parametrize("name", ["localhost/x:1", "x:1", "ab" * 6, IMAGE["id"]])
def test_push_peers_names_the_image_by_its_id_and_tells_of_each_node(ctl: Ctl, double: ApiDouble, name: str) -> None:
    told = [{"node": "n2", "had": True, "error": ""}, {"node": "n3", "had": False, "error": ""}]
    double.on("GET", "/images", [IMAGE])
    double.on("POST", f"/images/{'ab' * 32}/push", told)
    done = ctl("images", "push-peers", name)
    assert (done.code, done.out) == (0, "n2: had it\nn3: has it now\n")
    told[1]["error"] = "n3 is locked"
    double.on("POST", f"/images/{'ab' * 32}/push", told)
    done = ctl("images", "push-peers", name)
    assert (done.code, done.out) == (1, "n2: had it\nn3: n3 is locked\n")


@pytest.mark.parametrize("name", ["ab", "x", "y:1", "b" * 12])
def test_push_peers_of_what_is_not_here_sends_nothing(ctl: Ctl, double: ApiDouble, name: str) -> None:
    double.on("GET", "/images", [IMAGE])
    done = ctl("images", "push-peers", name)
    assert (done.code, len(double.sent)) == (3, 1)


def test_build_sends_the_folder_as_a_tar(ctl: Ctl, double: ApiDouble, folder: Path) -> None:
    context = folder / "context"
    (context / "rootfs").mkdir(parents=True)
    (context / "Containerfile").write_text("FROM scratch\nCOPY rootfs/ /\n")
    (context / "rootfs" / "big").write_bytes(b"x" * 900_000)
    (context / "rootfs" / "link").symlink_to("big")
    double.on("POST", "/images", [IMAGE], status=201)
    assert ctl("images", "build", str(context), "localhost/x:1").code == 0
    with tarfile.open(fileobj=BytesIO(double.sent[0].body)) as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert set(members) == {"Containerfile", "rootfs", "rootfs/big", "rootfs/link"}
    assert members["rootfs/big"].size == 900_000
    assert members["rootfs/link"].linkname == "big"
    assert {member.uid for member in members.values()} == {0}


def test_build_without_a_containerfile_is_refused_here(ctl: Ctl, double: ApiDouble, folder: Path) -> None:
    assert ctl("images", "build", str(folder), "localhost/x:1").code == 8
    assert double.sent == []


def test_an_upload_that_is_refused_early_shows_the_reason(ctl: Ctl, folder: Path) -> None:
    """The server answers and closes before it has read the body."""
    import socket
    import threading

    refusal = json.dumps({"code": "too_large", "detail": "an upload has at most 1 MiB", "status": 413}).encode()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "early.sock"))
        listener.listen()

        def refuse() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)
                peer.sendall(b"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(refusal), refusal))

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        (folder / "image.tar").write_bytes(b"x" * 20_000_000)
        done = ctl("images", "load", str(folder / "image.tar"), socket=str(folder / "early.sock"))
        thread.join(5)
    assert done.code == 8
    assert "at most 1 MiB" in done.err

"""What the routes ask of the other modules, and how they answer a write."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import pytest

from piccolod.errors import DeadlineExceeded, NotFound, PeerRestarted, PiccoloError, StoreUnavailable, Unavailable
from piccolod.protocol import router
from piccolod.protocol.apps import (
    AddImage,
    ApplyApp,
    ChangeApp,
    ImageDocuments,
    InstallApp,
    ListApps,
    Quiesce,
    Quiesced,
    Resume,
    ShowApp,
    UninstallApp,
    UpdateApp,
)
from piccolod.protocol.base import Level
from piccolod.protocol.cluster import Cluster, GetCluster, Leave
from piccolod.protocol.events import ControlStoreCommit, HealthChanged, ModuleStateChanged
from piccolod.protocol.persistence import CryptoStatus, GetCryptoStatus, GetRevision, Lock, Revision
from piccolod.protocol.router import GetRoutes, RouteState, RouteStates, RouteTest
from services.api import uploads
from services.api.routes.traffic import merged
from tests.unit.api.node import Node, running
from tests.unit.api.test_connection import until

TAR = {"Content-Type": "application/x-tar"}


def test_a_manifest_goes_to_apps_as_it_was_written(node: Node) -> None:
    text = "name: hello\nimage: localhost/x:1\n"
    with node.unix() as client:
        answer = client.post("/apps", content=text.encode(), headers={"Content-Type": "application/yaml"})
        assert (answer.status_code, answer.headers["piccolo-rev"], answer.headers["location"]) == (201, "1", "/api/v1/apps/x")
        client.put("/apps/hello", content=b"{}", headers={"Content-Type": "application/json; charset=utf-8"})
    (install,), (apply,) = node.modules.asked(InstallApp), node.modules.asked(ApplyApp)
    assert (install.manifest.text, install.manifest.format, install.author) == (text, "yaml", "root")
    assert (apply.name, apply.manifest.format) == ("hello", "json")


def test_each_verb_is_its_action(node: Node) -> None:
    with node.unix() as client:
        for verb in ("start", "stop", "restart", "enable", "disable"):
            assert client.post(f"/apps/hello/{verb}").status_code == 200
        client.post("/apps/hello/revert", json={"without_snapshot": True})
        client.post("/apps/hello/update", json={"image": "x:2"})
        client.post("/apps/hello/update")
        client.delete("/apps/hello?purge=true")
    changes = [(each.action, each.without_snapshot) for each in node.modules.asked(ChangeApp)]
    assert changes == [(verb, False) for verb in ("start", "stop", "restart", "enable", "disable")] + [("revert", True)]
    assert [each.image for each in node.modules.asked(UpdateApp)] == ["x:2", ""]
    assert node.modules.asked(UninstallApp)[0].purge


def test_while_a_change_is_under_way_no_rev_restarts_the_module(node: Node) -> None:
    seen: list[int] = []

    def told(_: object) -> None:
        seen.append(node.module.busy_with)
        raise NotFound("no such app")

    node.modules.replies |= {ChangeApp: told, ShowApp: told}
    with node.unix() as client:
        assert client.get("/apps/hello").status_code == 404
        assert client.post("/apps/hello/stop").status_code == 404
    assert seen == [0, 1]
    until(lambda: node.module.busy_with == 0)  # the answer is there a moment before


def test_a_retried_write_carries_its_key_apart_for_each_caller_and_path(node: Node) -> None:
    key = {"Idempotency-Key": "k1"}
    with node.unix() as root, node.token("write") as client:
        node.modules.calls.clear()
        root.post("/apps/a/start", headers=key)
        root.post("/apps/a/start", headers=key)
        root.post("/apps/b/start", headers=key)
        client.post("/apps/a/start", headers=key)
        root.post("/apps/a/start")
    idems = [idem for request, idem, _ in node.modules.calls if isinstance(request, ChangeApp)]
    assert idems[0] == idems[1]
    assert len(set(idems)) == 4
    assert idems[-1] == ""


def test_another_body_or_query_under_the_same_key_is_another_call(node: Node) -> None:
    key = {"Idempotency-Key": "k1"}
    with node.unix() as root:
        for image in ("a", "a", "b"):
            root.post("/apps/x/update", json={"image": image}, headers=key)
        root.post("/apps/x/update?consent=true", json={"image": "a"}, headers=key)
    idems = [idem for request, idem, _ in node.modules.calls if isinstance(request, UpdateApp)]
    assert idems[0] == idems[1]
    assert len(set(idems)) == 3


def test_a_lock_stops_the_apps_first_and_names_what_still_runs(node: Node) -> None:
    node.modules.replies[Quiesce] = Quiesced(still_running=("stubborn",))
    with node.unix() as client:
        answer = client.post("/crypto/lock").json()
    assert (answer["still_running"], answer["warning"]) == (["stubborn"], "")
    order = [type(request) for request, _, _ in node.modules.calls if isinstance(request, Quiesce | Lock)]
    assert order == [Quiesce, Lock]


@pytest.mark.parametrize(
    ("error", "locked", "resumed"),
    [(StoreUnavailable("x"), False, True), (PeerRestarted("x"), True, False), (DeadlineExceeded("x"), False, False)],
)
def test_a_lock_that_failed_for_certain_brings_the_apps_back(
    node: Node, error: PiccoloError, locked: bool, resumed: bool
) -> None:
    node.modules.replies[Quiesce] = Quiesced(still_running=())
    node.modules.fail_kinds[Lock] = error
    node.modules.replies[GetCryptoStatus] = CryptoStatus(
        initialized=True, locked=locked, has_recovery=False, keyset_version=1, cluster_id="c", reason=""
    )
    with node.unix() as client:
        assert client.post("/crypto/lock").status_code == error.status
    wishes = [request.wish for request, _, _ in node.modules.calls if isinstance(request, Quiesce)]
    assert wishes[0]
    assert [request.wish for request, _, _ in node.modules.calls if isinstance(request, Resume)] == wishes * resumed


def test_a_leave_stops_the_apps_before_anything_else(node: Node) -> None:
    node.modules.replies[GetCluster] = Cluster(mode="etcd", node="n1")
    node.modules.replies[Quiesce] = Quiesced(still_running=())
    with node.unix() as client:
        assert client.post("/cluster/leave", json={"force": True}).status_code == 204
    asked = [request for request, _, _ in node.modules.calls if isinstance(request, Quiesce | Lock | Leave)]
    assert [type(request) for request in asked] == [Quiesce, Lock, Leave]
    assert asked[2] == Leave(force=True)


def test_a_leave_is_refused_while_an_app_runs_on_and_brings_the_others_back(node: Node) -> None:
    node.modules.replies[GetCluster] = Cluster(mode="etcd", node="n1")
    node.modules.replies[Quiesce] = Quiesced(still_running=("stubborn",))
    node.modules.replies[GetCryptoStatus] = CryptoStatus(
        initialized=True, locked=False, has_recovery=False, keyset_version=1, cluster_id="c", reason=""
    )
    with node.unix() as client:
        answer = client.post("/cluster/leave")
    assert answer.status_code == 409 and "stubborn" in answer.json()["detail"]
    kinds = [type(request) for request, _, _ in node.modules.calls if isinstance(request, Quiesce | Lock | Leave | Resume)]
    assert kinds == [Quiesce, Resume]


def test_a_lock_is_done_though_apps_do_not_answer(node: Node, monkeypatch: Any) -> None:
    node.modules.fail_kinds[Quiesce] = Unavailable("apps is dead")
    with node.unix() as client:
        answer = client.post("/crypto/lock")
        assert answer.status_code == 200
        assert "apps is dead" in answer.json()["warning"]
        node.modules.fail_kinds.clear()
        monkeypatch.setattr("services.api.routes.crypto._QUIESCE_S", 0.1)

        async def hang(request: Quiesce, timeout_s: float) -> None:
            await asyncio.Event().wait()

        node.modules._Quiesce = hang  # type: ignore[attr-defined]
        assert "did not answer" in client.post("/crypto/lock").json()["warning"]
    assert len(node.modules.asked(Lock)) == 2


def test_a_question_is_asked_again_when_its_module_restarts_and_a_change_is_not(node: Node) -> None:
    answers: list[Any] = [PeerRestarted("x"), PeerRestarted("x")]
    real = node.modules.call

    async def call(request: Any, **more: Any) -> Any:
        if isinstance(request, ListApps | ChangeApp) and answers:
            raise answers.pop()
        return await real(request, **more)

    node.module.call = call
    with node.unix() as client:
        assert client.get("/apps").status_code == 200
        answers.append(PeerRestarted("x"))
        assert client.post("/apps/x/start").json()["code"] == "peer_restarted"


def test_a_reader_waits_for_the_rev_that_he_wrote(node: Node) -> None:
    def revision(rev: int) -> Revision:
        return Revision(rev=rev, announced=rev, verified=rev, digest="", locked=False)

    node.modules.replies[GetRevision] = revision(4)

    def commit() -> None:
        node.modules.replies[GetRevision] = revision(5)
        node.module.tell(ControlStoreCommit(rev=5))

    node.loop.call_soon_threadsafe(node.loop.call_later, 0.1, commit)
    with node.unix() as client:
        assert client.get("/apps", headers={"Piccolo-Min-Rev": "5"}).status_code == 200


def test_a_rev_that_does_not_come_is_said_to_be_late(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr("services.api.core._MIN_REV_WAIT_S", 0.2)
    with node.unix() as client:
        answer = client.get("/apps", headers={"Piccolo-Min-Rev": "99"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


# --- secrets


def test_a_secret_goes_in_and_never_comes_back(node: Node) -> None:
    with node.unix() as client:
        assert client.put("/secrets/db", json={"value": "hunter2"}).json()["size_bytes"] == 7
        raw = base64.b64encode(b"\x00\xff").decode()
        assert client.put("/secrets/key", json={"value_base64": raw}).status_code == 200
        seen = client.get("/secrets").text + client.get("/secrets/db").text
        assert [each["name"] for each in client.get("/secrets").json()] == ["db", "key"]
        assert "hunter2" not in seen
        assert client.delete("/secrets/db").status_code == 204
        assert client.get("/secrets/db").status_code == 404
        assert client.delete("/secrets/db").status_code == 404
    assert node.modules.documents["secrets", "key"].body == {"value": b"\x00\xff"}
    assert ("secrets", "db") not in node.modules.documents


@pytest.mark.parametrize(
    "body", [{}, {"value": "a", "value_base64": "YQ=="}, {"value_base64": "%"}, {"value": "x" * 140_000}, {"valeu": "x"}]
)
def test_a_secret_that_does_not_fit_is_refused(node: Node, body: dict[str, str]) -> None:
    with node.unix() as client:
        assert client.put("/secrets/db", json=body).status_code == 400
    assert node.modules.documents == {}


@pytest.mark.parametrize("name", ["A", "a b", "a%0A", "-a", "x" * 64, "%C3%A9"])
def test_a_bad_name_of_a_secret_is_refused(node: Node, name: str) -> None:
    with node.unix() as client:
        assert client.put(f"/secrets/{name}", json={"value": "x"}).status_code == 400


# --- images


def test_an_image_is_streamed_to_a_file_that_is_gone_afterwards(node: Node) -> None:
    seen: list[tuple[int, int, bytes]] = []

    def look(request: AddImage) -> ImageDocuments:
        file = Path(request.file)
        with file.open("rb") as opened:
            seen.append((file.stat().st_size, file.stat().st_mode & 0o777, opened.read(4)))
        return ImageDocuments(images=())

    node.modules.replies[AddImage] = look
    block = b"abcd" * 65536
    with node.unix() as client:
        answer = client.post("/images?kind=import&name=x", content=(block for _ in range(20)), headers=TAR)
        assert answer.status_code == 201, answer.text
    assert seen == [(20 * len(block), 0o600, b"abcd")]
    assert list(node.service._core.uploads_folder.iterdir()) == []
    (order,) = node.modules.asked(AddImage)
    assert (order.kind, order.name) == ("import", "x")


def test_an_image_that_is_refused_leaves_no_file(node: Node) -> None:
    node.modules.fail_kinds[AddImage] = Unavailable("podman is dead")
    with node.unix() as client:
        assert client.post("/images", content=b"x", headers=TAR).status_code == 503
        assert client.post("/images", content=b"", headers=TAR).status_code == 400
        assert client.post("/images?kind=nonsense", content=b"x", headers=TAR).status_code == 400
    assert list(node.service._core.uploads_folder.iterdir()) == []


def test_an_upload_is_bounded_announced_or_not(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(uploads._check_room, "__defaults__", (0,))
    monkeypatch.setattr(uploads.received.__wrapped__, "__defaults__", (3 * 2**20,))
    with node.unix() as client:
        assert client.post("/images", content=b"x" * (4 * 2**20), headers=TAR).status_code == 413
        assert client.post("/images", content=(b"x" * 2**20 for _ in range(5)), headers=TAR).status_code == 413
    assert list(node.service._core.uploads_folder.iterdir()) == []


def test_an_upload_without_room_is_507(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(uploads, "_KEEP_FREE_BYTES", 2**60)
    with node.unix() as client:
        assert client.post("/images", content=b"x" * 2**20, headers=TAR).status_code == 507
    assert node.modules.asked(AddImage) == []


def test_an_upload_that_is_broken_off_leaves_no_file(node: Node) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(node.module.paths.api_socket))
        sock.sendall(
            b"POST /api/v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: 9999999\r\n\r\n"
            + b"x" * 200_000
        )
        until(lambda: list(node.service._core.uploads_folder.iterdir()))
    until(lambda: not list(node.service._core.uploads_folder.iterdir()))
    assert node.modules.asked(AddImage) == []


def test_what_a_former_life_left_is_cleared_at_start(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "left.upload").write_bytes(b"x")
    uploads.clear(folder)
    assert os.listdir(folder) == []


# --- modules, status, health


def test_modules_are_the_supervisors_word(node: Node) -> None:
    with node.unix() as client:
        assert client.get("/modules").json()[0]["restarts"] == 2
        assert client.get("/modules/apps").json() == client.get("/modules").json()[0]
        assert client.get("/modules/nonsense").status_code == 404
        assert client.post("/modules/apps/restart").status_code == 202
        assert client.get("/modules/apps/logs?tail=5").json() == {"lines": ["a line"]}
        node.supervisor.error = NotFound("there is no module 'x'")
        assert client.post("/modules/x/restart").status_code == 404
    assert {"cmd": "restart", "name": "apps"} in node.supervisor.requests
    assert {"cmd": "logs", "name": "apps", "tail": 5} in node.supervisor.requests


def test_the_status_is_there_when_parts_of_it_are_not(node: Node) -> None:
    node.modules.fail_kinds[ListApps] = Unavailable("apps is dead")
    with node.unix() as client:
        status = client.get("/status").json()
    assert status["missing"] == {"apps": "apps is dead"}
    assert (status["node"], status["address"], status["cluster"], status["apps"]) == ("n1", "10.77.0.1", None, [])
    assert status["modules"][0]["name"] == "apps"


def test_the_title_of_the_settings_is_the_name_in_the_status(node: Node) -> None:
    with node.unix() as client:
        assert client.get("/status").json()["name"] == "n1"
        client.put("/settings", json={"title": "The attic"})
        assert client.get("/status").json()["name"] == "The attic"


def test_readiness_names_what_is_missing_and_who_is_at_fault(node: Node) -> None:
    with node.tcp() as client:
        first = client.get("/health/ready")
        assert (first.status_code, first.json()["ready"]) == (503, False)
        node.make_ready()
        assert client.get("/health/ready").json() == {
            "ready": True, "level": "OK", "component": "", "reason": "", "role": "unknown",
        }  # fmt: skip
        node.tell(ModuleStateChanged(module="apps", state="crashlooping", pid=0, instance="", restarts=6, reason="it died"))
        ill = client.get("/health/ready")
        assert (ill.status_code, ill.json()["component"], ill.json()["reason"]) == (503, "apps", "crashlooping: it died")
        assert ill.headers["retry-after"] == "1"
        node.tell(HealthChanged(component="podman", level=Level.WARN, reason="old"))
        detail = client.get("/health/detail").json()
        assert detail["components"]["podman"] == {"level": "WARN", "reason": "old", "role": ""}
        assert detail["components"]["apps"]["level"] == "ERROR"


def test_a_module_that_dies_with_the_bus_is_seen_all_the_same(node: Node) -> None:
    node.make_ready()
    with node.tcp() as client:
        assert client.get("/health/ready").status_code == 200
        node.supervisor.modules[0] |= {"state": "crashlooping", "reason": "6 deaths"}
        until(lambda: client.get("/health/ready").json().get("component") == "apps")


def test_a_supervisor_that_does_not_answer_is_a_fault(node: Node) -> None:
    node.make_ready()
    node.supervisor.error = Unavailable("it is stopping")
    with node.tcp() as client:
        until(lambda: client.get("/health/ready").json().get("component") == "control")
        node.supervisor.error = None
        until(lambda: client.get("/health/ready").status_code == 200)


def test_locked_is_503_with_level_ok(node: Node) -> None:
    from piccolod.protocol.events import LockStateChanged

    node.make_ready()
    node.tell(LockStateChanged(locked=True, initialized=True, rev=1))
    with node.tcp() as client:
        answer = client.get("/health/ready")
    body = answer.json()
    assert (answer.status_code, body["ready"], body["reason"], body["level"], body["code"]) == (
        503, False, "locked", "OK", "locked",
    )  # fmt: skip


# --- routes


def state(worker: int, mode: str, epoch: int = 1, reason: str = "") -> RouteState:
    return RouteState(
        app="hello", listener="web", mode=mode, public_port=35000, target="10.0.0.2:80", epoch=epoch, reason=reason,
        connections=worker, total_connections=10, refused=1, bytes_in=100, bytes_out=200,
    )  # fmt: skip


def test_routes_of_all_workers_are_one_with_the_counters_added() -> None:
    (view,) = merged([state(1, "local"), state(2, "local")])
    assert (view.mode, view.connections, view.total_connections, view.bytes_out) == ("local", 3, 20, 400)


def test_the_least_good_mode_of_the_newest_epoch_is_shown() -> None:
    (view,) = merged([state(1, "closed", epoch=1), state(1, "local", epoch=2), state(2, "hold", epoch=2, reason="gate shut")])
    assert (view.mode, view.reason, view.epoch) == ("hold", "gate shut", 2)


def test_a_worker_that_is_away_costs_no_answer(node: Node) -> None:
    real = node.modules.call

    async def call(request: Any, *, target: str | None = None, **more: Any) -> Any:
        if isinstance(request, GetRoutes):
            if target == "router.0":
                raise PeerRestarted("router.0 restarted")
            return RouteStates(routes=(state(1, "local"),))
        if isinstance(request, router.TestRoute):
            if target == "router.0":
                raise Unavailable("router.0 is dead")
            return RouteTest(ok=True, reason="", connect_ms=0.4)
        return await real(request, target=target, **more)

    node.module.call = call
    with node.unix() as client:
        assert client.get("/routes").json()[0]["mode"] == "local"
        assert client.post("/routes/test", json={"app": "hello", "listener": "web"}).json()["ok"]


def test_a_second_life_starts_fast() -> None:
    from piccolod import clock

    with running():
        began_at = clock.now()
        with running():
            assert clock.now() - began_at < 0.5

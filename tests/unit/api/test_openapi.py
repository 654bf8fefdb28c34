"""The document and the routes say the same, and what it says can happen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from piccolod.cluster_mode import Mode
from piccolod.errors import BY_CODE, NotLeader
from piccolod.protocol.apps import ImageDocument, ImageDocuments, ListImages, Quiesce, Quiesced
from piccolod.protocol.cluster import Cluster, GetCluster
from piccolod.protocol.consensus import Release, Switchover
from piccolod.protocol.events import LeadershipRoleChanged, ModuleStateChanged
from piccolod.protocol.images import Handed
from piccolod.protocol.persistence import Document
from services.api.actor import Scope
from services.api.routes import ROUTES
from services.api.service import APP
from tests.unit.api.node import BASE, OPENAPI, PASSWORD, Client, Node, lead, running

BODIES: dict[str, dict[str, Any]] = {
    f"{BASE}/apps/{{name}}/update": {},
    f"{BASE}/apps/{{name}}/revert": {},
    f"{BASE}/secrets/{{name}}": {"value": "v"},
    f"{BASE}/settings": {"title": "home"},
    f"{BASE}/crypto/setup": {"password": "p"},
    f"{BASE}/crypto/unlock": {"password": "p"},
    f"{BASE}/crypto/password": {"old": "p", "new": "q"},
    f"{BASE}/crypto/recovery": {"password": "p"},
    f"{BASE}/crypto/reset": {"words": "w", "new": "q"},
    f"{BASE}/auth/login": {"password": "correct horse battery"},
    f"{BASE}/auth/tokens": {"name": "ci"},
    f"{BASE}/leadership/{{resource}}/switchover": {},
    f"{BASE}/cluster/init": {},
    f"{BASE}/cluster/leave": {},
    f"{BASE}/cluster/recover": {},
    f"{BASE}/cluster/join": {"address": "10.0.0.1", "token": "t"},
    f"{BASE}/cluster/tokens": {},
    f"{BASE}/routes/test": {"app": "hello", "listener": "web"},
}

OPERATIONS = [
    (method.upper(), path, operation)
    for path, item in OPENAPI["paths"].items()
    for method, operation in item.items()
    if method in ("get", "head", "post", "put", "delete")
]
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]


def fill(path: str) -> str:
    return (
        path.replace("{resource}", "kernel")
        .replace("{number}", "0123456789ab")
        .replace("{volume}", "x.x")
        .replace("{name}", "x")
        .replace("{node}", "x")
        .replace("{id}", "x")
    )


def send(client: Any, method: str, path: str, **more: Any) -> Any:
    body = OPENAPI["paths"][path][method.lower()].get("requestBody")
    if body and not more.keys() & {"json", "content"}:
        kinds = body["content"]
        if path in BODIES:
            more["json"] = BODIES[path]
        else:
            more["content"] = b"name: x"
            more["headers"] = {**more.get("headers", {}), "Content-Type": next(iter(kinds))}
    return client.request(method, fill(path), **more)


def test_every_route_is_in_the_document() -> None:
    served = {
        (method, re.sub(r":\w+}", "}", path))
        for route in APP.routes
        for path in [route.path]
        for method in route.methods
        if method != "OPTIONS"
    }
    assert served == {(method, path) for method, path, _ in OPERATIONS}
    assert len(ROUTES) == len(OPERATIONS)


def test_every_route_declares_who_may_call_it() -> None:
    undeclared = [str(route.handler_name) for route in ROUTES if not route.opt.get("declared")]
    assert undeclared == []
    public = {next(iter(route.paths)) for route in ROUTES if route.opt["scope"] is None}
    assert public == {
        "/api/docs", "/api/docs.css", "/api/openapi.json",
        f"{BASE}/health/live", f"{BASE}/health/ready", f"{BASE}/health/detail", f"{BASE}/app-schema",
        f"{BASE}/crypto/status", f"{BASE}/crypto/setup", f"{BASE}/crypto/unlock", f"{BASE}/crypto/reset",
        f"{BASE}/auth/login", f"{BASE}/leader/kernel", f"{BASE}/leader/app/{{name:str}}",
    }  # fmt: skip


def test_reading_needs_no_more_than_read_and_changing_never_only_that() -> None:
    for route in ROUTES:
        scope, method = route.opt["scope"], next(iter(route.http_methods))
        path = next(iter(route.paths))
        if scope is None or path.endswith(("/validate", "/plan", "/logout")):
            continue
        if method in ("GET", "HEAD"):
            assert scope is Scope.READ or path.endswith(("/tokens", "/modules/{name:str}/logs")), path
        else:
            assert scope >= Scope.WRITE, path


def test_every_operation_says_what_it_is_for() -> None:
    assert [name for name, (_, _, operation) in zip(IDS, OPERATIONS, strict=True) if not operation.get("description")] == []
    assert OPENAPI["openapi"].startswith("3.1")


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with running() as made:
        made.make_ready()
        yield made


class Peers:
    async def push(self, image_id: str) -> tuple[Handed, ...]:
        return (Handed(node="n2", had=True),)


def prepare(node: Node, path: str) -> None:
    """What a success needs to be there."""
    with node.unix() as root:
        if "{number}" in path:
            body = {"name": "t", "hash": "", "scope": "read", "created_ms": 1, "expires_ms": 0, "created_by": "root"}
            node.modules.documents["tokens", "0123456789ab"] = Document(id="0123456789ab", generation=1, body=body)
        if path.endswith("/modules/{name}"):
            node.supervisor.modules[0]["name"] = "x"
        if "/secrets/" in path:
            root.put("/secrets/x", json={"value": "v"})
        if "/leader/" in path:
            lead(node, "app:x", "kernel")
        if path.endswith("/push"):
            image = ImageDocument(id="sha256:x", names=(), size_bytes=1, created_ms=1, used_by=())
            node.modules.replies[ListImages] = ImageDocuments(images=(image,))
            node.service._core.images = Peers()  # type: ignore[assignment]
        gone = path.endswith("/cluster/leave")
        node.modules.replies[Quiesce] = Quiesced(still_running=())
        node.modules.replies[GetCluster] = Cluster(mode="etcd", node="x") if gone else Cluster(mode="alone", node="x")


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_the_documented_success_happens(shared: Node, method: str, path: str, operation: dict[str, Any]) -> None:
    wanted = [status for status in operation["responses"] if status.startswith("2")]
    prepare(shared, path)
    if path == f"{BASE}/events":
        with shared.unix() as client, client.http.stream("GET", path) as stream:
            assert [str(stream.status_code)] == wanted
        return
    with session(shared) if path.endswith("/logout") else shared.unix() as client:
        response = send(client, method, path)
    assert [str(response.status_code)] == wanted, response.text


def session(node: Node) -> Client:
    client = node.tcp()
    csrf = client.post("/auth/login", json={"password": PASSWORD}).json()["csrf"]
    client.http.headers["X-CSRF-Token"] = csrf
    return client


def documented() -> list[Any]:
    return [
        pytest.param(method, path, int(status), code, id=f"{method} {path} {code}")
        for method, path, operation in OPERATIONS
        for status, answer in operation["responses"].items()
        for code in re.findall(r"`(\w+)`", answer.get("description", ""))
        if not status.startswith("2")
    ]


@pytest.mark.parametrize(("method", "path", "status", "code"), documented())
def test_each_documented_failure_happens(shared: Node, method: str, path: str, status: int, code: str) -> None:
    prepare(shared, path)
    try:
        response = redirected(shared, method, path) if status == 307 else provoke(shared, method, path, code)
    finally:
        shared.modules.fail = shared.supervisor.error = None
        shared.modules.fail_kinds = {}
        shared.modules.locked = False
        shared.service._core.mode = None
        shared.service._core.streams.taken = shared.service._core.uploads.taken = 0
        shared.make_ready()
    assert response.status_code == status, response.text
    if method != "HEAD":
        assert response.json()["code"] == code


def test_what_is_sent_on_to_the_leader_is_documented_as_that_and_the_rest_is_about_the_node_itself() -> None:
    stays = set()
    for method, path, operation in OPERATIONS:
        scope = next(route.opt["scope"] for route in ROUTES if fits(route, method, path))
        refused = operation["responses"].get("409", {}).get("description", "")
        if "`not_leader`" in refused and scope and method not in ("GET", "HEAD") and "307" not in operation["responses"]:
            stays.add(path.removeprefix(BASE))
    assert stays == {"/apps/validate", "/apps/{name}/plan", "/images/prune", "/cluster/join"}


def redirected(node: Node, method: str, path: str) -> httpx.Response:
    """As a member of a cluster whose leader is another node."""
    lead(node)
    node.tell(role("follower", url="https://10.77.0.2:8080"))
    with node.token("admin") as client:
        node.service._core.mode = Mode(cluster="c", node="n1", since_ms=1)
        node.modules.fail_kinds = dict.fromkeys((Switchover, Release), NotLeader("the last gate refused it"))
        response = send(client, method, path, follow_redirects=False)
    assert response.headers["location"].startswith(f"https://10.77.0.2:8080{fill(path)}")
    assert (response.headers["piccolo-leader"], response.headers["piccolo-epoch"]) == ("n2", "1")
    return response


def provoke(node: Node, method: str, path: str, code: str) -> httpx.Response:
    """Makes a failure happen: by what is sent where that is the cause, else by the answer of the module that is asked."""
    scope = next(route.opt["scope"] for route in ROUTES if fits(route, method, path))
    if code == "invalid":
        with node.unix() as client:
            return send(client, method, path, params={"no-such-parameter": "1"})
    if code == "unauthenticated":
        with node.tcp() as client:
            return send(client, method, path)
    if code == "forbidden":
        unsafe = method not in ("GET", "HEAD")
        with node.tcp() if scope is None else node.token("admin" if unsafe else "read") as client:
            return send(client, method, path, headers={"Origin": "http://evil.example"} if unsafe else {})
    if code == "wrong_media_type":
        with node.unix() as client:
            return client.request(method, fill(path), content=b"x", headers={"Content-Type": "text/plain"})
    if code == "locked" and scope is not None:
        with node.token("admin") as client:
            node.modules.locked = True
            return send(client, method, path)
    caller = session(node) if path.endswith("/logout") else node.unix()
    if "/leader/" in path:
        lead(node)
        if code == "not_leader":
            node.tell(role("follower"))
        else:
            node.tell(role("unknown"))
    elif path.endswith("/health/ready"):
        node.tell(ModuleStateChanged(module="apps", state="crashlooping", pid=0, instance="", restarts=9, reason="it died"))
    elif code == "too_many" and path.endswith(("/events", "/images")):
        node.service._core.streams.taken = node.service._core.uploads.taken = 1000
    else:
        node.modules.fail = node.supervisor.error = BY_CODE[code]("a refusal")
    with caller:
        return send(caller, method, path)


def fits(route: Any, method: str, path: str) -> bool:
    return method in route.http_methods and re.sub(r":\w+}", "}", next(iter(route.paths))) == path


def role(name: str, url: str = "") -> LeadershipRoleChanged:
    return LeadershipRoleChanged(
        resource="kernel", role=name, node="n2", address="10.77.0.2", epoch=1, token=1, reason="test", url=url
    )  # fmt: skip

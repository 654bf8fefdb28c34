"""podman's API socket, called from threads with a deadline: a podman that hangs or is missing is named, and blocks nobody.

Speaks libpod's own endpoints through podman-py's client; of the answers only what piccolod acts on is kept.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

from piccolod import lean

with lean.without("rich", "chardet", "charset_normalizer"), warnings.catch_warnings(action="ignore"):
    # requests warns that it cannot guess encodings: podman speaks UTF-8.
    import requests
    from podman.api.client import APIClient

from piccolod.errors import Failed, Invalid, NotFound, PiccoloError, Unavailable
from services.apps.uploads import Archive

QUERY_S: Final = 5.0
CHANGE_S: Final = 30.0
IMAGE_S: Final = 1800.0
SAVE_S: Final = 600.0
_PART_BYTES: Final = 1 << 20
# One for each app that is changed at the same moment; a hanging podman fills them, and then calls fail by their deadline.
_THREADS: Final = 8


class PodmanError(Failed):
    """podman understood and could not do it; the detail is its own."""


def named(error: PiccoloError) -> str:
    """Without podman's own words: for where no manifest says what of them is nobody's business."""
    return "podman could not do it" if isinstance(error, PodmanError) else error.detail


class Podman:
    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._client: APIClient | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="podman")
        self._image_threads = ThreadPoolExecutor(2, thread_name_prefix="podman-images")
        self._save_threads = ThreadPoolExecutor(1, thread_name_prefix="podman-saves")

    def close(self) -> None:
        for pool in (self._threads, self._image_threads, self._save_threads):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    # --- containers
    async def inspect(self, name: str) -> dict[str, Any] | None:
        """The container, or `None` when there is none.

        Of one whose storage is gone, which is what a broken-off removal leaves, only what podman's list says.
        """
        try:
            found: dict[str, Any] = await self._json("get", f"containers/{name}/json")
        except NotFound:
            return None
        except PodmanError:
            params = {"all": "true", "filters": json.dumps({"name": [f"^{name}$"]})}
            for item in await self._json("get", "containers/json", params=params) or []:
                return {"Id": item["Id"], "State": {"Status": item["State"]}, "Config": {"Labels": item.get("Labels")}}
            raise
        return found

    async def containers(self, label: str) -> list[dict[str, Any]]:
        """All containers, running or not, that carry `label` ("key=value")."""
        params = {"all": "true", "filters": json.dumps({"label": [label]})}
        return list(await self._json("get", "containers/json", params=params) or [])

    async def create(self, spec: dict[str, Any]) -> str:
        answer = await self._json("post", "containers/create", data=json.dumps(spec), timeout_s=CHANGE_S)
        return str(answer["Id"])

    async def init(self, name: str) -> None:
        """The container gets its process, cgroup and network, but runs no instruction of its own yet."""
        await self._done("post", f"containers/{name}/init")

    async def start(self, name: str) -> None:
        await self._done("post", f"containers/{name}/start")

    async def stop(self, name: str, grace_s: float) -> None:
        """Signals, waits, kills. Does nothing to what does not run."""
        params = {"timeout": str(max(0, round(grace_s))), "ignore": "true"}
        await self._done("post", f"containers/{name}/stop", params=params, timeout_s=grace_s + CHANGE_S)

    async def remove(self, name: str) -> None:
        try:
            await self._done("delete", f"containers/{name}", params={"force": "true", "timeout": "0"})
        except NotFound:
            return

    async def logs(self, name: str, *, tail: int, since: str = "") -> bytes:
        """Frames of 8 bytes {stream, length} and a line that begins with its time."""
        params = {"stdout": "true", "stderr": "true", "timestamps": "true", "tail": str(tail)}
        if since:
            params["since"] = since
        content: bytes = (await self._ask("get", f"containers/{name}/logs", params=params)).content
        return content

    async def healthcheck(self, name: str, timeout_s: float) -> int:
        """Runs the container's own check once: its exit code.

        Not podman's exec: that keeps a monitor process for five minutes after each command, for whoever asks for its exit code.
        """
        await self._ask("get", f"containers/{name}/healthcheck", timeout_s=timeout_s)
        found = await self.inspect(name)
        entries = ((found or {}).get("State", {}).get("Health") or {}).get("Log") or []
        if not entries:
            raise PodmanError("podman kept no result of the check")
        return int(entries[-1]["ExitCode"])

    # --- networks
    async def network(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._json("get", f"networks/{name}/json")
        except NotFound:
            return None
        return found

    async def create_network(self, spec: dict[str, Any]) -> None:
        await self._json("post", "networks/create", data=json.dumps(spec), timeout_s=CHANGE_S)

    async def networks(self) -> list[dict[str, Any]]:
        return list(await self._json("get", "networks/json") or [])

    async def remove_network(self, name: str) -> None:
        try:
            await self._done("delete", f"networks/{name}", params={"force": "true"})
        except NotFound:
            return

    # --- images
    async def image(self, name: str) -> dict[str, Any] | None:
        """By name or id; `None` when it is not on this node."""
        try:
            found: dict[str, Any] = await self._json("get", f"images/{quote(name, safe='')}/json")
        except NotFound:
            return None
        return found

    async def images(self) -> list[dict[str, Any]]:
        return list(await self._json("get", "images/json") or [])

    async def remove_image(self, image_id: str) -> None:
        """Raises PodmanError where a container or another image stands on it."""
        try:
            await self._done("delete", f"images/{image_id}")
        except NotFound:
            return

    async def pull(self, reference: str, *, always: bool) -> str:
        """The image's id. Raises PodmanError with the registry's reason."""
        params = {"reference": reference, "policy": "always" if always else "missing"}
        return self._pulled(await self._lines("images/pull", params))

    async def load(self, archive: Path) -> list[str]:
        """Names of what an OCI or docker archive held."""
        answer = await self._upload("images/load", archive)
        return [str(name) for name in answer.get("Names") or []]

    async def save(self, names: list[str], archive: Archive) -> None:
        """Fills it with a docker archive of one image with all these names, or by its id. Raises OSError of the file."""
        params: dict[str, Any] = {"references": names, "format": "docker-archive"}

        def receive() -> OSError | None:
            with closing(self._http().get("/images/export", params=params, stream=True, timeout=SAVE_S)) as response:
                return archive.fill(_checked(response, "images/export").iter_content(_PART_BYTES))

        try:
            failed = await self._in_thread(receive, SAVE_S, self._save_threads)
        finally:
            archive.give_up()
        if failed is not None:
            raise failed

    async def import_rootfs(self, archive: Path, name: str) -> str:
        return str((await self._upload("images/import", archive, {"reference": name}))["Id"])

    async def build(self, context: Path, name: str) -> str:
        """Builds from a tar with a Containerfile, or a Dockerfile where there is none; the image's id."""
        params = {"t": name, "forcerm": "true", "layers": "true"}

        def send() -> list[dict[str, Any]]:
            with context.open("rb") as file:
                return self._read_lines("build", params, file, "application/x-tar")

        try:
            lines = await self._in_thread(send, IMAGE_S, self._image_threads)
        except Invalid as error:
            raise Invalid(
                error.detail, hint="an archive to build from has a Containerfile or a Dockerfile at its top"
            ) from None
        for line in lines:
            if "error" in line:
                raise PodmanError(f"the build of {name} failed: {str(line['error']).strip()}")
        found = await self.image(name)
        if found is None:
            raise PodmanError(f"the build of {name} ended without an image")
        return str(found["Id"])

    # --- the wire
    async def _json(self, method: str, path: str, **call: Any) -> Any:
        return (await self._ask(method, path, **call)).json()

    async def _done(self, method: str, path: str, **call: Any) -> None:
        await self._ask(method, path, **{"timeout_s": CHANGE_S, **call})

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        data: str | None = None,
        timeout_s: float = QUERY_S,
    ) -> Any:
        call = partial(self._call, method, path, params=params, data=data, timeout_s=timeout_s)
        return await self._in_thread(call, timeout_s, self._threads)

    def _call(self, method: str, path: str, *, timeout_s: float, **call: Any) -> Any:
        response = getattr(self._http(), method)(f"/{path}", timeout=timeout_s, **call)
        return _checked(response, path)

    async def _lines(self, path: str, params: dict[str, str]) -> list[dict[str, Any]]:
        call = partial(self._read_lines, path, params, None, "")
        lines: list[dict[str, Any]] = await self._in_thread(call, IMAGE_S, self._image_threads)
        return lines

    def _read_lines(self, path: str, params: dict[str, str], body: BinaryIO | None, kind: str) -> list[dict[str, Any]]:
        headers = {"Content-Type": kind} if kind else {}
        http: Any = self._http()  # podman-py's types know no file as a body
        response = http.post(f"/{path}", data=body, params=params, headers=headers, timeout=IMAGE_S)
        checked = _checked(response, path)
        return list(_objects(checked.text))

    async def _upload(self, path: str, archive: Path, params: dict[str, str] | None = None) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            with archive.open("rb") as file:
                headers = {"Content-Type": "application/x-tar"}
                response = self._http().post(f"/{path}", params=params, data=file, headers=headers, timeout=IMAGE_S)
                answer: dict[str, Any] = _checked(response, path).json()
                return answer

        result: dict[str, Any] = await self._in_thread(send, IMAGE_S, self._image_threads)
        return result

    async def _in_thread(self, call: Callable[[], Any], timeout_s: float, threads: ThreadPoolExecutor) -> Any:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s + 0.5):
                return await loop.run_in_executor(threads, call)
        except TimeoutError:
            raise _silent(f"podman does not answer within {timeout_s:.0f} s") from None
        except OSError as error:  # every error of requests and of podman-py's client is one
            cause = error.__cause__ or error.__context__ or error
            if isinstance(cause, requests.Timeout):
                raise _silent(f"podman does not answer within {timeout_s:.0f} s") from None
            raise _silent("podman does not run: nothing answers on its socket") from None
        except ValueError as error:
            raise PodmanError(f"podman answered what is no JSON: {error}") from error

    def _http(self) -> APIClient:
        if self._client is None:
            self._client = APIClient(base_url=f"http+unix://{quote(str(self._socket), safe='')}", timeout=QUERY_S)
        return self._client

    @staticmethod
    def _pulled(lines: list[dict[str, Any]]) -> str:
        for line in lines:
            if line.get("error"):
                raise PodmanError(_short(str(line["error"])))
        ids = [str(line["id"]) for line in lines if line.get("id")]
        if not ids:
            raise PodmanError("the pull ended without an image")
        return ids[-1]


def _silent(detail: str) -> Unavailable:
    return Unavailable(
        detail, hint="what runs goes on; `piccoloctl modules` shows podman's service, which is restarted by itself"
    )


def _checked(response: Any, path: str) -> Any:
    """Raises the error that podman meant."""
    if response.status_code in (200, 201, 204, 304):
        return response
    try:  # of a build, a second object may follow
        message = str(next(_objects(response.text))["message"])
    except (ValueError, KeyError, StopIteration):
        message = response.text[:200]
    if response.status_code == 404:
        raise NotFound(_short(message))
    if response.status_code == 400:
        raise Invalid(f"podman refused {path.partition('/')[0]}: {_short(message)}")
    raise PodmanError(_short(message))


def _short(message: str) -> str:
    """podman's messages repeat their cause at the end and can be pages long."""
    return " ".join(message.split())[:400]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Objects that follow each other, with or without line ends."""
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found, at = decoder.raw_decode(text, at)
        if isinstance(found, dict):
            yield found

"""Asks a container whether it is well: one probe, and the task that repeats it. Asks the container's own address."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from typing import Final

from piccolod import clock
from piccolod.errors import PiccoloError
from services.apps import health
from services.apps.discreet import discreet
from services.apps.health import Health, Phase
from services.apps.manifest import Healthcheck, Manifest, Probe
from services.apps.podman import Podman

_STATUS_LINE: Final = re.compile(rb"HTTP/\d\.\d (\d{3})")
_DEFAULT_TIMEOUT_S: Final = 3.0


class Prober:
    """Judges one run of one container until it is cancelled. `changed` is called whenever the judgement's phase changes."""

    def __init__(
        self, podman: Podman, container: str, address: str, manifest: Manifest, changed: Callable[[], None], *, served: bool
    ) -> None:
        """`served`: it ran before this life of the module, and counts as ready until its probes say otherwise."""
        self._podman, self._container, self._address = podman, container, address
        self._manifest, self._changed = manifest, changed
        self._check = manifest.healthcheck
        self._rules = health.rules_of(self._check)
        now = clock.now()
        self.health = Health(now, Phase.READY, ready_at=now) if served else Health(now)

    async def run(self) -> None:
        while True:
            before = self.health
            ok, reason = await self._probe()
            self.health = health.step(before, self._rules, ok, reason, clock.now())
            if (self.health.phase, self.health.reason) != (before.phase, before.reason):
                self._changed()
            if self._check is None and self.health.phase is Phase.READY:
                return  # nobody asked to be watched any further
            await asyncio.sleep(health.next_probe_s(self.health, self._rules))

    async def _probe(self) -> tuple[bool, str]:
        """(well, why not)"""
        check = self._check
        timeout_s = check.timeout_s if check is not None else _DEFAULT_TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                if check is None:
                    for listener in self._manifest.listeners:
                        await self._connect(listener.guest_port)
                    return True, ""
                return await self._ask(_in_force(check, self.health), timeout_s)
        except TimeoutError:
            return False, f"no answer within {timeout_s:g} s"
        except OSError as error:
            return False, os.strerror(error.errno) if error.errno else str(error)
        except PiccoloError as error:
            return False, discreet(error.detail, self._manifest)

    async def _ask(self, probe: Probe, timeout_s: float) -> tuple[bool, str]:
        if probe.http is not None:
            return await self._http(self._port(probe.http.port), probe.http.path)
        if probe.tcp is not None:
            await self._connect(self._port(probe.tcp.port))
            return True, ""
        code = await self._podman.healthcheck(self._container, timeout_s)
        return code == 0, "" if code == 0 else f"its check exits with code {code}"

    async def _connect(self, port: int) -> None:
        _, writer = await self._open(port)
        writer.close()

    async def _open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Only to what is directly connected: the address of a container that is gone must not lead out of this machine."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
            await asyncio.get_running_loop().sock_connect(sock, (self._address, port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def _http(self, port: int, path: str) -> tuple[bool, str]:
        reader, writer = await self._open(port)
        try:
            request = f"GET {path} HTTP/1.1\r\nHost: {self._manifest.name}\r\nUser-Agent: piccolod\r\nConnection: close\r\n\r\n"
            writer.write(request.encode("ascii"))
            line = await reader.readline()
        except ValueError:
            return False, "the answer to its check is not HTTP"
        finally:
            writer.close()
        match = _STATUS_LINE.match(line)
        if match is None:
            return False, "the answer to its check is not HTTP" if line else "no answer to its check"
        status = int(match[1])
        return 200 <= status < 400, "" if 200 <= status < 400 else f"its check is answered with {status}"

    def _port(self, listener: str) -> int:
        return next(item.guest_port for item in self._manifest.listeners if item.name == listener)


def _in_force(check: Healthcheck, state: Health) -> Probe:
    """Until it serves for the first time, `ready` is asked where there is one."""
    return check.ready if check.ready is not None and state.phase is Phase.STARTING else check

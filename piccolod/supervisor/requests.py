"""What modules ask of the supervisor over their pairs, other than to live: sockets, deposits, the lock.

Whatever comes over a pair may be garbage: a compromised module speaks here too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from piccolod.errors import Forbidden, Invalid, PiccoloError
from piccolod.kernel import ModuleSpec
from piccolod.link import Message
from piccolod.supervisor.child import Life
from piccolod.supervisor.deposit import PREFIX, Deposits
from piccolod.supervisor.holder import Holders
from piccolod.supervisor.notify import Notify
from piccolod.supervisor.sockets import Sockets, Taken


class Requests:
    def __init__(
        self, sockets: Sockets, holders: Holders, deposits: Deposits, notify: Notify, on_lock: Callable[[str], None]
    ) -> None:
        """`on_lock(sender)` restarts the modules that hold keys, all but the sender."""
        self._sockets = sockets
        self._holders = holders
        self._deposits = deposits
        self._notify = notify
        self._on_lock = on_lock

    def answer(self, life: Life, spec: ModuleSpec, message: Message, fds: list[int]) -> None:
        """Takes over the descriptors that it keeps, and removes those from `fds`. Raises Invalid for what has no number."""
        done: dict[str, Any] = {"t": "DONE", "id": whole(message.get("id")), "error": None}
        given: tuple[int, ...] = ()
        try:
            if message["t"] == "LISTEN":
                where = (message.get("proto"), message.get("address"), message.get("port", 0))
                _may_listen(spec, where[0], where[1])
                fd, address = self._sockets.listen(spec.name, *where)
                given = (fd,)
                life.listens.add(address)
            elif message["t"] == "DEPOSIT":
                self._deposit(spec, message.get("name"), fds)
            else:
                self._lock(spec)
        except Taken as error:
            address = error.address
            self._holders.find(
                address.proto, address.port, lambda holder: life.send({**done, "error": Taken(address, holder).detail})
            )
            return
        except PiccoloError as error:
            done["error"] = error.detail
        life.send(done, given)

    def inheritance(self, module: str) -> dict[str, int]:
        """What a new life of `module` gets at START, by name."""
        return {PREFIX + name: fd for name, fd in self._deposits.of(module).items()}

    def take_stored(self, table: dict[str, ModuleSpec]) -> None:
        """Deposits that the service manager kept while no supervisor ran."""
        for (module, name), fd in self._notify.take_stored().items():
            spec = table.get(module)
            with suppress(PiccoloError):
                if spec is not None:
                    self._deposit(spec, name, [fd])

    def _deposit(self, spec: ModuleSpec, name: object, fds: list[int]) -> None:
        if not spec.holds_keys:
            raise Forbidden(f"{spec.name} holds no keys")
        self._deposits.keep(spec.name, name, fds)
        self._notify.store(spec.name, str(name), fds[0])
        fds.clear()

    def _lock(self, spec: ModuleSpec) -> None:
        if not spec.holds_keys:
            raise Forbidden(f"{spec.name} holds no keys")
        for module, name in self._deposits.drop_all():
            self._notify.unstore(module, name)
        self._on_lock(spec.name)


def _may_listen(spec: ModuleSpec, proto: object, address: object) -> None:
    """Raises Forbidden for what the module's row does not grant: the other names in `run_dir` are the node's own."""
    wanted = f"unix:{os.path.basename(str(address))}" if proto == "unix" else str(proto)
    if wanted not in spec.listens:
        raise Forbidden(f"{spec.name} may not listen on {wanted[:80]}")


def whole(value: object, most: int = 2**63 - 1) -> int:
    """A whole number of 0 to `most`. Raises Invalid."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Invalid(f"{str(value)[:50]!r} is not a number of 0 to {most}")
    return value


def seconds(value: object, most: float) -> float:
    """At most `most`. Raises Invalid."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise Invalid(f"{str(value)[:50]!r} is not a number of seconds")
    return min(float(value), most)


def text(value: object, most: int = 500) -> str:
    return value[:most] if isinstance(value, str) else ""

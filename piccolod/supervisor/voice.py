"""The supervisor's events. It has no bus socket: what it says goes down the broker's pair, and the broker publishes it.

Everything it says is state, so the last word of each topic is kept and said again to each new broker.
"""

from __future__ import annotations

from typing import Any

from piccolod.supervisor.child import Life


class Voice:
    def __init__(self) -> None:
        self._said: dict[tuple[str, str], dict[str, Any]] = {}
        self._broker: Life | None = None

    def module(self, body: dict[str, Any]) -> None:
        """Body: the fields of ModuleStateChanged."""
        self._say("ModuleStateChanged", body["module"], body)

    def health(self, component: str, level: str, reason: str) -> None:
        self._say("HealthChanged", component, {"component": component, "level": level, "reason": reason, "role": ""})

    def take_back_health(self, component: str) -> None:
        """What we said of the component is over; from now on it speaks for itself."""
        if self._said.get(("HealthChanged", component), {}).get("level", "OK") != "OK":
            self.health(component, "OK", "")
        self._said.pop(("HealthChanged", component), None)

    def speak_through(self, broker: Life | None) -> None:
        self._broker = broker
        if broker is not None:
            for (kind, key), body in self._said.items():
                broker.send({"t": "EVENT", "type": kind, "key": key, "body": body})

    def _say(self, kind: str, key: str, body: dict[str, Any]) -> None:
        if self._said.get((kind, key)) == body:
            return
        self._said[kind, key] = body
        if self._broker is not None:
            self._broker.send({"t": "EVENT", "type": kind, "key": key, "body": body})

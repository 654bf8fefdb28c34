"""The network of a bed: one bridge, a namespace for each member, addresses 10.77.S.x, and the rules that part members.

The bridge lies in the network namespace of whoever runs the bed, so that every member is reachable from there, partition
or not. Rules name bridge ports: they hold whatever a member sends, and stay when it is switched off and on.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress

HOST, CLIENT = "host", "client"
_HOST_NUMBER, _CLIENT_NUMBER = 254, 200
_FIRST, _NETWORKS = "10.77", 250


class Network:
    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.bridge = f"pb{tag}"
        self._claim, self._subnet = _claim_subnet()
        # A bridge without an address of its own takes one of a port's, and another one when that port goes (a machine lost
        # power): members then send to nobody until their neighbour tables notice.
        run("ip", "link", "add", self.bridge, "address", self._hardware(HOST), "type", "bridge")
        run("ip", "address", "add", f"{self.address(HOST)}/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")

    def close(self) -> None:
        """Takes away the bridge and the rules; members leave before."""
        self.heal()
        run("ip", "link", "delete", self.bridge, check=False)
        self._claim.close()

    def address(self, member: str) -> str:
        return f"{_FIRST}.{self._subnet}.{self._number(member)}"

    def namespace(self, member: str) -> str:
        """Its name below /run/netns."""
        return f"{self.bridge}-{member}"

    def port(self, member: str) -> str:
        """The bridge's end of its cable. Linux allows 15 characters (IFNAMSIZ in linux/if.h)."""
        return f"{self.bridge}{member}"

    def inside(self, member: str, *command: str) -> list[str]:
        """How `command` is run in the network of a member. `ip netns exec` would remount /sys and hide the cgroups."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(member)}", *command]

    def join(self, member: str) -> None:
        """A namespace for `member`, plugged in. Its hardware address is the same each time: no neighbour's table is stale."""
        namespace, port, hardware = self.namespace(member), self.port(member), self._hardware(member)
        run("ip", "netns", "add", namespace)
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "address", hardware, "netns", namespace)
        run("ip", "link", "set", port, "master", self.bridge, "up")
        lines = f"link set lo up\naddress add {self.address(member)}/24 dev eth0\nlink set eth0 up\n"
        run("ip", "-netns", namespace, "-batch", "-", text=lines)

    def unplug(self, member: str) -> None:
        """Pulls the cable for good: nothing leaves the member any more, no reset and no farewell."""
        run("ip", "link", "delete", self.port(member), check=False)

    def leave(self, member: str) -> None:
        self.unplug(member)
        run("ip", "netns", "delete", self.namespace(member), check=False)

    # --- partitions

    def part(self, sources: Iterable[str], targets: Iterable[str], ports: Iterable[int] = ()) -> None:
        """Drops what goes from a source to a target: everything, or TCP to and from `ports` alone."""
        table = f"bridge {self.bridge}"
        lines = [f"add table {table}", f"add chain {table} forward {{ type filter hook forward priority 0; }}"]
        numbers = ", ".join(str(number) for number in ports)
        matches = [f"tcp dport {{ {numbers} }}", f"tcp sport {{ {numbers} }}"] if numbers else [""]
        lines += [
            f'add rule {table} forward iifname "{self.port(source)}" oifname "{self.port(target)}" {match} drop'
            for source in sources
            for target in targets
            for match in matches
            if source != target
        ]
        run("nft", "-f", "-", text="\n".join(lines) + "\n")

    def heal(self) -> None:
        run("nft", "delete", "table", "bridge", self.bridge, check=False)

    def _hardware(self, member: str) -> str:
        return f"02:77:00:00:{self._subnet:02x}:{self._number(member):02x}"

    def _number(self, member: str) -> int:
        return {HOST: _HOST_NUMBER, CLIENT: _CLIENT_NUMBER}.get(member) or int(member.removeprefix("n"))


def run(*command: str, text: str | None = None, check: bool = True) -> str:
    """Output of a short system command. Raises RuntimeError with what it said."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _claim_subnet() -> tuple[socket.socket, int]:
    """S of 10.77.S.0/24, held by an abstract socket: one holder in a network namespace, and free when the holder dies."""
    used = run("ip", "-4", "-oneline", "address")
    for subnet in range(1, _NETWORKS):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if f" {_FIRST}.{subnet}." not in used:
            with suppress(OSError):
                claim.bind(f"\0piccolo-bed-{_FIRST}.{subnet}")
                return claim, subnet
        claim.close()
    raise RuntimeError(f"every network of {_FIRST}.0.0/16 is taken: python -m tests.bed --clean")

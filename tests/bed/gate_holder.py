"""Acts for a resource every 10 ms while this machine's gate is open, and tells the oracle of each act.

Usage, inside of a machine: python -m tests.bed.gate_holder PAGE RESOURCE HOST PORT
"""

from __future__ import annotations

import socket
import sys
import time
import uuid
from pathlib import Path

from piccolod import clock
from piccolod.errors import TermOver
from piccolod.leadership.gate import Gate
from piccolod.leadership.page import PageReader

_EVERY_S = 0.01


def main(page: str, resource: str, host: str, port: str) -> None:
    gate, process = Gate(PageReader(Path(page))), uuid.uuid4().hex
    with socket.create_connection((host, int(port))) as oracle:
        oracle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                token, at = gate.check(resource), clock.now()
                gate.still(resource, token)  # it may have stood still between the two
            except TermOver:
                pass
            else:
                # One interval a term: the gap between two terms of this process is no act.
                act = f"{resource} {token.epoch} {process}.{token.token} {at:.3f}\n"
                oracle.sendall(act.encode())
            time.sleep(_EVERY_S)


if __name__ == "__main__":
    main(*sys.argv[1:])

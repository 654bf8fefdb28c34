"""`python -m tests.unit.bus.child FD MODULE:FUNCTION`: a module's process, without a supervisor."""

import importlib
import socket
import sys

from piccolod.link import Link

if __name__ == "__main__":
    module, _, function = sys.argv[2].partition(":")
    getattr(importlib.import_module(module), function)(Link(socket.socket(fileno=int(sys.argv[1]))))

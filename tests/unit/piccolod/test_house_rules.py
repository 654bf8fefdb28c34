"""Rules of the house that no reader should have to check: who imports whom, and what the kernel table says."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from piccolod import kernel
from piccolod.protocol.base import Request
from piccolod.protocol.events import EVENTS

ROOT = Path(kernel.__file__).parent.parent
SOURCES = sorted([*ROOT.glob("piccolod/**/*.py"), *ROOT.glob("services/**/*.py"), *ROOT.glob("broker/**/*.py")])
COMMANDS = {
    kind.command
    for file in sorted(ROOT.glob("piccolod/protocol/[a-z]*.py"))
    for kind in vars(importlib.import_module(f"piccolod.protocol.{file.stem}")).values()
    if isinstance(kind, type) and issubclass(kind, Request) and hasattr(kind, "command")
}


def imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(source: Path) -> None:
    parts = source.relative_to(ROOT).parts
    own = ".".join(parts[:2]) if parts[0] == "services" and len(parts) > 2 else parts[0]
    for name in imports(source):
        package = name.split(".")[0]
        if package == "services":
            assert name == own or name.startswith(f"{own}."), f"{source} imports {name}"
        elif package == "broker":
            assert parts[0] == "broker", f"{source} imports {name}"
        assert package != "tests", f"{source} imports {name}"


def test_the_supervisor_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, piccolod.supervisor.supervisor\n"
        "foreign = {n.split('.')[0] for n in sys.modules} & {'zmq', 'msgspec', 'msgpack', 'structlog', 'cryptography', 'podman'}\n"
        "assert not foreign, foreign"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_rows_name_only_what_exists() -> None:
    for spec in kernel.MODULES:
        for name in (*spec.needs, *spec.restart_with):
            assert name in kernel.BY_NAME, f"{spec.name} needs {name}"
        for event in spec.publishes:
            assert event in EVENTS, f"{spec.name} publishes {event}"
        for command in spec.may_call:
            assert command in COMMANDS or (command.endswith(".*") and any(c.startswith(command[:-1]) for c in COMMANDS)), (
                f"{spec.name} may call {command}"
            )


def test_needs_come_earlier_in_the_table() -> None:
    seen: set[str] = set()
    for spec in kernel.MODULES:
        assert set(spec.needs) <= seen, spec.name
        seen.add(spec.name)


def test_the_key_of_a_volume_is_for_volumes_alone() -> None:
    callers = [spec.name for spec in kernel.MODULES if kernel.may_call(spec.name, "persistence.volume_key")]
    assert callers == ["volumes"]


def test_only_those_who_can_stop_the_effects_decide_on_leadership() -> None:
    for command in ("consensus.campaign", "consensus.closing", "consensus.withdraw"):
        callers = {spec.name for spec in kernel.MODULES if kernel.may_call(spec.name, command)}
        assert callers == {"persistence", "apps"}


def test_no_secret_reaches_the_api() -> None:
    assert not kernel.may_read("api", "secrets")
    assert not kernel.may_read("router.0", "apps")


def test_only_those_who_speak_with_nodes_get_certificates_signed() -> None:
    for command in ("persistence.issue_certificate", "persistence.redeem", "consensus.keep_certificate"):
        callers = {spec.name for spec in kernel.MODULES if kernel.may_call(spec.name, command)}
        assert "api" in callers and callers <= {"api", "consensus"}, command
    checking = {spec.name for spec in kernel.MODULES if kernel.may_call(spec.name, "persistence.check_node")}
    assert checking == {"api", *kernel.ROUTERS}
    assert not kernel.may_read("api", "pki") and not kernel.may_write("api", "nodes")

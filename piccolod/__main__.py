"""`piccolod`: runs a node, in the foreground."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from pathlib import Path
from typing import Final

from piccolod import config as configuration
from piccolod.config import Config, is_plain
from piccolod.errors import Invalid, PiccoloError
from piccolod.supervisor import rights

_RELEASE: Final = "services.consensus.after_crash:release"
_LEADS_ON: Final = "services.consensus.after_crash:leads_on"


def main(argv: list[str] | None = None) -> int:
    faulthandler.enable()
    options = _parser().parse_args(argv)
    if options.after_crash:
        rights.raise_priority()  # the others wait: not behind the apps of this machine
    try:
        config = configuration.load(options.config)
        if options.check_config:
            print(f"{options.config or configuration.DEFAULT_FILE}: no mistakes")
            return 0
        if options.after_crash:
            return _after_crash(config)
        return _run(config)
    except PiccoloError as error:
        return _explain(error)


def _run(config: Config) -> int:
    from piccolod.supervisor.supervisor import Supervisor

    supervisor = Supervisor(config)
    print(_greeting(config), file=sys.stderr, flush=True)
    return supervisor.run()


def _after_crash(config: Config) -> int:
    from piccolod.leadership.after_crash import after_crash, is_planned
    from piccolod.supervisor.entry import resolve

    # By their names, as modules are: they bring grpc along, for which a container should not have to wait to be killed.
    done = after_crash(
        config.paths,
        lambda *proven: str(resolve(_RELEASE)(*proven, config.etcd)),
        lambda paths: bool(resolve(_LEADS_ON)(paths)),
        planned=is_planned(os.environ),
    )
    print(f"piccolod: {done}")
    return 0


def _greeting(config: Config) -> str:
    api = config.api
    urls = ", ".join(f"{'http' if is_plain(api, item) else 'https'}://{item}" for item in api.listen)
    lines = [f"piccolod: node {config.node.name}, API {urls}, state {config.node.state_dir}"]
    if not config.paths.keyset.exists():
        lines.append(f"first start: set the password with `piccoloctl --socket {config.paths.api_socket} setup`")
    return "\n".join(lines)


def _explain(error: PiccoloError) -> int:
    print(f"piccolod: {error.detail}", file=sys.stderr)
    for problem in error.errors:
        print(f"  {problem.path}: {problem.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return Invalid.exit_code if isinstance(error, Invalid) else error.exit_code


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"piccolod {_version()}")
        parser.exit()


def _version() -> str:
    from importlib import metadata  # 3 MiB that a running node does not need

    try:
        return metadata.version("piccolod")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="piccolod", description="Runs a node of piccolod in the foreground.")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: {configuration.DEFAULT_FILE}")
    parser.add_argument("--check-config", action="store_true", help="validate the configuration and exit")
    parser.add_argument("--after-crash", action="store_true", help="for the service manager, once piccolod has ended")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())

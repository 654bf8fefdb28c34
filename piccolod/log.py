"""Structured log lines on stdout, one JSON object an event. The supervisor keeps and rotates them.

An event is a verb phrase and key-values: `log.info("claimed leadership", resource=..., epoch=...)`. No secrets, ever.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

from piccolod import lean

with lean.without("rich"):
    import structlog

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_DEFAULT: Final = "info"
# Made before the zygote forks: the classes would cost each module most of a MiB of its own (measured).
_WRAPPERS: Final = {name: structlog.make_filtering_bound_logger(level) for name, level in _LEVELS.items()}
_PROCESSORS: Final = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    structlog.processors.format_exc_info,
    structlog.processors.JSONRenderer(),
)


def configure(level: str) -> None:
    """Called once a process, after the fork. What does not depend on the level was done before it."""
    if level != _DEFAULT:
        structlog.configure(wrapper_class=_WRAPPERS[level])
        logging.getLogger().setLevel(max(logging.WARNING, _LEVELS[level]))


def _begin() -> None:
    """By the import, which is the zygote's: configuring costs each module most of a MiB of its own (measured)."""
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=_WRAPPERS[_DEFAULT],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")


_begin()


def logger(module: str, inst: str) -> Any:
    return structlog.get_logger().bind(module=module, inst=inst)

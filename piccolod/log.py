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
# Made before the zygote forks: the classes would cost each module most of a MiB of its own (measured).
_WRAPPERS: Final = {name: structlog.make_filtering_bound_logger(level) for name, level in _LEVELS.items()}
_PROCESSORS: Final = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    structlog.processors.format_exc_info,
    structlog.processors.JSONRenderer(),
)


def configure(level: str) -> None:
    """Called once a process, after the fork."""
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=_WRAPPERS[level],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        stream=sys.stdout, level=max(logging.WARNING, _LEVELS[level]), format="%(levelname)s %(name)s %(message)s"
    )


def logger(module: str, inst: str) -> Any:
    return structlog.get_logger().bind(module=module, inst=inst)

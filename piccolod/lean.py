"""Imports a library without others that it would load by itself and that nothing in the kernel uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType


class _Hollow(ModuleType):
    """Whatever is asked of it is there, and is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def without(*names: str) -> AbstractContextManager[None]:
    """Within, an import of `names` raises ImportError, as if they were not installed: for what is optional."""
    return _instead(dict.fromkeys(names))


def hollow(*names: str) -> AbstractContextManager[None]:
    """Within, an import of `names` gives a module in which nothing works: for what is imported at once and never called."""
    return _instead({name: _Hollow(name) for name in names})


@contextmanager
def _instead(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    """After it all is as before."""
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)  # type: ignore[arg-type]  # None is how the import system says "not there"
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module

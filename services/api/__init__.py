"""The api module. Its libraries are imported here, before any part of it, without 3 MiB that they never use (measured)."""

from piccolod import lean

with lean.hollow("uvicorn.main", "yaml", "pdb"):
    import litestar
    import uvicorn.config

__all__ = ["litestar", "uvicorn"]

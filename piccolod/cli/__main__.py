"""`python -m piccolod.cli`: the same as `piccoloctl`."""

from __future__ import annotations

from piccolod.cli.main import main

if __name__ == "__main__":
    main()

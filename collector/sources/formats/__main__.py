"""`python -m collector.sources.formats > docs/sources.md`."""

from __future__ import annotations

from collector.sources.formats.table import render

if __name__ == "__main__":
    print(render(), end="")

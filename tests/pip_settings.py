"""Which package registry this machine's pip uses, for builds that do not read its settings: uv, and containers."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

UV = str(Path(sys.executable).parent / "uv")


def pip_settings() -> dict[str, str]:
    """pip's settings, the later scope over the earlier as in pip: index-url, extra-index-url, find-links, cert, …"""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = ast.literal_eval(value)
    return found


def uv_environment() -> dict[str, str]:
    """The environment in which uv asks the same registry, sees no Klaxon of this checkout and uses no Python but those it is told."""
    settings = pip_settings()
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")}
    found |= {"UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    for option, variable in (("index-url", "UV_DEFAULT_INDEX"), ("cert", "SSL_CERT_FILE")):
        if option in settings:
            found.setdefault(variable, settings[option])
    return found

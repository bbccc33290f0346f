"""Single keys of a config set from the command line: `--set run.dir=/shared/klaxon`, for what differs from job to job."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from collector.errors import ConfigError

HELP = "Set one key on top of the config file: KEY=VALUE, e.g. run.dir=/shared/klaxon. May be given more than once."


def override(data: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A parsed config with each KEY=VALUE of `settings` on top; VALUE is TOML, or text where it is not.

    >>> override({"run": {"name": "a"}}, ["run.dir=/tmp/a", "daemon.port=9000"])
    {'run': {'name': 'a', 'dir': '/tmp/a'}, 'daemon': {'port': 9000}}

    Raises:
        ConfigError: no KEY=VALUE, or the key lies inside something that is no section.
    """
    merged = copy.deepcopy(dict(data))
    for setting in settings:
        key, equals, text = setting.partition("=")
        *sections, last = key.strip().split(".")
        if not equals or not last or not all(sections) or not sections:
            raise ConfigError(f"--set {setting}: say SECTION.KEY=VALUE, e.g. --set run.dir=/shared/klaxon")
        table = merged
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {setting}: {section} is no section of the config")
        table[last] = _value(text)
    return merged


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

"""`klaxon audit --trainer FILE`: what the trainer's side declares, out of Klaxon's config.toml or the same sections as JSON."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collector.config import ContractConfig, ShadowConfig
from collector.errors import InputError
from diagnosis.engine_told import Assumed
from klaxon.config import Config, parse_config
from klaxon.spine_config import TrainerConfig, TrainerSamplingConfig

READ = {"trainer": set(TrainerConfig.model_fields), "trainer.sampling": set(TrainerSamplingConfig.model_fields),
        "contract": set(ContractConfig.model_fields), "shadow": set(ShadowConfig.model_fields)}
"""Sections that are read, with their keys."""


def read_assumed(path: str | Path) -> tuple[Assumed, list[str]]:
    """What the file declares, and the names of keys that mean nothing to Klaxon. A key that is not written declares nothing.

    Raises:
        InputError: the file cannot be read or is neither TOML nor JSON; names the line.
        ConfigError: a known key holds a wrong value; names file and key, all of them at once.
    """
    data = _parsed(Path(path))
    known, unknown = _sorted_out(data)
    config = parse_config(known, where=str(path))
    shadow, contract, trainer = (known.get(name, {}) for name in ("shadow", "contract", "trainer"))
    declared = Assumed(
        logprobs_mode=config.trainer.expected_logprobs_mode if "expected_logprobs_mode" in trainer else None,
        sampling=config.trainer.sampling.sampling(),
        body_dtype=config.shadow.body_dtype if "body_dtype" in shadow else None,
        head_dtype=config.shadow.head_dtype if "head_dtype" in shadow else None,
        engine_dtype=config.contract.engine_dtype or None, floor_nats=config.contract.floor_nats,
        correction=config.contract.correction if "correction" in contract else None)
    return declared, unknown


def _parsed(path: Path) -> dict[str, Any]:
    if path.suffix.lower() in (".yaml", ".yml"):
        raise InputError("YAML is not read; write the same sections as TOML or JSON", where=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    try:
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not TOML: {error}", where=str(path)) from None
    if not isinstance(data, dict):
        raise InputError("is no JSON object of sections", where=str(path))
    return data


def _sorted_out(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The sections that are read with the keys they have, and the dotted names of what no config.toml has."""
    known: dict[str, Any] = {}
    unknown = [name for name in data if name not in Config.model_fields]
    for name in ("trainer", "contract", "shadow"):
        if name not in data:
            continue
        known[name] = _keys(name, data[name], unknown)
        if name == "trainer" and isinstance(known[name], dict) and "sampling" in known[name]:
            known[name]["sampling"] = _keys("trainer.sampling", known[name]["sampling"], unknown)
    return known, unknown


def _keys(section: str, values: Any, unknown: list[str]) -> Any:
    if not isinstance(values, dict):
        return values  # the validation names it
    unknown += [f"{section}.{key}" for key in values if key not in READ[section]]
    return {key: value for key, value in values.items() if key in READ[section]}

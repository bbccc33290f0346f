"""config.toml: every room's section, composed; errors that name the key and the nearest right one.

`python -m klaxon.config` prints the default file: every key with its default and what it means.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from alerts.config import AlertsConfig
from collector.config import ContractConfig, ShadowConfig, SignalsConfig, WeightsConfig
from collector.errors import ConfigError
from collector.sources.config import MetricsConfig, SamplerConfig, SourcesConfig
from collector.store_config import StoreConfig
from detectors.config import DetectorsConfig
from detectors.reference_config import ReferenceConfig
from diagnosis.config import DiagnosisConfig
from klaxon.config_settings import override
from klaxon.exports.config import ExportsConfig
from klaxon.spine_config import CanaryConfig, DaemonConfig, EngineConfig, RunConfig, TrainerConfig


class Config(BaseModel):
    """The whole of config.toml."""

    model_config = ConfigDict(extra="forbid")

    run: RunConfig = Field(default_factory=RunConfig)
    daemon: DaemonConfig = Field(default_factory=DaemonConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    canary: CanaryConfig = Field(default_factory=CanaryConfig)
    weights: WeightsConfig = Field(default_factory=WeightsConfig)
    shadow: ShadowConfig = Field(default_factory=ShadowConfig)
    signals: SignalsConfig = Field(default_factory=SignalsConfig)
    contract: ContractConfig = Field(default_factory=ContractConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    detectors: DetectorsConfig = Field(default_factory=DetectorsConfig)
    diagnosis: DiagnosisConfig = Field(default_factory=DiagnosisConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)
    alerts: AlertsConfig = Field(default_factory=AlertsConfig)
    exports: ExportsConfig = Field(default_factory=ExportsConfig)


def load_config(path: str | Path, settings: Sequence[str] = ()) -> Config:
    """Read and validate a config file; `settings`: single keys on top of it, as KEY=VALUE.

    Raises:
        ConfigError: naming the file, the key, what is wrong and, for an unknown key, the nearest known one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); `python -m klaxon.config > config.toml` "
                          "writes one with every default") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    return parse_config(override(data, settings), where=str(path))


def parse_config(data: dict[str, Any], *, where: str) -> Config:
    """Validate a parsed config.

    Raises:
        ConfigError: all problems at once, one line each.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [f"{where}: {_explain(item)}" for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _explain(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _siblings(path[:-1]), n=1, cutoff=0.5)
        hint = f"; did you mean `{'.'.join([*path[:-1], near[0]])}`?" if near else ""
        return f"unknown key `{key}`{hint}"
    given = f" (got {item['input']!r})" if isinstance(item["input"], (str, int, float, bool)) else ""
    return f"`{key}`: {item['msg'].removeprefix('Value error, ')}{given}"


def _siblings(path: list[str]) -> list[str]:
    model: Any = Config
    for part in path:
        if part.isdigit():
            continue
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = _model_of(field.annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _model_of(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as list[Receiver] or Section | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (model := _model_of(inner)) is not None:
            return model
    return None


def meaning_of(section: str, key: str) -> str:
    """What a key means, e.g. meaning_of("trainer.sampling", "temperature")."""
    model: Any = Config
    for part in section.split("."):
        model = _model_of(model.model_fields[part].annotation)
    return model.model_fields[key].description or ""


def render_defaults() -> str:
    """The default config.toml: every key, its default, and its meaning as a comment."""
    parts = ["# Klaxon's configuration: every key with its default. A key you leave out keeps the default shown here;",
             "# an unknown key is an error. Secrets never stand here: name an environment variable or a file.", ""]
    for name, field in Config.model_fields.items():
        parts += _section(name, _model_of(field.annotation))
    return "\n".join(parts).rstrip() + "\n"


def _section(name: str, model: type[BaseModel]) -> list[str]:
    heading = (model.__doc__ or "").strip().splitlines()[0].removeprefix(f"[{name}]: ")
    lines, nested = [f"# {heading[0].upper()}{heading[1:]}", f"[{name}]"], []
    for key, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is not None:
            nested.append((key, inner, field))
        else:
            lines += _entry(key, field)
    lines.append("")
    for key, inner, field in nested:
        if str(field.annotation).startswith("list["):
            lines += _example_table(f"{name}.{key}", inner, field)
        else:
            lines += _section(f"{name}.{key}", inner)
    return lines


def _entry(key: str, field: FieldInfo, *, prefix: str = "") -> list[str]:
    default = field.get_default(call_default_factory=True)
    meaning = f"# {field.description}"
    if default is None:
        return [meaning if "; unset = " in meaning else f"{meaning} (default: unknown)", f"# {key} ="]
    return [meaning, f"{prefix}{key} = {toml_value(default)}"]


def _example_table(name: str, model: type[BaseModel], field: FieldInfo) -> list[str]:
    lines = [f"# {field.description} One table each; none by default. The keys of a table:", f"# [[{name}]]"]
    for key, inner in model.model_fields.items():
        shown = "" if inner.is_required() else f" = {toml_value(inner.get_default(call_default_factory=True))}"
        lines.append(f"#   {key}{shown}  # {inner.description}")
    return [*lines, ""]


def toml_value(value: Any) -> str:
    """A value as TOML writes it, tables inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }" if value else "{}"
    return "(unset)" if value is None else repr(value)


if __name__ == "__main__":
    print(render_defaults(), end="")

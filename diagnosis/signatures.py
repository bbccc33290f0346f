"""Known faults by shape: "looks like …, as in …". A resemblance is shown beside the evidence; it never changes a verdict.

The library is data, signatures.toml; a run can add its own by `[diagnosis] signatures = "path.toml"` (docs/signatures.md).
`python -m diagnosis.signatures` prints the list that stands in that page.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from collector.errors import ConfigError
from collector.records import CAUSES, Diagnosis
from diagnosis.shape import FEATURES, IncidentShape, Shape

LIBRARY = Path(__file__).with_name("signatures.toml")
SHOWN = 3


class Signature(BaseModel):
    """One known fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="its name, in lower case with hyphens; no two are alike")
    looks_like: str = Field(min_length=3, description="what it is, to follow the words \"looks like\"")
    shape: Shape = Field(description="the shape that must be there")
    must: tuple[str, ...] = Field(min_length=1, description="features that must all be there")
    must_not: tuple[str, ...] = Field((), description="features of which none may be there")
    suggests: str = Field("", description="the cause it points to, one of Klaxon's closed list; empty = none of them")
    advice: str = Field(min_length=3, description="what to try, in plain words")
    source: str = Field(min_length=3, description="where it was seen, e.g. owner/repo#12")

    @field_validator("must", "must_not")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in FEATURES]:
            raise ValueError(f"unknown feature {unknown[0]!r}; known are {', '.join(FEATURES)}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} stands there twice")
        return names

    @field_validator("suggests")
    @classmethod
    def _a_cause(cls, name: str) -> str:
        if name and (name not in CAUSES or name == "healthy"):
            raise ValueError(f"unknown cause {name!r}; known are {', '.join(cause for cause in CAUSES if cause != 'healthy')}")
        return name

    @model_validator(mode="after")
    def _possible(self) -> Signature:
        if both := [name for name in self.must if name in self.must_not]:
            raise ValueError(f"{both[0]!r} is in must and in must_not: this can never match")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A signature whose every demand is met. `said`: the features it asked for."""

    signature: Signature
    said: tuple[str, ...]

    @property
    def text(self) -> str:
        """One line for the evidence."""
        one = self.signature
        points = f"; points to {one.suggests}" if one.suggests else ""
        return f"looks like {one.looks_like}, as in {one.source} ({', '.join(self.said)}){points}; a resemblance, no proof. Try: {one.advice}"


def match(incident_shape: IncidentShape, library: Sequence[Signature] | None = None) -> list[Match]:
    """Every signature this shape meets, those that ask for most first; `library` None = Klaxon's own."""
    found = [Match(signature=one, said=one.must) for one in (builtin() if library is None else library)
             if one.shape in incident_shape.shapes and incident_shape.features.issuperset(one.must)
             and incident_shape.features.isdisjoint(one.must_not)]
    return sorted(found, key=lambda one: -len(one.said))


def with_signatures(diagnosis: Diagnosis, incident_shape: IncidentShape, library: Sequence[Signature] | None = None) -> Diagnosis:
    """The diagnosis with the best resemblances after its leading cause's evidence; verdict, confidence and order stay."""
    if not diagnosis.causes or diagnosis.verdict == "healthy":
        return diagnosis
    first = diagnosis.causes[0]
    fresh = tuple(one.text for one in match(incident_shape, library)[:SHOWN] if one.text not in first.evidence)
    return replace(diagnosis, causes=(replace(first, evidence=(*first.evidence, *fresh)), *diagnosis.causes[1:]))


@cache
def builtin() -> tuple[Signature, ...]:
    """Klaxon's own library."""
    return read_signatures(LIBRARY)


def library_of(path: str) -> tuple[Signature, ...]:
    """Klaxon's own library and, where `path` names a file, the user's.

    Raises:
        ConfigError: the file cannot be read, an entry is wrong, or an id is taken.
    """
    return builtin() + (read_signatures(Path(path), taken=[one.id for one in builtin()]) if path else ())


def read_signatures(path: Path, *, taken: Sequence[str] = ()) -> tuple[Signature, ...]:
    """The signatures of a file.

    Raises:
        ConfigError: every problem at once, one line each, with file, entry and field.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    entries = data.get("signature")
    if set(data) != {"signature"} or not isinstance(entries, list):
        raise ConfigError(f"{path}: holds tables [[signature]] and nothing else is expected")
    found: dict[str, Signature] = {}
    problems: list[str] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: signature {number}" + (f" ({entry['id']})" if isinstance(entry, dict) and isinstance(entry.get("id"), str) else "")
        try:
            one = Signature.model_validate(entry)
        except ValidationError as error:
            problems += [f"{where}: {_explained(item)}" for item in error.errors()]
            continue
        if one.id in found or one.id in taken:
            problems.append(f"{where}: id: {'Klaxon has one of this name' if one.id in taken else 'stands there twice'}")
        found[one.id] = one
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(found.values())


def _explained(item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"])
    return f"{field}: {item['msg'].removeprefix('Value error, ')}" if field else item["msg"].removeprefix("Value error, ")


def render() -> str:
    """The library, its shapes' words and the fields of an entry, as they stand in docs/signatures.md."""
    lines = ["| id | shape | must | must not | looks like | points to | seen in |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {one.id} | {one.shape} | {', '.join(one.must)} | {', '.join(one.must_not) or '–'} | {one.looks_like} "
              f"| {one.suggests or 'no cause of the list'} | {one.source} |" for one in builtin()]
    lines += ["", "| feature | meaning |", "|---|---|", *(f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" for name, meaning in FEATURES.items())]
    lines += ["", "| field | meaning |", "|---|---|", *(f"| `{name}` | {field.description} |" for name, field in Signature.model_fields.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")

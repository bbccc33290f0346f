"""A decision before it is put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The cause, and how sure that is."""

    cause: str
    confident: bool
    why: tuple[str, ...]  # reasons, and what is missing for confidence
    parameters: Mapping[str, Any]

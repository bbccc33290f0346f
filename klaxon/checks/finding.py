"""What `klaxon check` says of one part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One part: how it is and, unless it is fine, what to do. `next` is a command to type, "" where none helps."""

    part: str
    state: Literal["ok", "warn", "bad", "off"]
    text: str
    next: str = ""

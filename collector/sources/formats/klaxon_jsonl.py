"""Klaxon's own rollout JSONL (schema 1): what `klaxon export` writes and what people write by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collector.sources.formats.base import KNOWABLE, Format, Items, ReadOptions, first_keys
from collector.sources.rollout_json import parse_rollout


def _parse(item: Any, where: str, options: ReadOptions) -> Items:
    yield parse_rollout(item, where=where)


def _matches(path: Path) -> bool:
    return first_keys(path) >= {"prompt_token_ids", "token_ids", "logprobs"}


KLAXON = Format(
    name="klaxon", about="Klaxon's own rollout JSONL", where="wherever you write it", turn_on="`klaxon export`, or write it yourself",
    knows=frozenset(KNOWABLE), patterns=("*.jsonl", "*.jsonl.gz"), matches=_matches, parse=_parse,
)

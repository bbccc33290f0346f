"""Why bad data were refused, in a few words that can be counted; and what several sources counted, added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from collector.errors import InputError

_REASONS = (
    ("not JSON", "not_json"), ("longer than Klaxon reads", "not_json"), ("a JSON object", "not_an_object"), ("length mismatch", "length_mismatch"),
    ("is required and missing", "missing_field"), ("which rollout is this", "missing_field"),
)
REASONS = ("not_json", "not_an_object", "unknown_schema", "length_mismatch", "missing_field", "above_zero", "bad_field", "other")
"""Counted as refused_<reason>. above_zero: logprobs above 0, so an engine in a logits mode; bad_field: a value of the wrong kind."""


def reason_of(error: InputError) -> str:
    """One of REASONS.

    >>> reason_of(InputError("schema 9 is not known to this Klaxon (it reads 1)", field="schema"))
    'unknown_schema'
    """
    if error.field == "schema":
        return "unknown_schema"
    if "above 0" in error.reason:
        return "above_zero"
    known = next((name for start, name in _REASONS if start in error.reason), None)
    return known or ("bad_field" if error.field is not None else "other")


def added(*counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of the same name added up, as they come from parts that count apart."""
    out: Counter[str] = Counter()
    for one in counts:
        out.update(one)
    return dict(out)


def prefixed(prefix: str, counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Several counters as one, every name with a prefix."""
    return {f"{prefix}{name}": count for name, count in added(*counts).items()}

"""The checklist: everything a running engine told, against what the trainer declares. Pure; klaxon/engine_facts.py asks."""

from __future__ import annotations

from collections.abc import Callable

from diagnosis import engine_migration, engine_numerics, engine_requests
from diagnosis.engine_told import Assumed, Check, Told

CHECKS: tuple[Callable[[Told, Assumed], Check], ...] = (
    engine_migration.logprobs_mode,
    engine_migration.prefix_cache,
    engine_migration.async_scheduling,
    engine_migration.head,
    engine_numerics.cascade,
    engine_numerics.chunked_prefill,
    engine_numerics.batch_invariance,
    engine_numerics.body_dtype,
    engine_numerics.kv_dtype,
    engine_numerics.quantization,
    engine_numerics.attention_backend,
    engine_numerics.graphs,
    engine_numerics.parallel,
    engine_numerics.experts,
    engine_numerics.speculative,
    engine_requests.generation_config,
    engine_requests.weight_label,
    engine_requests.max_logprobs,
    engine_requests.known_faults,
)
"""In the order of the list; the first four are the migration from V0 to V1."""

MIGRATION = 4


def audit(told: Told, assumed: Assumed) -> tuple[Check, ...]:
    """One line a check, in order.

    >>> audit(Told(version="0.32.0"), Assumed())[0].state
    'unknown'
    """
    return tuple(check(told, assumed) for check in CHECKS)

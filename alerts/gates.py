"""May a receiver be tried now? A circuit breaker and a token bucket a receiver. Pure rules; the rows are in the outbox.

Breaker: closed → open after `breaker_failures` failures in a row → half-open after `breaker_seconds`, when one message is
tried; an answer closes it, another failure opens it again. A receiver that names a time (Retry-After) or refuses a
message has answered, and opens nothing. The state is stored with the outbox: a restart neither hammers a receiver that
is down nor grants a fresh burst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alerts.config import AlertsConfig

SLACK_PER_SECOND = 1.0  # https://docs.slack.dev/apis/web-api/rate-limits: one message a second and channel
DEFAULT_RATES: Mapping[str, float] = {"slack": SLACK_PER_SECOND, "slack_webhook": SLACK_PER_SECOND}
BURST = 1.0  # tokens a full bucket holds
TINY = 1e-6  # tokens; so that a bucket that is full but for rounding counts as full


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the configuration says about one receiver."""

    failures: int
    seconds: float  # how long the breaker stays open
    per_second: float  # messages; 0 = no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What is remembered of one receiver."""

    failures: int = 0  # in a row
    open_until: float = 0.0  # UTC seconds; the breaker lets nothing through before
    tokens: float = BURST
    filled_at: float = 0.0  # UTC seconds, when `tokens` was true


def limits(config: AlertsConfig, *, name: str, kind: str) -> Limits:
    """The limits of a receiver: `rates` by its name, else by its type, else the default of its type."""
    per_second = config.rates.get(name, config.rates.get(kind, DEFAULT_RATES.get(kind, 0.0)))
    return Limits(failures=config.breaker_failures, seconds=config.breaker_seconds, per_second=per_second)


def state(gate: Gate, limit: Limits, now: float) -> str:
    """"closed", "open" or "half-open".

    >>> limit = Limits(failures=2, seconds=30, per_second=0)
    >>> state(Gate(failures=2, open_until=40), limit, 10), state(Gate(failures=2, open_until=40), limit, 40), state(Gate(failures=1), limit, 10)
    ('open', 'half-open', 'closed')
    """
    if gate.failures < limit.failures:
        return "closed"
    return "open" if gate.open_until > now else "half-open"


def wait(gate: Gate, limit: Limits, now: float) -> float:
    """Seconds until the next message may be tried; 0 = now.

    >>> wait(Gate(tokens=0.25, filled_at=10), Limits(failures=5, seconds=30, per_second=0.5), 10.5)
    1.0
    """
    closed = gate.open_until - now if state(gate, limit, now) == "open" else 0.0
    missing = (BURST - TINY) - _tokens(gate, limit, now)
    empty = round(missing / limit.per_second, 3) if limit.per_second > 0 and missing > 0 else 0.0
    return max(closed, empty, 0.0)


def taken(gate: Gate, limit: Limits, now: float) -> Gate:
    """One message is tried: a token is gone, and of a half-open breaker nobody else tries until this one is over."""
    held = now + limit.seconds if state(gate, limit, now) == "half-open" else gate.open_until
    return replace(gate, open_until=held, tokens=max(0.0, _tokens(gate, limit, now) - 1.0), filled_at=now)


def answered(gate: Gate) -> Gate:
    """The receiver took a message, refused it, or asked for patience: it is there."""
    return replace(gate, failures=0, open_until=0.0)


def failed(gate: Gate, limit: Limits, now: float) -> Gate:
    """It did not answer, or answered with an error of its own."""
    failures = gate.failures + 1
    return replace(gate, failures=failures, open_until=now + limit.seconds if failures >= limit.failures else 0.0)


def shifted(gate: Gate, seconds: float) -> Gate:
    """The same gate after the wall clock jumped by `seconds`."""
    return replace(gate, open_until=gate.open_until + seconds if gate.open_until else 0.0, filled_at=gate.filled_at + seconds)


def settled(gate: Gate, limit: Limits, now: float) -> Gate:
    """No time further ahead than this process could have set it: the clock may have been put back while none ran."""
    return replace(gate, open_until=min(gate.open_until, now + limit.seconds), filled_at=min(gate.filled_at, now))


def _tokens(gate: Gate, limit: Limits, now: float) -> float:
    return min(BURST, gate.tokens + max(0.0, now - gate.filled_at) * limit.per_second)

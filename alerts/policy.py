"""What a receiver wants to hear, out of its configuration: routing, quiet hours, escalation. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alerts.labels import check_routes
from alerts.quiet import Quiet, quiet_of

if TYPE_CHECKING:
    from alerts.config import ReceiverConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One receiver's wishes; the default hears everything at once."""

    match: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # label → values or globs; {} = all
    quiet: Quiet | None = None
    escalation: bool = False  # hears only of what nobody acknowledged in time


def policy_of(receiver: ReceiverConfig) -> Policy:
    """The policy of a configured receiver. Raises ValueError: a route, span or time zone that cannot be meant."""
    check_routes(receiver.match)
    return Policy(match={label: tuple(patterns) for label, patterns in receiver.match.items()},
                  quiet=quiet_of(receiver.quiet_hours, receiver.time_zone, receiver.quiet_passes), escalation=receiver.escalation)

"""What travels the pipeline: a Notice a (incident, receiver), and the Log the stages may look at. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from alerts.incidents import Case
from alerts.message import Message


class NotifyReason(StrEnum):
    """Why a receiver was told, or was not. Closed; stored with every decision and shown."""

    FIRST = "first"
    WORSE = "worse"
    REPEAT = "repeat"
    DIAGNOSED = "diagnosed"
    RESOLVED = "resolved"
    MUTED = "muted"
    INHIBITED = "inhibited"
    DUPLICATE = "duplicate"

    @property
    def sends(self) -> bool:
        """True when a message leaves for this reason."""
        return self not in (NotifyReason.MUTED, NotifyReason.INHIBITED, NotifyReason.DUPLICATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a receiver was last told about an incident."""

    at: float  # UTC seconds
    reason: str
    state: str
    severity: str
    effect: float | None  # in the unit of the incident's leading drift
    symptoms: int  # number of alarms the incident had
    verdict: str | None
    confident: bool
    measured: bool  # the diagnosis rested on re-scored rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute:
    """A row of the mutes table: this fault is not told between these times."""

    fingerprint: str
    starts_at: float  # UTC seconds
    ends_at: float
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Everything the stages may know besides the notices and the time."""

    receivers: tuple[str, ...]
    open_cases: tuple[Case, ...] = ()
    told: Mapping[tuple[str, str], Told] = field(default_factory=dict)  # (incident id, receiver) → last told
    unsent: Mapping[tuple[str, str], NotifyReason] = field(default_factory=dict)  # messages still waiting to leave
    mutes: tuple[Mute, ...] = ()
    repeat_interval_seconds: float = 4 * 3600.0
    worse_factor: float = 2.0
    budget_text: str = ""
    dashboard_url: str = ""
    runbook_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One incident on its way to one receiver. `reason` None = not yet decided."""

    case: Case
    receiver: str = ""
    reason: NotifyReason | None = None
    detail: str = ""
    message: Message | None = None
    told: Told | None = None  # what the receiver will have been told once this notice is recorded

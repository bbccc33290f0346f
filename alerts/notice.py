"""What travels the pipeline: a Notice a (incident, receiver), and the Log the stages may look at. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from alerts.incidents import Case
from alerts.message import Message
from alerts.policy import Policy
from alerts.silences import Silence


class NotifyReason(StrEnum):
    """Why a receiver was told, or was not. Closed; stored with every decision and shown."""

    FIRST = "first"
    WORSE = "worse"
    REPEAT = "repeat"
    DIAGNOSED = "diagnosed"
    ACKNOWLEDGED = "acknowledged"
    ESCALATED = "escalated"
    REOPENED = "reopened"
    RESOLVED = "resolved"
    MUTED = "muted"
    INHIBITED = "inhibited"
    DUPLICATE = "duplicate"
    NOT_ROUTED = "not_routed"
    NOT_ESCALATED = "not_escalated"
    GROUPED = "grouped"
    FLAPPING = "flapping"
    QUIET_HOURS = "quiet_hours"

    @property
    def sends(self) -> bool:
        """True when a message leaves for this reason."""
        return self not in UNSENT

    @property
    def waits(self) -> bool:
        """True when what there is to say is held back, and said later if it still holds."""
        return self in (NotifyReason.FLAPPING, NotifyReason.QUIET_HOURS)


UNSENT = frozenset({NotifyReason.MUTED, NotifyReason.INHIBITED, NotifyReason.DUPLICATE, NotifyReason.NOT_ROUTED, NotifyReason.NOT_ESCALATED,
                    NotifyReason.GROUPED, NotifyReason.FLAPPING, NotifyReason.QUIET_HOURS})
MEANING = {
    NotifyReason.FIRST: "the receiver had not heard of it", NotifyReason.WORSE: "it grew or spread",
    NotifyReason.REPEAT: "it still fires and nobody acknowledged it", NotifyReason.DIAGNOSED: "the verdict came",
    NotifyReason.ACKNOWLEDGED: "somebody has taken it", NotifyReason.ESCALATED: "nobody acknowledged it in time",
    NotifyReason.REOPENED: "it came back soon after its end", NotifyReason.RESOLVED: "it is over",
    NotifyReason.MUTED: "a silence covers it", NotifyReason.INHIBITED: "another open incident explains it",
    NotifyReason.DUPLICATE: "the receiver knows all there is to say", NotifyReason.NOT_ROUTED: "the receiver's match leaves it out",
    NotifyReason.NOT_ESCALATED: "the receiver hears of unacknowledged incidents only, later",
    NotifyReason.GROUPED: "too many of this fault are open; the oldest one's messages count them",
    NotifyReason.FLAPPING: "it comes and goes; its end is told once it stays away", NotifyReason.QUIET_HOURS: "told when the quiet hours end",
}
"""Every reason in plain words."""


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
    first_at: float | None = None  # UTC seconds, when it first heard of it since it (re)opened
    escalated: bool = False  # it heard that nobody acknowledged it in time
    gathered: int = 0  # other incidents of the fault that were counted instead of told


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Everything the stages may know besides the notices and the time."""

    receivers: tuple[str, ...]
    policies: Mapping[str, Policy] = field(default_factory=dict)  # receiver → its wishes; none = everything at once
    open_cases: tuple[Case, ...] = ()
    told: Mapping[tuple[str, str], Told] = field(default_factory=dict)  # (incident id, receiver) → last told
    last: Mapping[tuple[str, str], NotifyReason] = field(default_factory=dict)  # (incident id, receiver) → last decision
    unsent: Mapping[tuple[str, str], NotifyReason] = field(default_factory=dict)  # messages still waiting to leave
    silences: tuple[Silence, ...] = ()
    repeat_interval_seconds: float = 4 * 3600.0
    escalate_after_seconds: float = 1800.0
    flap_window_seconds: float = 900.0
    group_over: int = 0  # 0 = every incident is told
    worse_factor: float = 2.0
    budget_text: str = ""
    dashboard_url: str = ""
    runbook_url: str = ""
    chart: tuple[tuple[float, float], ...] = ()  # (UTC seconds, ln M) of recent batches

    def policy(self, receiver: str) -> Policy:
        """The receiver's wishes."""
        return self.policies.get(receiver, EVERYTHING)

    def told_of(self, notice: Notice) -> Told | None:
        """What the notice's receiver was last told of its incident."""
        return self.told.get((notice.case.incident.id, notice.receiver))


EVERYTHING = Policy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One incident on its way to one receiver. `reason` None = not yet decided."""

    case: Case
    receiver: str = ""
    reason: NotifyReason | None = None
    detail: str = ""
    message: Message | None = None
    told: Told | None = None  # what the receiver will have been told once this notice is recorded
    gathered: int = 0  # other open incidents of the fault that are not told one by one

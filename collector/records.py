"""The records that travel Klaxon's flow: Rollout → Score → BatchStats → Evidence → Drift → Diagnosis → Incident.

Frozen, slotted, keyword-only. Shape legend: T = completion tokens, P = prompt tokens. Logprobs are nats.
None (or NaN inside an array) means *unknown*; nothing is ever guessed.

p = rollout engine, q = trainer, d = log q − log p on the sampled token, at the SAME weight version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collector.sources.progress import Mark

CAUSES = (
    "healthy", "raw_logprobs", "temperature", "truncation", "penalties", "head_precision", "engine_numerics",
    "quantization", "stale_weights", "stale_prefix_cache", "policy_lag", "lora_not_applied", "prompt_mismatch",
    "corrupted_requests", "position_dependent", "batch_variance", "routing", "non_finite", "unexplained",
)
"""The closed list of cause names (DESIGN: explanations compete)."""

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "unknown"]
Traffic = Literal["train", "eval", "judge", "warmup", "canary", "unknown"]

Population = Literal["served", "hinted", "trained", "dropped", "lagged", "stale", "trainer_check"]
"""What a slice compares. served: what the engine sampled, against the generating version (shadow, else the trainer).
hinted: the same of rollouts kept for looking odd, which would bend an unweighted mean.
trained: only the tokens the trainer learns from. dropped: rollouts the trainer threw away (a group without spread, a filter).
lagged: engine against a trainer that had moved on to other weights,
so mismatch and staleness mixed. stale: staleness alone, the generating version against the newest one, both by the shadow;
its slices carry the lag ("lag 3") in place of the version. trainer_check: the trainer's own logprobs against the shadow's."""

POPULATIONS: tuple[str, ...] = get_args(Population)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters; None = unknown. top_k −1 or 0 = off.

    >>> Sampling(temperature=0.7).temperature
    0.7
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpan:
    """Completion tokens [start, end) were generated under `version`."""

    start: int
    end: int
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion as the engine reported it."""

    request_id: str
    prompt_tokens_P: np.ndarray  # int32 [P]
    completion_tokens_T: np.ndarray  # int32 [T]
    engine_logprobs_T: np.ndarray  # float32 [T], nats; NaN = absent or non-finite as reported
    sampled_mask_T: np.ndarray  # bool [T]; False = tool or environment token, never sampled by the policy
    run: str = "unknown"
    engine: str = "unknown"  # replica (URL or name); with dp_rank the slice key "replica"
    dp_rank: int | None = None
    weight_versions: tuple[WeightSpan, ...] = ()  # () = unknown
    sampling: Sampling = Sampling()  # what the TRAINER assumes: the only input to the expected view
    expected_logprobs_mode: LogprobsMode = "processed_logprobs"  # what the trainer assumes
    engine_sampling: Sampling = Sampling()  # what the engine resolved: evidence only
    logprobs_mode: LogprobsMode = "unknown"  # what the engine claims: evidence only
    engine_dtype: str | None = None
    top_tokens: tuple[np.ndarray | None, ...] = ()  # per token int32 [k] or None; () = not reported
    top_logprobs: tuple[np.ndarray | None, ...] = ()  # per token float32 [k] nats, same order as top_tokens
    cached_prompt_tokens: int | None = None
    finish_reason: str | None = None
    finished_at: float | None = None  # UTC seconds
    inclusion_probability: float = 1.0  # (0, 1], base coin
    base_coin: bool = True  # False = kept by the hint coin only
    traffic: Traffic = "unknown"
    reward: float | None = None
    trainer_logprobs_T: np.ndarray | None = None  # float32 [T] nats, as the trainer recomputed them
    trainer_prompt_P: np.ndarray | None = None  # int32, the prompt as the trainer has it; None = not said
    trainer_completion_T: np.ndarray | None = None  # int32, the completion as the trainer has it; None = not said. Its logprobs belong to these
    trainer_version: str | None = None  # the weights the trainer recomputed them with
    loss_mask_T: np.ndarray | None = None  # bool [T]; True = the trainer learns from this token; None = unknown
    dropped: bool | None = None  # did the trainer drop this rollout (a group without spread, a filter); None = unknown
    labels: Mapping[str, str] = field(default_factory=dict)
    mark: Mark | None = field(default=None, compare=False)  # where it was read; settled once the batch that counts it is stored

    @property
    def n_tokens(self) -> int:
        """T, the number of completion tokens."""
        return int(self.completion_tokens_T.size)

    @property
    def replica(self) -> str:
        """The slice key: engine, and its data-parallel rank where it has one."""
        return self.engine if self.dp_rank is None else f"{self.engine}#dp{self.dp_rank}"

    @property
    def version(self) -> str | None:
        """The one version that generated every token; None when unknown or mixed."""
        names = {span.version for span in self.weight_versions}
        return names.pop() if len(names) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightVersion:
    """One complete, believed set of trainer weights on disk."""

    version: str
    path: str  # folder with config.json and *.safetensors
    published_at: float  # UTC seconds
    digest: str  # blake2b over file names, sizes and tensor headers + a sample of the data (hex)
    base: str = ""  # of an adapter: the folder of the model it is merged onto


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The trainer's logprobs for one rollout, one array a view. `source` says whose they are."""

    request_id: str
    views: Mapping[str, np.ndarray]  # view name → float32 [T] nats; "expected" is always there; NaN = not scored; wide views [T, D]
    entropy_T: np.ndarray | None = None  # float32 [T] nats, of the expected view
    scored_mask_T: np.ndarray | None = None  # bool [T]; False = version not loaded or not sampled: counted, left out
    version: str | None = None
    source: Literal["shadow", "trainer"] = "shadow"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceStats:
    """Mergeable statistics of one slice of one batch: integer counts and exact sums, never only means."""

    replica: str
    position: str  # "0-1k", "1k-4k", "4k-16k", "16k+"
    version: str | None
    cached: bool | None  # did the request hit the prefix cache
    n_tokens: int
    n_sequences: float
    hist_pos: np.ndarray  # int64 [bins]: |d| counts where d ≥ 0, edges collector.metric_values.EDGES
    hist_neg: np.ndarray  # int64 [bins]: |d| counts where d < 0
    sums: Mapping[str, float]  # names: collector.signal_sums.SUMS
    population: str = "served"  # one of POPULATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A hard fact: no statistics needed, pages at once."""

    name: str  # detectors.hardfacts.FACTS
    text: str  # one plain sentence with numbers
    slice: Mapping[str, str] = field(default_factory=dict)
    at: float | None = None  # UTC seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStats:
    """Everything the detectors see of one wall-clock window. Replaying BatchStats replays the alarms bit for bit."""

    t: int  # batch number, from 0
    opened_at: float  # UTC seconds
    closed_at: float
    slices: tuple[SliceStats, ...] = ()
    gains: Mapping[str, float] = field(default_factory=dict)  # stream → summed log e-value gain of this batch, nats
    counts: Mapping[str, int] = field(default_factory=dict)  # seen, sampled, scored, dropped_*, nonfinite, zeros, …
    facts: tuple[Fact, ...] = ()

    @property
    def missing(self) -> bool:
        """True when no rollout fell into the window."""
        return self.counts.get("seen", 0) == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One stream after one batch. log_sr and the threshold are both natural logs of an e-value."""

    t: int
    stream: str
    weight: float
    gain: float  # log e-value of this batch, after the cap
    log_sr: float
    started_at: int | None  # first batch of the change this stream points to


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """An alarm: the weighted average crossed the threshold, or a hard fact holds. Latched until resolved."""

    kind: Literal["statistical", "fact"]
    stream: str  # the leading stream, or the fact's name
    statistic: float  # ln M for statistical, 1.0 for a fact
    threshold: float  # ln A for statistical, 1.0 for a fact
    alarm_t: int
    change_t: tuple[int, int]  # earliest and latest plausible first changed batch
    slice: Mapping[str, str] = field(default_factory=dict)
    effect: float | None = None
    effect_unit: str = "nats"
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One explanation with its numbers."""

    cause: str  # one of CAUSES
    residual_nats: float | None  # mean |engine − predicted| on held-out tokens
    tokens: int
    evidence: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"temperature": 0.7}, {"kv_version": "11"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Ranked causes; `verdict` is the first, `confident` whether the data single it out."""

    verdict: str
    confident: bool
    causes: tuple[Cause, ...]
    floor_nats: float | None
    next: str  # one command or flag a human can act on
    fix: str = ""
    tokens: int = 0
    impact: Mapping[str, Any] = field(default_factory=dict)  # last_clean_version, tainted_requests, token_share, …


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One fault as humans see it."""

    id: str
    fingerprint: str
    run: str
    state: Literal["firing", "acknowledged", "resolved"]
    severity: Literal["page", "warn"]
    opened_at: float
    updated_at: float
    title: str
    drifts: tuple[Drift, ...]
    diagnosis: Diagnosis | None = None
    resolved_at: float | None = None

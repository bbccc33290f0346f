"""Hard facts: things that need no statistics. They page at once and spend no false-alarm budget.

Question.    Is something plainly broken, or is Klaxon itself blind?
Statistic.   None: a fact holds or it does not, by counts of one batch or by what the daemon last observed, against grace
             periods from [detectors.facts].
Guarantee.   None is needed, but every fact is phrased so that a healthy run does not meet it: what has never been seen
             since the start gets `startup_seconds`; an engine that does not answer is not also called a silent tap; a
             weight label the trainer never published is unknown, not stale.
When it lies. "No rollouts" takes a long training phase for silence: give `longest_rollout_gap_seconds`, twice of which is
             tolerated, or raise the grace period. A digest samples the data, hence several equal ones are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from collector.records import BatchStats, Fact
from detectors.config import FactsConfig

FACTS = {
    "nonfinite_logprobs": "The engine reported logprobs that are NaN, infinite or missing for tokens it sampled.",
    "zero_logprobs": "The engine reported exactly 0 for tokens the trainer is not sure of: a filled-in value.",
    "length_mismatch": "The engine reported a different number of logprobs than tokens.",
    "label_moved_weights_same": "The weight version label moves on but the weights stay the same.",
    "weights_never_move": "An engine keeps generating with old weights while the trainer publishes new ones.",
    "engine_unreachable": "An engine does not answer.",
    "no_rollouts": "No rollouts arrive.",
    "tap_silent": "Klaxon is blind: an engine answers but its tap sends no heartbeat.",
    "scorer_behind": "Klaxon is blind: rollouts wait to be scored.",
    "store_refusing": "Klaxon cannot write what it sees: a full disk, or a store that refuses.",
    "disk_low": "The disk of Klaxon's store is nearly full.",
    "trainer_nonfinite": "The trainer's loss or gradient is NaN or infinite.",
    "trainer_learns_nothing": "Every group's rewards are equal, or the gradient is exactly 0, step after step.",
    "contract_dtype": "The engine runs in another dtype than [contract] declares.",
}
"""Name → what it means, one plain sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSeen:
    """What the daemon last saw of one engine (replica). Times are UTC seconds; None = never.

    >>> EngineSeen(reachable_since=0.0, reachable_at=60.0, heartbeat_at=59.0, version="4").version
    '4'
    """

    reachable_since: float | None = None  # it has answered without a break since then; None = not answering now
    reachable_at: float | None = None  # its last answer
    heartbeat_at: float | None = None  # its tap's last heartbeat
    version: str | None = None  # weight label of its latest rollout
    expects_tap: bool = True  # False: rollouts come from files or a client, no heartbeat to wait for


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the daemon knows beyond a batch, at `now`. Unknown parts stay empty and say nothing."""

    now: float  # UTC seconds
    started_at: float  # UTC seconds, start of this daemon
    engines: Mapping[str, EngineSeen] = field(default_factory=dict)
    expects_rollouts: bool = True  # False: paused on purpose, or the run has ended
    last_rollout_at: float | None = None
    longest_rollout_gap_seconds: float = 0.0  # longest wait between two rollouts so far
    published: tuple[tuple[str, str], ...] = ()  # (version label, digest), oldest first; digest "" = announced, not seen
    versions: Mapping[str, str] = field(default_factory=dict)  # replica → weight label of its latest rollout, where it sends any
    disk_free_bytes: int | None = None  # where the store lies; None = cannot be told
    store_refusing_since: float | None = None  # None = it writes
    engine_dtype: str | None = None  # as the engine reports it
    declared_dtype: str = ""  # [contract] engine_dtype; "" = not declared
    trainer: tuple[Fact, ...] = ()  # what holds at the trainer's newest step (trainer_health.py)
    oldest_unscored_at: float | None = None  # when the oldest rollout now waiting for a score came in; None = none waits


def facts(batch: BatchStats | None, observation: Observation | None, config: FactsConfig) -> tuple[Fact, ...]:
    """The facts that hold now. `batch` alone for a replay or a file, `observation` alone between two batches."""
    found: list[Fact] = []
    if batch is not None:
        found += _of_batch(batch, config)
    if observation is not None:
        found += _of_weights(observation, config)
        found += _of_engines(observation, config)
        found += _of_flow(observation, config)
        found += (*_of_store(observation, config), *_of_contract(observation), *observation.trainer)
    return tuple(found)


def _of_batch(batch: BatchStats, config: FactsConfig) -> Iterator[Fact]:
    sampled = [item for item in batch.slices if item.population in ("served", "hinted")]
    counts = {name: max(int(batch.counts.get(name, 0)), int(sum(item.sums.get(name, 0) for item in sampled)))
              for name in ("nonfinite", "zeros", "length_mismatch")}
    if counts["nonfinite"] >= config.nonfinite_tokens:
        text = f"{counts['nonfinite']} sampled tokens of this batch have a NaN, infinite or missing logprob."
        yield Fact(name="nonfinite_logprobs", text=text, at=batch.closed_at)
    if counts["zeros"] >= config.zero_tokens:
        text = f"{counts['zeros']} tokens of this batch have logprob exactly 0 where the trainer expects less than -0.05 nats."
        yield Fact(name="zero_logprobs", text=text, at=batch.closed_at)
    if counts["length_mismatch"]:
        text = f"{counts['length_mismatch']} rollouts of this batch have a different number of logprobs than tokens."
        yield Fact(name="length_mismatch", text=text, at=batch.closed_at)


def _of_weights(seen: Observation, config: FactsConfig) -> Iterator[Fact]:
    latest = [(label, digest) for label, digest in seen.published if digest][-config.same_digest_versions:]
    labels, digests = {label for label, _ in latest}, {digest for _, digest in latest}
    if len(labels) == config.same_digest_versions and len(digests) == 1:
        text = f"Versions {latest[0][0]} to {latest[-1][0]} carry the same weights: the label moved, the weights did not."
        yield Fact(name="label_moved_weights_same", text=text, at=seen.now)
    newer_than = {label: len(seen.published) - 1 - i for i, (label, _) in enumerate(seen.published)}
    versions = {replica: engine.version for replica, engine in seen.engines.items()} | dict(seen.versions)
    for replica, version in sorted(versions.items()):
        behind = newer_than.get(version or "", 0)
        if behind >= config.weights_still_versions:
            text = f"{replica} still generates with version {version}; the trainer has published {behind} newer ones."
            yield Fact(name="weights_never_move", text=text, slice={"replica": replica}, at=seen.now)


def _of_engines(seen: Observation, config: FactsConfig) -> Iterator[Fact]:
    for replica, engine in sorted(seen.engines.items()):
        gone = _silence(seen, engine.reachable_at, config.engine_gone_seconds, config)
        if gone is not None:
            text = f"{replica} has not answered for {gone:.0f} s."
            yield Fact(name="engine_unreachable", text=text, slice={"replica": replica}, at=seen.now)
        if engine.expects_tap and engine.reachable_since is not None:
            since = max(engine.reachable_since, engine.heartbeat_at or seen.started_at)
            grace = config.tap_silent_seconds if engine.heartbeat_at is not None else config.startup_seconds
            if seen.now - since > grace:
                text = f"{replica} answers, but its tap has sent no heartbeat for {seen.now - since:.0f} s: Klaxon does not see it."
                yield Fact(name="tap_silent", text=text, slice={"replica": replica}, at=seen.now)


def _of_flow(seen: Observation, config: FactsConfig) -> Iterator[Fact]:
    patience = max(config.no_rollouts_seconds, 2 * seen.longest_rollout_gap_seconds)
    waited = _silence(seen, seen.last_rollout_at, patience, config)
    if seen.expects_rollouts and waited is not None:
        yield Fact(name="no_rollouts", text=f"No rollout has arrived for {waited:.0f} s.", at=seen.now)
    if seen.oldest_unscored_at is not None and seen.now - seen.oldest_unscored_at > config.scorer_behind_seconds:
        text = f"Rollouts have waited {seen.now - seen.oldest_unscored_at:.0f} s for a score: Klaxon does not see the mismatch."
        yield Fact(name="scorer_behind", text=text, at=seen.now)


def _of_store(seen: Observation, config: FactsConfig) -> Iterator[Fact]:
    if seen.store_refusing_since is not None and seen.now - seen.store_refusing_since > config.store_refusing_seconds:
        text = (f"The store has refused to write for {seen.now - seen.store_refusing_since:.0f} s: batches wait in memory, and are lost "
                "if Klaxon stops.")
        yield Fact(name="store_refusing", text=text, at=seen.now)
    if seen.disk_free_bytes is not None and seen.disk_free_bytes < config.disk_free_mb * 2**20:
        text = f"{seen.disk_free_bytes / 2**20:.0f} MiB are free where the store lies; the bound is {config.disk_free_mb:g} MiB."
        yield Fact(name="disk_low", text=text, at=seen.now)


def _of_contract(seen: Observation) -> Iterator[Fact]:
    if seen.declared_dtype and seen.engine_dtype and dtype_name(seen.engine_dtype) != dtype_name(seen.declared_dtype):
        text = f"The engine runs in {seen.engine_dtype}; [contract] declares {seen.declared_dtype}."
        yield Fact(name="contract_dtype", text=text, at=seen.now)


def dtype_name(name: str) -> str:
    """One spelling a dtype.

    >>> dtype_name("torch.bfloat16"), dtype_name("BF16"), dtype_name("float8_e4m3fn")
    ('bfloat16', 'bfloat16', 'fp8')
    """
    short = name.lower().removeprefix("torch.")
    if short.startswith(("float8", "fp8")):
        return "fp8"
    return {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}.get(short, short)


def _silence(seen: Observation, last: float | None, patience: float, config: FactsConfig) -> float | None:
    """Seconds of silence when they exceed the patience; what was never seen since the start gets the start-up grace."""
    since = seen.started_at if last is None else max(last, seen.started_at)
    limit = patience if last is not None else max(patience, config.startup_seconds)
    return seen.now - since if seen.now - since > limit else None

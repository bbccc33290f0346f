"""A preflight from beginning to end: ask, sample, score, explain, and turn each into a row."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector import signals
from collector.errors import KlaxonError
from collector.records import Diagnosis, Rollout, Score
from diagnosis.config import DiagnosisConfig
from diagnosis.engine_audit import audit
from diagnosis.engine_told import Assumed, Check
from diagnosis.file_report import can_bet
from diagnosis.preflight import Probed, Row, batch_row, cache_rows, canaries_row, mismatch_row, sampler_row, settings_row, tokenizer_row
from diagnosis.top_one import top_one_test
from klaxon.engine_facts import Asked, ask
from klaxon.preflight.client import Answer, Client, Told
from klaxon.preflight.prompts import SHORT, Probe, Prompts, prompts
from klaxon.preflight.tokens import Tokens

if TYPE_CHECKING:
    from klaxon.commands.shadow_setup import Setup

TOP = 5
"""Top logprobs asked for: the least from which the head's precision can be read."""

MAX_TOKENS = 32
"""Of one canary, where no config.toml says."""

AT_ONCE = 64
"""Probes of the mixed batch that are under way at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a preflight is asked to do."""

    engine: str
    model: Path
    previous: Path | None = None
    assumed: Assumed = Assumed()
    body_dtype: str = "bfloat16"
    head_dtype: str = "float32"
    max_tokens: int = MAX_TOKENS
    logprobs: int = 1  # asked for where the engine refuses TOP
    own_prompts: Sequence[str | list[int]] = ()
    allow_update: bool = False
    diagnosis: DiagnosisConfig = field(default_factory=DiagnosisConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came out."""

    rows: tuple[Row, ...]
    version: str | None  # vLLM's
    checks: tuple[Check, ...]
    diagnosis: Diagnosis | None = None  # None = no canary could be compared
    values: Mapping[str, float] = field(default_factory=dict)  # collector.signals.metrics of the canaries
    rollouts: tuple[Rollout, ...] = ()
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0


Say = Callable[[str], None]


def preflight(options: Options, say: Say) -> Report:
    """Run it. `say` is told in one line each what is being done.

    Raises:
        InputError: the engine's address or a folder's file is wrong.
        Unavailable: no vLLM engine answers there, or a folder is missing or no model.
        ConfigError: the scorer's libraries are missing.
    """
    from klaxon.preflight.weights import opened

    began = time.monotonic()
    say("asking the engine for its settings")
    asked = ask(options.engine)
    checks = audit(asked.told, options.assumed)
    client = Client(options.engine)
    say("opening the weights")
    weights = opened(options, client.root)
    flight = _Flight(options, asked, client, weights.setup, say)
    rows = [settings_row(checks), *flight.tokenizer(), weights.row]
    flight.sample()
    rows.append(canaries_row(flight.sampled, flight.refused))
    found: tuple[Diagnosis, Mapping[str, float]] | None = None
    if flight.sampled:
        rows += flight.judged()
        found = flight.found
    if options.allow_update and options.previous is not None:
        rows += flight.updated()
    return Report(rows=tuple(_addressed(row, options) for row in rows), version=asked.told.version, checks=checks, diagnosis=found[0] if found else None,
                  values=found[1] if found else {}, rollouts=tuple(flight.sampled), left_out=tuple(flight.left_out()), seconds=time.monotonic() - began)


class _Flight:
    """One engine, its canaries and their scores."""

    def __init__(self, options: Options, asked: Asked, client: Client, setup: Setup, say: Say) -> None:
        self.options, self._asked, self._client, self._setup, self._say = options, asked, client, setup, say
        self._tokens = Tokens(options.model, client)
        mode = asked.told.get("model_config", "logprobs_mode")
        self._told = Told(sampling=options.assumed.sampling, expected_logprobs_mode=options.assumed.logprobs_mode or "processed_logprobs",
                          logprobs_mode=str(mode[0]) if mode and mode[0] in ("raw_logprobs", "processed_logprobs") else None, engine_dtype=asked.told.dtype())
        self._answers: list[tuple[Answer, bool]] = []  # (answer, was the same prompt sent before in this preflight?)
        self._alone: list[Rollout] = []
        self._beside: list[Rollout] = []
        self._logprobs = TOP
        self.found: tuple[Diagnosis, Mapping[str, float]] | None = None
        self.prompts: Prompts | None = None
        self._limit_nats = 0.0

    @property
    def sampled(self) -> list[Rollout]:
        """Sampled canaries, in the order they were sent; not the greedy reference."""
        return [answer.rollout for answer, _ in self._answers if answer.rollout is not None]

    @property
    def refused(self) -> Counter[str]:
        """Why probes gave no rollout → how many."""
        return Counter(answer.why_not for answer, _ in self._answers if answer.rollout is None)

    def tokenizer(self) -> list[Row]:
        """Text in both tokenizers, where the folder has one."""
        texts = [one for one in (self.options.own_prompts or SHORT) if isinstance(one, str)]
        return [tokenizer_row(self._tokens.differing(texts), len(texts))] if texts else []

    def sample(self) -> None:
        """Every canary: the reference alone, then the groups, then all of them at once."""
        block = self._asked.told.get("cache_config", "block_size")
        size = int(block[0]) if block and str(block[0]).isdigit() else None
        self.prompts = p = prompts(self._tokens.ids, own=self.options.own_prompts, max_tokens=self.options.max_tokens,
                                   max_model_len=self._client.max_model_len, block_size=size)
        self._say("canaries: one request alone, twice")
        self._alone = [one.rollout for one in (*self._send([p.reference], 1, ".alone"), *self._send([p.reference], 1, ".again")) if one.rollout]
        self._say(f"canaries: {len(p.short)} short prompts")
        short = self._send(p.short, 4, "")
        if all(answer.rollout is None and "logprobs" in answer.why_not for answer in short) and self.options.logprobs < TOP:
            self._logprobs = self.options.logprobs
            short = self._send(p.short, 4, "")
        self._note(short)
        self._say(f"canaries: {len(p.fixed) + len(p.fresh)} prompts of {len(p.fresh[0].prompt)} tokens, the new ones twice for the prefix cache")
        self._note(self._send(p.fixed, 4, ""))
        self._note(self._send(p.fresh, 4, ""))
        self._note(self._send(p.fresh, 4, ".again"), before=True)
        mixed = (*p.short, *p.long, *p.fixed, p.reference)
        self._say(f"canaries: {len(mixed)} requests at once, the longest of {max(len(one.prompt) for one in mixed)} tokens")
        answers = self._send(mixed, AT_ONCE, ".mixed")
        self._beside = [one.rollout for one in answers if one.probe.greedy and one.rollout]
        for answer in answers:
            if not answer.probe.greedy:
                self._note([answer], before=answer.probe.group == "fixed")

    def judged(self) -> list[Row]:
        """Score, explain, and the rows that need it; a row that says so where nothing can be compared."""
        told = self._asked.told
        self._say(f"scoring {len(self.sampled)} canaries with the weights of {self.options.model}, and asking why where they differ")
        bets = sampler_row(top_one_test([one for one in self.sampled if can_bet(one) is None]))
        try:
            found, probed = self._diagnosed()
        except KlaxonError as error:
            return [Row(name="logprobs", state="failed", seen=str(error), do="name the folder of the weights the engine serves with --model"), bets]
        values = signals.metrics(signals.total([part for one in probed for part in signals.slice_stats(one.rollout, one.score)]))
        self.found = (found, values)
        self._limit_nats = self.options.diagnosis.at_floor_ratio * (found.floor_nats or self.options.diagnosis.fp32_floor_nats)
        invariant = str(told.env.get("VLLM_BATCH_INVARIANT", "")).lower() in ("1", "true")
        return [mismatch_row(found, values), bets,
                *cache_rows(probed, self.options.diagnosis, caching=told.flag("cache_config", "enable_prefix_caching"), limit_nats=self._limit_nats),
                batch_row(self._alone, self._beside, promised=invariant)]

    def updated(self) -> list[Row]:
        """One weight update there and back."""
        from klaxon.preflight.update import update_rows

        if self.prompts is None or self.found is None:
            return [Row(name="update", state="unknown", seen="not tried: the canaries before it could not be compared")]
        probes = (*self.prompts.fixed, *self.prompts.short)

        def sample(tag: str) -> list[Rollout]:
            answers = self._send(probes, AT_ONCE, tag)
            return [answer.rollout for answer in answers if answer.rollout is not None]

        return update_rows(self.options, self._setup, sample, limit_nats=self._limit_nats, say=self._say)

    def left_out(self) -> list[str]:
        """Why canaries were not scored."""
        from klaxon.commands.shadow_setup import left_out

        return left_out(self._setup, self.sampled)

    def _send(self, probes: Sequence[Probe], at_once: int, tag: str) -> list[Answer]:
        return self._client.sample(probes, self._told, logprobs=self._logprobs, concurrency=at_once, tag=tag)

    def _note(self, answers: Sequence[Answer], *, before: bool = False) -> None:
        self._answers += [(answer, before) for answer in answers]

    def _diagnosed(self) -> tuple[Diagnosis, list[Probed]]:
        from diagnosis.compete import diagnose
        from diagnosis.signatures import builtin
        from klaxon.commands.shadow_setup import labelled

        rows = [(answer.probe, answer.rollout, before) for answer, before in self._answers if answer.rollout is not None]
        kept = {probe.name for probe, rollout, before in rows if probe.group == "fixed" and not before and rollout.cached_prompt_tokens}
        # A prefix this very preflight computed cannot be older than the weights: only what was found may be stale.
        known = [replace(rollout, cached_prompt_tokens=0) if before and probe.name not in kept else rollout for probe, rollout, before in rows]
        scorer = _Remembering(self._setup.scorer)
        told = self._asked.told
        config = {key: found[0] for section, key in (("model_config", "logprobs_mode"), ("model_config", "dtype"), ("cache_config", "enable_prefix_caching"))
                  if (found := told.get(section, key))}
        chosen = labelled(known, self._setup.versions, temperature=None)
        found = diagnose(chosen, scorer, versions=self._setup.versions, config=self.options.diagnosis, engine_config=config, signatures=builtin())
        probed = [Probed(rollout=rollout, score=score, group=probe.group, sent_before=before, kept=probe.name in kept)
                  for (probe, rollout, before), score in zip(rows, scorer.first or [], strict=True)]
        return found, probed


class _Remembering:
    """A scorer that keeps its first answer: the canaries as expected, which a diagnosis asks for before anything else."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        self.first: list[Score] | None = None

    def score(self, rollouts: Sequence[Rollout], **how: Any) -> list[Score]:
        """As the scorer's own."""
        scores = self._scorer.score(rollouts, **how)
        if self.first is None:
            self.first = scores
        return scores

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)


def _addressed(row: Row, options: Options) -> Row:
    """What to type with the engine's address and the model's folder in it."""
    return replace(row, do=row.do.replace("ENGINE_URL", options.engine).replace("MODEL_DIR", str(options.model)))

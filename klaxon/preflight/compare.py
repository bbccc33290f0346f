"""`klaxon compare-engines` from beginning to end: sample on both, force each one's tokens through the other, judge."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from collector.config import ShadowConfig
from collector.errors import ConfigError, Unavailable
from collector.records import Rollout, Sampling
from diagnosis.config import DiagnosisConfig
from diagnosis.parity import Direction, Forced, Identical, differences, direction, identical, pair_floor, token_class, too_little
from klaxon.engine_facts import ask
from klaxon.preflight.client import Client, Told
from klaxon.preflight.force import force
from klaxon.preflight.prompts import Probe, prompts
from klaxon.preflight.tokens import Tokens

NEUTRAL = Sampling(temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
"""What is compared: at T = 1 without truncation and penalties raw and processed logprobs are the same. Sent in full, so that no generation_config fills in."""

SEED_TOKENS = 64  # longest prompt that is sent with a seed
SEED = 20261121
AT_ONCE = 16
COPIES = 2  # of each short prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What came out. `reasons`: why they differ; () with `doubt` "" = the same within noise."""

    reasons: tuple[str, ...]
    doubt: str
    floor_nats: float
    intrinsic_nats: float
    dtypes: tuple[str | None, str | None]
    versions: tuple[str | None, str | None]  # vLLM's
    directions: tuple[Direction, ...]  # A on B, B on A, then each on itself
    greedy: Identical | None
    seeded: Identical | None
    refused: Counter[str]
    seconds: float

    @property
    def same(self) -> bool:
        """Within noise, on enough tokens."""
        return not self.reasons and not self.doubt


def compare(urls: tuple[str, str], model: Path, *, max_tokens: int, config: DiagnosisConfig, say: Callable[[str], None]) -> Parity:
    """Run it.

    Raises:
        InputError: an address is none.
        Unavailable: an engine does not answer, samples nothing or forces nothing; or the folder is no model.
        ConfigError: the two are one address, or the scorer's libraries are missing.
    """
    from collector.weights.checkpoint import inspect

    began = time.monotonic()
    if urls[0].rstrip("/") == urls[1].rstrip("/"):
        raise ConfigError("the two addresses are one engine; name two")
    weights = inspect(model, version=model.resolve().name)
    say("asking both engines for their settings")
    told = [ask(url).told for url in urls]
    pair = _Pair([Client(url) for url in urls], model, max_tokens, say)
    sampled = pair.sampled()
    crossed = [("A on B", pair.forced(0, 1, sampled[0])), ("B on A", pair.forced(1, 0, sampled[1]))]
    own = [("A on itself", pair.forced(0, 0, sampled[0])), ("B on itself", pair.forced(1, 1, sampled[1]))]
    greedy, seeded = pair.twice(greedy=True), pair.twice(greedy=False)
    dtypes = (told[0].dtype(), told[1].dtype())
    intrinsic = math.nan
    if dtypes != ("float32", "float32"):
        say("measuring the floor with the weights of --model")
        intrinsic = _floor([*sampled[0], *sampled[1]], weights)
    found = {name: direction(name, rows) for name, rows in (*crossed, *own)}
    kept = [found[name] for name, _ in crossed if found[name] is not None]
    if len(kept) < 2:
        reason = next(iter(pair.refused), "no token is finite on both sides")
        raise Unavailable(f"nothing can be compared: {reason}")
    floor = pair_floor(intrinsic, dtypes, config)
    return Parity(reasons=tuple(differences(kept, floor, config)), doubt=too_little(kept, config), floor_nats=floor, intrinsic_nats=intrinsic, dtypes=dtypes,
                  versions=(told[0].version, told[1].version), directions=tuple(one for one in found.values() if one is not None), greedy=greedy, seeded=seeded,
                  refused=pair.refused, seconds=time.monotonic() - began)


class _Pair:
    """Two engines, the probes for both, and what went wrong with some."""

    def __init__(self, clients: Sequence[Client], model: Path, max_tokens: int, say: Callable[[str], None]) -> None:
        self._clients, self._say = clients, say
        self._tokens = Tokens(model, clients[0])
        self.refused: Counter[str] = Counter()
        limits = [client.max_model_len for client in clients if client.max_model_len]
        self._prompts = prompts(self._tokens.ids, max_tokens=max_tokens, max_model_len=min(limits, default=None), block_size=32)
        self._special = self._tokens.special

    def sampled(self) -> list[list[Rollout]]:
        """The same prompts on both, at T = 1."""
        probes = [*self._prompts.short * COPIES, *self._prompts.fixed, *self._prompts.long]
        found = []
        for at, name in enumerate("AB"):
            self._say(f"sampling {len(probes)} completions on {name}")
            answers = self._send(at, probes)
            found.append([one for one in answers if one is not None])
        return found

    def forced(self, sampler: int, other: int, rollouts: Sequence[Rollout]) -> list[Forced]:
        """The sampler's tokens through the other engine."""
        self._say(f"forcing {len(rollouts)} completions of {'AB'[sampler]} through {'AB'[other]}")
        found = []
        for rollout, row in zip(rollouts, force(self._clients[other], rollouts, concurrency=AT_ONCE), strict=True):
            if isinstance(row, str):
                self.refused[f"{'AB'[other]}: {row}"] += 1
            else:
                found.append(Forced(rollout=rollout, other_T=row, classes_T=self._classes(rollout)))
        return found

    def twice(self, *, greedy: bool) -> Identical | None:
        """Short prompts on both, greedily or with one seed each; a prompt that one of them did not answer is left out."""
        self._say(f"{'greedy' if greedy else 'seeded'} completions on both")
        probes = [replace(one, greedy=greedy, seed=None if greedy else SEED + i) for i, one in enumerate(self._prompts.short) if len(one.prompt) <= SEED_TOKENS]
        pairs = [(a, b) for a, b in zip(self._send(0, probes), self._send(1, probes), strict=True) if a is not None and b is not None]
        return identical([a for a, _ in pairs], [b for _, b in pairs])

    def _send(self, at: int, probes: Sequence[Probe]) -> list[Rollout | None]:
        answers = self._clients[at].sample(probes, Told(sampling=NEUTRAL), logprobs=1, concurrency=AT_ONCE)
        self.refused.update(f"{'AB'[at]}: {answer.why_not}" for answer in answers if answer.rollout is None)
        return [answer.rollout for answer in answers]

    def _classes(self, rollout: Rollout) -> tuple[str, ...]:
        ids = rollout.completion_tokens_T.tolist()
        return tuple(token_class(text, index=i, special=token in self._special) for i, (token, text) in enumerate(zip(ids, self._tokens.spelled(ids), strict=True)))


def _floor(rollouts: Sequence[Rollout], weights: object) -> float:
    """Mean |logp_bf16 − logp_fp32| of the shadow on some 700 of the sampled tokens, nats."""
    from diagnosis.floor import FLOOR_TOKENS

    try:
        from collector.shadow.floor import intrinsic_floor
    except ModuleNotFoundError as error:
        raise ConfigError(f"this command needs {error.name}: pip install 'klaxon-rl[scorer]'") from None
    total = sum(one.n_tokens for one in rollouts)
    some = rollouts[::max(1, round(total / FLOOR_TOKENS))]
    return intrinsic_floor(some, weights=weights, config=ShadowConfig(), dtype="bfloat16").nats  # type: ignore[arg-type]

"""A run whose worst rollouts kept their tokens, behind a real daemon's API: texts by a real tokenizer, some of them written to do harm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models

from alerts_served import Served
from collector.records import Rollout, Score, WeightSpan
from dashboard_served import BATCHES, BATCH_SECONDS, FAULT_AT, faulty_run

ATTACKS = ("<script>document.title='owned'</script>", "<img src=x onerror=\"document.title='owned'\">", "[click](javascript:document.title='owned')", "**bold** $x^2$ :red[boo]",
           "\x1b[31mred\x1b[0m", "\u202etxt.exe", "=HYPERLINK(\"http://evil.example\")", "@SUM(A1:A9)", "-1+1", "![x](http://evil.example/p.png)", "</span><svg onload=alert(1)>", "&lt;b&gt;")
WORDS = (" The", " sum", " of", " the", " first", " ten", " odd", " numbers", " is", " 100", ",", " because", " n", "²", " =", " 10", "²", ".\n", " So", " I", " answer", ":", " 42", "\t", " 日本", " 🎉")
VOCABULARY = (*WORDS, *ATTACKS)
PROMPT = 200  # tokens: longer than the box they are shown in on a phone
LABELS = {"env": "maths", "turn": "1"}


def write_tokenizer(folder: Path) -> Path:
    """A model's folder with a tokenizer whose token i is VOCABULARY[i]."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=" the"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def rollout(t: int, i: int, *, at: float, off: float, n: int = 260) -> tuple[Rollout, Score]:
    """Completion of `n` tokens whose d is about `off` nats from token 60 on, with all attacks, a tool's answer and two weight versions."""
    rng = np.random.default_rng(1000 * t + i)
    ids = rng.integers(0, len(WORDS), n).astype(np.int32)
    ids[80:80 + len(ATTACKS)] = np.arange(len(WORDS), len(VOCABULARY))
    trainer = np.minimum(rng.normal(-0.9, 0.8, n), -0.001).astype(np.float32)
    d = rng.normal(0.0, 0.02, n) + np.where(np.arange(n) >= 60, off * rng.normal(0.4, 0.9, n), 0.0)
    mask = np.ones(n, bool)
    mask[140:160] = False
    found = Rollout(
        request_id=f"cmpl-{t}-{i}", engine=f"http://e{i % 2}:8000", prompt_tokens_P=rng.integers(0, len(WORDS), PROMPT).astype(np.int32), completion_tokens_T=ids,
        engine_logprobs_T=np.minimum(trainer - d, 0).astype(np.float32), sampled_mask_T=mask, finished_at=at, cached_prompt_tokens=16, reward=0.5, finish_reason="stop", labels=LABELS,
        weight_versions=(WeightSpan(start=0, end=180, version="40"), WeightSpan(start=180, end=n, version="41")))
    rank = np.where(rng.random(n) < 0.8, rng.integers(1, 9, n), 300).astype(np.float32)
    return found, Score(request_id=found.request_id, views={"expected": trainer, "rank": rank}, entropy_T=rng.uniform(0, 3, n).astype(np.float32), scored_mask_T=np.arange(n) != 70)


@contextmanager
def token_run(folder: Path, tier: str, *, incident: bool = True, **store: object) -> Iterator[Served]:
    """faulty_run with six rollouts' tokens kept a batch in a few batches, at `tier`; replica e1 is far off since FAULT_AT."""
    model = write_tokenizer(folder / "model")
    with faulty_run(folder, incident=incident, store={"tokens": tier, "tokens_tokenizer": str(model), **store}) as served:
        now = time.time()
        for t in range(FAULT_AT - 2, BATCHES, 5):
            at = now - BATCH_SECONDS * (BATCHES - t)
            served.daemon.worst.offer(t, [rollout(t, i, at=at, off=(0.2 + 0.1 * i) if t >= FAULT_AT and i % 2 else 0.01) for i in range(6)])
        served.daemon.worst.keep()
        yield served

"""A small, real GRPO loop against a live vLLM engine, in plain torch.

Every step: sample groups from the engine, reward them, one policy-gradient update, publish the new weights as a
version of their own, push them into the engine. Run it beside Klaxon (KLAXON_URL set) and Klaxon hears of every version.

    python examples/grpo/train.py --engine http://127.0.0.1:8000 --model MODEL_DIR --out OUT_DIR --steps 24
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from policy import Policy
from publish import publish
from rollouts import EngineAway, EngineClient, Rollout
from task import make_questions, reward
from transformers.utils import logging as transformers_logging


def main() -> int:
    """Train; 0 when all steps were done, 1 when the engine stayed away, 130 after Ctrl-C."""
    options = parse(sys.argv[1:])
    transformers_logging.disable_progress_bar()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    try:
        Trainer(options).run()
    except EngineAway as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trainer: stopped", file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A small GRPO loop against a live vLLM engine.")
    parser.add_argument("--engine", required=True, help="base URL of the vLLM server")
    parser.add_argument("--model", required=True, type=Path, help="Hugging Face folder to start from")
    parser.add_argument("--out", required=True, type=Path, help="folder for weights/ and metrics.jsonl")
    parser.add_argument("--steps", type=int, default=24, help="0 = until stopped")
    parser.add_argument("--prompts", type=int, default=4, help="questions a step")
    parser.add_argument("--completions", type=int, default=8, help="rollouts a question")
    parser.add_argument("--largest", type=int, default=9, help="largest number in a sum: larger is harder, and learnt longer")
    parser.add_argument("--max-tokens", type=int, default=24, help="longest completion")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--entropy-target", type=float, default=0.5, help="keep the policy at least this unsure, nats a token")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all")
    parser.add_argument("--hold-at", type=int, help="after this step write OUT/HELD and wait for OUT/CONTINUE")
    parser.add_argument("--stale-cache-from", type=int, help="a real mistake: from this step on push weights without "
                        "resetting the engine's prefix cache")
    parser.add_argument("--stale-learning-rate", type=float, help="learning rate from that step on")
    return parser.parse_args(arguments)


class Trainer:
    """The loop. Version v = weights after v steps."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._out = options, options.out
        self._out.mkdir(parents=True, exist_ok=True)
        self._engine = EngineClient(options.engine, temperature=options.temperature, max_tokens=options.max_tokens)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._policy = Policy(options.model, learning_rate=options.learning_rate, device=device)
        self._rng = random.Random(options.seed)
        self._klaxon = klaxon()

    def run(self) -> None:
        """All steps."""
        folder = self._publish(0)
        for step in range(self._options.steps) if self._options.steps else itertools.count():
            if self._engine.version() != folder.name:  # also after the engine was restarted from its base model
                self._engine.push(folder, folder.name)
            folder = self._step(step, folder)
            if self._options.hold_at == step + 1:
                self._hold()

    def _step(self, step: int, folder: Path) -> Path:
        clock = Clock()
        questions = make_questions(self._policy.tokenizer, self._options.prompts, self._rng,
                                   largest=self._options.largest)
        rollouts = self._engine.sample(questions, self._options.completions)
        for rollout in rollouts:
            text = self._policy.tokenizer.decode(rollout.tokens, skip_special_tokens=True)
            rollout.reward = reward(rollout.question, text, finished=rollout.finished)
        set_advantages(rollouts, group_size=self._options.completions)
        clock.lap("sample_seconds")
        stale = self._options.stale_cache_from is not None and step >= self._options.stale_cache_from
        if stale and self._options.stale_learning_rate:
            self._policy.set_learning_rate(self._options.stale_learning_rate)
        metrics = self._policy.step(rollouts, temperature=self._options.temperature,
                                    entropy_target=self._options.entropy_target)
        clock.lap("train_seconds")
        published = self._publish(step + 1)
        clock.lap("publish_seconds")
        self._engine.push(published, published.name, keep_cache=stale)
        clock.lap("push_seconds")
        self._report(step, int(folder.name), rollouts, metrics | clock.laps | {"stale_cache": float(stale)})
        return published

    def _publish(self, version: int) -> Path:
        folder = publish(self._out, version, self._policy.save)
        if self._klaxon is not None:
            self._klaxon.announce_weights(str(version), str(folder.resolve()))
        return folder

    def _report(self, step: int, version: int, rollouts: list[Rollout], metrics: dict[str, float]) -> None:
        tokens = sum(len(r.tokens) for r in rollouts)
        metrics = {"reward": sum(r.reward for r in rollouts) / len(rollouts), "tokens": tokens,
                   "tokens_per_rollout": tokens / len(rollouts),
                   "versions_off": sum(r.version != str(version) for r in rollouts), **metrics}
        row = {"step": step, "version": version, "at": time.time(), **metrics}
        with (self._out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"step {step}: reward {row['reward']:.2f}  mean|d| {row['mean_abs_d']:.4f}  clip {row['clip_rate']:.3f}  "
              f"entropy {row['entropy']:.2f}  {row['step_seconds']:.1f} s", flush=True)
        if self._klaxon is not None:
            self._klaxon.push(step, metrics)
            for rollout in rollouts:
                self._klaxon.push_logprobs(rollout.trainer_logprobs, prompt_token_ids=rollout.prompt, token_ids=rollout.tokens,
                                           version=version, dropped=rollout.advantage == 0.0, traffic="train", reward=rollout.reward)

    def _hold(self) -> None:
        (self._out / "HELD").touch()
        print(f"holding until {self._out / 'CONTINUE'} appears", flush=True)
        while not (self._out / "CONTINUE").exists():
            time.sleep(0.5)


def set_advantages(rollouts: list[Rollout], *, group_size: int) -> None:
    """Advantage = (reward − group mean) / group standard deviation; groups lie one after the other."""
    for start in range(0, len(rollouts), group_size):
        group = rollouts[start:start + group_size]
        mean = statistics.fmean(r.reward for r in group)
        spread = statistics.pstdev((r.reward for r in group), mean)
        for rollout in group:
            rollout.advantage = (rollout.reward - mean) / (spread + 1e-4)


class Clock:
    """Lap times of one step, in seconds."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Note the time since the last lap under `name`, and the step's time so far as step_seconds."""
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now
        self.laps["step_seconds"] = now - self._began


def klaxon() -> Any:
    """The trainer's side of Klaxon's tap when KLAXON_URL is set and it is installed; else None. Training needs neither."""
    if not os.environ.get("KLAXON_URL"):
        return None
    try:
        import klaxon_tap
    except ImportError:
        print("KLAXON_URL is set, but klaxon-tap is not installed here: training without it", file=sys.stderr)
        return None
    return klaxon_tap


if __name__ == "__main__":
    sys.exit(main())

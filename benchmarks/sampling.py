"""Do the two coins keep their promises? A simulation on recorded rollouts of real engines, ten times over budget.

    python benchmarks/sampling.py [--minutes 400] [--repeats 200] [--json]

1. Estimates: mean |d|, k3 and clip rate of everything served, from what the coins kept, against the truth. Two replicas of
   different load and different mismatch, so that unweighted pooling would be wrong.
2. Bets: the mean e-value of the kept rollouts' self-bets and explanation bets under overload (≤ 1 under the null).
3. A fault in 1 of 1,000 rollouts: scored tokens until the first bad rollout is scored, two coins against one uniform coin of
   the same budget; once with a hint (it loops), once without. What a fault without a hint costs in expectation is the base
   coin's share of the scored tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from collector.config import SignalsConfig
from collector.populations import slices_of
from collector.records import Rollout, Score
from collector.sampler import TwoCoinSampler
from collector.signals import merge, total, weighted
from collector.signals import metrics as signals_of
from collector.sources.config import SamplerConfig
from collector.sources.rollout_json import read_rollouts
from detectors.config import DetectorsConfig
from detectors.gains import rollout_gains
from klaxon.shadow_views import HEAD_VIEWS, with_bet_views

SCORES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "diagnosis"
RECORDINGS = Path(__file__).resolve().parent.parent / "klaxon" / "recordings"
GROUPS_A_MINUTE = {"busy": 40, "quiet": 8}
GROUP = 4
OVERLOAD = 10


def recorded(name: str) -> list[Rollout]:
    """Rollouts of a recording with the trainer's logprobs that lie beside it."""
    trainer = json.loads((RECORDINGS / "trainer_logprobs.json").read_text())[f"{name}.jsonl"]
    rollouts = [item for item in read_rollouts(RECORDINGS / f"{name}.jsonl") if isinstance(item, Rollout)]
    return [replace(rollout, trainer_logprobs_T=np.array(trainer[rollout.request_id], np.float32)) for rollout in rollouts]


def traffic(rng: np.random.Generator, pools: dict[str, list[Rollout]], number: int) -> Iterator[Rollout]:
    """One minute's traffic: groups of a made-up prompt each, their answers drawn from the replica's recording."""
    for replica, groups in GROUPS_A_MINUTE.items():
        for group in range(groups):
            prompt = rng.integers(0, 50_000, 24).astype(np.int32)
            for place in range(GROUP):
                rollout = pools[replica][rng.integers(len(pools[replica]))]
                yield replace(rollout, request_id=f"{number}-{replica}-{group}-{place}", engine=replica, prompt_tokens_P=prompt)


def budget(pools: dict[str, list[Rollout]]) -> int:
    """Tokens a minute that are a tenth of what is offered."""
    offered = sum(groups * (24 + GROUP * np.mean([r.n_tokens for r in pools[replica]])) for replica, groups in GROUPS_A_MINUTE.items())
    return int(offered / OVERLOAD)


def estimates(rng: np.random.Generator, pools: dict[str, list[Rollout]], *, minutes: int, repeats: int) -> dict[str, float]:
    """Bias of the weighted and of the unweighted estimate in standard errors of the mean, and how often ±2 s.e. hold the truth."""
    config, limit = SignalsConfig(), budget(pools)
    errors: dict[str, list[float]] = {"weighted": [], "unweighted": []}
    inside = []
    for repeat in range(repeats):
        sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=limit, seed=repeat))
        kept, everything = [], []
        for number in range(minutes + 1):
            for rollout in traffic(rng, pools, number):
                drawn = sampler.draw(rollout, now=60.0 * number).rollout
                if number:  # the first minute has no rates to go by
                    everything.append(rollout)
                    kept += [] if drawn is None else [drawn]
        truth = signals_of(total(merge(item for rollout in everything for item in slices_of(rollout, None, config))))["mean_abs_d"]
        slices = merge(item for rollout in kept for item in slices_of(rollout, None, config))
        seen: dict[str, float] = {}
        for rollout in everything:
            seen[rollout.replica] = seen.get(rollout.replica, 0) + rollout.n_tokens
        found = weighted(slices, seen)
        errors["weighted"].append(found["mean_abs_d"] - truth)
        errors["unweighted"].append(signals_of(total(slices))["mean_abs_d"] - truth)
        inside.append(abs(found["mean_abs_d"] - truth) <= 2 * found["mean_abs_d_se"])
    out = {"truth_nats": truth, "coverage_of_2_se": float(np.mean(inside))}
    for name, values in errors.items():
        out |= {f"{name}_bias_nats": float(np.mean(values)), f"{name}_bias_z": float(np.mean(values) / (np.std(values) / np.sqrt(len(values))))}
    return out


def bets(rng: np.random.Generator, pool: list[Rollout], *, minutes: int) -> dict[str, float]:
    """Mean e-value of the self-bets that kept base-coin rollouts make, tokens resampled from the engine's own report (the null)."""
    detectors = DetectorsConfig()
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=budget({name: pool for name in GROUPS_A_MINUTE})))
    gains: dict[str, list[float]] = {}
    for number in range(minutes):
        for rollout in traffic(rng, {name: pool for name in GROUPS_A_MINUTE}, number):
            drawn = sampler.draw(_resampled(rng, rollout), now=60.0 * number).rollout
            if drawn is not None and drawn.base_coin and number:
                for stream, gain in rollout_gains(drawn, None, detectors).items():
                    gains.setdefault(stream, []).append(gain)
    worst = max(gains, key=lambda stream: np.mean(np.exp(gains[stream])))
    e_values = np.exp(gains[worst])
    return {"streams": len(gains), "rollouts": len(e_values), "largest_mean_e": float(e_values.mean()),
            "its_standard_error": float(e_values.std() / np.sqrt(len(e_values)))}


def _resampled(rng: np.random.Generator, rollout: Rollout) -> Rollout:
    """The same rollout with every token drawn anew from the reported top tokens and the rest, so that the null holds exactly."""
    tokens, logprobs = rollout.completion_tokens_T.copy(), rollout.engine_logprobs_T.copy()
    for place, (ids, values) in enumerate(zip(rollout.top_tokens, rollout.top_logprobs, strict=True)):
        if ids is None:
            continue
        p = np.exp(values.astype(np.float64))
        p = np.append(p, max(0.0, 1 - p.sum()))
        choice = rng.choice(p.size, p=p / p.sum())
        if choice < p.size - 1:
            tokens[place], logprobs[place] = ids[choice], values[choice]
        else:
            tokens[place], logprobs[place] = 0 if 0 not in ids else int(ids.max()) + 1, min(values.min(), -3.0)
    return replace(rollout, completion_tokens_T=tokens, engine_logprobs_T=logprobs)


def scored_pool() -> list[tuple[Rollout, Score]]:
    """A healthy recording with the shadow's kept scores: raw, temperatures, weights and prefix cache of one version before."""
    spec = importlib.util.spec_from_file_location("kept_scores", SCORES / "scores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept, rollouts = module.KeptScores(SCORES / "healthy_v2.scores.npz"), module.rollouts_of("healthy_v2")
    expected = {"expected": HEAD_VIEWS["expected"]}
    older = kept.score(rollouts, views=expected, version="1"), kept.score(rollouts, views=expected, prefix_version="1")
    scores = with_bet_views(rollouts, kept.score(rollouts, views=HEAD_VIEWS))
    return [(rollout, replace(score, views={**score.views, "stale_weights": weights.views["expected"], "stale_prefix_cache": prefix.views["expected"]}))
            for rollout, score, weights, prefix in zip(rollouts, scores, *older, strict=True)]


def explanation_bets(rng: np.random.Generator, pool: list[tuple[Rollout, Score]], *, minutes: int) -> dict[str, float]:
    """Mean e-values of the explanation bets of what the base coin keeps, ten times over budget, beside those of everything.

    The null is made exact: every token's report is the expected logprob plus or minus the recorded difference, by a fair coin,
    so its median is the expected one. Each stream (explanation and fraction) is one of `streams`; the worst is told.
    """
    detectors, scores = DetectorsConfig(), {rollout.request_id: score for rollout, score in pool}
    pools = {name: [rollout for rollout, _ in pool] for name in GROUPS_A_MINUTE}
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=budget(pools)))
    kept: dict[str, list[float]] = {}
    everything: dict[str, list[float]] = {}
    offered = taken = 0
    for number in range(minutes):
        for rollout in traffic(rng, {name: [replace(r, labels={"of": r.request_id}) for r in rs] for name, rs in pools.items()}, number):
            score = scores[rollout.labels["of"]]
            expected = score.views["expected"]
            side = np.where(rng.random(expected.size) < 0.5, 1.0, -1.0)
            fair = replace(rollout, engine_logprobs_T=(expected + side * (rollout.engine_logprobs_T - expected)).astype(np.float32))
            gains = {name: gain for name, gain in rollout_gains(fair, score, detectors).items() if name.startswith("explain:")}
            drawn = sampler.draw(fair, now=60.0 * number).rollout
            offered, chosen = offered + 1, drawn is not None and drawn.base_coin and number > 0
            taken += chosen
            for into in (everything, kept) if chosen else (everything,):
                for name, gain in gains.items():
                    into.setdefault(name, []).append(float(np.exp(gain)))
    worst = max(kept, key=lambda name: np.mean(kept[name]))
    error = np.std(kept[worst]) / np.sqrt(len(kept[worst]))
    z = max((np.mean(values) - 1) / (np.std(values) / np.sqrt(len(values)) + 1e-12) for values in kept.values())
    return {"streams": len(kept), "rollouts": taken, "share_kept": taken / offered, "largest_mean_e": float(np.mean(kept[worst])),
            "its_standard_error": float(error), "largest_z_above_1": float(z),
            "its_mean_e_of_everything": float(np.mean(everything[worst]))}


def rare(rng: np.random.Generator, pool: list[Rollout], *, hint: bool, repeats: int) -> dict[str, float]:
    """Scored tokens until the first of 1-in-1,000 bad rollouts is scored: two coins, and one uniform coin of the same budget."""
    pools = {name: pool for name in GROUPS_A_MINUTE}
    limit = budget(pools)
    spent: dict[str, list[int]] = {"two_coins": [], "uniform": []}
    by_base = 0  # tokens the base coin kept; a fault without a hint is found by these alone
    for name, share in (("two_coins", 0.2), ("uniform", 0.0)):
        for repeat in range(repeats):
            config = SamplerConfig(tokens_per_minute=limit, seed=1000 + repeat, hint_share=share, hint_probability=0.5 if share else 0.0)
            tokens, base_tokens = _until_found(rng, pools, TwoCoinSampler(config), hint=hint)
            spent[name].append(tokens)
            by_base += base_tokens if name == "two_coins" else 0
    ratio = np.mean(spent["uniform"]) / np.mean(spent["two_coins"])
    error = ratio * np.sqrt(sum(np.var(values) / len(values) / np.mean(values) ** 2 for values in spent.values()))
    return {"uniform_tokens": float(np.mean(spent["uniform"])), "two_coins_tokens": float(np.mean(spent["two_coins"])),
            "times_fewer": float(ratio), "its_standard_error": float(error), "base_share_of_tokens": by_base / sum(spent["two_coins"])}


def _until_found(rng: np.random.Generator, pools: dict[str, list[Rollout]], sampler: TwoCoinSampler, *, hint: bool) -> tuple[int, int]:
    tokens, base_tokens, prompts = 0, 0, set()
    for number in range(100_000):
        for rollout in traffic(rng, pools, number):
            bad = rng.random() < 0.001
            if bad and hint:
                rollout = replace(rollout, completion_tokens_T=np.full_like(rollout.completion_tokens_T, 7))
            drawn = sampler.draw(rollout, now=60.0 * number).rollout
            if drawn is None or not number:
                continue
            group = rollout.prompt_tokens_P.tobytes()
            cost = rollout.n_tokens + (0 if group in prompts else rollout.prompt_tokens_P.size)
            prompts.add(group)
            tokens += cost
            base_tokens += cost if drawn.base_coin else 0
            if bad:
                return tokens, base_tokens
    raise SystemExit("no bad rollout was ever scored")


def main() -> None:
    """Print the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10, help="of traffic in each repeat of the estimates")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(11)
    healthy, off = recorded("v0181_processed_t07"), recorded("v0181_raw_t07")
    found = {
        "estimates": estimates(rng, {"busy": healthy, "quiet": off}, minutes=options.minutes, repeats=options.repeats),
        "bets": bets(rng, healthy, minutes=options.minutes * 10),
        "explanation_bets": explanation_bets(rng, scored_pool(), minutes=options.minutes * 10),
        "rare_with_hint": rare(rng, healthy, hint=True, repeats=options.repeats),
        "rare_without_hint": rare(rng, healthy, hint=False, repeats=options.repeats),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:24} {value:.4g}")


if __name__ == "__main__":
    main()

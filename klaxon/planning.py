"""What one GPU can score of a run: speed, memory, coverage, disk. Pure arithmetic on stated assumptions; no torch, no I/O.

Speed is a roofline: a forward costs 2 flops per active parameter and token, and reads every weight once per
`forward_tokens`; the head costs 2 · vocabulary · hidden flops a completion token and some passes over its logits. The
efficiencies are stated, not measured on your machine: `klaxon status` shows the real tokens per second of a live run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

FLOPS_EFFICIENCY = 0.4  # share of the peak a transformers forward of a few thousand tokens reaches
BANDWIDTH_EFFICIENCY = 0.7
USABLE_MEMORY = 0.92  # the rest: CUDA context, allocator
DISK_BYTES_PER_SECOND = 2e9  # safetensors from a shared file system into the GPU
LOADING_SHARE = 0.25  # of the time that may go into loading versions
SLICE_BYTES, ROLLOUT_BYTES, BATCH_BYTES = 590, 68, 30_000  # DuckDB on disk, measured with the real store
HEAD_VIEWS = 7  # softmaxes of a rollout's own pass: expected, entropy, and the wide view that holds every sampler setting, worth five
SLICES_PER_REPLICA = 4  # position buckets × cache hit × version, as a rule filled
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device. Peaks are the makers' dense figures."""

    memory_gb: float
    half_tflops: float  # bf16, fp16
    single_tflops: float  # fp32 without TF32, as the shadow runs it
    bandwidth_tb: float  # TB/s


GPUS = {
    "A100-40": Gpu(memory_gb=40, half_tflops=312, single_tflops=19.5, bandwidth_tb=1.555),
    "A100-80": Gpu(memory_gb=80, half_tflops=312, single_tflops=19.5, bandwidth_tb=2.039),
    "H100": Gpu(memory_gb=80, half_tflops=989, single_tflops=67, bandwidth_tb=3.35),
    "H200": Gpu(memory_gb=141, half_tflops=989, single_tflops=67, bandwidth_tb=4.8),
    "B200": Gpu(memory_gb=180, half_tflops=2250, single_tflops=75, bandwidth_tb=7.7),
    "L40S": Gpu(memory_gb=48, half_tflops=362, single_tflops=91.6, bandwidth_tb=0.864),
    "4090": Gpu(memory_gb=24, half_tflops=165, single_tflops=82.6, bandwidth_tb=1.008),
    "CPU": Gpu(memory_gb=16, half_tflops=0.096, single_tflops=0.096, bandwidth_tb=0.01),  # one AVX2 core at 3 GHz
}
"""Name → device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is asked about. Tokens are completion tokens; tokens_per_second is of one replica."""

    params: float
    gpu: str
    dtype: str = "bf16"
    active_params: float | None = None  # of a mixture of experts; None = dense
    replicas: int = 1
    tokens_per_second: float = 2000.0
    tokens_per_rollout: float = 2000.0
    prompt_tokens: float = 500.0
    group: int = 8
    vocab: int = 152_000
    hidden: int | None = None  # None = estimated
    update_seconds: float = 60.0
    batch_seconds: float = 120.0
    forward_tokens: int = 8192
    logits_gb: float = 0.537
    prompt_kv_mb: int = 512
    versions_held: int = 3
    prefix_cache: bool = True  # engines reuse cached prompts: the stale-KV explanations cost two passes more

    @property
    def active(self) -> float:
        """Parameters one token goes through."""
        return self.active_params or self.params

    @property
    def hidden_size(self) -> int:
        """Given, or out of active ≈ 0.12 · hidden³ (12 · hidden² a layer, a layer for every hundred of width)."""
        return self.hidden or round((self.active / 0.12) ** (1 / 3))

    @property
    def passes(self) -> int:
        """Forwards a rollout costs: its own version, the one before, and with cached prompts two ages of old KV. With one
        version in memory the others are not bet on: each would be loaded anew for every group."""
        if self.versions_held < 2:
            return 1
        return 4 if self.prefix_cache else 2

    @property
    def offered(self) -> float:
        """Completion tokens a second of the whole fleet."""
        return self.replicas * self.tokens_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """GB on the device."""

    version: float
    kv: float
    head: float
    activations: float
    usable: float

    @property
    def versions(self) -> int:
        """Weight versions that fit beside the rest; two are needed to bet on stale weights without swapping."""
        return max(0, math.floor((self.usable - self.kv - self.head - self.activations) / self.version))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the shadow can do, for one choice of `every`."""

    every: int  # score every N-th version
    load_seconds: float  # one version from disk
    loading_share: float  # of the time, at this `every`
    seconds_per_token: float  # of scoring, all passes, the prompt's share included
    tokens_per_second: float  # scored, after loading
    coverage: float  # share of the fleet's tokens, 0 to 1


def memory(run: Run) -> Memory:
    """What has to lie on the device at once."""
    layers = max(1.0, run.active / (12 * run.hidden_size**2))
    kv_token = 2 * layers * run.hidden_size / 5 * DTYPE_BYTES[run.dtype]  # grouped-query attention, a fifth of the width
    longest = max(run.forward_tokens, run.prompt_tokens + run.tokens_per_rollout)
    return Memory(version=run.params * DTYPE_BYTES[run.dtype] / 1e9,
                  kv=(longest * kv_token + run.prompt_kv_mb * 2**20) / 1e9,
                  head=5 * run.logits_gb,
                  activations=20 * run.forward_tokens * run.hidden_size * DTYPE_BYTES[run.dtype] / 1e9,
                  usable=GPUS[run.gpu].memory_gb * USABLE_MEMORY)


def seconds_per_token(run: Run) -> float:
    """Seconds of the device for one scored completion token."""
    gpu = GPUS[run.gpu]
    flops = (gpu.single_tflops if run.dtype == "fp32" else gpu.half_tflops) * 1e12 * FLOPS_EFFICIENCY
    bandwidth = gpu.bandwidth_tb * 1e12 * BANDWIDTH_EFFICIENCY
    body = max(2 * run.active / flops, run.params * DTYPE_BYTES[run.dtype] / run.forward_tokens / bandwidth)
    head = 2 * run.vocab * run.hidden_size / flops
    views = (HEAD_VIEWS + 3 * (run.passes - 1)) * 4 * run.vocab * 4 / bandwidth  # each reads and writes its logits twice
    prompt = run.prompt_tokens / (run.group * run.tokens_per_rollout)
    return run.passes * (body * (1 + prompt) + head) + views


def capacity(run: Run, *, every: int | None = None) -> Capacity:
    """Coverage at a stride; None = the smallest stride that spends at most a quarter of the time on loading."""
    load = run.params * DTYPE_BYTES[run.dtype] / DISK_BYTES_PER_SECOND
    if every is None:
        every = max(1, math.ceil(load / (LOADING_SHARE * run.update_seconds)))
    loading = min(1.0, load / (every * run.update_seconds))
    each = seconds_per_token(run)
    rate = (1 - loading) / each
    coverage = min(1 / every, rate / run.offered)
    return Capacity(every=every, load_seconds=load, loading_share=loading, seconds_per_token=each,
                    tokens_per_second=min(rate, coverage * run.offered), coverage=coverage)


def gpus_needed(run: Run, *, versions: int = 2) -> int:
    """Devices of this kind that hold `versions` versions with their layers split evenly."""
    need = memory(run)
    room = need.usable - need.head - need.activations
    return max(1, math.ceil((versions * need.version + need.kv) / room)) if room > 0 else 0


def smallest_gpu(run: Run, *, versions: int = 2) -> str | None:
    """The device with the least memory in the table that holds `versions` versions alone; None = none does."""
    fits = [name for name in GPUS if memory(replace(run, gpu=name)).versions >= versions and name != "CPU"]
    return min(fits, key=lambda name: GPUS[name].memory_gb, default=None)


def disk_gb_a_day(run: Run, scored_tokens_per_second: float) -> dict[str, float]:
    """GB a day in DuckDB, by what is kept."""
    batches = 86_400 / run.batch_seconds
    rollouts = scored_tokens_per_second / run.tokens_per_rollout * 86_400
    return {"slices": batches * run.replicas * SLICES_PER_REPLICA * SLICE_BYTES / 1e9,
            "rollouts": rollouts * ROLLOUT_BYTES / 1e9, "batches": batches * BATCH_BYTES / 1e9}


def rollouts_a_batch(run: Run, coverage: float) -> float:
    """Scored rollouts in one batch of the detectors."""
    return coverage * run.offered * run.batch_seconds / run.tokens_per_rollout


def share(value: float) -> str:
    """A share in per cent with the digits it deserves.

    >>> share(1.0), share(0.0123), share(0.00004)
    ('100 %', '1.2 %', '0.004 %')
    """
    if value >= 0.0995:
        return f"{100 * value:.0f} %"
    digits = 0 if value <= 0 else 1 - math.floor(math.log10(100 * value)) if value >= 0.01 else -math.floor(math.log10(100 * value))
    return f"{100 * value:.{max(0, digits)}f} %"

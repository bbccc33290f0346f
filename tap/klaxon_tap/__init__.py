"""What Klaxon runs inside other people's processes: standard library only, never blocks, never raises.

In a trainer:

    klaxon_tap.publish_weights(model, step)            # writes KLAXON_WEIGHTS_DIR/<step> in the background, then announces it
    klaxon_tap.announce_weights("41", "/ckpt/41")      # or: the trainer has written a folder itself
    klaxon_tap.push(step, {"kl": 0.001, "clip_rate": 0.02, "reward": 0.4})
    klaxon_tap.push_logprobs(logprobs, request_id="cmpl-7", loss_mask=mask, version="41")
    klaxon_tap.verdict()["state"]                      # healthy, degraded, mismatch or unknown: asked, not told; what to do is yours

KLAXON_URL names the daemon (unix:///run/klaxon.sock or http://host:port), KLAXON_TOKEN its token. Without KLAXON_URL
nothing is sent (publish_weights still writes, for a follower of the folder).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from klaxon_tap import ask, settings
from klaxon_tap.publish import Publisher
from klaxon_tap.sender import Sender

__version__ = "0.1.0"
__all__ = ["announce_weights", "publish_weights", "push", "push_logprobs", "verdict"]

_log = logging.getLogger("klaxon_tap")
_sender: Sender | None = None
_kill: settings.KillSwitch | None = None
_publisher: Publisher | None = None


def push(step: int, metrics: Mapping[str, Any]) -> bool:
    """Send one step's metrics (name → number); what is no finite number is left out. False when nothing was queued."""
    try:
        numbers = {str(name): float(value) for name, value in metrics.items() if _is_number(value)}
        return _put({"kind": "metrics", "step": int(step), "metrics": numbers, "at": time.time()})
    except Exception as error:
        _log.warning("klaxon tap: step %r was not pushed (%s: %s)", step, type(error).__name__, error)
        return False


def push_logprobs(logprobs: Any, *, request_id: str | None = None, prompt_token_ids: Any = None, token_ids: Any = None,
                  version: str | int | None = None, loss_mask: Any = None, dropped: bool | None = None,
                  traffic: str | None = None, reward: float | None = None) -> bool:
    """Send the trainer's own logprobs of one rollout's completion tokens, nats; with them Klaxon needs no weights.

    Arrays are lists, or anything with `tolist()` (a tensor is copied to the CPU here: call it where you log). The
    rollout is named by the engine's request_id, or by prompt_token_ids and token_ids. `version`: the weights the logprobs
    were computed with; `loss_mask`: 1 where the trainer learns; `dropped`: the trainer threw the rollout away (logprobs
    may then be None); `traffic`: train, eval, judge, warmup or canary. False when nothing was queued.
    """
    try:
        said = {"logprobs": _plain(logprobs), "request_id": request_id, "prompt_token_ids": _plain(prompt_token_ids),
                "token_ids": _plain(token_ids), "version": None if version is None else str(version),
                "loss_mask": None if loss_mask is None else [int(bool(one)) for one in _plain(loss_mask)],
                "dropped": dropped, "traffic": traffic, "reward": None if reward is None else float(reward)}
        return _put({"kind": "trainer_logprobs", **{name: value for name, value in said.items() if value is not None}})
    except Exception as error:
        _log.warning("klaxon tap: logprobs of %r were not pushed (%s: %s)", request_id, type(error).__name__, error)
        return False


def verdict(run: str = "", timeout: float = 1.0) -> dict[str, Any]:
    """Ask the daemon whether the rollouts can be trusted. Waits at most `timeout` seconds; never raises.

    Returns a dict: state (healthy, degraded, mismatch, unknown), why, cause, confident, since ([earliest, latest] UTC
    seconds), last_clean_version, incident, run, at. "unknown" whenever Klaxon cannot say, does not answer, or KLAXON_URL is
    not set. `run`: the run you mean; another daemon's run is answered with "unknown"; "" = whatever the daemon watches.
    """
    try:
        return ask.verdict(str(run), max(0.0, float(timeout)))
    except Exception as error:
        return ask.unknown(str(run), f"{type(error).__name__}: {error}")


def announce_weights(version: str | int, path: str) -> bool:
    """Say that `path` holds the complete weights of `version` (safetensors). False when nothing was queued."""
    try:
        return _put({"kind": "weights", "version": str(version), "path": os.path.abspath(path), "at": time.time()})
    except Exception as error:
        _log.warning("klaxon tap: version %r was not announced (%s: %s)", version, type(error).__name__, error)
        return False


def publish_weights(model: Any, version: str | int, every: int = 1, folder: str | None = None, keep: int = 3,
                    config: str | None = None) -> bool:
    """Write the trainer's weights as <folder>/<version>, in the background, and announce them. True when a write began.

    Blocks for the device → CPU copy only (it needs CPU memory for one copy of the weights); never raises. A call while
    the write before still goes on is skipped and counted. Call it on every rank of a data-parallel run or on rank 0 alone:
    rank 0 writes.

    Args:
        model: a torch module (DDP, compiled and DeepSpeed wrappers are looked through), or a full state dict.
        version: the label the engine will report for these weights.
        every: write each N-th call only; the others return at once.
        folder: where versions lie; default KLAXON_WEIGHTS_DIR.
        keep: newest versions left on disk; only folders written by this function are ever deleted.
        config: folder to copy config.json and the tokenizer from; needed with a state dict.
    """
    global _publisher
    try:
        if not settings.KillSwitch().on():
            return False
        if _publisher is None:
            _publisher = Publisher(announce_weights)
        return _publisher.publish(model, version, every=every, folder=folder, keep=keep, config=config)
    except Exception as error:
        _log.warning("klaxon tap: version %r was not published (%s: %s)", version, type(error).__name__, error)
        return False


def _about(name: str) -> dict[str, Any]:
    """What the trainer's heartbeat adds: its name, and what became of the weights it published."""
    return {"engine": name} | ({"weights": dict(_publisher.counts)} if _publisher is not None else {})


def _put(message: dict[str, Any]) -> bool:
    global _sender, _kill
    if _sender is None:
        url = settings.url()
        if url is None:
            return False
        name = settings.engine()
        _kill = settings.KillSwitch()
        _sender = Sender(url, token=settings.token(), source="trainer", about=lambda: _about(name))
    return _kill is not None and _kill.on() and _sender.put(message)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        return False


def _plain(values: Any) -> Any:
    """A flat list of numbers; non-finite ones become None, which JSON can carry."""
    if values is None:
        return None
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return [None if isinstance(one, float) and not math.isfinite(one) else one for one in listed]

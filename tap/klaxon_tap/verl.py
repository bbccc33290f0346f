"""verl's RayPPOTrainer tells Klaxon what it thinks: one line before `trainer.fit()`.

    import klaxon_tap.verl
    klaxon_tap.verl.watch(trainer)

Each step: the trainer's own logprobs of every response (`old_log_probs`), the actor's metrics, and each checkpoint that holds Hugging Face weights
(`actor.checkpoint.save_contents` with `hf_model`). Version N = the weights after N steps: what `checkpoint_manager.update_weights(N)` sent. Written
against verl 0.9.1; in bypass mode `old_log_probs` are the engine's own, so nothing is pushed. Nothing here holds training up or raises.
"""

from __future__ import annotations

import os
from typing import Any

import klaxon_tap
from klaxon_tap.padded import mean_of, push_rows, quietly


def watch(trainer: Any) -> None:
    """Push what each `_update_actor` is given and gives; announce what `_save_checkpoint` wrote."""
    update, save = trainer._update_actor, trainer._save_checkpoint

    def update_and_push(batch: Any) -> Any:
        rows = batch.batch
        if not _same(rows, "old_log_probs", "rollout_log_probs"):
            push_rows(rows, tokens="responses", mask="response_mask", prompt="prompts", prompt_mask="attention_mask", logprobs="old_log_probs",
                      version=trainer.global_steps - 1, traffic="train")
        output = update(batch)
        quietly(lambda: klaxon_tap.push(trainer.global_steps, {name: mean_of(value) for name, value in output.meta_info["metrics"].items()}))
        return output

    def save_and_announce(*given: Any, **named: Any) -> Any:
        done = save(*given, **named)
        quietly(lambda: _announce(trainer))
        return done

    trainer._update_actor, trainer._save_checkpoint = update_and_push, save_and_announce


def _announce(trainer: Any) -> None:
    folder = os.path.join(trainer.config.trainer.default_local_dir, f"global_step_{trainer.global_steps}", "actor", "huggingface")
    if any(name.endswith(".safetensors") for name in os.listdir(folder)):
        klaxon_tap.announce_weights(trainer.global_steps, folder)


def _same(rows: Any, one: str, other: str) -> bool:
    """Are both there, and the very same tensor (bypass mode)?"""
    keys = rows.keys()
    return one in keys and other in keys and rows[one] is rows[other]

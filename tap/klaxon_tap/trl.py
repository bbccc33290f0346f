"""TRL's GRPOTrainer tells Klaxon what it thinks: one line before `trainer.train()`.

    import klaxon_tap.trl
    klaxon_tap.trl.watch(trainer)

Each step: the metrics TRL logs, the trainer's own logprobs of every completion (where TRL recomputes them: with vLLM it does), and, with
KLAXON_WEIGHTS_DIR set, the weights. Version N = the weights after N steps, as `state.global_step` counts. Tried with TRL 1.16. Only rank 0's share of
a batch is pushed from rank 0, every other rank pushes its own. Nothing here holds training up or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import klaxon_tap
from klaxon_tap.padded import push_rows


class KlaxonCallback:
    """A transformers callback: metrics as they are logged, weights after each step. Events it does not know pass by."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Push what was logged."""
        if getattr(state, "is_world_process_zero", True):
            klaxon_tap.push(state.global_step, logs or {})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Publish the weights of this step, where a folder for them is known."""
        if model is not None and klaxon_tap.settings.weights_dir():
            klaxon_tap.publish_weights(model, state.global_step)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_"):
            return lambda *_, **__: None
        raise AttributeError(name)


def watch(trainer: Any) -> None:
    """Add the callback, and push the logprobs of each batch the trainer generates and scores."""
    trainer.add_callback(KlaxonCallback())
    generate = trainer._generate_and_score_completions

    def generate_and_push(inputs: Any) -> Any:
        output = generate(inputs)
        push_rows(output, tokens="completion_ids", mask="completion_mask", prompt="prompt_ids", prompt_mask="prompt_mask",
                  logprobs="old_per_token_logps", version=trainer.state.global_step, traffic="train" if trainer.model.training else "eval")
        return output

    trainer._generate_and_score_completions = generate_and_push

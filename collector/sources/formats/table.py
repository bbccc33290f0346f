"""docs/sources.md: the registry as a table, so that the page cannot say what the code does not."""

from __future__ import annotations

from collector.sources.formats import FORMATS, KNOWABLE

HEAD = """# Rollouts from files

Klaxon reads the files that trainers write anyway. `klaxon look|score|diagnose PATH` take a file or a folder of any format
below; it is recognised by its content, `--format NAME` forces one, `--format help` lists them. The daemon tails them live:

    [sources]
    files = ["runs/exp/streams/actor/0/0/0.jsonl", {path = "out/token_exports", format = "prime-rl"}]

A folder that holds several formats is read as the first of the table below; name the format of a live one, since what it
will hold later cannot be recognised now. A table may also say `tokenizer`, `allow_pickle` and `version_at_start`. Line formats are tailed line by line (rotation and
truncation are noticed and counted), step files are read once their writer is done. What a framework does not write stays
unknown and is never guessed; a bad record costs only itself and is named. Repeated rollouts (same request id, same tokens)
are dropped and counted.

This page is generated: `python -m collector.sources.formats > docs/sources.md`.
"""

TAIL = """
A dot means the format writes the field; an empty cell is unknown to Klaxon, whatever the run knows. Steps are labels, not
weight versions: the step that trained on a rollout is not the version that generated it. PipelineRL writes the version at
the start of a request; `version_at_start = true` believes it for the whole request (right only when weights are never
updated in flight).

PipelineRL's streams in Redis are read live with `files = [{path = "redis://HOST:6379/actor/0/0"}]` (`klaxon-rl[sources]`): XREAD
takes nothing from the trainer, and of the pickled records only plain data is built.

**What is trained on.** Where a format writes the trainer's loss mask (`loss mask` above) or says that a rollout was dropped, Klaxon
judges three populations apart: `served` (everything sampled), `trained` (tokens the trainer learns from) and `dropped` (rollouts it
threw away). NeMo-RL: `token_loss_mask`, and a `sample_loss_mask` of 0 is dropped. prime-rl: `loss_mask` without the tokens of
`is_masked`. slime: `loss_mask`, `remove_sample` is dropped, a sample in train_data is not. SkyRL: `loss_mask`. PipelineRL's actor
stream and open-instruct's traces come before the trainer's own filters: unknown. verl writes no token dump; its `response_mask` comes
by `klaxon_tap.push_logprobs(loss_mask=…)` or `[sources] trainer_files`.

**Bad and odd input** costs only itself, is counted, and is shown by `klaxon status` and the dashboard:

| what | what happens | count |
|---|---|---|
| a line that is no JSON, of an unknown schema, with a missing or wrong field, other lengths, logprobs above 0 | refused by file, line and field | `refused_<reason>`; metrics: `metrics_refused` |
| token ids beyond the model's vocabulary | not scored (known only with weights) | `left_out_tokens_token_out_of_range` |
| a rollout or a metrics row that came before | dropped | `file_duplicates`, `pushed_duplicates`, `metrics_repeated` |
| finished (logged) over a minute in the future | kept; filed under now | `file_clock_skew`, `pushed_clock_skew`, `metrics_clock_skew` |
| earlier than the one before | kept; after its batch has closed it counts in the open one | `…_out_of_order`, `late` |
| a file rotated, truncated or written anew | read to its end, then on from the new start | `…_tail_rotated`, `…_tail_truncated` |
| a trainer's line about no known rollout, of another length, or said twice | waits, then dropped; refused; dropped | `trainer_unmatched`, `trainer_refused`, `trainer_repeated` |
| weights half-written, vanished, come back different | not believed; forgotten; replaced | `status.weights.pending` and `.counts` |
| generations behind the proxy without ids or logprobs | passed on, not reported | `unusable_<reason>` |

Formats without engine logprobs hold nothing to compare. Turn on the tap (docs/tap.md) or put a proxy in front of the
engine that records token ids and logprobs. Pickles can run code when read: SkyRL's are refused unless `--allow-pickle` is
given, and then only tensors and arrays are built.
"""


def render() -> str:
    """The page."""
    columns = ["format", "what", *KNOWABLE]
    lines = [HEAD, f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for one in FORMATS.values():
        dots = ["•" if name in one.knows else "" for name in KNOWABLE]
        lines.append(f"| `{one.name}` | {one.about} | {' | '.join(dots)} |")
    lines += ["", "| format | where it is | turn it on with | needs |", "|---|---|---|---|"]
    lines += [f"| `{one.name}` | {one.where} | {one.turn_on} | {f'`{one.needs}`' if one.needs else ''} |" for one in FORMATS.values()]
    return "\n".join(lines) + "\n" + TAIL

"""head_precision: does the engine compute its output head in bfloat16 where the trainer's is float32, or the other way round?

Two tests. The lattice (lattice.py) sees a bfloat16 head in the reported top logprobs whatever the body's precision; it is a verdict only against a
head dtype the trainer DECLARED ([shadow] head_dtype, --head-dtype), else evidence. And where the body is precise enough, the shadow with a
bfloat16 head predicts the engine's numbers and competes like any explanation; under a bfloat16 body it cannot win, since two roundings add up.
Cost: nothing, and one pass while nothing cheaper explains the tokens and no lattice speaks against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collector.records import Rollout
from diagnosis.bench import Bench, Variant
from diagnosis.lattice import CLEAR_SHARE, Lattice, lattice_test
from diagnosis.prediction import Prediction

NO_LATTICE_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFact:
    """What the lattice says against the trainer's head. `sure`: declared, and plainly contradicted."""

    engine: str
    trainer: str
    sure: bool
    text: str


def head_precision(bench: Bench) -> Prediction | None:
    """The bfloat16 head's logprobs; None where the trainer has one too, or the engine plainly has none."""
    from collector.shadow.quantised import BF16_HEAD

    head, lattice = _head(bench), _lattice(bench.sheet.rollouts)
    if head != "float32" or (lattice is not None and lattice.report_temperature is None):
        return None
    scorer = bench.quantised_scorer(BF16_HEAD)
    if scorer is None:
        return None
    rollouts = dict(enumerate(bench.sheet.rollouts))
    values_N = bench.under(Variant(cause="head_precision", parameters={"head": "bfloat16"}, rollouts=rollouts, scorer=scorer), keep=False)
    return None if values_N is None else Prediction(cause="head_precision", values_N=values_N, parameters={"engine_head": "bfloat16"})


def head_fact(bench: Bench) -> HeadFact | None:
    """A head of another precision than the trainer's; None without top logprobs, or when the two agree."""
    lattice, head = _lattice(bench.sheet.rollouts), _head(bench)
    if lattice is None:
        return None
    declared = "head_dtype" in getattr(getattr(bench.scorer, "config", None), "model_fields_set", ())
    said = f"trainer's head: {head}{'' if declared else ', not declared ([shadow] head_dtype)'}"
    if lattice.report_temperature is not None and head == "float32":
        text = (f"{lattice.differences:,} differences of reported top logprobs lie on a bfloat16 lattice (at least {CLEAR_SHARE:.0%} of them): the engine's head "
                f"is bfloat16; {said}")
        return HeadFact(engine="bfloat16", trainer=head, sure=declared, text=text)
    share = max(lattice.share_at_one, lattice.share_at_declared or 0.0)
    if head == "bfloat16" and share <= NO_LATTICE_SHARE:
        text = f"{share:.0%} of {lattice.differences:,} differences of reported top logprobs lie on a bfloat16 lattice: the engine's head is no bfloat16 one; {said}"
        return HeadFact(engine="float32", trainer=head, sure=False, text=text)
    return None


def _head(bench: Bench) -> str:
    return str(getattr(getattr(bench.scorer, "config", None), "head_dtype", "float32"))


def _lattice(rollouts: Sequence[Rollout]) -> Lattice | None:
    """The test over the rollouts of the most frequent declared temperature."""
    declared = [rollout.sampling.temperature for rollout in rollouts]
    usual = max(set(declared), key=declared.count)
    return lattice_test([rollout for rollout in rollouts if rollout.sampling.temperature == usual], temperature=usual)

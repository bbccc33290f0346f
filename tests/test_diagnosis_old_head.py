"""An update that leaves the output head behind, alone and beside older weights; the engine here is a model with two versions' tensors in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_engines import ROLLOUTS, generate, prompts, rollout, scorer_of, write_dense, write_update
from transformers import LlamaForCausalLM

from collector.records import Diagnosis
from collector.shadow.siblings import with_head_of
from diagnosis.compete import diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.prompts import Marks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Versions 1, 2 and 3."""
    first = write_dense(tmp_path_factory.mktemp("first"))
    second = write_update(first, tmp_path_factory.mktemp("second"), size=0.05)
    return first, second, write_update(second, tmp_path_factory.mktemp("third"), size=0.05)


def engine(body: Path, head: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(body).eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(LlamaForCausalLM.from_pretrained(head).lm_head.weight)
    return model


def judged(folders: tuple[Path, ...], model: LlamaForCausalLM, *, label: str, rollouts: int = ROLLOUTS) -> Diagnosis:
    made = [rollout(f"r{i}", ids_P, generate(model, ids_P, seed=i), version=label) for i, ids_P in enumerate(prompts(rollouts))]
    versions = [str(i) for i in range(1, len(folders) + 1)]
    return diagnose(made, scorer_of(*folders, versions_held=1), versions=versions, config=DiagnosisConfig(), marks=Marks(), deep=False)


def test_a_head_that_stayed_behind_is_named_for_sure(folders: tuple[Path, ...]) -> None:
    found = judged(folders[:2], engine(folders[1], folders[0]), label="2")
    assert (found.verdict, found.confident, dict(found.causes[0].parameters)) == ("stale_weights", True, {"head": "1", "weights": "output head"})
    assert found.causes[0].residual_nats < 1e-4 < next(one.residual_nats for one in found.causes if one.cause == "healthy") / 100


def test_the_head_of_the_version_before_is_told_from_the_first_one(folders: tuple[Path, ...]) -> None:
    found = judged(folders, engine(folders[2], folders[1]), label="3")
    assert (found.verdict, found.confident, found.causes[0].parameters["head"]) == ("stale_weights", True, "2")


def test_an_older_body_under_the_first_head_is_both(folders: tuple[Path, ...]) -> None:
    found = judged(folders, engine(folders[1], folders[0]), label="3")
    first = found.causes[0]
    assert (found.verdict, found.confident) == ("stale_weights", True)
    assert (first.parameters["version"], first.parameters["head"], first.parameters["with"]) == ("2", "1", "stale_weights")
    assert first.residual_nats < 1e-4


@pytest.mark.parametrize(("body", "head", "verdict"), [(1, 1, "healthy"), (0, 0, "stale_weights")])
def test_whole_versions_are_not_taken_apart(folders: tuple[Path, ...], body: int, head: int, verdict: str) -> None:
    found = judged(folders[:2], engine(folders[body], folders[head]), label="2")
    assert (found.verdict, found.confident) == (verdict, True) and "head" not in found.causes[0].parameters


def test_the_copied_head_outlives_its_evicted_model(folders: tuple[Path, ...]) -> None:
    """A shelf of one model refills it in place: version 2's body must not bring version 2's head along."""
    scorer, model = scorer_of(*folders[:2], versions_held=1), engine(folders[1], folders[0])
    one = rollout("r", prompts(1)[0], generate(model, prompts(1)[0], seed=5), version="2")
    headed = with_head_of(scorer, "1", instead_of="2")
    assert headed is not None and with_head_of(scorer, "2", instead_of="2") is None
    score = headed.score([one])[0]
    assert abs(score.views["expected"] - one.engine_logprobs_T).max() < 1e-4
    assert abs(scorer.score([one])[0].views["expected"] - one.engine_logprobs_T).max() > 1e-2


def test_heads_that_are_the_same_in_every_version_explain_nothing(folders: tuple[Path, ...], tmp_path: Path) -> None:
    """The body moves and the head is frozen, as in the demo; the engine is off in a way nothing here explains."""
    frozen, broken = (LlamaForCausalLM.from_pretrained(folders[1]).eval() for _ in range(2))
    with torch.no_grad():
        frozen.lm_head.weight.copy_(LlamaForCausalLM.from_pretrained(folders[0]).lm_head.weight)
        broken.load_state_dict(frozen.state_dict())
        broken.model.layers[0].self_attn.o_proj.weight.mul_(1.1)
    frozen.save_pretrained(tmp_path / "2")
    found = judged((folders[0], tmp_path / "2"), broken, label="2")
    assert not any("head" in one.parameters for one in found.causes)

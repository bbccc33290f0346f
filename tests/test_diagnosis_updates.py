"""An update in the middle of rollouts labelled with one version, generated token by token with two sets of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_engines import ROLLOUTS, TOKENS, generate, prompts, rollout, scorer_of, write_dense, write_update
from transformers import LlamaForCausalLM

from collector.records import Diagnosis, Rollout
from diagnosis.compete import diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.prompts import Marks

CUTS = [4 + (7 * i) % (TOKENS - 8) for i in range(ROLLOUTS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    first = write_dense(tmp_path_factory.mktemp("first"))
    return first, write_update(first, tmp_path_factory.mktemp("second"), size=0.05)


def updated(folders: tuple[Path, Path], *, keep: bool, label: str | None, cuts: list[int] = CUTS) -> list[Rollout]:
    """Rollouts whose weights change from "1" to "2" at their cut; `label` None = the spans are declared."""
    first, second = (LlamaForCausalLM.from_pretrained(folder).eval() for folder in folders)
    found = []
    for i, (ids_P, cut) in enumerate(zip(prompts(len(cuts)), cuts, strict=True)):
        made = generate(first, ids_P, seed=i, then=second, cut=cut, keep=keep)
        spans = [] if label else [(0, cut, "1"), (cut, TOKENS, "2")]
        found.append(rollout(f"r{i}", ids_P, made, spans=spans, version=label or ""))
    return found


def judged(folders: tuple[Path, Path], rollouts: list[Rollout], *, kv: str, deep: bool = False) -> Diagnosis:
    return diagnose(rollouts, scorer_of(*folders, kv_on_update=kv), versions=["1", "2"], config=DiagnosisConfig(), marks=Marks(), deep=deep)


BOTH = pytest.mark.parametrize(("label", "tokens", "version"), [("2", "before the change", "1"), ("1", "after the change", "2")])


@BOTH
def test_an_update_within_rollouts_of_one_label_is_named_for_sure(folders: tuple[Path, Path], label: str, tokens: str, version: str) -> None:
    found = judged(folders, updated(folders, keep=False, label=label), kv="reset")
    assert (found.verdict, found.confident) == ("policy_lag", True)
    said = found.causes[0].parameters
    assert (said["tokens"], said["version"]) == (tokens, version) and said["rollouts"] >= ROLLOUTS - 3
    residual = {cause.cause: cause.residual_nats for cause in found.causes}
    assert residual["policy_lag"] < 0.002 < residual["healthy"] / 10


@BOTH
def test_an_update_on_kept_kv_is_named(folders: tuple[Path, Path], label: str, tokens: str, version: str) -> None:
    """A change placed one token off leaves errors in all later ones: named, sure only where every one was placed."""
    found = judged(folders, updated(folders, keep=True, label=label), kv="keep")
    said, residual = found.causes[0].parameters, {cause.cause: cause.residual_nats for cause in found.causes}
    assert found.verdict == "policy_lag" and (said["tokens"], said["version"]) == (tokens, version)
    assert residual["policy_lag"] < residual["healthy"] / 4


@pytest.mark.parametrize("kv", ["reset", "keep"])
def test_declared_spans_are_healthy(folders: tuple[Path, Path], kv: str) -> None:
    found = judged(folders, updated(folders, keep=kv == "keep", label=None), kv=kv)
    assert (found.verdict, found.confident) == ("healthy", True)


@pytest.mark.parametrize(("cut", "label", "verdict"), [(TOKENS, "1", "healthy"), (0, "2", "healthy"), (TOKENS, "2", "stale_weights")])
def test_weights_that_do_not_change_within_are_no_lag(folders: tuple[Path, Path], cut: int, label: str, verdict: str) -> None:
    found = judged(folders, updated(folders, keep=False, label=label, cuts=[cut] * ROLLOUTS), kv="reset")
    assert (found.verdict, found.confident) == (verdict, True)


def test_the_search_for_parts_does_not_take_an_update_for_a_position(folders: tuple[Path, Path]) -> None:
    found = judged(folders, updated(folders, keep=False, label="1", cuts=[20] * ROLLOUTS), kv="reset", deep=True)
    assert (found.verdict, found.confident) == ("policy_lag", True)


def test_weights_many_versions_old_are_found_by_a_few_rollouts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Twelve versions; the engine still has the fifth while the labels say the twelfth. Four may be tried on every rollout."""
    paths = [folders[0]]
    for i in range(11):
        (tmp_path / str(i)).mkdir()
        paths.append(write_update(paths[-1], tmp_path / str(i), size=0.01 * (1 + i % 3), seed=i))
    model = LlamaForCausalLM.from_pretrained(paths[4]).eval()
    made = [rollout(f"r{i}", ids_P, generate(model, ids_P, seed=i), version="12") for i, ids_P in enumerate(prompts(ROLLOUTS))]
    found = diagnose(made, scorer_of(*paths), versions=[str(i) for i in range(1, 13)], config=DiagnosisConfig(max_versions=4), marks=Marks(), deep=False)
    assert (found.verdict, found.confident, found.causes[0].parameters["version"]) == ("stale_weights", True, "5")

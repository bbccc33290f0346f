"""Faults with a place: prompt edits, positions, stray rollouts and their donors, on arrays made for the purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from collector.records import Rollout, Score, WeightSpan
from diagnosis.bench import Bench
from diagnosis.compete import capped, diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.donors import find_donors
from diagnosis.parts import find_part, find_swapped
from diagnosis.prompts import Marks, edits
from diagnosis.breaks import find_break, find_strays
from diagnosis.sheet import Sheet

FLOOR = 0.002
CHATML = Marks(bos=1, openers=frozenset({1}), system_role=(9690,), default_system=(1, 9690, 7, 2))


def made(engine: np.ndarray, *, name: str, prompt: Sequence[int] = (1, 5)) -> Rollout:
    n = engine.size
    return Rollout(request_id=name, prompt_tokens_P=np.asarray(prompt, dtype=np.int32), completion_tokens_T=np.full(n, 5, dtype=np.int32),
                   engine_logprobs_T=engine.astype(np.float32), sampled_mask_T=np.ones(n, dtype=bool),
                   weight_versions=(WeightSpan(start=0, end=n, version="1"),))


def sheet_of(rows: Sequence[np.ndarray], expected: Sequence[np.ndarray], prompts: Sequence[int]) -> tuple[Sheet, np.ndarray]:
    rollouts = [made(row, name=f"r{i}", prompt=[1] * length) for i, (row, length) in enumerate(zip(rows, prompts, strict=True))]
    sheet = Sheet.of(rollouts, [Score(request_id=r.request_id, views={"expected": r.engine_logprobs_T}) for r in rollouts])
    return sheet, sheet.flat(expected)


def off_from(start: int, *, seed: int, lengths: Sequence[int], by_index: bool = False, size: float = 0.1) -> tuple[Sheet, np.ndarray]:
    """32 tokens a rollout; noise of the floor, and `size` more from a position (or an index) on."""
    rng = np.random.default_rng(seed)
    expected = [rng.normal(-1.0, 0.4, 32) for _ in lengths]
    rows = []
    for row, length in zip(expected, lengths, strict=True):
        place = np.arange(32) + (0 if by_index else length)
        rows.append(row + rng.normal(0, 0.001, 32) + np.where(place >= start, rng.normal(0, size, 32), 0))
    return sheet_of(rows, expected, lengths)


MIXED = tuple(20 + 3 * (i % 7) for i in range(20))


def test_a_break_in_position_is_found_at_its_place_and_told_from_an_index() -> None:
    sheet, expected_N = off_from(48, seed=1, lengths=MIXED)
    found = find_break(sheet, expected_N, floor_nats=FLOOR, limit=2 * FLOOR, z=2.6)
    assert found is not None and found.stable and abs(found.position - 48) <= 2 and found.by_position_z > 2.6
    assert "block edge 48" in found.text


@pytest.mark.parametrize(("lengths", "by_index"), [((30,) * 20, False), (MIXED, True)])
def test_one_prompt_length_or_a_break_by_index_is_never_a_sure_position(lengths: tuple[int, ...], by_index: bool) -> None:
    sheet, expected_N = off_from(16 if by_index else 48, seed=2, lengths=lengths, by_index=by_index)
    found = find_break(sheet, expected_N, floor_nats=FLOOR, limit=2 * FLOOR, z=2.6)
    assert found is None or found.by_position_z <= 2.6


def test_noise_that_is_everywhere_and_no_noise_have_no_break_and_no_strays() -> None:
    for size in (0.0, 0.1):
        for seed in range(20):
            sheet, expected_N = off_from(0, seed=seed, lengths=MIXED, size=size)
            assert find_break(sheet, expected_N, floor_nats=FLOOR, limit=2 * FLOOR, z=2.6) is None
            assert find_strays(sheet, expected_N, floor_nats=FLOOR, limit=2 * FLOOR) is None


def test_edits_add_and_take_what_templates_add_and_take() -> None:
    prompt = np.array([1, 9690, 3, 2, 1, 40, 4, 2, 1, 50, 9])
    found = {name: ids.tolist() for name, ids in edits(prompt, CHATML).items()}
    assert found == {
        "BOS doubled": [1, *prompt], "BOS missing": prompt[1:].tolist(), "system prompt dropped": [1, 40, 4, 2, 1, 50, 9],
        "generation prompt dropped": [1, 9690, 3, 2, 1, 40, 4, 2]}
    bare = {name: ids.tolist() for name, ids in edits(prompt[4:], CHATML).items()}
    assert bare["default system prompt added"] == [1, 9690, 7, 2, 1, 40, 4, 2, 1, 50, 9] and "system prompt dropped" not in bare


def test_a_model_without_marks_has_no_edits_and_another_bos_is_added_not_doubled() -> None:
    assert edits(np.array([5, 6]), Marks()) == {}
    assert {name: ids.tolist() for name, ids in edits(np.array([5, 6]), Marks(bos=1)).items()} == {"BOS added": [1, 5, 6]}


class TwoVersions:
    """Version 2 is labelled; `older` is what version 1 predicts of a rollout, by its name."""

    def __init__(self, labelled: Mapping[str, np.ndarray], older: Mapping[str, np.ndarray]) -> None:
        self.labelled, self.older = labelled, older

    def score(self, rollouts: Sequence[Rollout], *, views: Mapping[str, Any], version: str | None = None,
              prefix_version: str | None = None) -> list[Score]:
        said = self.older if version or prefix_version else self.labelled
        return [Score(request_id=r.request_id, views=dict.fromkeys(views, said[r.request_id].astype(np.float32))) for r in rollouts]


@pytest.mark.parametrize(("explained", "truth"), [(0.0, "position_dependent"), (0.4, "stale_weights")])
def test_older_weights_that_help_at_all_go_before_a_position(explained: float, truth: str) -> None:
    """Both have a break at position 48; in the second case a part of it is what older weights predict, far from the floor yet."""
    sheet, expected_N = off_from(48, seed=1, lengths=MIXED)
    rng = np.random.default_rng(3)
    names = [rollout.request_id for rollout in sheet.rollouts]
    labelled = {name: expected_N[sheet.rollout_N == i] for i, name in enumerate(names)}
    engine = {name: sheet.engine_N[sheet.rollout_N == i] for i, name in enumerate(names)}
    older = {name: labelled[name] + explained * (engine[name] - labelled[name]) + rng.normal(0, 0.02 * (explained == 0), 32) for name in names}
    spans = (WeightSpan(start=0, end=32, version="2"),)
    rollouts = [replace(rollout, weight_versions=spans) for rollout in sheet.rollouts]
    found = diagnose(rollouts, TwoVersions(labelled, older), versions=["1", "2"], config=DiagnosisConfig(), floor=lambda _: FLOOR, marks=Marks())
    assert found.verdict == truth and found.confident == (truth == "position_dependent")


class ByPrompt:
    """A scorer whose logprobs depend on the prompt's second token and the index alone."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, rollouts: Sequence[Rollout], *, views: Mapping[str, Any], version: str | None = None,
              prefix_version: str | None = None) -> list[Score]:
        self.calls += len(rollouts)
        return [Score(request_id=r.request_id, views=dict.fromkeys(views, predicted(int(r.prompt_tokens_P[1]), r.n_tokens))) for r in rollouts]


def predicted(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(-1.5, 0.6, count).astype(np.float32)


def bench_of(swapped: Mapping[int, int], *, count: int = 20) -> tuple[Bench, ByPrompt]:
    """Rollout i has prompt i; its tokens were computed with prompt swapped[i] where that is said."""
    rollouts = [made(predicted(swapped.get(i, i), 30), name=f"r{i}", prompt=(1, i)) for i in range(count)]
    scorer = ByPrompt()
    return Bench(rollouts, scorer, versions=["1"], config=DiagnosisConfig()), scorer


def test_the_donor_of_a_stray_rollout_is_named() -> None:
    bench, _ = bench_of({4: 9, 13: 2})
    part = find_part(bench, FLOOR)
    assert part is not None and part.cause == "corrupted_requests" and not part.doubts
    assert part.parameters == {"requests": ["r4", "r13"], "donors": {"r4": "r9", "r13": "r2"}}


def test_a_stray_rollout_nobody_explains_is_named_but_never_sure() -> None:
    bench, _ = bench_of({4: 900})
    part = find_part(bench, FLOOR)
    assert part is not None and part.parameters["requests"] == ["r4"] and part.parameters["donors"] == {}
    assert any("no other rollout's prompt" in text for text in part.doubts)


def test_answers_that_all_belong_to_another_request_are_told_by_a_few_of_them() -> None:
    bench, scorer = bench_of({i: (i + 1) % 20 for i in range(20)})
    before = scorer.calls
    part = find_swapped(bench, FLOOR)
    assert part is not None and part.cause == "corrupted_requests" and not part.doubts and part.residual_nats < 2 * FLOOR
    assert part.parameters["donors"] == {f"r{i}": f"r{(i + 1) % 20}" for i in (0, 3, 6, 9, 12, 15)} and scorer.calls - before <= 48
    partly, _ = bench_of({i: (i + 1) % 20 if i % 2 else 900 + i for i in range(20)})
    doubtful = find_swapped(partly, FLOOR)
    assert doubtful is not None and doubtful.doubts and len(doubtful.parameters["donors"]) == 3
    assert find_swapped(bench_of({i: 900 + i for i in range(20)})[0], FLOOR) is None


def test_donors_are_sought_within_a_limit() -> None:
    bench, scorer = bench_of({i: 900 + i for i in range(12)}, count=60)
    before = scorer.calls
    assert find_donors(bench, range(12), limit=2 * FLOOR) == []
    assert scorer.calls - before <= 48


def test_when_half_of_the_rollouts_are_off_they_are_no_strays() -> None:
    bench, _ = bench_of({i: 900 + i for i in range(10)})
    assert find_part(bench, FLOOR) is None


def test_of_many_tokens_evenly_spread_rollouts_are_judged_and_the_verdict_says_so() -> None:
    rollouts = [made(predicted(i, 30), name=f"r{i}", prompt=(1, i)) for i in range(100)]
    config = DiagnosisConfig(max_tokens=600)
    found = diagnose(rollouts, ByPrompt(), versions=["1"], config=config, floor=lambda _: FLOOR, marks=Marks())
    assert (found.verdict, found.tokens) == ("healthy", 600)
    assert "judged on 20 of 100 rollouts, evenly spread: max_tokens = 600" in found.causes[0].evidence
    assert len(capped(rollouts, DiagnosisConfig(max_tokens=100))) == 12, "a confident verdict's rollouts stay"
    assert [one.request_id for one in capped(rollouts, config)][:3] == ["r0", "r5", "r10"]

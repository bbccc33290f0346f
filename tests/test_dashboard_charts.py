"""Every chart of every page: an explanation on hover, a title on both axes, its numbers as CSV. A chart without fails here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from alerts_served import Served
from collector import signals
from collector.records import BatchStats, Rollout, Score, WeightSpan
from collector.store import Store
from dashboard_served import BATCHES, BATCH_SECONDS, faulty_run, forget
from test_dashboard_states import APP, PATIENCE_SECONDS

NAMES = sorted(path.stem for path in (APP.parent / "pages").glob("*.py"))
AT_LEAST = {"now": 6, "incident": 5, "slices": 8, "training": 5, "klaxon": 2}
COMPARISON = {"a": ["runs/v0"], "b": ["runs/v1"], "alpha": 0.05, "verdict": "Different in reward.", "notes": [], "metrics": [
    {"metric": "reward", "answer": "different", "words": "different: the second is lower", "difference": -0.3, "low": -0.4, "high": -0.2, "margin": 0.1, "effect": -2.0, "steps": 90,
     "ratio": None, "times_more": None},
    {"metric": "kl", "answer": "cannot tell", "words": "cannot tell", "difference": None, "low": None, "high": None, "margin": None, "effect": None, "steps": 90, "ratio": None,
     "times_more": None}]}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("charts")
    with faulty_run(folder) as served:
        daemon, now = served.daemon, time.time()
        for step in range(20):
            daemon.store.append_metrics(step, now - BATCH_SECONDS * (20 - step), {"reward": 0.1 * step, "entropy": 1.0, "actor/pg_clipfrac": 0.02, "grad_norm": 0.3})
        labelled_batch(daemon.store, now)
        (folder / "state" / "compare.json").write_text(json.dumps(COMPARISON), encoding="utf-8")
        yield served


def labelled_batch(store: Store, at: float) -> None:
    """One more batch whose rollouts are kept, with environment and turn, from a prefix cache, of versions that lag."""
    rng, pairs = np.random.default_rng(3), []
    for number in range(8):
        trainer = rng.uniform(-3, -0.1, 40).astype(np.float32)
        rollout = Rollout(
            request_id=f"l{number}", engine=f"http://e{number % 2}:8000", prompt_tokens_P=np.arange(5, dtype=np.int32), completion_tokens_T=np.zeros(40, np.int32),
            engine_logprobs_T=np.minimum(trainer + rng.normal(0, 0.01, 40), 0).astype(np.float32), sampled_mask_T=np.ones(40, bool), cached_prompt_tokens=number % 2,
            weight_versions=(WeightSpan(start=0, end=40, version=str(3 + number % 2)),), finished_at=at, labels={"env": f"env{number % 3}", "turn": str(number % 3)})
        pairs.append((rollout, Score(request_id=rollout.request_id, views={"expected": trainer})))
    store.append_batch(BatchStats(t=BATCHES, opened_at=at - BATCH_SECONDS, closed_at=at, slices=signals.merge([item for pair in pairs for item in signals.slice_stats(*pair)]),
                                  counts={"seen": 8, "tokens_seen": 320, "tokens_seen@http://e0:8000": 160, "tokens_seen@http://e1:8000": 320}), [], ln_m=60.0, ln_a=9.98)
    store.append_rollouts(BATCHES, pairs)


@pytest.fixture(scope="module")
def shown(faulty) -> dict[str, AppTest]:
    """Every page of the run, opened once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KLAXON_API", faulty.url)
        forget()
        return {name: opened(name) for name in NAMES}


def opened(name: str) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=PATIENCE_SECONDS)
    app.run()
    if name != "now":
        app.switch_page(f"pages/{name}.py").run()
    assert not app.exception
    return app


def charts_of(block: Any, boxes: tuple[Any, ...] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every chart below a block, with the blocks around it, the nearest last."""
    found = []
    for child in block.children.values():
        if hasattr(child, "children"):
            found += charts_of(child, (*boxes, child))
        elif child.type == "vega_lite_chart":
            found.append((child, boxes))
    return found


def test_the_pages_of_a_run_with_a_fault_draw_their_charts(shown):
    for name, least in AT_LEAST.items():
        assert len(charts_of(shown[name].main)) >= least, name


@pytest.mark.parametrize("name", NAMES)
def test_every_chart_names_what_stands_on_its_axes(name, shown):
    for chart, _ in charts_of(shown[name].main):
        for channel, title in axes(json.loads(chart.proto.spec)):
            assert title, f"{name}: the {channel} axis of {chart.proto.id or chart.proto.spec[:80]} has no title"


@pytest.mark.parametrize("name", NAMES)
def test_every_chart_is_explained_on_hover_in_full_sentences_and_gives_its_numbers(name, shown):
    for chart, boxes in charts_of(shown[name].main):
        box = next((box for box in reversed(boxes) if framed(box)), None)
        assert box is not None, f"{name}: a chart stands in no frame: {chart.proto.spec[:120]}"
        inside = elements(box)
        helps = [one.proto.help for one in inside if one.type == "markdown" and one.value.startswith("**") and one.proto.help]
        assert helps and re.search(r"[.!?]$", helps[0]) and len(helps[0]) > 30, f"{name}: {inside[0].value} is not explained"
        assert any(one.type == "download_button" and one.proto.label == "CSV" for one in inside), f"{name}: {inside[0].value} has no CSV"


@pytest.mark.parametrize("name", NAMES)
def test_every_chart_says_to_those_who_cannot_see_it_what_it_shows(name, shown):
    assert all(len(chart.proto.alt) > 15 for chart, _ in charts_of(shown[name].main))


def axes(spec: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(channel, title) of every x and y that draws an axis; a value of the pixel has none."""
    for layer in (spec, *spec.get("layer", ())):
        for channel in ("x", "y"):
            drawn = layer.get("encoding", {}).get(channel)
            if drawn and "value" not in drawn:
                yield channel, drawn.get("title")


def framed(block: Any) -> bool:
    container = getattr(block.proto, "flex_container", None)
    return bool(container is not None and container.border)


def elements(block: Any) -> list[Any]:
    return [one for child in block.children.values() for one in (elements(child) if hasattr(child, "children") else [child])]

"""One weight update of the engine, to the previous version and back, as an RL loop does it. Only with --allow-update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from collector.errors import KlaxonError, Unavailable
from collector.records import Rollout
from diagnosis.engine_told import DEV_MODE
from diagnosis.preflight import Row
from diagnosis.preflight_update import label_row, reset_row, weights_row
from diagnosis.sheet import Sheet

if TYPE_CHECKING:
    from klaxon.commands.shadow_setup import Setup
    from klaxon.preflight.run import Options

SECONDS = 600.0
LABEL = "klaxon-preflight"


class Updater:
    """The weight-update routes of one vLLM (dev mode)."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def label(self) -> str | None:
        """The weight label; None where the engine does not tell it, because dev mode is off or it does not answer."""
        try:
            with httpx.Client(base_url=self.url, timeout=30.0, trust_env=False) as client:
                answer = client.get("/weight_info")
                return str(answer.json()["weight_version"]) if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return None

    def load(self, folder: Path, label: str) -> None:
        """Pause, reload from `folder` (as the engine sees it), reset the prefix cache, set the label, resume.

        Raises:
            Unavailable: a step was refused or not answered; the engine was asked to resume all the same.
        """
        with httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False) as client:
            _post(client, "/pause", params={"mode": "wait", "clear_cache": "true"})
            try:
                _post(client, "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}})
                _post(client, "/reset_prefix_cache")
                _post(client, "/update_weight_version", json={"new_version": label})
            finally:
                _post(client, "/resume")


def update_rows(options: Options, setup: Setup, sample: Callable[[str], list[Rollout]], *, limit_nats: float, say: Callable[[str], None]) -> list[Row]:
    """Switch to --previous, sample, switch back, sample; whatever happens, the engine is put back.

    Args:
        sample: sends the prompts that are in the prefix cache now, and returns what came back; its argument goes into the ids.
    """
    engine, previous = Updater(options.engine), options.previous
    label = engine.label()
    if label is None or previous is None:
        return [Row(name="update", state="unknown", seen="not tried: /weight_info does not answer, so dev mode is off", do=DEV_MODE)]
    say(f"update: switching the engine to {previous}")
    try:
        engine.load(previous, LABEL)
        rows = [label_row(set_to=LABEL, told=engine.label())]
        under = sample(".previous")
    except KlaxonError as error:
        rows, under = [Row(name="update", state="failed", seen=str(error))], []
    finally:
        say(f"update: switching back to {options.model}")
        _back(engine, options, label)
    back = sample(".back")
    say("update: scoring both")
    if under:
        rows += [reset_row([one for one in under if one.labels.get("group") == "fixed"]), _judged("update: weights", options, setup, under, True, limit_nats)]
    told = engine.label()
    return [*rows, label_row(set_to=label, told=told), _judged("update: back", options, setup, back, False, limit_nats)]


def _back(engine: Updater, options: Options, label: str) -> None:
    try:
        engine.load(options.model, label)
    except KlaxonError as error:
        raise Unavailable(f"THE ENGINE MAY STILL SERVE {options.previous}: switching it back to {options.model} failed ({error}); load {options.model} "
                          "into it, or restart it") from None


def _judged(name: str, options: Options, setup: Setup, rollouts: Sequence[Rollout], on_previous: bool, limit_nats: float) -> Row:
    from collector.shadow.views import expected

    if not rollouts:
        return Row(name=name, state="failed", seen="no probe was answered after the update")
    previous, model = setup.versions[-2:]  # weights.opened puts --previous right before --model
    under = {version: setup.scorer.score(rollouts, views={"expected": expected}, version=version) for version in (model, previous)}
    sheet = Sheet.of(rollouts, under[model])
    if not sheet.tokens:
        return Row(name=name, state="unknown", seen="no token can be compared")
    kept = {id(one) for one in sheet.rollouts}
    model_N, previous_N = (sheet.flat([score.views["expected"] for one, score in zip(rollouts, scores, strict=True) if id(one) in kept])
                           for scores in under.values())
    return weights_row(name, sheet, model_N, previous_N, on_previous=on_previous, limit_nats=limit_nats, config=options.diagnosis)


def _post(client: httpx.Client, path: str, **how: Any) -> None:
    try:
        answer = client.post(path, **how)
    except httpx.HTTPError as error:
        raise Unavailable(f"{path} was not answered ({type(error).__name__})") from None
    if answer.status_code != 200:
        raise Unavailable(f"{path} answered {answer.status_code}: {answer.text[:200]}")

"""A file of rollouts behind the read API: judged as `klaxon look` judges it, its batches stored as a daemon stores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from collector import populations
from collector.errors import InputError
from collector.records import Rollout
from collector.store import Store
from detectors.config import DetectorsConfig
from diagnosis.file_report import Judged, ordered, run_bank
from diagnosis.look import look
from klaxon.commands.look_text import HEADLINES
from klaxon.filing import SEEN
from klaxon.spine_config import DaemonConfig

UNTIMED_SECONDS = 1.0  # of a batch of rollouts without finish times
TONES = {"mismatch": "bad", "nothing_wrong_found": "good", "untested": "warn"}
UNTIMED = "Not every rollout of the file has a finish time: they are drawn in the order of the file, a batch a second from 1970 on."


class FileRun:
    """What the API asks of a live daemon, of a file: its report as a status, and no incidents."""

    def __init__(self, path: str, rollouts: Sequence[Rollout], *, refused: Sequence[InputError], notes: Sequence[str], store: Store) -> None:
        """Judge the rollouts and put their batches into `store`."""
        self._store, self._config, self._end, self._scored, self._last = store, DetectorsConfig(), 0.0, 0, (0, 0.0)
        self._timed = all(rollout.finished_at is not None for rollout in rollouts)
        rollouts = ordered(rollouts)
        self.report = look(rollouts, config=self._config, batch_seconds=DaemonConfig().batch_seconds)
        run_bank(rollouts, config=self._config, batch_seconds=DaemonConfig().batch_seconds, each=self._keep)
        self._status = self._as_status(path, refused, notes)

    def status(self) -> dict[str, Any]:
        """The report of the file, in a daemon's words."""
        return self._status

    def incidents(self) -> list[dict[str, Any]]:
        """Nobody watched, so there is none."""
        return []

    def _keep(self, judged: Judged) -> None:
        opened, closed = self._times(judged)
        pairs = [(rollout, populations.primary(rollout, None) if rollout.trainer_logprobs_T is not None else None) for rollout in judged.rollouts]
        seen = Counter({f"{SEEN}{replica}": 0 for replica in {rollout.replica for rollout in judged.rollouts}})
        for rollout in judged.rollouts:
            seen[f"{SEEN}{rollout.replica}"] += int(rollout.sampled_mask_T.sum())
        batch = replace(judged.batch, opened_at=opened, closed_at=closed, counts={**judged.batch.counts, "tokens_seen": seen.total(), **seen})
        self._store.append_batch(batch, list(judged.evidence), ln_m=judged.ln_m, ln_a=self._ln_a())
        self._store.append_rollouts(batch.t, [(rollout, score) for rollout, score in pairs if score is not None])
        self._scored += sum(score is not None for _, score in pairs)
        self._last = batch.t, judged.ln_m

    def _times(self, judged: Judged) -> tuple[float, float]:
        """When the batch began and ended, UTC seconds; without finish times, seconds from 1970 on."""
        times = [rollout.finished_at for rollout in judged.rollouts if rollout.finished_at is not None] if self._timed else []
        begun = self._end or (times[0] if times else 0.0)
        self._end = max(max(times), begun + 1e-3) if times else (judged.batch.t + 1) * UNTIMED_SECONDS
        return begun, self._end

    def _ln_a(self) -> float:
        return self.report.bank.ln_a

    def _as_status(self, path: str, refused: Sequence[InputError], notes: Sequence[str]) -> dict[str, Any]:
        report, last_t = self.report, self._last[0]
        _, _, meaning = HEADLINES[report.verdict]
        looks = f" It looks like {report.looks_like}." if report.looks_like else ""
        signals = report.signals
        return {
            "run": PurePath(path).name or "standard input", "tier": report.tier, "now": self._end, "started_at": self._end, "heartbeat_at": self._end, "verdict": report.verdict,
            "headline": HEADLINES[report.verdict][0].capitalize(), "tone": TONES[report.verdict], "verdict_text": f"{meaning[:1].upper()}{meaning[1:]}.{looks} Next: {report.next}",
            "findings": [{"state": one.state, "topic": one.topic, "text": one.text, "details": list(one.details)} for one in report.findings if one.state != "blind"],
            "blind_spots": [one.text for one in report.findings if one.state == "blind"], "notices": [*([] if self._timed else [UNTIMED]), *notes],
            "promise_text": f"A healthy file of this length alarms with probability at most {report.bank.false_alarm_chance:.2g}, over all tests together.",
            "ln_m": self._last[1], "ln_a": report.bank.ln_a, "t": last_t, "batch_seconds": self._end / max(last_t + 1, 1) if not self._timed else self._length() / max(last_t + 1, 1),
            "learning": False, "honesty": {}, "budget": self._config.false_alarms, "floor_nats": None, "taps": [], "engine": {}, "weights": {}, "receivers": [], "storage": {},
            "scorer": {"state": "off", "coverage": signals.get("n_tokens", 0) / report.tokens if report.tokens else None},
            "counts": {"seen": report.rollouts, "scored": self._scored, "tokens_seen": report.tokens, "refused": len(refused)}, "refusals": [str(error) for error in refused[:5]]}

    def _length(self) -> float:
        [(first, last)] = self._store.query("SELECT min(opened_at), max(closed_at) FROM batches")
        return float(last - first)

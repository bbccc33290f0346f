"""Chores on APScheduler: heartbeat, heartbeat webhook, engine probe, weights, checkpoint, retention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.schedulers.background import BackgroundScheduler

Chore = tuple[str, Callable[[], object], float]  # name, what, every … seconds


def schedule(chores: list[Chore], counts: Counter[str]) -> BackgroundScheduler:
    """A scheduler with one job a chore, not started; errors and missed runs are counted under `chore_*`."""
    scheduler = BackgroundScheduler(timezone="UTC")
    for name, what, seconds in chores:
        scheduler.add_job(what, "interval", seconds=seconds, id=name, max_instances=1, coalesce=True,
                          misfire_grace_time=max(1, int(seconds)))

    def count(event: JobEvent) -> None:
        counts[{EVENT_JOB_ERROR: "chore_errors", EVENT_JOB_MISSED: "chore_missed"}.get(event.code, "chore_busy")] += 1

    scheduler.add_listener(count, EVENT_JOB_ERROR | EVENT_JOB_MAX_INSTANCES | EVENT_JOB_MISSED)
    return scheduler

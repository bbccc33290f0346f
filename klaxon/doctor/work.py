"""What becomes of the rollouts: trainer, weights, scorer, detectors, store, alerts, exporters. Judged from /v1/health and /v1/status; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from klaxon.doctor.link import Link, ago, some, span

STUCK_SECONDS = 60.0
FRESH_SECONDS = 120.0
DAY = 86_400.0


def trainer(health: Mapping[str, Any], status: Mapping[str, Any]) -> Link:
    """Its metrics, and its own logprobs."""
    seen, now, files = health["trainer"], health["now"], health["sources"]["trainer_files"]
    if lost := [file for file in files if file["why"] or not file["here"]]:
        return Link(name="trainer", state="warn", next=f"ls -l {some(lost[0]['path'])}",
                    text=f"sources.trainer_files: {some(lost[0]['why'] or lost[0]['path'] + ' is not there (yet)')}: nothing is compared with the trainer")
    if seen["failing"]:
        name, times = max(seen["failing"].items(), key=lambda one: one[1])
        return Link(name="trainer", state="warn", counts={"failed_polls": times}, next="klaxon check",
                    text=f"metrics source {some(name)} failed {times} times; last metrics {ago(now, seen['latest_at'])}")
    if seen["latest_at"] is not None:
        return Link(name="trainer", state="ok", text=f"metrics of step {some(seen['latest_step'])}, {ago(now, seen['latest_at'])}", since=seen["latest_at"])
    if seen["sources"]:
        return Link(name="trainer", state="warn", text=f"no row has come from {some(', '.join(seen['sources']))} yet", next="klaxon check")
    joined = status["counts"].get("trainer_joined", 0)
    return Link(name="trainer", state="ok" if files or joined else "off", counts={"joined": joined} if joined else {},
                text=f"its logprobs were joined to {joined} rollouts" if files or joined else "pushes no metrics, and no [metrics] source is configured")


def weights(health: Mapping[str, Any], status: Mapping[str, Any]) -> Link:
    """Do the versions arrive that the engine generates with."""
    seen, told, now = health["weights"], status["weights"], health["now"]
    pending = some(told["pending"][0]) if told.get("pending") else ""
    if not seen["dir"] and not told.get("versions_seen"):
        text = f"announced version {some(seen['announced'])} is not believed: {pending}" if pending else "no folder is followed and no version was announced"
        return Link(name="weights", state="broken" if pending else "off", text=text)
    tip = f"ls -ld {some(seen['dir'])} && ls -t {some(seen['dir'])} | head -3" if seen["dir"] else "klaxon status"
    if seen["why"]:
        return Link(name="weights", state="broken", text=some(seen["why"]), next=f"ls -ld {some(seen['dir'])}")
    if not told.get("versions_seen"):
        why = pending or ("the folder is not there" if not seen["here"] else "the folder holds none")
        return Link(name="weights", state="broken", text=f"no complete version in {some(seen['dir'])}: {why}", next=tip)
    engine, newest = told.get("engine_version"), told.get("trainer_version")
    figures = {"versions": told["versions_seen"]}
    if engine is not None and told.get("lag") is None:
        return Link(name="weights", state="broken", counts=figures, since=seen["newest_at"], next=tip,
                    text=f"the engine generates with version {some(engine)}, which was never seen here; the newest here is {some(newest)}, published {ago(now, seen['newest_at'])}: "
                         "a stale folder, or another run's")
    if pending:
        return Link(name="weights", state="warn", counts=figures, next=tip, text=f"newest {some(newest)}; not believed: {pending}")
    return Link(name="weights", state="ok", counts=figures, since=seen["newest_at"],
                text=f"newest {some(newest)}, published {ago(now, seen['newest_at'])}; the engine is {told.get('lag') or 0} behind")


def scorer(health: Mapping[str, Any], status: Mapping[str, Any]) -> Link:
    """Is what arrived compared."""
    work, now, counts = health["worker"], health["now"], status["counts"]
    figures = {name: counts[name] for name in ("scored", "unscored", "scorer_errors", "worker_errors") if counts.get(name)}
    if not health["threads"].get("klaxon-worker", True):
        return Link(name="scorer", state="broken", since=work["round_at"], counts=figures, next="klaxon run   # restart the daemon: it takes up the run where it stopped",
                    text=f"the thread that files and scores rollouts has ended; its last round was {ago(now, work['round_at'])}{_trouble(work, now)}")
    if work["trouble"] and now - work["trouble"]["at"] < FRESH_SECONDS:
        return Link(name="scorer", state="broken", since=work["trouble"]["at"], counts=figures, next="klaxon check   # memory, device, weights; the daemon's log has the details",
                    text=f"rollouts could not be scored{_trouble(work, now)}")
    waited = now - (work["oldest_unscored_at"] or now)
    if waited > work["scorer_behind_seconds"]:
        return Link(name="scorer", state="broken", since=work["oldest_unscored_at"], counts=figures, next="klaxon plan   # what this device can score",
                    text=f"rollouts have waited {span(waited)} for a score: it hangs, or is too slow for what arrives")
    if status["scorer"]["state"] == "off":
        if health["shadow"]["wanted"] and health["shadow"]["why_not"]:
            return Link(name="scorer", state="broken", text=some(health["shadow"]["why_not"]), next="klaxon check")
        return Link(name="scorer", state="off", counts=figures,
                    text=f"tier {status['tier']}: no weights are scored; {counts.get('scored', 0)} rollouts compared with the trainer's own logprobs")
    share = status["scorer"].get("coverage")
    return Link(name="scorer", state="ok", counts=figures, since=work["last_scored_at"],
                text=f"on {some(status['scorer'].get('device'))}, last score {ago(now, work['last_scored_at'])}{'' if share is None else f', {share:.0%} of the tokens'}")


def _trouble(work: Mapping[str, Any], now: float) -> str:
    return f" ({some(work['trouble']['text'])}, {ago(now, work['trouble']['at'])})" if work["trouble"] else ""


def detectors(health: Mapping[str, Any], status: Mapping[str, Any]) -> Link:
    """Are batches closed and judged."""
    seen, now, started = health["watch"], health["now"], health["started_at"]
    if not health["threads"].get("klaxon-watch", True) or now - seen["ticked_at"] > STUCK_SECONDS:
        return Link(name="detectors", state="broken", since=seen["ticked_at"], next="klaxon run   # restart the daemon: it takes up the run where it stopped",
                    counts={name: status["counts"][name] for name in ("tick_errors",) if status["counts"].get(name)},
                    text=f"no round for {span(now - seen['ticked_at'])}: no batch is closed, no alarm can come")
    due = seen["batch_seconds"] + seen["watermark_seconds"]
    if seen["last_batch_at"] is None:
        return Link(name="detectors", state="wait" if now - started < 2 * due else "broken", since=started,
                    text=f"the first batch closes {due:.0f} s after the start, {ago(now, started)}")
    return Link(name="detectors", state="ok", since=seen["last_batch_at"], text=f"batch {status['t']} judged, verdict {some(status['verdict'])}")


def store(health: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Link]:
    """Is it written down, and how long does the disk last."""
    seen, now = health["store"], health["now"]
    errors = {"store_errors": status["counts"]["store_errors"]} if status["counts"].get("store_errors") else {}
    place = some(seen["path"])
    if seen["refusing_since"] is not None:
        free = "" if seen["free_bytes"] is None else f", {size(seen['free_bytes'])} are free"
        yield Link(name="store", state="broken", since=seen["refusing_since"], counts=errors, next=f"df -h {place.rpartition('/')[0]}; touch {place.rpartition('/')[0]}/probe",
                   text=f"{place} has refused every write for {span(now - seen['refusing_since'])}{free}: a full disk, or a file system that turned read-only; batches wait in memory")
    elif seen["free_bytes"] is not None and seen["free_bytes"] < seen["bound_bytes"]:
        yield Link(name="store", state="warn", next=f"df -h {place.rpartition('/')[0]}; lower the *_ttl_days of [store], or set max_gb",
                   text=f"{size(seen['free_bytes'])} are free where {place} lies, the bound is {size(seen['bound_bytes'])}")
    for notice in seen["notices"][:1]:
        yield Link(name="store", state="warn", text=some(notice), next="klaxon backup RUN_DIR -o before.tar.gz")
    yield Link(name="store", state="ok", counts=errors, text=f"{place}: {use(seen, now)}")


def use(seen: Mapping[str, Any], now: float) -> str:
    """Size, growth and how long the disk lasts, in words. Growth is the file's size over the time its batches span."""
    said = f"{size(seen['bytes'])}, {seen['batches']} batches"
    days = (now - seen["first_at"]) / DAY if seen["first_at"] else 0.0
    if days > 0.5:
        daily = seen["bytes"] / days
        said += f", grows by {size(daily)} a day"
        if seen["free_bytes"] and daily:
            said += f", {size(seen['free_bytes'])} free: {span(seen['free_bytes'] / daily * DAY)}"
    elif seen["free_bytes"] is not None:
        said += f", {size(seen['free_bytes'])} free"
    return said + (f"; limit {size(seen['max_bytes'])}" if seen["max_bytes"] else "")


def alerts(status: Mapping[str, Any], now: float) -> Iterator[Link]:
    """Would anybody hear of it."""
    receivers = status.get("receivers") or []
    for one in receivers:
        name = some(one["receiver"], 60)
        if one.get("dead"):
            yield Link(name="alerts", state="warn", counts={"dead": one["dead"]}, next="klaxon alerts unsent",
                       text=f"{name} refused {one['dead']} messages for good (dead letters)")
        if one.get("breaker") != "closed" or one.get("failures"):
            yield Link(name="alerts", state="broken", counts={"waiting": one.get("waiting", 0), "failures": one.get("failures", 0)}, since=one.get("oldest_at"),
                       next=f"klaxon alerts test {name}",
                       text=f"{name} failed {one.get('failures', 0)} times in a row, {one.get('waiting', 0)} messages wait, the oldest since {ago(now, one.get('oldest_at'))}")
    if not receivers:
        yield Link(name="alerts", state="off", text="no receiver in [alerts]: an alarm is seen on the page and in `klaxon status` alone")
    yield Link(name="alerts", state="ok", text=f"{len(receivers)} receivers, {status.get('alerts_delivered', 0)} messages delivered")


def exports(status: Mapping[str, Any]) -> Iterator[Link]:
    """W&B, TensorBoard and the like, where configured."""
    for one in status.get("exports") or []:
        name, figures = some(one.get("exporter"), 60), {key: one[key] for key in ("written", "failed", "queued") if one.get(key)}
        if one.get("state") in ("failing", "complaining"):
            yield Link(name="exporters", state="warn", since=one.get("failing_since"), counts=figures, next="klaxon check",
                       text=f"{name} does not take what it is given: {some(one.get('last_error'))}")
        else:
            yield Link(name="exporters", state="ok", counts=figures, text=f"{name}: {some(one.get('state'))}")


def size(count: float) -> str:
    """Bytes in words.

    >>> size(512), size(3.2e9)
    ('512 B', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit in ("B", "KiB", "MiB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.0f}"

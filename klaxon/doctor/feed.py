"""Do rollouts reach the daemon: engine, tap or files, clocks, inbox. Judged from /v1/health and /v1/status; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from klaxon.doctor.link import Link, ago, some, span

SKEW_SECONDS = 5.0
QUIET_SECONDS, BEAT_SECONDS = 60.0, 5.0
VERSIONS = ("version", "vllm_version")
TOKEN_TIP = "in the engine's environment: export KLAXON_TOKEN=…   # the daemon's, or KLAXON_TOKEN_FILE"
TAP_TIP = "in the engine's environment: echo $KLAXON_URL $KLAXON_TAP $KLAXON_KILL_FILE; pip show klaxon-tap"
FORCE_TIP = "start the engine with KLAXON_FORCE_LOGPROBS=1, or let the trainer's client ask for logprobs"


def patience(health: Mapping[str, Any]) -> float:
    """How long nothing may come before it counts as a fault, seconds: a minute, less where batches are short."""
    return min(QUIET_SECONDS, BEAT_SECONDS + 3 * float(health["watch"]["batch_seconds"]))


def engine(health: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Iterator[Link]:
    """Does it answer, and is it the one it was."""
    seen, now = health["engine"], health["now"]
    url = some(seen["url"])
    if not seen["probed"]:
        yield Link(name="engine", state="off", text="engine.url is empty: the engine is known from its tap alone")
    elif seen["reachable_since"] is None:
        if seen["reachable_at"] is None and seen["trouble"] is None:
            yield Link(name="engine", state="wait", text=f"{url} has not been asked yet")
        else:
            why = f" ({some(seen['trouble'])})" if seen["trouble"] else ""
            yield Link(name="engine", state="broken", text=f"{url} does not answer{why}; last answer {ago(now, seen['reachable_at'])}",
                       since=seen["reachable_at"], next=f"curl -i {url}/health")
    else:
        yield Link(name="engine", state="ok", text=f"{url} answers", since=seen["reachable_since"])
    yield from _changed(health, events)


def _changed(health: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Iterator[Link]:
    """Another vLLM than before under the running daemon, until somebody declares what is normal now."""
    rows = sorted((row for row in events if isinstance(row.get("at"), (int, float))), key=lambda row: row["at"])
    declared = max((row["at"] for row in rows if row.get("kind") == "rebaseline"), default=0.0)
    moved = [row for row in rows if row.get("kind") == "engine_config" and row["at"] > max(declared, health["started_at"])
             and (row.get("data") or {}).get("key") in VERSIONS]
    if moved:
        before, after = some(moved[0]["data"].get("before")), some(moved[-1]["data"].get("after"))
        yield Link(name="engine", state="warn", since=moved[0]["at"], next=f'klaxon rebaseline "vLLM {after}"',
                   text=f"vLLM went from {before} to {after} under this daemon: what it learnt as normal is the old engine's, and klaxon-tap "
                        "must be installed in the new environment too")


def tap(health: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Link]:
    """Where rollouts come from: taps that are heard and send, files that are there and read."""
    sources, now = health["sources"], health["now"]
    for file in sources["files"]:
        if file["why"]:
            yield Link(name="tap", state="broken", text=f"sources.files: {some(file['why'])}", next=f"ls -ld {some(file['path'])}")
        elif not file["here"]:
            yield Link(name="tap", state="broken", text=f"sources.files: {some(file['path'])} is not there (yet)", next=f"ls -l {some(file['path'])}")
    if not sources["tap"] and not sources["files"]:
        yield Link(name="tap", state="broken", text="no source: sources.tap is false and sources.files is empty", next="klaxon init")
        return
    told = [one for one in health["taps"] if one["source"] != "trainer"]
    if sources["tap"] and not told and (not sources["files"] or health["unauthorised"]):
        yield _unheard(health, status)
        return
    yield from _shared(told)
    yield from _heard(health, told, status["counts"])
    yield _flow(health, status["counts"], told, now)


def _unheard(health: Mapping[str, Any], status: Mapping[str, Any]) -> Link:
    """No heartbeat ever came: refused for its token, or never sent."""
    refused, now, started = health["unauthorised"], health["now"], health["started_at"]
    if refused is not None:
        said = "a wrong token" if refused["token"] else "no token"
        return Link(name="tap", state="broken", since=refused["at"], next=TOKEN_TIP, counts={"unauthorised": status["counts"].get("unauthorised", 0)},
                    text=f"somebody at {some(refused['sender'])} posts with {said} and is refused (last {ago(now, refused['at'])}): the tap must carry the daemon's token")
    waiting = now - started < patience(health)
    return Link(name="tap", state="wait" if waiting else "broken", since=started, next=TAP_TIP,
                text=f"no tap has connected since the daemon started {ago(now, started)}: klaxon-tap is not installed beside the engine, KLAXON_URL is not set or names "
                     f"another address than {some(health['socket'])} or this API, or KLAXON_TAP=off")


def _heard(health: Mapping[str, Any], told: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> Iterator[Link]:
    now = health["now"]
    alive = [one for one in told if one["alive"]]
    if told and not alive:
        newest = max(told, key=lambda one: one["last_seen"])
        yield Link(name="tap", state="broken", since=newest["last_seen"], next=TAP_TIP,
                   text=f"the tap of {some(newest['engine'])} was last heard {ago(now, newest['last_seen'])}: its engine stopped, it was switched off "
                        "(KLAXON_KILL_FILE), or the way here is cut")
    if (refused := health["unauthorised"]) is not None and now - refused["at"] < QUIET_SECONDS:
        yield Link(name="tap", state="warn", since=refused["at"], next=TOKEN_TIP, counts={"unauthorised": counts.get("unauthorised", 0)},
                   text=f"somebody at {some(refused['sender'])} posts with a wrong or no token and is refused: one of the engines is not seen")
    if dropped := sum(int(one["dropped"] or 0) for one in told):
        why = next((f"; its last trouble: {some(one['last_error'])}" for one in told if one.get("last_error")), "")
        yield Link(name="tap", state="warn", counts={"dropped": dropped}, next="klaxon status",
                   text=f"taps dropped {dropped} rollouts inside the engine, because the daemon was away or did not take them in time{why}")


def _shared(told: Sequence[Mapping[str, Any]]) -> Iterator[Link]:
    """Two engines that go by one name, or a tap and a proxy before one engine."""
    hosts: dict[str, set[str]] = {}
    kinds: dict[str, set[str]] = {}
    for one in told:
        if one["alive"]:
            hosts.setdefault(one["engine"], set()).update({str(one["host"])} if one.get("host") else set())
            kinds.setdefault(str(one["engine"]).partition("#")[0].rstrip("/"), set()).add("proxy" if "proxy" in one["source"] else "tap")
    for name, found in hosts.items():
        if len(found) > 1:
            yield Link(name="tap", state="warn", counts={"hosts": len(found)}, next="in each engine's environment: export KLAXON_ENGINE=<a name of its own>",
                       text=f"{len(found)} machines report as one engine {some(name)} ({some(', '.join(sorted(found)))}): their faults cannot be told apart")
    for name, found in kinds.items():
        if len(found) > 1:
            yield Link(name="tap", state="warn", next="stop `klaxon proxy`, or start the engine with KLAXON_TAP=off",
                       text=f"a tap and a proxy both report {some(name)}: every rollout counts twice")


def _flow(health: Mapping[str, Any], counts: Mapping[str, int], told: Sequence[Mapping[str, Any]], now: float) -> Link:
    """Do rollouts come."""
    last, started = health["last_rollout_at"], health["started_at"]
    names = ", ".join(dict.fromkeys(f"{some(one['source'], 20)} {some(one['engine'], 80)}" for one in told if one["alive"]))
    names = names or ", ".join(some(file["path"], 80) for file in health["sources"]["files"])
    figures = {name: counts[name] for name in ("seen", "refused", "without_logprobs", "aborted") if counts.get(name)}
    if last is not None and now - last <= max(patience(health), 3 * health["watch"]["batch_seconds"]):
        return Link(name="tap", state="ok", text=f"{names}: last rollout {ago(now, last)}", since=last, counts=figures)
    if counts.get("without_logprobs"):
        return Link(name="tap", state="broken", counts=figures, next=FORCE_TIP, since=last or started,
                    text=f"{names} is heard, but {counts['without_logprobs']} requests asked for no logprobs: there is nothing to compare")
    if counts.get("refused"):
        return Link(name="tap", state="broken", counts=figures, since=last or started, next="klaxon status --json | jq .refusals",
                    text=f"{names} sends, but every line is refused; last rollout {ago(now, last)}")
    if now - started < patience(health):
        return Link(name="tap", state="wait", text=f"{names}: no rollout yet, the daemon started {ago(now, started)}", since=started)
    return Link(name="tap", state="broken", counts=figures, since=last or started, next="send one request with logprobs=1 to the engine, then: klaxon doctor",
                text=f"{names} is heard, but no rollout has come {'since the start' if last is None else 'for ' + span(now - last)}: the engine is idle, or its "
                     "finished requests do not pass the tap")


def clock(health: Mapping[str, Any], status: Mapping[str, Any]) -> Link:
    """Do taps and trainer agree with the daemon what time it is."""
    ahead = {f"{some(one['source'], 20)} {some(one['engine'], 80)}": one["at"] - one["last_seen"]
             for one in health["taps"] if one["alive"] and isinstance(one.get("at"), (int, float))}
    off = {name: seconds for name, seconds in ahead.items() if abs(seconds) > SKEW_SECONDS}
    tip = "timedatectl status   # there and here; chrony or systemd-timesyncd must run on both"
    future = sum(count for name, count in status["counts"].items() if name.endswith("clock_skew"))
    if off:
        said = ", ".join(f"{name} {abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}" for name, seconds in off.items())
        return Link(name="clock", state="warn", counts={"from_the_future": future}, next=tip, text=f"{said} of this daemon: their rollouts fall into the wrong batches")
    if future:
        return Link(name="clock", state="warn", counts={"from_the_future": future}, next=tip,
                    text=f"{future} rollouts or metrics came from the future (over a minute): a clock is or was wrong")
    return Link(name="clock", state="ok" if ahead else "unknown", text="within 5 s of this machine's" if ahead else "no clock but ours is seen")


def inbox(health: Mapping[str, Any], status: Mapping[str, Any]) -> Link:
    """Is there room for what arrives."""
    seen, counts, now = health["inbox"], status["counts"], health["now"]
    figures = {name: counts[name] for name in ("deferred_bodies", "dropped_inbox_full") if counts.get(name)} | {"waiting": seen["waiting"], "capacity": seen["capacity"]}
    if seen["waiting"] >= 0.9 * seen["capacity"]:
        return Link(name="inbox", state="broken", counts=figures, since=seen["oldest_at"],
                    next="lower [sampler] tokens_per_minute, or give the scorer a faster device: klaxon plan",
                    text=f"full: {seen['waiting']} of {seen['capacity']} rollouts wait for the scorer, the oldest came {ago(now, seen['oldest_at'])}; taps are told to wait, then drop")
    if counts.get("deferred_bodies"):
        return Link(name="inbox", state="ok", counts=figures, text=f"{seen['waiting']} wait; it was full {counts['deferred_bodies']} times")
    return Link(name="inbox", state="ok", text=f"{seen['waiting']} of {seen['capacity']} wait", counts=figures)

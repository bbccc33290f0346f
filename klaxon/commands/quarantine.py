"""`klaxon quarantine`: the rollouts an incident taints, as a file a trainer can filter on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TextIO

import typer

from collector.errors import ConfigError, InputError
from klaxon.client import DEFAULT_URL

if TYPE_CHECKING:
    import pyarrow as pa

    from klaxon.quarantine_sources import StoredRun

SHOWN_REFUSALS = 5
CHUNK = 5000  # request ids hashed at a time


class Source(Protocol):
    """Where the answers come from: a stored run, or a running daemon."""

    def summary(self) -> dict[str, Any]: ...
    def tainted(self) -> pa.Table: ...
    def hashes(self, ids: list[str]) -> list[str]: ...


def quarantine(
    incident: Annotated[str, typer.Argument(help="Id of the incident (`klaxon status` shows it), a unique beginning of it, or last.")],
    run: Annotated[str, typer.Option(help="Folder of a run no daemon is running on ([run] dir).")] = "",
    url: Annotated[str, typer.Option(help="Address of the daemon's read API; the default without --run.")] = "",
    out: Annotated[str, typer.Option("--out", "-o", help="File for the JSON lines; - is standard output.")] = "",
    match: Annotated[str, typer.Option(help="JSONL of your own request ids (request_id or id, or bare strings): write those that are tainted.")] = "",
    json_: Annotated[bool, typer.Option("--json", help="The summary as one JSON object on standard output; the list only with -o.")] = False,
) -> None:
    """List the rollouts tainted since the incident's change began: one JSON line each, after one that says how to read them.

    \b
    Examples:
      klaxon quarantine last -o tainted.jsonl
      klaxon quarantine 7f3a --run runs/grpo-7b --match my_ids.jsonl -o drop.jsonl

    Exit codes: 0 listed, 2 no such incident, or nothing can be read.
    """
    if run and url:
        raise ConfigError("name --run (a stored run) or --url (a running daemon), not both")
    if json_ and out == "-":
        raise ConfigError("--json and -o - both want standard output: name a file with -o")
    with _stored(run, incident) if run else nullcontext(_live(url or DEFAULT_URL, incident)) as source:
        found = source.summary()
        lines = _matched(source, match, found) if match else _rows(source.tainted())
        if out or not json_:
            _write(out or "-", {"kind": "klaxon_quarantine", **found}, lines)
    if json_:
        typer.echo(json.dumps(found))
    else:
        for line in told(found):
            typer.echo(line, err=True)


def told(found: dict[str, Any]) -> Iterator[str]:
    """The summary in words."""
    first, last = found["batches"]
    yield f"{found['incident']} ({found['state']}): {found['title']}{' · ' + found['cause'] if found['cause'] else ''}"
    if found["rollouts"]:
        yield f"tainted: {found['rollouts']:,} rollouts of {found['groups']:,} groups, {found['tokens']:,} tokens, batches {first} to {last}{_times(found)}"
    else:
        yield f"no rollout since batch {first} has a row: nothing was compared, or the rows are past [store] rollouts_ttl_days"
    if found["not_named"]:
        yield f"not named: {found['not_named']:,} of {found['seen']:,} rollouts seen since then were not compared; drop them by weight version or time"
    versions = found["tainted_versions"]
    shown = ", ".join(versions[:6]) + (f", … {versions[-1]}" if len(versions) > 6 else "")
    step = f" (step {found['last_clean_step']})" if found["last_clean_step"] is not None else ""
    yield f"weight versions: {shown or 'unknown'}; last clean version {found['last_clean_version'] or 'unknown'}{step}"
    yield f"since the change: {_percent(found['token_share'])} of the run's tokens, {_percent(found['group_share'])} of its groups"
    if found["slice"]:
        place = ", ".join(f"{key} {value}" for key, value in found["slice"].items())
        yield f"the alarm names {place}: {found['in_slice']:,} of the rollouts have in_slice true"
    if "matched" in found:
        yield f"matched: {found['matched']:,} of your {found['asked']:,} request ids are tainted"
        yield from (f"refused: {reason}" for reason in found["refused"][:SHOWN_REFUSALS])
        if len(found["refused"]) > SHOWN_REFUSALS:
            yield f"refused: {len(found['refused']) - SHOWN_REFUSALS} lines more"
    if found["note"]:
        yield f"note: {found['note']}"


def _times(found: dict[str, Any]) -> str:
    if found["since"] is None:
        return ""
    since, until = (datetime.fromtimestamp(found[key], UTC).strftime("%Y-%m-%d %H:%M:%S") for key in ("since", "until"))
    return f" ({since} to {until} UTC)"


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{share:.1%}"


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches():
        yield from batch.to_pylist()


def _matched(source: Source, path: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The tainted ones of the caller's request ids, in the order of the file; asked, matched and refused go into `found`."""
    asked, refused = _read_ids(path)
    if not asked:
        raise InputError(f"no usable line ({refused[0]})" if refused else "is empty", where=path)
    by_hash = {row["request_hash"]: row for row in _rows(source.tainted())}
    lines = []
    for start in range(0, len(asked), CHUNK):
        ids = asked[start:start + CHUNK]
        lines += [{"request_id": one, **by_hash[hashed]} for one, hashed in zip(ids, source.hashes(ids), strict=True) if hashed in by_hash]
    found |= {"asked": len(asked), "matched": len(lines), "refused": refused}
    return lines


def _read_ids(path: str) -> tuple[list[str], list[str]]:
    """(request ids, why lines were refused)."""
    ids, refused = [], []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for number, text in enumerate(lines, start=1):
                if not text.strip():
                    continue
                try:
                    item = json.loads(text)
                except ValueError:
                    refused.append(f"{path}, line {number}: is not JSON")
                    continue
                named = next((item[key] for key in ("request_id", "id") if item.get(key) is not None), None) if isinstance(item, dict) else item
                if isinstance(named, str) and named:
                    ids.append(named)
                else:
                    refused.append(f"{path}, line {number}: request_id: a text is expected")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    return ids, refused


def _write(out: str, header: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
    """Whole or not at all: a trainer must not filter on half a list."""
    if out == "-":
        _print(sys.stdout, header, lines)
        return
    part = Path(f"{out}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            _print(stream, header, lines)
        part.replace(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _print(stream: TextIO, header: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
    stream.write(json.dumps(header) + "\n")
    for line in lines:
        stream.write(json.dumps(line) + "\n")


def _stored(run: str, incident: str) -> StoredRun:
    from klaxon.quarantine_sources import StoredRun

    return StoredRun(run, incident)


def _live(url: str, incident: str) -> Source:
    from klaxon.quarantine_sources import LiveRun

    return LiveRun(url, incident)

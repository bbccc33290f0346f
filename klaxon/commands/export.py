"""`klaxon export`: statistics out of a running daemon, for notebooks and scripts."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import typer

from collector.errors import ConfigError
from klaxon.client import DEFAULT_URL, get_bytes, get_json

ARROW = ("series", "slices", "evidence", "metrics", "rollouts")


class Table(StrEnum):
    """What can be exported."""

    series = "series"
    slices = "slices"
    evidence = "evidence"
    metrics = "metrics"
    rollouts = "rollouts"
    events = "events"
    incidents = "incidents"


def export(table: Annotated[Table, typer.Argument(help="series: one row a batch; rollouts: statistics a rollout, no ids, no text.")] = Table.series,
           out: Annotated[str, typer.Option("--out", "-o", help="File ending in .parquet, .csv, .arrow or .jsonl; - is JSON lines on standard output.")] = "-",
           url: Annotated[str, typer.Option(help="Address of the daemon's read API.")] = DEFAULT_URL) -> None:
    """Write a table of the running daemon to a file.

    \b
    Examples:
      klaxon export series -o series.parquet
      klaxon export rollouts --url http://node7:8765 -o rollouts.csv

    Exit codes: 0 written, 2 no daemon answers or the file cannot be written.
    """
    found = read_table(table.value, url)
    rows = write_table(found, out)
    if out != "-":
        typer.echo(f"{rows} rows of {table.value} written to {out}", err=True)


def read_table(name: str, url: str) -> pa.Table:
    """One table of the read API as Arrow."""
    if name in ARROW:
        with pa.ipc.open_stream(get_bytes(url, f"/v1/{name}")) as reader:
            return reader.read_all()
    found = get_json(url, f"/v1/{name}")
    rows = found if isinstance(found, list) else next(iter(found.values()))
    return pa.Table.from_pylist([{key: json.dumps(value) if isinstance(value, (dict, list)) else value
                                  for key, value in row.items()} for row in rows])


def write_table(found: pa.Table, out: str) -> int:
    """Write by the file's ending; returns the number of rows.

    Raises:
        ConfigError: an ending Klaxon does not write, or a file that cannot be written.
    """
    kind = ".jsonl" if out == "-" else Path(out).suffix
    try:
        if kind == ".parquet":
            pa.parquet.write_table(found, out)
        elif kind == ".csv":
            pa.csv.write_csv(found, out)
        elif kind == ".arrow":
            with pa.OSFile(out, "wb") as sink, pa.ipc.new_file(sink, found.schema) as writer:
                writer.write_table(found)
        elif kind == ".jsonl":
            _write_jsonl(found, out)
        else:
            raise ConfigError(f"{out}: the ending says the format; use .parquet, .csv, .arrow or .jsonl")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error})") from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{out}: this table does not fit {kind} ({error}); use .parquet") from None
    return found.num_rows


def _write_jsonl(found: pa.Table, out: str) -> None:
    stream = sys.stdout if out == "-" else Path(out).open("w", encoding="utf-8")
    for row in found.to_pylist():
        stream.write(json.dumps(row, default=str) + "\n")
    if out != "-":
        stream.close()

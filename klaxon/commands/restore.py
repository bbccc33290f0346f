"""`klaxon restore`: a backup into a new folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klaxon.backup import read_manifest, unpack
from klaxon.commands.backup import bar_of, told


def restore(file: Annotated[Path, typer.Argument(help="A file of `klaxon backup`.")],
            folder: Annotated[Path, typer.Argument(help="Folder to make; it must not be there, or be empty.")] = Path(),
            look: Annotated[bool, typer.Option("--look", help="Only say what the backup holds.")] = False) -> None:
    """Bring a backup back into a new folder, checked byte by byte. Nothing is ever written over.

    Then set [run] dir to the folder and start `klaxon run`, or look at it with `klaxon serve --read-only FOLDER`.

    \b
    Examples:
      klaxon restore grpo-7b.tar.gz runs/grpo-7b-restored
      klaxon restore grpo-7b.tar.gz --look

    Exit codes: 0 restored, 2 it could not be, 130 after Ctrl-C.
    """
    found = read_manifest(file)
    typer.echo(f"{file}: {told(found)}", err=True)
    if look:
        for name, about in found["files"].items():
            typer.echo(f"{about['bytes']:>14,}  {name}")
        return
    with bar_of("restoring") as bar:
        bar.update(bar.task_ids[0], total=sum(one["bytes"] for one in found["files"].values()))
        unpack(file, folder, progress=lambda done: bar.advance(bar.task_ids[0], done))
    typer.echo(f"restored into {folder}. Next: set [run] dir = \"{folder}\" in config.toml and start `klaxon run`", err=True)

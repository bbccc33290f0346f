"""The weights of a preflight: the trainer's folder, older ones, and the folder the engine says it was started from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collector.errors import KlaxonError
from diagnosis.preflight import Row

if TYPE_CHECKING:
    from klaxon.commands.shadow_setup import Setup
    from klaxon.preflight.run import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A scorer over all of them, the trainer's last, and what is known of the engine's folder."""

    setup: Setup
    row: Row


def opened(options: Options, root: str) -> Weights:
    """Check the folders and open the scorer; `root` is the folder the engine names, "" where it names none.

    Where it holds other weights than --model it becomes an older version, so that "the engine still serves these" can
    be tested like any other explanation.

    Raises as `open_scorer`.
    """
    from klaxon.commands.shadow_setup import open_scorer
    from collector.weights.checkpoint import inspect

    mine = inspect(options.model)
    older = [options.previous] if options.previous is not None else []
    row, start = _row(options.model, mine.digest, root)
    if start is not None and all(inspect(folder).digest != start.digest for folder in older):
        older.append(start.folder)
    declared = options.assumed.head_dtype is not None  # a default accuses no engine of its head
    return Weights(setup=open_scorer(options.model, older, body_dtype=options.body_dtype, head_dtype=options.head_dtype, head_declared=declared), row=row)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    folder: Path
    digest: str


def _row(model: Path, digest: str, root: str) -> tuple[Row, _Start | None]:
    """The row about the folder the engine started from, and that folder where it holds other weights."""
    from collector.weights.checkpoint import inspect

    folder = Path(root)
    if not root or not folder.is_absolute() or not folder.is_dir():
        return Row(name="weights", state="unknown", seen=f"the engine was started from {root or 'a folder it does not name'}, which cannot be read here"), None
    try:
        theirs = inspect(folder)
    except KlaxonError as error:
        return Row(name="weights", state="unknown", seen=f"the folder the engine was started from cannot be judged: {error}"), None
    if theirs.digest == digest:
        return Row(name="weights", state="passed", seen="the engine was started from the weights of --model"), None
    seen = f"the engine was started from {folder}, which holds other weights than {model}; whether it still serves them, the logprobs tell"
    return Row(name="weights", state="unknown", seen=seen), _Start(folder=folder, digest=theirs.digest)

"""Prompts the engine may have seen in place of the recorded ones: edits a chat template or tokenizer makes by mistake.

Every edit is a re-score with other prompt ids. The markers come from the model's own folder: its BOS id, the special tokens that open a chat
turn, and the system turn its template adds when there is none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OPENERS = ("<|im_start|>", "<|start_header_id|>", "<|start|>", "<|system|>", "<|user|>", "<|assistant|>", "<start_of_turn>", "<|turn>", "<|im_system|>", "<|im_user|>")
"""Special tokens that open a chat turn in the templates of common models."""

SYSTEM_OPENERS = ("<|system|>", "<|im_system|>")
MAX_GENERATION_PROMPT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Token ids by which a prompt's parts are found."""

    bos: int | None = None
    openers: frozenset[int] = frozenset()
    system_openers: frozenset[int] = frozenset()  # those that only open system turns
    system_role: tuple[int, ...] = ()  # ids of "system" after an opener
    default_system: tuple[int, ...] = ()  # the turn the template puts first where nobody wrote one; () = none

    def system_turn(self, ids_P: np.ndarray) -> tuple[int, int] | None:
        """[start, end) of a leading system turn."""
        opens = [i for i, token in enumerate(ids_P.tolist()) if token in self.openers]
        if len(opens) < 2 or opens[0] > 1:
            return None
        first = opens[0]
        named = bool(self.system_role) and tuple(ids_P[first + 1:first + 1 + len(self.system_role)].tolist()) == self.system_role
        return (first, opens[1]) if named or int(ids_P[first]) in self.system_openers else None


def edits(ids_P: np.ndarray, marks: Marks) -> dict[str, np.ndarray]:
    """Name of the edit → int32 [P'] prompt ids; only edits that change this prompt and leave something of it."""
    found: dict[str, np.ndarray] = {}
    if marks.bos is not None:
        starts = ids_P.size > 0 and int(ids_P[0]) == marks.bos
        found["BOS doubled" if starts else "BOS added"] = np.concatenate([[marks.bos], ids_P])
        if starts:
            found["BOS missing"] = ids_P[1:]
    turn = marks.system_turn(ids_P)
    if turn is not None:
        found["system prompt dropped"] = np.concatenate([ids_P[:turn[0]], ids_P[turn[1]:]])
    elif marks.default_system:
        opens = [i for i, token in enumerate(ids_P.tolist()) if token in marks.openers]
        if opens and opens[0] <= 1:
            found["default system prompt added"] = np.concatenate([ids_P[:opens[0]], marks.default_system, ids_P[opens[0]:]])
    opens = [i for i, token in enumerate(ids_P.tolist()) if token in marks.openers]
    if len(opens) > 1 and ids_P.size - opens[-1] <= MAX_GENERATION_PROMPT:
        found["generation prompt dropped"] = ids_P[:opens[-1]]
    return {name: ids.astype(np.int32) for name, ids in found.items() if ids.size}


def marks_of(folder: str | Path) -> Marks:
    """The marks of a model folder; what cannot be read is left out."""
    folder = Path(folder)
    config = _json(folder / "config.json")
    bos = (config.get("text_config") or config).get("bos_token_id")
    bos = bos[0] if isinstance(bos, list) and bos else bos
    if not (folder / "tokenizer.json").is_file():
        return Marks(bos=bos if isinstance(bos, int) else None)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises a bare Exception for a damaged file
        if type(error) is not Exception:
            raise
        return Marks(bos=bos if isinstance(bos, int) else None)
    ids = {name: tokenizer.token_to_id(name) for name in OPENERS}
    marks = Marks(
        bos=bos if isinstance(bos, int) else None, openers=frozenset(i for i in ids.values() if i is not None),
        system_openers=frozenset(i for name, i in ids.items() if i is not None and name in SYSTEM_OPENERS),
        system_role=tuple(tokenizer.encode("system", add_special_tokens=False).ids))
    return Marks(bos=marks.bos, openers=marks.openers, system_openers=marks.system_openers, system_role=marks.system_role,
                 default_system=_default_system(folder, marks))


def _default_system(folder: Path, marks: Marks) -> tuple[int, ...]:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=True, add_generation_prompt=True, return_dict=False)
    except (OSError, ValueError, KeyError, TypeError, TemplateError):
        return ()
    ids_P = np.asarray(ids, dtype=np.int32)
    turn = marks.system_turn(ids_P)
    return () if turn is None else tuple(ids_P[turn[0]:turn[1]].tolist())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

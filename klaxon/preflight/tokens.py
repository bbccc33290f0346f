"""Text to ids as the trainer does it: the tokenizer in the model folder, else the engine's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collector.errors import Unavailable
from klaxon.preflight.client import Client


class Tokens:
    """`own`: the model folder's tokenizer (transformers), None where it has none."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.own, self.why_not = _tokenizer(folder)
        self._client = client

    def ids(self, text: str, begins: bool) -> list[int]:
        """Ids of one text; a beginning gets special tokens.

        Raises:
            Unavailable: neither the folder nor the engine has a tokenizer.
        """
        if self.own is not None:
            return list(self.own(text, add_special_tokens=begins)["input_ids"])
        found = self._client.tokenize([text], special=begins)
        if found is None:
            raise Unavailable(f"{self.why_not}, and {self._client.url}/tokenize does not answer: put the tokenizer's files into the model folder")
        return found[0]

    def differing(self, texts: Sequence[str]) -> list[str] | str:
        """Texts the engine cuts otherwise than the folder's tokenizer; or in words why they cannot be compared."""
        if self.own is None:
            return self.why_not
        found = self._client.tokenize(texts)
        if found is None:
            return "the engine's /tokenize does not answer"
        return [text for text, theirs in zip(texts, found, strict=True) if theirs != self.ids(text, True)]

    def spelled(self, ids: Sequence[int]) -> list[str]:
        """The text of each token alone; "" where no tokenizer is at hand."""
        return [""] * len(ids) if self.own is None else [self.own.decode([one]) for one in ids]

    @property
    def special(self) -> frozenset[int]:
        """Ids of special tokens; empty where no tokenizer is at hand."""
        return frozenset() if self.own is None else frozenset(self.own.all_special_ids)


def _tokenizer(folder: Path) -> tuple[Any, str]:
    """(tokenizer or None, why none)."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None, f"{folder} holds no tokenizer"
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), ""
    except Exception as error:  # transformers and tokenizers raise whatever a damaged file makes them raise
        return None, f"the tokenizer of {folder} cannot be loaded ({type(error).__name__})"

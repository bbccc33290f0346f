"""From token texts back to ids, with the tokenizer's own file: only where the way back is exact and unambiguous.

A byte-level BPE token spells the same bytes wherever it stands, so bytes that exactly one token spells name that token.
Other kinds (SentencePiece) drop or add spaces by position: they are refused as a whole. A prompt is encoded with and
without the tokenizer's special tokens; it counts only if exactly one of the encodings is as long as the engine says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collector.errors import ConfigError


class TokenizerIds:
    """Ids by exact bytes, out of a folder's tokenizer.json."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ConfigError: no such file, not a byte-level tokenizer, or the library is missing."""
        path = Path(folder) / "tokenizer.json"
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError("--tokenizer needs the library `tokenizers`: pip install 'klaxon-rl[scorer]'") from None
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_str(json.dumps(config))
        except OSError as error:
            raise ConfigError(f"--tokenizer: {path} cannot be read ({error.strerror}); name the model's folder") from None
        except Exception as error:  # the library raises bare Exceptions for a file it does not understand
            raise ConfigError(f"--tokenizer: {path} is no tokenizer file ({error})") from None
        if not _byte_level(config.get("decoder")):
            raise ConfigError(f"--tokenizer: {path} is not a byte-level tokenizer; its token texts depend on where they "
                              "stand and cannot be mapped back to ids exactly")
        self._by_bytes = self._spelled()

    def of_token(self, raw: bytes) -> int | None:
        """The one id that spells these bytes; None when there is none or more than one."""
        return self._by_bytes.get(raw)

    def of_prompt(self, text: str, count: int) -> list[int] | None:
        """The one encoding of `text` that has `count` tokens; None when there is none or more than one."""
        encodings = {tuple(self._tokenizer.encode(text, add_special_tokens=special).ids) for special in (True, False)}
        fitting = [list(found) for found in encodings if len(found) == count]
        return fitting[0] if len(fitting) == 1 else None

    def _spelled(self) -> dict[bytes, int | None]:
        """Bytes → id; None where several ids spell the same."""
        alphabet = _alphabet()
        added = self._tokenizer.get_added_tokens_decoder()
        found: dict[bytes, int | None] = {}
        for text, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id in added:
                raw = added[token_id].content.encode()
            elif all(letter in alphabet for letter in text):
                raw = bytes(alphabet[letter] for letter in text)
            else:
                continue
            found[raw] = None if raw in found else token_id
        return found


def _byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        return any(_byte_level(each) for each in decoder.get("decoders") or [])
    return decoder.get("type") == "ByteLevel"


def _alphabet() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte, inverted: printable bytes stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}

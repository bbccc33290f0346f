"""Token ids as the text they stand for, by the tokenizer of a model's folder (tokenizer.json)."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)
HELD = 2  # tokenizers in memory
FILE = "tokenizer.json"


class TokenTexts:
    """Reads tokenizers as they are needed. One thread at a time. `failures`: folders without a usable one, and why;
    `counts`: unreadable (tries that failed), broken (ids in an order that no text encodes to)."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int], Tokenizer] = OrderedDict()
        self.failures: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    def read(self, ids: np.ndarray, folder: str) -> list[str] | None:
        """A text for each id [N]; None where the folder has no usable tokenizer. A character of several tokens stands at its last one,
        "" at those before; an id the tokenizer does not know is ""."""
        tokenizer = self._tokenizer(folder)
        return None if tokenizer is None else self._streamed(tokenizer, [int(one) for one in ids])

    def _tokenizer(self, folder: str) -> Tokenizer | None:
        path = Path(folder) / FILE
        try:
            key = str(path), path.stat().st_mtime_ns
            if key not in self._held:
                from tokenizers import Tokenizer

                self._held[key] = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except ImportError:
            return self._failed(folder, "the library `tokenizers` is missing: pip install 'klaxon-rl[scorer]'")
        except OSError as error:
            return self._failed(folder, f"{FILE} cannot be read ({error.strerror})")
        except Exception as error:  # the library's own plain Exception for a file it does not understand
            return self._failed(folder, f"{FILE} is not understood ({str(error)[:120]})")
        self._held.move_to_end(key)
        while len(self._held) > HELD:
            self._held.popitem(last=False)
        self.failures.pop(folder, None)
        return self._held[key]

    def _failed(self, folder: str, why: str) -> None:
        if folder not in self.failures:
            log.warning("tokens are kept without text: %s: %s", folder, why)
        self.failures[folder] = why
        self.counts["unreadable"] += 1

    def _streamed(self, tokenizer: Tokenizer, ids: list[int]) -> list[str]:
        from tokenizers.decoders import DecodeStream

        stream, texts = DecodeStream(skip_special_tokens=False), []
        for one in ids:
            try:
                texts.append(stream.step(tokenizer, one) or "")
            except Exception:  # the library's own plain Exception: this token alone, then on with a fresh stream
                self.counts["broken"] += 1
                texts.append(_alone(tokenizer, one))
                stream = DecodeStream(skip_special_tokens=False)
        return texts


def _alone(tokenizer: Tokenizer, one: int) -> str:
    try:
        return tokenizer.decode([one], skip_special_tokens=False)
    except (OverflowError, TypeError):  # an id that is no number of a vocabulary
        return ""

"""The framing of a W&B `.wandb` file: a 7-byte header, then a LevelDB log of records, read as far as it is written.

A log is blocks of 32 KiB. A block holds chunks: crc32 (4 bytes, of type and data), length (2), type (1: whole record,
2 first, 3 middle, 4 last part), data; a rest of fewer than 7 bytes is padding. The run's process writes whole blocks and the
rest at its end, so a live file lags up to 32 KiB behind. Newer W&B releases have no Python reader of their own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from collector.errors import InputError

HEADER = struct.Struct("<4sHB")
CHUNK = struct.Struct("<IHB")
BLOCK = 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbLog:
    """The records of one file, each once; a half-written one waits for its rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0  # of the first chunk of the record not yet read
        self._refused = False

    def records(self, limit_bytes: int = 4 << 20) -> Iterator[bytes | InputError]:
        """Whole new records; a damaged block is skipped and told as an InputError."""
        data: bytes | None
        try:
            if self.path.stat().st_size < self._offset:
                self._offset, self._refused = 0, False  # replaced
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read(limit_bytes)
        except OSError:
            return
        if self._offset == 0:
            data = self._after_header(data)
        if data is None:
            if not self._refused:
                self._refused = True
                yield InputError("this is no .wandb file", where=str(self.path))
            return
        before, size = self._offset, len(data)
        yield from self._scan(data)
        if self._offset == before and size >= limit_bytes - HEADER.size:
            yield from self.records(4 * limit_bytes)  # one record is larger than that

    def _after_header(self, data: bytes) -> bytes | None:
        if len(data) < HEADER.size:
            return b""
        if HEADER.unpack_from(data)[:2] != (b":W&B", 0xBEE1):
            return None
        self._offset = HEADER.size
        return data[HEADER.size:]

    def _scan(self, data: bytes) -> Iterator[bytes | InputError]:
        base, at, parts = self._offset, 0, list[bytes]()
        while at + CHUNK.size <= len(data):
            left = BLOCK - (base + at) % BLOCK
            if left < CHUNK.size:
                at += left
                continue
            crc, length, kind = CHUNK.unpack_from(data, at)
            chunk = data[at + CHUNK.size : at + CHUNK.size + length]
            if len(chunk) < length and CHUNK.size + length <= left:
                return  # not all of it is written yet
            if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != crc:
                if at + left >= len(data):
                    return  # the newest block: perhaps still being written
                where, at, parts = f"{self.path}, byte {base + at}", at + left, []
                self._offset = base + at
                yield InputError("a damaged block is skipped", where=where)
                continue
            at += CHUNK.size + length
            parts = [chunk] if kind in (_WHOLE, _FIRST) else [*parts, chunk] if parts else []
            if kind in (_WHOLE, _LAST):
                record, parts, self._offset = b"".join(parts), [], base + at
                if record:
                    yield record

"""Follow the weights a trainer publishes: folders it writes, and announcements it makes. Half-written is not believed."""

from __future__ import annotations

import glob
import re
import threading
from collections import Counter, deque
from dataclasses import dataclass, replace
from pathlib import Path

from collector.config import WeightsConfig
from collector.errors import Unavailable
from collector.records import WeightVersion
from collector.weights.checkpoint import fingerprint
from collector.weights.layouts import label_of, layout_of, look

MAX_PENDING = 1000


@dataclass(slots=True)
class _Folder:
    """What was seen of one folder."""

    version: str
    announced_at: float | None  # UTC seconds; None = found by the pattern
    print: tuple = ()
    unchanged_since: float = 0.0
    believed: bool = False
    digest: str = ""


class WeightFollower:
    """Polls folders and turns complete ones into WeightVersions, each once; a rewritten folder counts as new.

    `pending` says why a folder is not believed yet. `counts`: believed, announced, vanished, announcements_dropped.
    Thread-safe: an announcement only queues, the files are looked at by whoever polls.
    """

    def __init__(self, config: WeightsConfig) -> None:
        self.config = config
        self.pending: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._folders: dict[str, _Folder] = {}
        self.layout = layout_of(config)
        self._regex = re.compile(self.layout.version_regex)
        self._announced: deque[tuple[str, str, float]] = deque()
        self._lock = threading.Lock()

    def announce(self, *, version: str, path: str | Path, at: float) -> None:
        """The trainer says `version` lies at `path`; it is believed at the first poll that finds it whole."""
        if len(self.pending) + len(self._announced) >= MAX_PENDING:
            self.counts["announcements_dropped"] += 1
            return
        self.counts["announced"] += 1
        self._announced.append((str(Path(path)), version, at))

    def _take_announced(self, key: str, version: str, at: float) -> None:
        digest = self._folders[key].digest if key in self._folders and self._folders[key].version == version else ""
        self._folders[key] = _Folder(version=version, announced_at=at, digest=digest)
        self.pending.setdefault(key, "announced, not looked at yet")

    def poll(self, now: float) -> tuple[WeightVersion, ...]:
        """Versions believed since the last poll, by time of publication."""
        with self._lock:
            while self._announced:
                self._take_announced(*self._announced.popleft())
            for key, version in self._matching().items():
                self._folders.setdefault(key, _Folder(version=version, announced_at=None))
            new = [found for key in list(self._folders) if (found := self._look(key, now)) is not None]
            self.counts["believed"] += len(new)
        return tuple(sorted(new, key=lambda version: version.published_at))

    def _matching(self) -> dict[str, str]:
        """folder → version label, of every folder the pattern finds."""
        if not self.config.dir:
            return {}
        pattern = self.config.dir if glob.has_magic(self.config.dir) else str(Path(self.config.dir) / "*")
        found = {}
        for name in glob.glob(pattern):
            label = label_of(Path(name).name, self._regex)
            if label and Path(name).is_dir() and not _is_alias(Path(name)):
                found[str(Path(name))] = label
        return found

    def _look(self, key: str, now: float) -> WeightVersion | None:
        folder, seen = Path(key), self._folders[key]
        try:
            print_now = fingerprint(folder)
        except OSError:
            if seen.announced_at is None or seen.believed:
                self._forget(key)
            else:
                self.pending[key] = "announced, but there is no such folder on this machine (yet)"
            return None
        if print_now != seen.print:
            seen.print, seen.unchanged_since, seen.believed = print_now, now, False
        if seen.believed:
            return None
        try:
            self._check_settled(folder, seen, now)
            version = look(folder, version=seen.version, config=self.config)
        except (Unavailable, OSError) as reason:
            self.pending[key] = str(reason)
            return None
        seen.believed, known = True, seen.digest
        seen.digest = version.digest
        self.pending.pop(key, None)
        if known == version.digest:  # another file in the folder changed, the weights did not
            return None
        return version if seen.announced_at is None else replace(version, published_at=seen.announced_at)

    def _check_settled(self, folder: Path, seen: _Folder, now: float) -> None:
        """A marker or an announcement ends the wait; without either the files must have come to rest.

        Raises:
            Unavailable: not yet.
        """
        markers = self.layout.markers
        if seen.announced_at is not None or any((folder / marker).exists() for marker in markers):
            return
        if not self.layout.unmarked:
            raise Unavailable(f"{folder}: no {markers[0]} file yet")
        quiet = now - seen.unchanged_since
        if quiet < self.config.settle_seconds:
            look(folder, version=seen.version, config=self.config)
            raise Unavailable(f"{folder}: whole, but without {markers[0]}; "
                              f"waiting until it has been unchanged for {self.config.settle_seconds:g} s")

    def _forget(self, key: str) -> None:
        self.counts["vanished"] += self._folders[key].believed
        self._folders.pop(key)
        self.pending.pop(key, None)


def _is_alias(folder: Path) -> bool:
    """A link such as `latest` to a sibling is no version of its own."""
    return folder.is_symlink() and folder.resolve().parent == folder.parent.resolve()

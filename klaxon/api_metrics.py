"""What Prometheus scrapes: every metric of the run, computed at the scrape from the status and the newest batch.

A row a metric (metric_rows.py); docs/monitoring.md lists them: `python -m klaxon.api_metrics` prints its table. A dead Klaxon must
page: deploy/prometheus/ has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from collector.store import Store
from klaxon.metric_labels import Labels
from klaxon.metric_picture import Picture, picture_of
from klaxon.metric_rows import EXPORTED, Exported


class RunCollector(Collector):
    """Reads the daemon's status and the newest batch at every scrape."""

    def __init__(self, store: Store, live: Any, *, faults: Callable[[], int]) -> None:
        self._store, self._live, self._faults, self._labels = store, live, faults, Labels()

    def describe(self) -> list[Metric]:
        """Nothing in advance: the labels depend on what is known."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric; one of which nothing is known has no samples."""
        picture = picture_of(self._store, self._live, faults=self._faults())
        for exported in EXPORTED:
            yield self._family(exported, picture)

    def _family(self, exported: Exported, picture: Picture) -> Metric:
        kind = CounterMetricFamily if exported.kind == "counter" else GaugeMetricFamily
        family = kind(exported.name.removesuffix("_total"), exported.meaning, labels=["run", *exported.labels])
        for values, number in self._labels.bounded(exported, exported.read(picture)):
            family.add_metric([picture.run, *values], number)
        return family


def table() -> str:
    """The Markdown table of docs/monitoring.md."""
    lines = ["| metric | type | labels beside `run` | meaning |", "|---|---|---|---|"]
    lines += [f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |" for one in EXPORTED]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

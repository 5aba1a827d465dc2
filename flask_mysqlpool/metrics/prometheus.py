"""A collector for ``prometheus_client``: a scrape of any worker covers all workers.

It needs the extra ``prometheus``::

    from flask_mysqlpool.metrics.prometheus import PoolCollector
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(PoolCollector(app))

    @app.get("/metrics")
    def metrics():
        return generate_latest(registry)

The values are sums over what all workers publish: the library's multiprocess mode is
neither needed nor in the way. Counters of exited workers are included, so that counters
never decrease. With ``STATUS_DIR`` False, the values are those of the worker that
answers. Incomplete sums would look like counters that were reset: so the scrape fails
if the directory cannot be read, and reports only ``mysqlpool_readable 0`` while the
file of a worker cannot.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flask import Flask
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ..pool.driver.logs import plain
from ..pool.stats import BOUNDS
from ..workers.exited import total
from ..workers.fleet import Fleet
from ..workers.status import Counts, WorkerStatus, identity

#: Maximum number of characters of a label.
_LABEL = 100

_STATES = "idle", "in_use", "connecting"


class _Hidden(Exception):
    """A live worker cannot be read, such as one of another version."""


class PoolCollector(Collector):
    """Collects the metrics of all pools of an app, for a registry.

    ``mysqlpool_connections{pool,state}``, ``mysqlpool_connections_max``,
    ``mysqlpool_waiting``, ``mysqlpool_workers``; ``mysqlpool_checkouts_total``,
    ``mysqlpool_timeouts_total``, ``mysqlpool_opened_total``,
    ``mysqlpool_discarded_total{reason}``; and the histograms
    ``mysqlpool_wait_seconds``, ``mysqlpool_use_seconds`` and
    ``mysqlpool_create_seconds``. ``pool`` is the pool's ``NAME``; values of pools with
    one name are added up. ``mysqlpool_paused{pool}`` is 1 during a pause, and
    ``mysqlpool_readable`` 0 while a worker cannot be read.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering reads no files."""
        return []

    def collect(self) -> Iterator[Metric]:
        readable = GaugeMetricFamily(
            "mysqlpool_readable", "Whether the status of all workers can be read."
        )
        try:
            pools = self._pools()
        except _Hidden:
            pools = {}
            readable.add_metric([], 0)
        else:
            readable.add_metric([], 1)
        yield readable

        def gauge(name: str, what: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(
                f"mysqlpool_{name}", what, labels=("pool", *labels)
            )

        def counter(name: str, what: str, *labels: str) -> CounterMetricFamily:
            labels = ("pool", *labels)
            return CounterMetricFamily(f"mysqlpool_{name}", what, labels=labels)

        connections = gauge("connections", "Connections by state.", "state")
        discarded = counter("discarded", "Connections closed by reason.", "reason")
        most = gauge("connections_max", "Maximum number of connections.")
        waiting = gauge("waiting", "Waiting checkouts.")
        workers = gauge("workers", "Processes that use the pool.")
        paused = gauge("paused", "Whether checkouts wait for the end of a pause.")
        counters = {
            "checkouts": counter("checkouts", "Connections checked out."),
            "timeouts": counter("timeouts", "Checkouts that timed out."),
            "opened": counter("opened", "Connections opened."),
        }
        histograms = {
            "wait": _histogram("wait", "Time until a checkout has its connection."),
            "use": _histogram("use", "Time until a connection is returned."),
            "create": _histogram("create", "Time to open a connection."),
        }
        for name, (most_of_all, is_paused, live, counts) in pools.items():
            for state in _STATES:
                connections.add_metric(
                    [name, state], sum(getattr(w, state) for w in live)
                )
            most.add_metric([name], most_of_all)
            waiting.add_metric([name], sum(w.waiting for w in live))
            workers.add_metric([name], len({(w.site, w.pid) for w in live}))
            paused.add_metric([name], is_paused)
            for key, family in counters.items():
                family.add_metric([name], counts.get(key, 0))
            reasons: Counter[str] = Counter()
            for reason, number in counts.get("discarded_by_reason", {}).items():
                reasons[plain(reason, _LABEL)] += number
            for reason, number in sorted(reasons.items()):
                discarded.add_metric([name, reason], number)
            for key, histogram in histograms.items():
                _add(histogram, name, counts.get(key, [0] * (len(BOUNDS) + 2)))
        yield from (connections, most, waiting, workers, paused)
        yield from counters.values()
        yield discarded
        yield from histograms.values()

    def _pools(self) -> dict[str, _Pool]:
        """Return the sums of the pools of each name.

        Raises :exc:`OSError` if the directory cannot be read, ``_Hidden`` if the file
        of a worker cannot.
        """
        pools: dict[str, _Pool] = {}
        for state in self._app.extensions["mysqlpool"].values():
            by_bind, counts, paused = _read(state, self._app.name)
            for bind, config in state.published().items():
                live = by_bind.get(bind, [])
                most = config.max_size * len(live)
                if config.max_host_connections is not None:
                    most = min(most, config.max_host_connections)
                name = plain(config.name, _LABEL)
                before = pools.get(name, (0, False, [], {}))
                pools[name] = (
                    before[0] + most,
                    before[1] or bind in paused,
                    before[2] + live,
                    total([before[3], counts.get(bind, {})]),
                )
        return pools


#: Maximum number of connections, whether paused, live workers, counters.
_Pool = tuple[int, bool, list[WorkerStatus], Counts]


def _read(
    state: Any, app: str
) -> tuple[dict[str, list[WorkerStatus]], Mapping[str, Counts], set[str]]:
    configs = state.published()
    if state.status_dir is not None and os.name != "nt":
        fleet = Fleet(state.status_dir, app, configs)
        by_bind, counts = fleet.counts()
        if fleet.hidden:
            raise _Hidden
        paused = {b for b in configs if fleet.is_paused(b, by_bind.get(b, []))}
        return by_bind, counts, paused
    own = {
        bind: WorkerStatus.of(pool.stats(), [], **identity(app, bind, configs[bind]))
        for bind, pool in state.named_pools()
    }
    paused = {bind for bind, worker in own.items() if worker.paused}
    counts = {bind: worker.counts for bind, worker in own.items()}
    return {bind: [worker] for bind, worker in own.items()}, counts, paused


def _histogram(name: str, what: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"mysqlpool_{name}_seconds", what, labels=("pool",))


def _add(family: HistogramMetricFamily, pool: str, times: Iterable[float]) -> None:
    *counts, seconds = times
    buckets, so_far = [], 0.0
    for bound, count in zip((*map(float, BOUNDS), "+Inf"), counts, strict=True):
        so_far += count
        buckets.append((str(bound), so_far))
    family.add_metric([pool], buckets, seconds)

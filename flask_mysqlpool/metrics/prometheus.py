"""A collector for ``prometheus_client``: one scrape of any worker counts all of them.

Needs the extra ``prometheus``::

    from flask_mysqlpool.metrics.prometheus import PoolCollector
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(PoolCollector(app))

    @app.get("/metrics")
    def metrics():
        return generate_latest(registry)

The numbers come from what all workers publish, so it does not need that library's
multiprocess mode, and does not mind it. What a worker has counted that is dead stays
counted. Where nothing is published (``STATUS_DIR`` False), they are those of the worker
that is asked. A part of the sums would look as if counters had begun anew: so the
scrape fails where the folder cannot be read; and while the file of a worker cannot,
nothing is told but ``mysqlpool_readable 0``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
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
from ..pool.stats import BOUNDS, PoolStats
from ..workers.exited import Counts, total
from ..workers.exited import counts as counted_by
from ..workers.fleet import Fleet, Worker

#: Characters of a label.
_LABEL = 100

_STATES = "idle", "in_use", "connecting"


class _Hidden(Exception):
    """A live worker cannot be read, such as one of another version."""


class PoolCollector(Collector):
    """Gives the metrics of all pools of an app; for a registry.

    ``mysqlpool_connections{pool,state}``, ``mysqlpool_connections_max``,
    ``mysqlpool_waiting``, ``mysqlpool_workers``; ``mysqlpool_checkouts_total``,
    ``mysqlpool_timeouts_total``, ``mysqlpool_opened_total``,
    ``mysqlpool_discarded_total{reason}``; and the histograms
    ``mysqlpool_wait_seconds``, ``mysqlpool_use_seconds`` and
    ``mysqlpool_create_seconds``. ``pool`` is the pool's ``NAME``; what pools of one
    name have is added up. ``mysqlpool_paused{pool}`` is 1 during a pause, and
    ``mysqlpool_readable`` 0 while a worker cannot be read.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app

    def describe(self) -> Iterable[Metric]:
        """Nothing: to be registered is no reason to look."""
        return []

    def collect(self) -> Iterator[Metric]:
        readable = GaugeMetricFamily(
            "mysqlpool_readable", "Whether all that workers publish can be read."
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
        most = gauge("connections_max", "The most connections that there may be.")
        waiting = gauge("waiting", "Checkouts that wait for a connection.")
        workers = gauge("workers", "Processes that use the pool.")
        paused = gauge("paused", "Whether checkouts wait for the end of a pause.")
        counters = {
            "checkouts": counter("checkouts", "Connections handed out."),
            "timeouts": counter("timeouts", "Checkouts that were given up."),
            "opened": counter("opened", "Connections opened."),
        }
        histograms = {
            "wait": _histogram("wait", "Time until a checkout has its connection."),
            "use": _histogram("use", "Time until a connection is returned."),
            "create": _histogram("create", "Time that a connect takes."),
        }
        for name, (most_of_all, is_paused, live, counts) in pools.items():
            for state in _STATES:
                connections.add_metric([name, state], sum(w[state] for w in live))
            most.add_metric([name], most_of_all)
            waiting.add_metric([name], sum(w["waiting"] for w in live))
            workers.add_metric([name], len({(w.get("site"), w["pid"]) for w in live}))
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
        """Each name of pools, with what all have.

        :exc:`OSError` if the folder cannot be read, ``_Hidden`` if a worker cannot.
        """
        pools: dict[str, _Pool] = {}
        for state in self._app.extensions["mysqlpool"].values():
            by_bind, counts, paused = _look(state, self._app.name)
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


#: The most connections, whether they are paused, live workers, all counts.
_Pool = tuple[int, bool, list[Worker], Counts]


def _look(
    state: Any, app: str
) -> tuple[dict[str, list[Worker]], Mapping[str, Counts], set[str]]:
    if state.status_dir is not None and os.name != "nt":
        fleet = Fleet(state.status_dir, app, state.published())
        by_bind, counts = fleet.counts()
        if fleet.hidden:
            raise _Hidden
        binds = state.published()
        paused = {b for b in binds if fleet.is_paused(b, by_bind.get(b, []))}
        return by_bind, counts, paused
    own = {bind: _as_worker(pool.stats()) for bind, pool in state.named_pools()}
    paused = {bind for bind, worker in own.items() if worker["paused"]}
    counted = {bind: counted_by(worker) for bind, worker in own.items()}
    return {bind: [worker] for bind, worker in own.items()}, counted, paused


def _as_worker(stats: PoolStats) -> Worker:
    return {
        **asdict(stats),
        "pid": os.getpid(),
        "wait": list(stats.wait_seconds),
        "use": list(stats.use_seconds),
        "create": list(stats.create_seconds),
    }


def _histogram(name: str, what: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"mysqlpool_{name}_seconds", what, labels=("pool",))


def _add(family: HistogramMetricFamily, pool: str, times: Iterable[float]) -> None:
    *counts, seconds = times
    buckets, so_far = [], 0.0
    for bound, count in zip((*map(float, BOUNDS), "+Inf"), counts, strict=True):
        so_far += count
        buckets.append((str(bound), so_far))
    family.add_metric([pool], buckets, seconds)

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
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
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
from ..workers.overview import Overview, capacity
from ..workers.status import TIMES, Counts, WorkerStatus

#: Maximum number of characters of a label.
_LABEL = 100

_FAILURE = "last_connect_failure_timestamp_seconds"
_SUMS = "checkouts", "timeouts", "opened", "killed"
_STATES = "idle", "in_use", "connecting"

_GAUGE, _COUNTER = GaugeMetricFamily, CounterMetricFamily
_HISTOGRAM = HistogramMetricFamily

#: Kind, name, help, and labels beside ``pool``.
_METRICS: tuple[tuple[type[Any], str, str, tuple[str, ...]], ...] = (
    (_GAUGE, "connections", "Connections by state.", ("state",)),
    (_GAUGE, "connections_max", "Maximum number of connections.", ()),
    (_GAUGE, "waiting", "Waiting checkouts.", ()),
    (_GAUGE, "workers", "Processes that use the pool.", ()),
    (_GAUGE, "paused", "Whether checkouts wait for the end of a pause.", ()),
    (_GAUGE, _FAILURE, "When a connect last failed, since 1970; 0: never.", ()),
    (_COUNTER, "checkouts", "Connections checked out.", ()),
    (_COUNTER, "timeouts", "Checkouts that timed out.", ()),
    (_COUNTER, "opened", "Connections opened.", ()),
    (_COUNTER, "discarded", "Connections closed by reason.", ("reason",)),
    (_COUNTER, "killed", "Statements given up, and killed at the server.", ()),
    (_HISTOGRAM, "wait_seconds", "Time until a checkout has its connection.", ()),
    (_HISTOGRAM, "use_seconds", "Time until a connection is returned.", ()),
    (_HISTOGRAM, "create_seconds", "Time to open a connection.", ()),
)


class PoolCollector(Collector):
    """Collects the metrics of all pools of an app, for a registry.

    The label ``pool`` is the pool's ``NAME``; values of pools with one name are added
    up.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering reads no files."""
        return []

    def collect(self) -> Iterator[Metric]:
        pools = self._pools()
        yield GaugeMetricFamily(
            "mysqlpool_readable",
            "Whether the status of all workers can be read.",
            value=pools is not None,
        )
        samples = {name: pool.samples() for name, pool in (pools or {}).items()}
        for kind, name, what, labels in _METRICS:
            metric = kind(f"mysqlpool_{name}", what, labels=("pool", *labels))
            for pool, by_metric in samples.items():
                for values, *sample in by_metric[name]:
                    metric.add_metric([pool, *values], *sample)
            yield metric

    def _pools(self) -> dict[str, _Pool] | None:
        """Return the sums of the pools of each name.

        None while a worker cannot be read, such as one of another version. Raises
        :exc:`OSError` if the directory cannot be read.
        """
        states = self._app.extensions["mysqlpool"].values()
        site = Overview(self._app.name, states, with_counts=True)
        if site.status_dir is None or os.name == "nt":
            site.read_own(states)
        elif site.fleet().hidden:
            return None
        pools: defaultdict[str, _Pool] = defaultdict(_Pool)
        for bind, config in site.pools.items():
            live = site.workers[bind]
            pool = pools[plain(config.name, _LABEL)]
            pool.most += capacity(config, len(live))
            pool.paused |= site.is_paused(bind)
            pool.workers += live
            pool.counts = total([pool.counts, site.counts.get(bind, {})])
        return pools


#: The values of the labels, and what a family adds for them.
_Sample = tuple[Any, ...]


@dataclass
class _Pool:
    """The sums of the pools of one name."""

    most: int = 0
    paused: bool = False
    workers: list[WorkerStatus] = field(default_factory=list)
    counts: Counts = field(default_factory=dict)

    def samples(self) -> dict[str, list[_Sample]]:
        """Return the samples of each metric."""
        by_state = {s: sum(getattr(w, s) for w in self.workers) for s in _STATES}
        reasons: Counter[str] = Counter()
        for reason, number in self.counts.get("discarded_by_reason", {}).items():
            reasons[plain(reason, _LABEL)] += number
        one = {
            "connections_max": self.most,
            "waiting": sum(worker.waiting for worker in self.workers),
            "workers": len({(worker.site, worker.pid) for worker in self.workers}),
            "paused": self.paused,
            _FAILURE: max(
                (w.last_connect_failure or 0 for w in self.workers), default=0
            ),
            **{n: self.counts.get(n, 0) for n in _SUMS},
        }
        return {
            **{name: [((), value)] for name, value in one.items()},
            "connections": [((state,), value) for state, value in by_state.items()],
            "discarded": [((r,), number) for r, number in sorted(reasons.items())],
            **{f"{name}_seconds": [((), *self._times(name))] for name in TIMES},
        }

    def _times(self, name: str) -> tuple[list[tuple[str, float]], float]:
        """Return the buckets of a histogram, and the sum in seconds."""
        *counts, seconds = self.counts.get(name, [0] * (len(BOUNDS) + 2))
        bounds = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
        return list(zip(bounds, accumulate(counts), strict=True)), seconds

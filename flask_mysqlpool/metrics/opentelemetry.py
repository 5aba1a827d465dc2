"""The metrics ``db.client.connection.*`` of OpenTelemetry's semantic conventions.

They need the extra ``otel``. Call it once in each process, after ``init_app``; with a
server that forks, in the workers::

    from flask_mysqlpool.metrics.opentelemetry import instrument

    instrument(app)

An OpenTelemetry histogram takes longer to record a value than a checkout takes: so
durations are queued, and recorded when the metrics are collected.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from operator import attrgetter
from typing import Any

from flask import Flask
from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)

from ..pool.stats import BOUNDS, Observer, PoolStats

#: https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
PREFIX = "db.client.connection."
POOL, STATE = PREFIX + "pool.name", PREFIX + "state"

#: Length of the queue of durations; beyond that, the oldest are dropped.
KEPT = 100_000

#: Gauges of one value each: the last column is its field of :class:`~.stats.PoolStats`.
_GAUGES = (
    ("max", "{connection}", "MAX_SIZE.", "max_size"),
    ("idle.max", "{connection}", "MAX_SIZE: all may be idle.", "max_size"),
    ("idle.min", "{connection}", "MIN_SIZE.", "min_size"),
    ("pending_requests", "{request}", "Waiting checkouts.", "waiting"),
)

_STATES = {"idle": attrgetter("idle"), "used": attrgetter("in_use")}

_Queue = deque[tuple[str, float]]
_Observations = Iterator[Observation]
_Callback = Callable[[CallbackOptions], _Observations]


class _DurationObserver(Observer):
    """Queues durations, which histograms record when the metrics are collected."""

    def __init__(self, meter: Meter) -> None:
        self._queues: list[tuple[Histogram, _Queue]] = []
        self._created = self._histogram(
            meter, "create_time", "Time to open a connection."
        )
        self._waited = self._histogram(
            meter, "wait_time", "Time to obtain a connection."
        )
        self._used = self._histogram(
            meter, "use_time", "Time until a connection is returned."
        )

    def _histogram(self, meter: Meter, name: str, what: str) -> _Queue:
        queue: _Queue = deque(maxlen=KEPT)
        histogram = meter.create_histogram(
            PREFIX + name,
            unit="s",
            description=what,
            explicit_bucket_boundaries_advisory=BOUNDS,
        )
        self._queues.append((histogram, queue))
        return queue

    def record(self) -> None:
        for histogram, queue in self._queues:
            while queue:
                name, seconds = queue.popleft()
                histogram.record(seconds, {POOL: name})

    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        self._created.append((pool.name, seconds))

    def checked_out(self, pool: Any, connection: Any, waited: float) -> None:
        self._waited.append((pool.name, waited))

    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        self._used.append((pool.name, used))


class _Values:
    """Callbacks that observe values of pools.

    Values of pools with one name are added up, because a series is observed once.
    """

    def __init__(self, states: Collection[Any]) -> None:
        self._states = states

    def value(self, get: Callable[[PoolStats], int]) -> _Callback:
        """Observe one value of each pool."""

        def observe(_: CallbackOptions) -> _Observations:
            for name, number in _sums(self._stats(), get):
                yield Observation(number, {POOL: name})

        return observe

    def count(self, record: Callable[[], None]) -> _Callback:
        """Observe connections by state."""

        def observe(_: CallbackOptions) -> _Observations:
            # Record first, so that histograms are as recent as the other metrics.
            record()
            found = self._stats()
            for state, get in _STATES.items():
                for name, number in _sums(found, get):
                    yield Observation(number, {POOL: name, STATE: state})

        return observe

    def _stats(self) -> list[PoolStats]:
        pools = (pool for state in self._states for pool in state.pools_in_use())
        return [pool.stats() for pool in pools]


def _sums(
    found: Iterable[PoolStats], get: Callable[[PoolStats], int]
) -> Iterable[tuple[str, int]]:
    sums: Counter[str] = Counter()
    for stats in found:
        sums[stats.name] += get(stats)
    return sums.items()


def instrument(app: Flask, meter_provider: MeterProvider | None = None) -> None:
    """Emit metrics for all pools of an app.

    ``meter_provider`` is by default the global one. Raises :exc:`RuntimeError` if the
    app has no pool.
    """
    states = app.extensions.get("mysqlpool")
    if not states:
        raise RuntimeError(
            f"the app {app.name!r} has no connection pool; call instrument(app) after"
            " MySQLPool(app) or init_app(app)"
        )
    meter = get_meter("flask_mysqlpool", meter_provider=meter_provider)
    durations = _DurationObserver(meter)
    for state in states.values():
        state.observe(durations)
    values = _Values(states.values())
    gauge = meter.create_observable_up_down_counter
    gauge(
        PREFIX + "count",
        [values.count(durations.record)],
        "{connection}",
        "Open connections by state.",
    )
    for name, unit, what, of in _GAUGES:
        gauge(PREFIX + name, [values.value(attrgetter(of))], unit, what)
    meter.create_observable_counter(
        PREFIX + "timeouts",
        [values.value(attrgetter("timeouts"))],
        "{timeout}",
        "Checkouts that timed out.",
    )

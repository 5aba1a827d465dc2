"""The metrics ``db.client.connection.*`` of OpenTelemetry's semantic conventions.

Needs the extra ``otel``. Once for each process, after ``init_app``; under a server that
forks, in the workers::

    from flask_mysqlpool.metrics.opentelemetry import instrument

    instrument(app)

A histogram of OpenTelemetry takes longer to record a value than a checkout takes, so
durations are noted and recorded when the metrics are collected.
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

#: Durations that are kept until they are collected; then the oldest go.
KEPT = 100_000

#: What is one figure of :class:`~.stats.PoolStats`, which the last column names.
_GAUGES = (
    ("max", "{connection}", "MAX_SIZE.", "max_size"),
    ("idle.max", "{connection}", "As many may be idle.", "max_size"),
    ("idle.min", "{connection}", "MIN_SIZE.", "min_size"),
    ("pending_requests", "{request}", "Checkouts that wait.", "waiting"),
)

_STATES = {"idle": attrgetter("idle"), "used": attrgetter("in_use")}

_Noted = deque[tuple[str, float]]
_Observations = Iterator[Observation]
_Callback = Callable[[CallbackOptions], _Observations]


class _Noting(Observer):
    """Notes durations, for histograms that are told when the metrics are collected."""

    def __init__(self, meter: Meter) -> None:
        self._noted: list[tuple[Histogram, _Noted]] = []
        self._created = self._histogram(meter, "create_time", "Time to open one.")
        self._waited = self._histogram(meter, "wait_time", "Time to get one.")
        self._used = self._histogram(meter, "use_time", "Time until it is returned.")

    def _histogram(self, meter: Meter, name: str, what: str) -> _Noted:
        noted: _Noted = deque(maxlen=KEPT)
        histogram = meter.create_histogram(
            PREFIX + name,
            unit="s",
            description=what,
            explicit_bucket_boundaries_advisory=BOUNDS,
        )
        self._noted.append((histogram, noted))
        return noted

    def record(self) -> None:
        for histogram, noted in self._noted:
            while noted:
                name, seconds = noted.popleft()
                histogram.record(seconds, {POOL: name})

    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        self._created.append((pool.name, seconds))

    def checked_out(self, pool: Any, connection: Any, waited: float) -> None:
        self._waited.append((pool.name, waited))

    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        self._used.append((pool.name, used))


class _Figures:
    """What is known of some pools, as callbacks of a meter want it.

    What pools of one name have is added up: a series is observed once.
    """

    def __init__(self, states: Collection[Any]) -> None:
        self._states = states

    def value(self, get: Callable[[PoolStats], int]) -> _Callback:
        """One figure of each pool."""

        def observe(_: CallbackOptions) -> _Observations:
            for name, number in _sums(self._stats(), get):
                yield Observation(number, {POOL: name})

        return observe

    def count(self, settle: Callable[[], None]) -> _Callback:
        """Connections by state."""

        def observe(_: CallbackOptions) -> _Observations:
            # Collected together, so that histograms are no older than the rest.
            settle()
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
    """Emit metrics for all pools of this app, by the global meter provider or this one.

    :exc:`RuntimeError` if the app has no pool.
    """
    states = app.extensions.get("mysqlpool")
    if not states:
        raise RuntimeError(
            f"the app {app.name!r} has no connection pool; call instrument(app) after"
            " MySQLPool(app) or init_app(app)"
        )
    meter = get_meter("flask_mysqlpool", meter_provider=meter_provider)
    noting = _Noting(meter)
    for state in states.values():
        state.observe(noting)
    figures = _Figures(states.values())
    gauge = meter.create_observable_up_down_counter
    gauge(
        PREFIX + "count",
        [figures.count(noting.record)],
        "{connection}",
        "Open connections by state.",
    )
    for name, unit, what, of in _GAUGES:
        gauge(PREFIX + name, [figures.value(attrgetter(of))], unit, what)
    meter.create_observable_counter(
        PREFIX + "timeouts",
        [figures.value(attrgetter("timeouts"))],
        "{timeout}",
        "Checkouts that were given up.",
    )

"""The metrics ``db.client.connection.*`` of OpenTelemetry's semantic conventions.

Needs the extra ``otel``. Once for each process, after ``init_app``; under a server that
forks, in the workers::

    from flask_mysqlpool.metrics.opentelemetry import instrument

    instrument(app)

A histogram of OpenTelemetry takes longer to record a value than a checkout takes, so
durations are noted and recorded when the metrics are collected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Flask
from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    MeterProvider,
    Observation,
    get_meter,
)

from ..stats import BOUNDS, Observer, PoolStats

#: https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
PREFIX = "db.client.connection."
POOL, STATE = PREFIX + "pool.name", PREFIX + "state"

#: Durations that are kept until they are collected; then the oldest go.
KEPT = 100_000

_Observations = Iterator[Observation]


class _Noting(Observer):
    """Notes durations, for a histogram that is not told now."""

    def __init__(self) -> None:
        self.created_in, self.waited, self.used = _queue(), _queue(), _queue()

    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        self.created_in.append((pool.name, seconds))

    def checked_out(self, pool: Any, connection: Any, waited: float) -> None:
        self.waited.append((pool.name, waited))

    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        self.used.append((pool.name, used))


def _queue() -> deque[tuple[str, float]]:
    return deque(maxlen=KEPT)


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
    noting = _Noting()
    for state in states.values():
        state.observe(noting)
    meter = get_meter("flask_mysqlpool", meter_provider=meter_provider)

    def histogram(name: str, what: str) -> Histogram:
        return meter.create_histogram(
            PREFIX + name,
            unit="s",
            description=what,
            explicit_bucket_boundaries_advisory=BOUNDS,
        )

    durations = [
        (histogram("create_time", "Time to open a connection."), noting.created_in),
        (histogram("wait_time", "Time to get a connection."), noting.waited),
        (histogram("use_time", "Time until it is returned."), noting.used),
    ]

    def stats() -> Iterator[PoolStats]:
        for state in states.values():
            yield from (pool.stats() for pool in state.pools_in_use())

    def callback(
        observe: Callable[[PoolStats], Iterable[Observation]],
    ) -> Callable[[CallbackOptions], _Observations]:
        def observations(_: CallbackOptions) -> _Observations:
            for each in stats():
                yield from observe(each)

        return observations

    def count(each: PoolStats) -> _Observations:
        # Collected together, so that histograms are no older than the rest.
        for instrument, noted in durations:
            while noted:
                name, seconds = noted.popleft()
                instrument.record(seconds, {POOL: name})
        yield Observation(each.idle, {POOL: each.name, STATE: "idle"})
        yield Observation(each.in_use, {POOL: each.name, STATE: "used"})

    def value(get: Callable[[PoolStats], int]) -> Callable[..., _Observations]:
        return callback(lambda each: [Observation(get(each), {POOL: each.name})])

    gauge = meter.create_observable_up_down_counter
    gauge(
        PREFIX + "count",
        [callback(count)],
        "{connection}",
        "Open connections by state.",
    )
    for name, unit, what, get in (
        ("max", "{connection}", "MAX_SIZE.", lambda s: s.max_size),
        ("idle.max", "{connection}", "As many may be idle.", lambda s: s.max_size),
        ("idle.min", "{connection}", "MIN_SIZE.", lambda s: s.min_size),
        ("pending_requests", "{request}", "Checkouts that wait.", lambda s: s.waiting),
    ):
        gauge(PREFIX + name, [value(get)], unit, what)
    meter.create_observable_counter(
        PREFIX + "timeouts",
        [value(lambda s: s.timeouts)],
        "{timeout}",
        "Checkouts that were given up.",
    )

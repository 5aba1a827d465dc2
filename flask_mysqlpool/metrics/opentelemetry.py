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
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from flask import Flask
from opentelemetry.metrics import (
    CallbackOptions,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)

from ..pool.stats import BOUNDS, Observer

#: https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
PREFIX = "db.client.connection."
POOL, STATE = PREFIX + "pool.name", PREFIX + "state"

#: Length of the queue of durations; beyond that, the oldest are dropped.
KEPT = 300_000

_CONNECTION = "{connection}"
_STATES = {"idle": "idle", "used": "in_use"}

#: Name, unit, description, and the fields of :class:`~.stats.PoolStats` by the state
#: that they count, which is empty for all states together.
_VALUES: tuple[tuple[str, str, str, Mapping[str, str]], ...] = (
    ("count", _CONNECTION, "Open connections by state.", _STATES),
    ("max", _CONNECTION, "MAX_SIZE.", {"": "max_size"}),
    ("idle.max", _CONNECTION, "MAX_SIZE: all may be idle.", {"": "max_size"}),
    ("idle.min", _CONNECTION, "MIN_SIZE.", {"": "min_size"}),
    ("pending_requests", "{request}", "Waiting checkouts.", {"": "waiting"}),
    ("timeouts", "{timeout}", "Checkouts that timed out.", {"": "timeouts"}),
)

#: The histograms, in seconds.
_DURATIONS = {
    "create_time": "Time to open a connection.",
    "wait_time": "Time to obtain a connection.",
    "use_time": "Time until a connection is returned.",
}


class _DurationObserver(Observer):
    """Queues durations, which histograms record when the metrics are collected."""

    def __init__(self, meter: Meter) -> None:
        self._queue: deque[tuple[str, str, float]] = deque(maxlen=KEPT)
        self._histograms = {
            name: meter.create_histogram(
                PREFIX + name,
                unit="s",
                description=what,
                explicit_bucket_boundaries_advisory=BOUNDS,
            )
            for name, what in _DURATIONS.items()
        }

    def record(self) -> None:
        while self._queue:
            name, pool, seconds = self._queue.popleft()
            self._histograms[name].record(seconds, {POOL: pool})

    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        self._queue.append(("create_time", pool.name, seconds))

    def checked_out(self, pool: Any, connection: Any, waited: float) -> None:
        self._queue.append(("wait_time", pool.name, waited))

    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        self._queue.append(("use_time", pool.name, used))


def _observe(
    durations: _DurationObserver,
    states: Collection[Any],
    fields: Mapping[str, str],
    _: CallbackOptions | None = None,
) -> Iterator[Observation]:
    """Observe the sums of pools with one name, because a series is observed once."""
    # Record first, so that histograms are as recent as the other metrics.
    durations.record()
    pools = [pool.stats() for state in states for pool in state.pools_in_use().values()]
    for state, field in fields.items():
        sums: Counter[str] = Counter()
        for stats in pools:
            sums[stats.name] += getattr(stats, field)
        for name, number in sums.items():
            yield Observation(number, {POOL: name} | ({STATE: state} if state else {}))


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
    for name, unit, what, fields in _VALUES:
        observe = partial(_observe, durations, states.values(), fields)
        if name == "timeouts":
            meter.create_observable_counter(PREFIX + name, [observe], unit, what)
        else:
            meter.create_observable_up_down_counter(
                PREFIX + name, [observe], unit, what
            )

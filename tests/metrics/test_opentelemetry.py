"""What OpenTelemetry sees of the pools: their metrics, and every statement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import MakeApp, extension, until
from flask import Flask
from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
from opentelemetry.metrics import get_meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from flask_mysqlpool import PoolTimeout, get_db
from flask_mysqlpool.metrics.opentelemetry import (
    _DurationObserver,
    _observe,
    instrument,
)
from flask_mysqlpool.pool.stats import BOUNDS

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    yield reader
    reader.shutdown()


def collect(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Metrics by name without their common prefix."""
    data = reader.get_metrics_data()
    assert data is not None
    [resource] = data.resource_metrics
    [scope] = resource.scope_metrics
    assert scope.scope.name == "flask_mysqlpool"
    return {m.name.removeprefix("db.client.connection."): m for m in scope.metrics}


def measured(reader: InMemoryMetricReader, name: str) -> int:
    """How often this was measured, in all pools together."""
    metric = collect(reader).get(name)
    return sum(p.count for p in metric.data.data_points) if metric else 0


def values(metric: Any) -> dict[frozenset[tuple[str, Any]], int]:
    return {frozenset(p.attributes.items()): p.value for p in metric.data.data_points}


def test_every_metric_of_the_conventions_is_there(
    make_app: MakeApp, reader: InMemoryMetricReader
) -> None:
    app = make_app(MAX_SIZE=2, MIN_SIZE=1, BINDS={"reports": {"MAX_SIZE": 1}})
    instrument(app, MeterProvider([reader]))
    db = extension(app)
    with app.app_context(), db.connection(), db.connection() as second:
        with pytest.raises(PoolTimeout):
            db.connection(timeout=0)
        second.close()
        get_db("reports").close()
        # The threads that have connected tell of it a little later.
        until(lambda: measured(reader, "create_time") == 3)
        metrics = collect(reader)

    shop, reports = (POOL, "shop"), (POOL, "shop/reports")
    assert values(metrics["count"]) == {
        frozenset({shop, (STATE, "used")}): 1,
        frozenset({shop, (STATE, "idle")}): 1,
        frozenset({reports, (STATE, "used")}): 0,
        frozenset({reports, (STATE, "idle")}): 1,
    }
    expected = {
        "max": ("{connection}", 2, 1),
        "idle.max": ("{connection}", 2, 1),
        "idle.min": ("{connection}", 1, 1),
        "pending_requests": ("{request}", 0, 0),
        "timeouts": ("{timeout}", 1, 0),
    }
    for name, (unit, of_shop, of_reports) in expected.items():
        assert metrics[name].unit == unit
        assert values(metrics[name]) == {
            frozenset({shop}): of_shop,
            frozenset({reports}): of_reports,
        }
    for name, count in {"create_time": 2, "wait_time": 2, "use_time": 1}.items():
        points = {p.attributes[POOL]: p for p in metrics[name].data.data_points}
        assert metrics[name].unit == "s"
        assert points["shop"].count == count
        assert points["shop"].sum > 0
        assert points["shop"].explicit_bounds == BOUNDS
        assert points["shop/reports"].count == 1
    assert set(metrics) == {*expected, "count", "create_time", "wait_time", "use_time"}


def test_pools_of_one_name_are_one_series(
    make_app: MakeApp, reader: InMemoryMetricReader
) -> None:
    app = make_app(MAX_SIZE=2, BINDS={"reports": {"NAME": "shop", "MAX_SIZE": 3}})
    about = _DurationObserver(get_meter("test")), app.extensions["mysqlpool"].values()
    instrument(app, MeterProvider([reader]))
    db = extension(app)
    with app.app_context(), db.connection(), db.connection("reports"):
        metrics = collect(reader)
        observed = [
            *_observe(*about, {"": "max_size"}),
            *_observe(*about, {"idle": "idle", "used": "in_use"}),
        ]

    shop = POOL, "shop"
    assert values(metrics["max"]) == {frozenset({shop}): 5}
    assert values(metrics["count"])[frozenset({shop, (STATE, "used")})] == 2
    # What a provider makes of two observations of one series is its own affair.
    assert [(one.value, one.attributes) for one in observed] == [
        (5, {POOL: "shop"}),
        (0, {POOL: "shop", STATE: "idle"}),
        (2, {POOL: "shop", STATE: "used"}),
    ]


def test_what_is_not_up_and_down_only_grows(
    make_app: MakeApp, reader: InMemoryMetricReader
) -> None:
    app = make_app(MAX_SIZE=1)
    instrument(app, MeterProvider([reader]))
    db = extension(app)
    counted = []
    with app.app_context():
        for _ in range(2):
            with db.connection(), pytest.raises(PoolTimeout):
                db.connection(timeout=0)
            [point] = collect(reader)["timeouts"].data.data_points
            counted.append(point.value)
        assert collect(reader)["timeouts"].data.is_monotonic
        assert not collect(reader)["count"].data.is_monotonic

    assert counted == [1, 2]


def test_without_a_pool_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="after MySQLPool"):
        instrument(Flask("bare"))


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Every statement, as the instrumentation for PyMySQL sees it, unchanged."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = PyMySQLInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


def test_every_statement_is_a_span_before_and_after_a_reset(
    make_app: MakeApp, spans: InMemorySpanExporter
) -> None:
    app = make_app(RECORD_QUERIES=True)
    db = extension(app)
    statements = []
    with app.app_context():
        for number in range(6):
            with db.connection() as connection, connection.cursor() as cursor:
                statements.append(f"SELECT {number}")
                cursor.execute(statements[-1])
                assert cursor.fetchall() == ((number,),)
            if number == 2:
                db.reset()

    seen = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
    text = "db.query.text" if "db.query.text" in seen[0] else "db.statement"
    assert [span[text] for span in seen] == statements

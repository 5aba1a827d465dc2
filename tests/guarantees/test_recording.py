"""What statements took: recorded, and logged where they are slow."""

from __future__ import annotations

import inspect
from typing import Any

import pymysql.err
import pytest
from conftest import MakeApp, MakePool, extension
from pymysql.cursors import Cursor, DictCursor, SSCursor

from flask_mysqlpool import get_db, get_recorded_queries
from flask_mysqlpool.pool.sql.cursors import _RecordingCursor
from flask_mysqlpool.testing import assert_queries

SECRET = "hunter2"


def test_a_statement_outlasts_the_recorder(make_pool: MakePool) -> None:
    pool = make_pool()

    class EndsTheRecording:
        def __str__(self) -> str:
            pool.recorder = None
            return "x"

    with assert_queries() as found, pool.connection() as connection:
        recorder = pool.recorder
        assert connection.execute("SELECT %s", [EndsTheRecording()]).rowcount == 1
        pool.recorder = recorder
    assert len(found) == 1


def test_a_request_can_see_what_it_has_executed(make_app: MakeApp, table: str) -> None:
    app = make_app(RECORD_QUERIES=True)

    @app.get("/", endpoint="shop.index")
    def view() -> str:
        with extension(app).transaction() as connection:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO t (a) VALUES (%s)", (1,))
                cursor.executemany("INSERT INTO t (a) VALUES (%s)", [(2,), (3,)])
            with connection.cursor(DictCursor) as cursor:
                line = inspect.stack()[0].lineno + 1
                cursor.execute("SELECT a FROM t WHERE a > %s", (0,))
                assert list(cursor.fetchall()) == [{"a": 1}, {"a": 2}, {"a": 3}]
            with connection.cursor(SSCursor) as cursor:
                cursor.execute("SELECT a FROM t")
                assert cursor.fetchall() == [(1,), (2,), (3,)]
            with pytest.raises(pymysql.err.ProgrammingError):
                connection.cursor().execute("SELECT a FROM nothing")
        first, many, select, stream, wrong = get_recorded_queries()
        assert first.statement == "INSERT INTO t (a) VALUES (%s)"
        assert first.parameters is None and first.rows == 1
        assert many.rows == 2
        assert (select.rows, stream.rows, wrong.rows) == (3, None, None)
        assert select.location == f"{__file__}:{line}"
        assert {q.endpoint for q in get_recorded_queries()} == {"shop.index"}
        assert all(q.duration > 0 for q in get_recorded_queries())
        return "done"

    assert app.test_client().get("/").text == "done"
    with app.app_context():
        assert get_recorded_queries() == []


@pytest.mark.parametrize("asked", [False, True])
def test_parameters_only_where_they_are_asked_for(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    app = make_app(RECORD_QUERIES=True, SLOW_QUERY=1e-9, LOG_PARAMETERS=asked)
    with app.app_context():
        get_db().cursor().execute("SELECT %s,\n  1", (SECRET,))
        [query] = get_recorded_queries()

    [message] = caplog.messages
    assert (SECRET in message) is asked
    assert query.parameters == ((SECRET,) if asked else None)
    assert message.startswith("shop: slow statement: 0.")
    assert " s, 1 rows, for None, at " in message
    assert "test_recording.py:" in message and ": SELECT %s, 1" in message


def test_only_slow_statements_are_logged(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    with make_pool(SLOW_QUERY=0.05).connection(endpoint="jobs") as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.execute("SELECT SLEEP(0.06), '" + "x" * 2000 + "'")

    [message] = caplog.messages
    assert ", for jobs, at " in message
    assert message.endswith("x…")
    assert len(message) < 1300


def test_by_default_cursors_are_the_plain_ones(make_pool: MakePool) -> None:
    plain, recording = make_pool(), make_pool(RECORD_QUERIES=True)
    with plain.connection() as one, recording.connection() as other:
        assert not issubclass(type(one.cursor()), _RecordingCursor)
        assert issubclass(type(other.cursor()), _RecordingCursor)
        assert type(other.cursor()) is type(other.cursor())
        # Outside of an app there is no place for what was recorded.
        assert other.cursor().execute("SELECT 1") == 1


@pytest.mark.parametrize("settings", [{}, {"RECORD_QUERIES": True}])
@pytest.mark.parametrize("cursorclass", [DictCursor, SSCursor])
def test_the_class_of_a_cursor_may_be_asked_for_again(
    make_pool: MakePool, settings: dict[str, Any], cursorclass: type[Cursor]
) -> None:
    with make_pool(**settings).connection() as connection:
        first = connection.cursor(cursorclass)
        second = connection.cursor(type(first))
        second.execute("SELECT 1 AS n")

        assert type(second) is type(first)
        assert len(list(second.fetchall())) == 1


def test_get_recorded_queries_needs_a_context() -> None:
    with pytest.raises(RuntimeError, match="none is active here"):
        get_recorded_queries()


def test_the_values_of_executemany_are_no_part_of_its_statement(
    make_app: MakeApp, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(RECORD_QUERIES=True, SLOW_QUERY=1e-9)
    with app.app_context(), get_db().cursor() as cursor:
        cursor.executemany("INSERT INTO t (a) VALUES (LENGTH(%s))", [(SECRET,), ("b",)])
        cursor.execute("SELECT 1")
        many, one = get_recorded_queries()

    assert many.statement == "INSERT INTO t (a) VALUES (LENGTH(%s))"
    assert (many.rows, one.rows) == (2, 1)
    assert SECRET not in caplog.text


class Unspeakable(str):
    def __repr__(self) -> str:
        raise ValueError("no")


def test_parameters_that_cannot_be_shown_do_no_harm(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(SLOW_QUERY=1e-9, LOG_PARAMETERS=True)
    with app.app_context(), get_db().cursor() as cursor:
        assert cursor.execute("SELECT %s", (Unspeakable("x"),)) == 1

    assert "parameters that cannot be shown" in caplog.text

"""assert_queries() fails for the statements that it should, and lists them."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from conftest import MakeApp, MakePool, execute, extension
from flask import Flask
from pymysql.cursors import SSCursor

from flask_mysqlpool import get_db, get_recorded_queries
from flask_mysqlpool.testing import assert_queries, rolled_back


def page(app: Flask, statements: int) -> None:
    """Get a page that executes this many statements."""

    def view() -> str:
        for _ in range(statements):
            execute(get_db(), "SELECT 1")
        return "done"

    app.add_url_rule("/", view_func=view)
    assert app.test_client().get("/").text == "done"


@pytest.mark.one_engine
@pytest.mark.parametrize("settings", [{}, {"RADAR": True}, {"RECORD_QUERIES": True}])
def test_a_request_of_a_client_is_counted(
    make_app: MakeApp, settings: dict[str, Any]
) -> None:
    app = make_app(**settings)
    with assert_queries(at_most=3, exactly=3) as queries:  # the pool is not made yet
        page(app, 3)
        assert [q.statement for q in queries] == ["SELECT 1"] * 3
    with assert_queries(exactly=0), app.app_context():
        get_db().ping()
        assert get_recorded_queries() == []
    with pytest.raises(AssertionError, match="at most 2, executed 3"):
        with assert_queries(at_most=2):
            app.test_client().get("/")
    with pytest.raises(AssertionError, match="exactly 4, executed 3"):
        with assert_queries(exactly=4):
            app.test_client().get("/")
    with app.app_context():
        assert (extension(app).pool().recorder is None) is (settings == {})


@pytest.mark.parametrize("asked", [False, True])
def test_the_failure_lists_all_statements(
    make_app: MakeApp, table: str, asked: bool
) -> None:
    with make_app(LOG_PARAMETERS=asked).app_context(), get_db().cursor() as cursor:
        cursor.execute("INSERT INTO t (a) VALUES (1), (2)")
        with assert_queries(exactly=2) as queries, get_db().cursor() as cursor:
            cursor.execute("SELECT a\n  FROM t WHERE a = %s", (1,))
            cursor.execute("SELECT 1")
        with pytest.raises(AssertionError) as caught:
            with assert_queries(1, no_full_scans=True), get_db().cursor() as cursor:
                cursor.execute("SELECT a\n  FROM t WHERE a = %s", (1,))
                cursor.execute("SELECT a FROM t WHERE id = %s", (1,))

    at = test_the_failure_lists_all_statements.__code__.co_firstlineno + 11
    line = re.escape(f"{__file__}:{at}")
    first, second, third = str(caught.value).split("\n")
    assert first == "statements: expected at most 1, executed 2, 1 used no index"
    told = r"  1\. {}: \d+\.\d ms, 1 rows, no index: SELECT a FROM t WHERE a = %s{}"
    assert re.fullmatch(told.format(line, r" \(1,\)" if asked else ""), second)
    assert "rows: SELECT a FROM t WHERE id = %s" in third
    assert [query.no_index for query in queries] == [True, False]


def test_full_scans_alone_are_a_failure(make_pool: MakePool, table: str) -> None:
    with make_pool().connection() as connection:
        with assert_queries(no_full_scans=True):
            execute(connection, "SELECT a FROM t WHERE id = 1")
        with pytest.raises(AssertionError, match="^statements: 1 used no index\n"):
            with assert_queries(no_full_scans=True):
                execute(connection, "SELECT a FROM t")


@pytest.mark.one_engine
def test_all_binds_and_threads_count_and_blocks_nest(make_app: MakeApp) -> None:
    app = make_app(BINDS={"other": {}})

    def work() -> None:
        with app.app_context():
            execute(get_db("other"), "SELECT 2")

    with assert_queries(exactly=3), app.app_context():
        execute(get_db(), "SELECT 1")
        with assert_queries(exactly=2):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(10)
            with get_db().cursor(SSCursor) as stream:
                stream.execute("SELECT 3")


@pytest.mark.one_engine
def test_an_error_of_the_block_is_not_hidden(make_app: MakeApp) -> None:
    with pytest.raises(ZeroDivisionError), assert_queries(exactly=1):
        raise ZeroDivisionError
    app = make_app()
    with app.app_context():
        assert extension(app).pool().recorder is None


@pytest.mark.one_engine
def test_it_counts_in_a_test_that_is_rolled_back(make_app: MakeApp, table: str) -> None:
    app = make_app(RADAR=True)
    with rolled_back(app), app.app_context():
        with assert_queries(exactly=1):
            execute(get_db(), "INSERT INTO t (a) VALUES (1)")
    with assert_queries(exactly=1), rolled_back(app), app.app_context():
        execute(get_db(), "SELECT 1")

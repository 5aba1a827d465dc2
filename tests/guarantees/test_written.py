"""What a request has written: it reads from its primary after that, and is warned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask
from pymysql.cursors import SSCursor
from pymysql.err import MySQLError

from flask_mysqlpool import MySQLPool, close_db, get_db


@pytest.fixture
def app(
    make_app: MakeApp, sql: Callable[..., Any], table: str, engine: str
) -> Iterator[Flask]:
    if engine == "mysql":
        sql("SET GLOBAL log_bin_trust_function_creators = 1")
    sql("DROP FUNCTION IF EXISTS add_one")
    sql("DROP PROCEDURE IF EXISTS add_and_read")
    sql(
        "CREATE FUNCTION add_one() RETURNS INT MODIFIES SQL DATA"
        " BEGIN INSERT INTO t (a) VALUES (1); RETURN 1; END"
    )
    sql(
        "CREATE PROCEDURE add_and_read()"
        " BEGIN INSERT INTO t (a) VALUES (1); SELECT 1; END"
    )
    yield make_app(READERS="r", BINDS={"r": {"READ_ONLY": True}})
    sql("DROP FUNCTION add_one")
    sql("DROP PROCEDURE add_and_read")


def run(statement: str) -> None:
    with get_db().cursor() as cursor:
        cursor.execute(statement)
        while cursor.nextset():
            pass


def pool_of(app: Flask) -> MySQLPool:
    [db] = app.extensions["mysqlpool"]
    assert isinstance(db, MySQLPool)
    return db


def reads_from_its_primary() -> bool:
    return get_db(readonly=True) is get_db()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t (a) VALUES (1)",
        "/* traced */ INSERT INTO t (a) VALUES (1)",
        "SELECT add_one()",
        "DO add_one()",
        "SET @a = add_one()",
        "CALL add_and_read()",
        "TRUNCATE t",
        "INSERT INTO nowhere VALUES (1)",
    ],
)
def test_a_request_that_may_have_written_reads_from_its_primary(
    app: Flask, statement: str
) -> None:
    with app.app_context():
        assert not reads_from_its_primary()
        try:
            run(statement)
        except MySQLError:
            pass
        get_db().commit()
        assert reads_from_its_primary()
    with app.app_context():
        assert not reads_from_its_primary()


@pytest.mark.parametrize(
    "statement", ["SELECT a FROM t", "SET @a = 1", "SELECT GET_LOCK('a', 0)", "COMMIT"]
)
def test_what_only_reads_leaves_a_request_with_its_readers(
    app: Flask, statement: str
) -> None:
    with app.app_context():
        run(statement)
        get_db().commit()
        assert not reads_from_its_primary()


def _lose(app: Flask) -> None:
    run("INSERT INTO t (a) VALUES (1)")
    connection = get_db()
    with pool_of(app).connection() as other:
        other.kill(connection.thread_id())
    with pytest.raises(MySQLError):
        run("SELECT 1")
    connection.rollback()


def _return_early(app: Flask) -> None:
    run("INSERT INTO t (a) VALUES (1)")
    close_db()


def _close(app: Flask) -> None:
    run("INSERT INTO t (a) VALUES (1)")
    get_db().close()


def _in_a_function(app: Flask) -> None:
    pool_of(app).auto_close_db(run)("INSERT INTO t (a) VALUES (1)")


def _on_a_connection_of_its_own(app: Flask) -> None:
    with pool_of(app).connection() as connection:
        connection.query("INSERT INTO t (a) VALUES (1)")


@pytest.mark.parametrize(
    "write", [_lose, _return_early, _close, _in_a_function, _on_a_connection_of_its_own]
)
def test_that_a_request_has_written_outlives_its_connection(
    app: Flask, write: Callable[[Flask], None]
) -> None:
    with app.test_request_context():
        write(app)
        assert reads_from_its_primary()
    with app.test_request_context():
        assert not reads_from_its_primary()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("INSERT INTO t (a) VALUES (1), (2)", "changed 2 rows"),
        ("INSERT INTO t (a) VALUES (1), (2) RETURNING a", "changed 2 rows"),
        ("SELECT add_one()", "may have changed rows"),
        ("CALL add_and_read()", "changed"),
        ("UPDATE t SET a = 1 WHERE id = 0", ""),
        ("SELECT a FROM t", ""),
    ],
)
@pytest.mark.parametrize("autocommit", [False, True])
def test_in_debug_mode_changes_that_are_not_committed_are_told(
    make_app: MakeApp,
    app: Flask,
    engine: str,
    caplog: pytest.LogCaptureFixture,
    autocommit: bool,
    statement: str,
    told: str,
) -> None:
    if engine == "mysql" and "RETURNING" in statement:
        pytest.skip("only MariaDB has it")
    app = make_app(AUTOCOMMIT=autocommit)
    app.debug = True
    with app.app_context():
        run(statement)
    if autocommit or not told:
        assert caplog.messages == []
    else:
        [message] = caplog.messages
        assert f"{told}" in message
        assert "and did not commit" in message


def test_rows_that_are_read_one_by_one_are_told_too(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    app.debug = True
    with app.app_context():
        with get_db().cursor(SSCursor) as cursor:
            cursor.execute("SELECT add_one()")
            cursor.fetchall()

    [message] = caplog.messages
    assert "may have changed rows and did not commit" in message


@pytest.mark.parametrize("way", ["CALL watch()", "EXECUTE watch"])
def test_no_statement_of_a_borrower_can_be_read_by_the_next(
    make_app: MakeApp, sql: Callable[..., Any], engine: str, table: str, way: str
) -> None:
    watch = {
        "mariadb": ("SET profiling = 1", "SHOW PROFILES"),
        "mysql": (
            "SET optimizer_trace = 'enabled=on'",
            "SELECT query FROM information_schema.optimizer_trace",
        ),
    }
    switch, read = watch[engine]
    sql("DROP PROCEDURE IF EXISTS watch")
    sql(f"CREATE PROCEDURE watch() {switch}")
    app = make_app(MAX_SIZE=1)
    with app.app_context():
        thread = get_db().thread_id()
        if way.startswith("EXECUTE"):
            run(f'PREPARE watch FROM "{switch}"')
        run(way)
        run("SELECT 'card 4111' FROM t")
    with app.app_context(), get_db().cursor() as cursor:
        cursor.execute(read)
        assert "4111" not in repr(cursor.fetchall())
        assert get_db().thread_id() == thread
    sql("DROP PROCEDURE watch")

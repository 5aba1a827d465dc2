"""Isolation levels of single blocks, and what is to be done after their COMMIT."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pymysql
import pytest
from conftest import MakeApp, MakePool, Sql, extension
from flask import Flask

from flask_mysqlpool import (
    CommitUnknown,
    ConnectionReturned,
    MySQLPool,
    PooledConnection,
    TransactionError,
)
from flask_mysqlpool.pool.transaction import (
    TransactionBlock,
    beginning_of,
    run_in_transaction,
    transaction,
)
from flask_mysqlpool.testing import FaultProxy, rolled_back

pytestmark = pytest.mark.usefixtures("table")


class Oops(Exception):
    """What only the test raises."""


# Isolation

LEVELS = ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
def kind_of(
    root: pymysql.Connection[Any], connection: PooledConnection, table: str
) -> Callable[[], tuple[str, bool]]:
    """The level of the open transaction by its effects, and whether it is read-only."""
    other = root.cursor()
    other.execute("INSERT INTO t (a) VALUES (0)")

    def rows() -> int:
        return len(connection.execute("SELECT a FROM t").fetchall())

    def level() -> str:
        before = rows()
        root.begin()
        try:
            other.execute("SELECT a FROM t FOR UPDATE NOWAIT")
        except pymysql.err.OperationalError:
            return "SERIALIZABLE"
        other.execute("INSERT INTO t (a) VALUES (0)")
        uncommitted = rows()
        root.commit()
        committed = rows()
        if uncommitted > before:
            return "READ UNCOMMITTED"
        return "READ COMMITTED" if committed > before else "REPEATABLE READ"

    def kind_of() -> tuple[str, bool]:
        try:
            connection.execute("UPDATE t SET a = 1 WHERE FALSE")
        except pymysql.err.OperationalError as error:
            assert error.args[0] == 1792
            return level(), True
        return level(), False

    return kind_of


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("level", [None, *LEVELS])
def test_the_level_is_that_of_one_block(
    connection: PooledConnection,
    kind_of: Callable[[], tuple[str, bool]],
    level: str | None,
    read_only: bool,
) -> None:
    # This begins a transaction without autocommit, in which a level cannot be set.
    connection.execute("SELECT * FROM t").fetchall()
    with transaction(connection, isolation=level, read_only=read_only):
        assert kind_of() == (level or "REPEATABLE READ", read_only)
        with transaction(connection, isolation=level, read_only=read_only):
            assert kind_of()[0] == (level or "REPEATABLE READ")
    with transaction(connection):
        assert kind_of() == ("REPEATABLE READ", False)
    found = run_in_transaction(
        connection,
        lambda _: kind_of(),
        retries=0,
        isolation=level,
        read_only=read_only,
    )
    assert found == (level or "REPEATABLE READ", read_only)


def test_a_read_only_block_refuses_to_write(connection: PooledConnection) -> None:
    with (
        pytest.raises(pymysql.err.OperationalError, match="1792"),
        transaction(connection, read_only=True),
    ):
        connection.execute("INSERT INTO t (a) VALUES (1)")
    with transaction(connection):
        connection.execute("INSERT INTO t (a) VALUES (2)")

    assert connection.execute("SELECT a FROM t").fetchall() == ((2,),)


@pytest.mark.parametrize(
    "spelled", ["read committed", "READ-COMMITTED", "read_committed"]
)
def test_a_level_may_be_spelled_as_the_variable_has_it(
    connection: PooledConnection, kind_of: Callable[[], tuple[str, bool]], spelled: str
) -> None:
    with transaction(connection, isolation=spelled):
        assert kind_of()[0] == "READ COMMITTED"


@pytest.mark.parametrize("level", ["SNAPSHOT", "", "SERIALIZABLE; DROP TABLE t", 5])
def test_an_unknown_level_is_refused(connection: PooledConnection, level: Any) -> None:
    with pytest.raises(ValueError, match="isolation must be one of READ UNCOMMITTED,"):
        transaction(connection, isolation=level)


def test_a_savepoint_has_no_level_of_its_own(connection: PooledConnection) -> None:
    with transaction(connection):
        connection.execute("INSERT INTO t (a) VALUES (1)")
        with (
            pytest.raises(TransactionError, match="of the outermost"),
            transaction(connection, isolation="SERIALIZABLE"),
        ):
            pytest.fail("it has begun")
        with pytest.raises(TransactionError, match="of the outermost"):
            run_in_transaction(connection, list, retries=0, read_only=True)
        connection.execute("INSERT INTO t (a) VALUES (2)")

    assert connection.execute("SELECT a FROM t").fetchall() == ((1,), (2,))


def test_a_decorated_function_has_the_level_at_each_call(
    connection: PooledConnection, kind_of: Callable[[], tuple[str, bool]]
) -> None:
    decorated = transaction(connection, isolation="SERIALIZABLE", read_only=True)(
        kind_of
    )

    assert [decorated(), decorated()] == [("SERIALIZABLE", True)] * 2


def test_a_level_is_sent_with_the_first_statement(
    make_pool: MakePool, proxy: FaultProxy, table: str
) -> None:
    with make_pool(PORT=proxy.port).connection() as connection:
        connection.execute("SELECT 1").fetchall()
        before = proxy.round_trips
        with transaction(connection, isolation="SERIALIZABLE"):
            pass
        assert proxy.round_trips == before
        with transaction(connection, isolation="SERIALIZABLE"):
            connection.execute("INSERT INTO t (a) VALUES (1)")
        assert proxy.round_trips == before + 2  # and the COMMIT


@pytest.mark.parametrize("pipelining", ["on", "off"])
def test_a_statement_after_a_beginning_that_fails_may_have_committed(
    make_pool: MakePool, table: str, sql: Sql, pipelining: str
) -> None:
    together = pipelining == "on"
    expected = TransactionError if together else pymysql.err.ProgrammingError
    *first, _ = beginning_of("SERIALIZABLE", read_only=False)
    beginning = *first, b"START NOTHING"
    pool = make_pool(PIPELINING=pipelining, AUTOCOMMIT=True)
    with pool.connection() as connection:
        with (
            pytest.raises(expected),
            TransactionBlock(lambda: connection, beginning=beginning),
        ):
            connection.execute("INSERT INTO t (a) VALUES (1)")

    assert sql("SELECT a FROM t") == ((1,),) * together


# After the COMMIT


def test_it_is_called_after_the_outermost_commit(
    connection: PooledConnection, sql: Sql
) -> None:
    seen = []

    def look() -> None:
        seen.append(sql("SELECT a FROM t ORDER BY a"))
        connection.execute("SELECT 1").fetchall()

    with transaction(connection):
        connection.execute("INSERT INTO t (a) VALUES (1)")
        connection.after_commit(look)
        with transaction(connection):
            connection.execute("INSERT INTO t (a) VALUES (2)")
            connection.after_commit(look)
        assert seen == []

    assert seen == [((1,), (2,))] * 2


def test_it_is_called_at_once_outside_of_blocks(connection: PooledConnection) -> None:
    called: list[int] = []
    connection.after_commit(lambda: called.append(1))

    assert called == [1]


def test_it_is_not_called_after_a_rollback(connection: PooledConnection) -> None:
    called: list[str] = []
    with suppress(Oops), transaction(connection):
        connection.after_commit(lambda: called.append("outer"))
        raise Oops
    with transaction(connection):
        with suppress(Oops), transaction(connection):
            connection.after_commit(lambda: called.append("inner"))
            raise Oops
        connection.after_commit(lambda: called.append("kept"))

    assert called == ["kept"]


def test_it_is_called_once_if_the_block_is_repeated(
    connection: PooledConnection,
) -> None:
    called: list[int] = []
    tries: list[int] = []

    def work(connection: PooledConnection) -> None:
        tries.append(1)
        connection.after_commit(lambda: called.append(len(tries)))
        connection.execute("INSERT INTO t (a) VALUES (1)")
        if len(tries) < 3:
            connection.execute(
                "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'dead'"
            )

    run_in_transaction(connection, work, retries=3)

    assert (len(tries), called) == (3, [3])


def test_it_is_not_called_if_the_commit_fails_or_is_not_answered(
    make_pool: MakePool, proxy: FaultProxy, table: str
) -> None:
    called: list[int] = []
    with make_pool(PORT=proxy.port).connection() as connection:
        with pytest.raises(CommitUnknown), transaction(connection):
            connection.execute("INSERT INTO t (a) VALUES (1)")
            connection.after_commit(lambda: called.append(1))
            # The answer to the COMMIT is lost.
            proxy.cut_after_request()
        connection.rollback()

    assert called == []


def test_what_it_raises_is_logged_and_the_commit_stays(
    connection: PooledConnection, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []

    def fail() -> None:
        raise Oops("no mail today")

    with caplog.at_level(logging.ERROR), transaction(connection):
        connection.execute("INSERT INTO t (a) VALUES (1)")
        connection.after_commit(fail)
        connection.after_commit(lambda: called.append(1))

    assert "the COMMIT stays" in caplog.text
    assert "no mail today" in caplog.text
    assert called == [1]
    assert sql("SELECT a FROM t") == ((1,),)


def test_an_interrupt_in_it_is_raised(connection: PooledConnection) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), transaction(connection):
        connection.after_commit(interrupt)
    assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("bad", [None, 5, "mail"])
def test_what_cannot_be_called_is_refused(
    connection: PooledConnection, bad: Any
) -> None:
    with pytest.raises(TypeError, match="takes a function, not"):
        connection.after_commit(bad)


# In an app


def test_an_app_has_both(app: Flask, table: str, sql: Sql) -> None:
    db: MySQLPool = extension(app)
    seen: list[Any] = []
    with app.app_context():
        db.after_commit(lambda: seen.append("at once, without a connection"))
        with pytest.raises(TypeError, match="takes a function, not 5"):
            db.after_commit(cast(Any, 5))
        assert db.stats().in_use == 0
        with db.transaction(isolation="READ COMMITTED", read_only=False) as connection:
            connection.execute("INSERT INTO t (a) VALUES (1)")
            db.after_commit(lambda: seen.append(sql("SELECT a FROM t")))
            assert len(seen) == 1

        def work(connection: PooledConnection) -> None:
            db.after_commit(lambda: seen.append("again"))
            connection.execute("SELECT 1").fetchall()

        db.run_in_transaction(work, isolation="SERIALIZABLE", read_only=True)
        db.close_db()
        db.after_commit(lambda: seen.append("returned"))

    assert seen == ["at once, without a connection", ((1,),), "again", "returned"]


def test_a_test_that_is_rolled_back_has_both(make_app: MakeApp, table: str) -> None:
    app = make_app()
    db, called = extension(app), list[int]()
    with rolled_back(app), app.app_context():
        with db.transaction(isolation="SERIALIZABLE") as connection:
            connection.execute("INSERT INTO t (a) VALUES (1)")
            with db.transaction(isolation="SERIALIZABLE"):
                db.after_commit(lambda: called.append(1))
            with (
                pytest.raises(TransactionError, match="of the outermost"),
                db.transaction(read_only=True),
            ):
                pytest.fail("it has begun")
        assert called == [1]
        with suppress(Oops), db.transaction():
            db.after_commit(lambda: called.append(2))
            raise Oops
        assert called == [1]


def test_it_is_refused_in_a_block_whose_connection_was_returned(
    app: Flask, table: str, sql: Sql
) -> None:
    db, called = extension(app), list[str]()
    ends: list[Callable[[PooledConnection], None]] = [
        lambda _: db.close_db(),
        lambda connection: connection.close(),
    ]
    with app.app_context():
        for end in ends:
            with pytest.raises(ConnectionReturned), db.transaction() as connection:
                connection.execute("INSERT INTO t (a) VALUES (1)")
                end(connection)
                with pytest.raises(ConnectionReturned):
                    connection.after_commit(lambda: called.append("of the connection"))
                db.after_commit(lambda: called.append("in the block"))
            db.after_commit(lambda: called.append("outside"))

    assert called == ["outside"] * 2
    assert sql("SELECT a FROM t") == ()

"""What users' tests may build on: whatever an app does to its database is undone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pymysql.err
import pytest
from conftest import MakeApp, Sql, execute, extension
from flask import Flask
from pymysql.cursors import Cursor, SSCursor

from flask_mysqlpool import (
    ConnectionLost,
    ConnectionReturned,
    PooledConnection,
    TransactionError,
    get_db,
)
from flask_mysqlpool.pool.transaction import transaction
from flask_mysqlpool.testing import rolled_back

pytest_plugins = ["pytester"]


class Oops(Exception):
    """What only the test raises."""


def insert(number: int) -> None:
    execute(get_db(), f"INSERT INTO t (a) VALUES ({number})")


def numbers(connection: PooledConnection | None = None) -> list[int]:
    rows = execute(connection or get_db(), "SELECT a FROM t ORDER BY id")
    return [a for (a,) in rows]


@pytest.fixture(params=[False, True], ids=["manual", "autocommit"])
def autocommit(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def app(make_app: MakeApp, table: str, autocommit: bool) -> Flask:
    app = make_app(AUTOCOMMIT=autocommit)

    @app.get("/<int:number>")
    def add(number: int) -> list[int]:
        insert(number)
        if number == 1:
            get_db().commit()
        if number == 2:
            get_db().rollback()
        return numbers()

    return app


@pytest.fixture
def undone(app: Flask, sql: Sql, table: str) -> Iterator[Flask]:
    """Whatever happens to the table has not happened afterwards."""
    with rolled_back(app), app.app_context():
        yield app
    assert sql("SELECT * FROM t") == ()
    with app.app_context():
        stats = extension(app).stats()
        assert stats.in_use == 0


def test_what_requests_commit_is_seen_by_the_next_and_undone(
    undone: Flask, autocommit: bool
) -> None:
    client = undone.test_client()

    assert client.get("/1").json == [1]
    assert client.get("/2").json == ([1, 2] if autocommit else [1])
    assert client.get("/3").json == ([1, 2, 3] if autocommit else [1, 3])
    # The last one did not commit.
    assert client.get("/1").json == ([1, 2, 3, 1] if autocommit else [1, 1])
    assert numbers() == ([1, 2, 3, 1] if autocommit else [1, 1])


@pytest.mark.parametrize("by_statement", [False, True])
def test_a_mode_that_is_switched_off_leaves_what_was_committed(
    undone: Flask, autocommit: bool, by_statement: bool
) -> None:
    connection = get_db()
    insert(1)
    if by_statement:
        execute(connection, "SET autocommit = 0")
    else:
        connection.autocommit(False)
    insert(2)
    connection.rollback()

    assert numbers() == ([1] if autocommit else [])


def test_blocks_work_as_ever(undone: Flask, autocommit: bool) -> None:
    db = extension(undone)

    with db.transaction():
        insert(1)
        with pytest.raises(Oops), db.transaction():
            insert(2)
            raise Oops
    with pytest.raises(Oops), db.transaction():
        insert(3)
        raise Oops
    db.run_in_transaction(lambda connection: insert(4))
    with pytest.raises(TransactionError, match="refused"):
        execute(get_db(), "CREATE TABLE other (a INT)")
    with pytest.raises(TransactionError, match="the end of the block commits"):
        with db.transaction() as connection:
            connection.commit()

    assert numbers() == [1, 4]
    get_db().begin()
    insert(5)
    with pytest.raises(TransactionError, match="open already"):
        with db.transaction():
            pass
    get_db().rollback()
    assert numbers() == [1, 4]


def test_checkouts_are_distinct_and_end_as_ever(undone: Flask) -> None:
    db = extension(undone)
    one, other = get_db(), db.connection()

    assert one is not other
    assert execute(one, "SELECT CONNECTION_ID()") == execute(
        other, "SELECT CONNECTION_ID()"
    )
    other.close()
    with pytest.raises(ConnectionReturned):
        other.ping()
    one.ping()


def test_threads_take_turns(undone: Flask) -> None:
    db = extension(undone)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                with db.connection(app=undone) as connection:
                    execute(connection, f"INSERT INTO t (a) VALUES ({number})")
                    connection.commit()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert sorted(numbers()) == sorted([*range(4)] * 20)


def test_whoever_is_left_at_the_end_has_nothing_any_more(
    app: Flask, table: str
) -> None:
    db = extension(app)
    with rolled_back(app):
        left = db.connection(app=app)

    with pytest.raises(ConnectionReturned):
        left.ping()
    with db.connection(app=app) as connection:
        assert numbers(connection) == []


def test_a_lost_connection_stays_lost(undone: Flask, sql: Sql) -> None:
    insert(1)
    sql(f"KILL {get_db().thread_id()}")
    with pytest.raises(pymysql.err.OperationalError):
        insert(2)
    with pytest.raises(ConnectionLost):
        insert(3)
    with pytest.raises(ConnectionLost):
        undone.test_client().get("/1")


def test_each_bind_is_undone(make_app: MakeApp, sql: Sql, table: str) -> None:
    app = make_app(BINDS={"other": {"MAX_SIZE": 2}})
    with rolled_back(app), app.app_context():
        for bind in ("default", "other"):
            execute(get_db(bind), "INSERT INTO t (a) VALUES (1)")
            get_db(bind).commit()
        assert numbers(get_db("other")) == [1]

    assert sql("SELECT * FROM t") == ()


def test_what_an_app_does_by_itself_does_not_escape(
    undone: Flask, autocommit: bool
) -> None:
    db = extension(undone)
    get_db().autocommit(not autocommit)
    insert(1)
    get_db().autocommit(True)
    insert(2)
    get_db().rollback()
    assert numbers() == [1, 2]

    get_db().close()
    db.close_pool()
    with db.pool().dedicated_connection() as connection:
        execute(connection, "INSERT INTO t (a) VALUES (3)")
        connection.commit()
    with pytest.raises(AttributeError, match="could not be rolled back"):
        db.pool().steady_connection()
    assert numbers() == [1, 2, 3]


def test_statements_that_end_transactions_work_by_themselves(undone: Flask) -> None:
    """As peewee writes them."""
    execute(get_db(), "BEGIN")
    insert(1)
    execute(get_db(), "COMMIT;")
    execute(get_db(), "start transaction")
    insert(2)
    execute(get_db(), "rollback")

    assert numbers() == [1]


ENDS = [
    *("BEGIN", "BEGIN WORK", "START TRANSACTION", "START TRANSACTION READ ONLY"),
    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
    *("COMMIT", "COMMIT WORK", "COMMIT AND CHAIN", "COMMIT AND NO CHAIN NO RELEASE"),
    *("ROLLBACK", "ROLLBACK WORK", "ROLLBACK AND CHAIN", "/* route='x' */ COMMIT"),
    *("COMMIT -- done", "COMMIT # done", "-- x\nCOMMIT;", "commit/* x */work ; "),
    *("SET autocommit = 0", "SET @@session.autocommit := ON", "SET LOCAL autocommit=1"),
    *("SET NAMES utf8mb4, autocommit = 0", "SET autocommit = off, @a = 'x'"),
    "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    *("SAVEPOINT s", "CREATE TEMPORARY TABLE tt (a INT)", "CALL nothing()"),
    *("SELECT nope", "SELEC", "SET autocommit = 0, nope = 1", "DO 1", "USE test"),
]
METHODS: list[Callable[[PooledConnection], Any]] = [
    lambda connection: connection.query("COMMIT"),
    lambda connection: connection.query(b"ROLLBACK"),
    lambda connection: connection.autocommit(True),
    lambda connection: connection.autocommit(False),
    lambda connection: connection.cursor(lambda c: Cursor(c)).execute("COMMIT"),  # type: ignore[call-overload]
    lambda connection: connection.cursor(SSCursor).execute("BEGIN"),
    lambda connection: connection.cursor().execute(bytearray(b"COMMIT")),  # type: ignore[call-overload]
    lambda connection: connection.cursor().execute(5),  # type: ignore[call-overload]
]


def outcome(call: Callable[[], Any]) -> object:
    try:
        call()
    except Exception as error:
        is_servers = isinstance(error, pymysql.err.MySQLError)
        return type(error), error.args[0] if is_servers else None
    return "done"


@pytest.mark.parametrize("first", ["DO 1", "BEGIN", "INSERT INTO t (a) VALUES (9)"])
def test_what_works_without_it_works_within(
    app: Flask, sql: Sql, table: str, first: str
) -> None:
    def run(call: Callable[[PooledConnection], Any]) -> list[object]:
        with app.app_context():
            connection = get_db()
            return [
                outcome(lambda: execute(connection, first)),
                outcome(lambda: call(connection)),
                outcome(lambda: execute(connection, "SELECT 1")),
                outcome(connection.commit),
                numbers(connection),
            ]

    calls = [partial(execute, statement=s) for s in ENDS] + METHODS
    differ = []
    for number, call in enumerate(calls):
        without = run(call)
        sql("DELETE FROM t")
        with rolled_back(app):
            within = run(call)
        assert sql("SELECT * FROM t") == ()
        if within != without:
            differ.append(([*ENDS, *METHODS][number], without, within))

    assert differ == []


def test_what_concerns_the_next_transaction_alone_is_ignored(undone: Flask) -> None:
    for isolation in ("TRANSACTION ISOLATION LEVEL READ COMMITTED", "@@tx_read_only=1"):
        execute(get_db(), f"SET {isolation}")
        insert(1)
        get_db().commit()


def test_what_was_committed_is_what_readers_see(make_app: MakeApp, table: str) -> None:
    app = make_app(READERS="readers", BINDS={"readers": {"READ_ONLY": True}})
    with rolled_back(app):
        with app.app_context():
            insert(1)
            get_db().commit()
        with app.app_context():
            assert numbers(get_db(readonly=True)) == [1]


def test_one_may_be_within_another(undone: Flask) -> None:
    insert(1)
    get_db().commit()
    get_db().close()
    with rolled_back(undone):
        insert(2)
        get_db().commit()
        get_db().close()
    insert(3)
    get_db().commit()

    assert numbers() == [1, 3]


def test_nested_blocks_of_two_checkouts_are_apart(undone: Flask) -> None:
    db = extension(undone)
    with db.connection() as one, db.connection() as other:
        assert one.savepoint.format(1) != other.savepoint.format(1)
        with transaction(one), pytest.raises(Oops), transaction(one):
            execute(one, "INSERT INTO t (a) VALUES (1)")
            raise Oops
        with transaction(other), transaction(other):
            execute(other, "INSERT INTO t (a) VALUES (2)")

    assert numbers() == [2]


def test_the_pool_is_as_good_as_before(app: Flask, table: str) -> None:
    db = extension(app)
    with rolled_back(app), app.app_context():
        insert(1)
        get_db().close()
        db.close_pool()

    with app.app_context():
        insert(2)
        get_db().commit()
        assert numbers() == [2]
        assert db.stats().in_use == 1


def test_the_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from flask import Flask
        from flask_mysqlpool import MySQLPool

        pytest_plugins = ["flask_mysqlpool.testing.fixtures"]

        @pytest.fixture(scope="session")
        def app(mysql_server):
            app = Flask("shop")
            app.config["MYSQLPOOL_URL"] = mysql_server.url
            db = MySQLPool(app)
            with app.app_context():
                db.get_db().query("CREATE TABLE t (a INT)")
            yield app
            with app.app_context():
                db.close_pool()
        """
    )
    pytester.makepyfile(
        """
        import pytest
        from flask_mysqlpool import get_db

        @pytest.mark.parametrize("again", [1, 2])
        def test_it(mysql_rollback, again):
            with get_db().cursor() as cursor:
                assert cursor.execute("SELECT * FROM t") == 0
                cursor.execute("INSERT INTO t VALUES (1)")
            get_db().commit()
        """
    )

    # In a process of its own, as it would be.
    pytester.runpytest_subprocess("-p", "no:flask").assert_outcomes(passed=2)

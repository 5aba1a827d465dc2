"""Transactions as blocks: all of it or nothing, and again only where that is safe."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pymysql.err
import pytest
from conftest import MakeApp, MakePool
from flask import Flask

from flask_mysqlpool import (
    CommitUnknown,
    ConnectionLost,
    MySQLPool,
    PooledConnection,
    PoolTimeout,
    TransactionError,
    get_db,
)
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.transaction import run_in_transaction, transaction

Sql = Callable[..., tuple[tuple[Any, ...], ...]]


class Oops(Exception):
    """What only the test raises."""


def execute(connection: PooledConnection, statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def insert(connection: PooledConnection, number: int) -> None:
    execute(connection, f"INSERT INTO t (a) VALUES ({number})")


@pytest.fixture
def stored(sql: Sql, table: str) -> Callable[[], list[int]]:
    """What is committed."""
    return lambda: [a for (a,) in sql("SELECT a FROM t ORDER BY id")]


@pytest.fixture(params=[False, True], ids=["manual", "autocommit"])
def connection(
    make_pool: MakePool, request: pytest.FixtureRequest
) -> Iterator[PooledConnection]:
    with make_pool(AUTOCOMMIT=request.param).connection() as connection:
        yield connection


Stored = Callable[[], list[int]]


def test_a_block_commits_at_its_end(
    connection: PooledConnection, stored: Stored
) -> None:
    with transaction(connection) as same:
        insert(same, 1)
        insert(same, 2)
        assert stored() == []

    assert stored() == [1, 2]
    assert same is connection


@pytest.mark.parametrize("kind", [Oops, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_exception_rolls_back_and_comes_out(
    connection: PooledConnection, stored: Stored, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), transaction(connection):
        insert(connection, 1)
        raise kind

    with transaction(connection):
        insert(connection, 2)
    assert stored() == [2]


def test_an_inner_block_is_a_savepoint(
    connection: PooledConnection, stored: Stored
) -> None:
    with transaction(connection):
        insert(connection, 1)
        with pytest.raises(Oops), transaction(connection):
            insert(connection, 2)
            with transaction(connection):
                insert(connection, 3)
            raise Oops
        with transaction(connection):
            insert(connection, 4)
        assert stored() == []

    assert stored() == [1, 4]


def test_an_exception_of_the_outer_block_undoes_the_inner_one(
    connection: PooledConnection, stored: Stored
) -> None:
    with pytest.raises(Oops), transaction(connection):
        with transaction(connection):
            insert(connection, 1)
        raise Oops

    assert stored() == []


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE other (a INT)",
        "create or replace view v as select 1",
        "/* why not */ DROP TABLE t",
        "ALTER TABLE t ADD b INT",
        "TRUNCATE TABLE t",
        "truncate t",
        "RENAME TABLE t TO u",
        "LOCK TABLES t WRITE",
        "BEGIN",
        "START TRANSACTION",
        "COMMIT",
        "commit and chain",
        "ROLLBACK",
        "SET autocommit = 1",
        "SET SESSION autocommit=1",
        "GRANT SELECT ON test.t TO x",
    ],
)
def test_what_would_end_the_transaction_is_refused_before_it_is_sent(
    connection: PooledConnection, stored: Stored, statement: str
) -> None:
    with pytest.raises(TransactionError, match="refused"), transaction(connection):
        insert(connection, 1)
        execute(connection, statement)

    assert stored() == []


def test_what_does_not_end_it_is_not_refused(
    connection: PooledConnection, stored: Stored
) -> None:
    with transaction(connection):
        execute(connection, "CREATE TEMPORARY TABLE mine (a INT)")
        execute(connection, "INSERT INTO mine VALUES (1)")
        insert(connection, 1)
        execute(connection, "SAVEPOINT here")
        insert(connection, 2)
        execute(connection, "ROLLBACK TO SAVEPOINT here")
        execute(connection, "rollback work to here")
        execute(connection, "DROP TEMPORARY TABLE mine")
        assert stored() == []

    assert stored() == [1]


@pytest.mark.parametrize("call", ["commit", "rollback", "begin"])
def test_methods_that_would_end_it_say_what_to_do(
    connection: PooledConnection, stored: Stored, call: str
) -> None:
    with pytest.raises(TransactionError, match=rf"{call}\(\) inside"):
        with transaction(connection):
            insert(connection, 1)
            getattr(connection, call)()

    with pytest.raises(TransactionError, match="call it before"):
        with transaction(connection):
            insert(connection, 2)
            connection.autocommit(True)

    assert stored() == []


def test_a_procedure_that_commits_is_told_at_the_end(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    sql("CREATE OR REPLACE PROCEDURE commits() COMMIT" if mariadb(sql) else DROP)
    if not mariadb(sql):
        sql("CREATE PROCEDURE commits() COMMIT")

    with pytest.raises(TransactionError, match="ended inside"):
        with transaction(connection):
            insert(connection, 1)
            execute(connection, "CALL commits()")

    with pytest.raises(TransactionError, match="has been ended"):
        with transaction(connection):
            execute(connection, "CALL commits()")
            insert(connection, 2)

    assert stored() == [1]


DROP = "DROP PROCEDURE IF EXISTS commits"


def mariadb(sql: Sql) -> bool:
    [[version]] = sql("SELECT VERSION()")
    return "MariaDB" in version


def test_a_connection_returned_inside_is_told_at_the_end(
    make_pool: MakePool, stored: Stored
) -> None:
    connection = make_pool().connection()

    with pytest.raises(TransactionError, match="returning"):
        with transaction(connection):
            insert(connection, 1)
            connection.close()

    assert stored() == []


@pytest.mark.parametrize(
    "before",
    [
        "BEGIN",
        "START TRANSACTION",
        "INSERT INTO t (a) VALUES (1)",
        "SELECT a FROM t FOR UPDATE",
        "SELECT a FROM t LOCK IN SHARE MODE",
    ],
)
def test_a_block_does_not_join_what_is_open_already(
    make_pool: MakePool, stored: Stored, before: str
) -> None:
    with make_pool().connection() as connection:
        execute(connection, before)

        with pytest.raises(TransactionError, match=r"commit\(\) or rollback\(\) it"):
            with transaction(connection):
                insert(connection, 2)

        connection.rollback()
        with transaction(connection):
            insert(connection, 3)
    assert stored() == [3]


def test_after_begin_a_block_is_refused(connection: PooledConnection) -> None:
    connection.begin()

    with pytest.raises(TransactionError, match="open already"):
        with transaction(connection):
            pass


def test_a_read_before_the_block_is_in_nobodys_way(
    make_pool: MakePool, stored: Stored
) -> None:
    with make_pool().connection() as connection:
        execute(connection, "SELECT a FROM t")
        with transaction(connection):
            insert(connection, 1)
        execute(connection, "INSERT INTO t (a) VALUES (2)")
        execute(connection, "COMMIT")
        execute(connection, "SELECT a FROM t")
        with transaction(connection):
            insert(connection, 3)

    assert stored() == [1, 2, 3]


def test_a_connection_lost_inside_loses_all_and_the_next_block_works(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    with pytest.raises(ConnectionLost), transaction(connection):
        insert(connection, 1)
        sql(f"KILL {connection.thread_id()}")
        with pytest.raises(pymysql.err.OperationalError):
            insert(connection, 2)
        insert(connection, 3)

    with transaction(connection):
        insert(connection, 4)
    assert stored() == [4]


def test_an_error_that_is_swallowed_does_not_become_half_a_transaction(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    with pytest.raises(ConnectionLost), transaction(connection):
        insert(connection, 1)
        sql(f"KILL {connection.thread_id()}")
        with pytest.raises(pymysql.err.OperationalError):
            insert(connection, 2)

    assert stored() == []


def lock_order(first: int, second: int) -> tuple[str, str]:
    update = "UPDATE t SET a = a + 1 WHERE id = {}"
    return update.format(first), update.format(second)


def test_a_deadlock_that_is_caught_ends_the_block(
    make_pool: MakePool, sql: Sql, stored: Stored
) -> None:
    """Or what follows would be committed without what came before."""
    sql("INSERT INTO t (id, a) VALUES (1, 0), (2, 0)")
    pool = make_pool(MAX_SIZE=2, AUTOCOMMIT=True)
    both = threading.Barrier(2)
    outcomes: list[str] = []

    def work(first: int, second: int) -> None:
        one, other = lock_order(first, second)
        with pool.connection() as connection:
            try:
                with transaction(connection):
                    execute(connection, one)
                    both.wait(10)
                    try:
                        execute(connection, other)
                    except pymysql.err.OperationalError as error:
                        assert error.args[0] == 1213
                    insert(connection, 99)
                outcomes.append("committed")
            except TransactionError:
                outcomes.append("refused")

    run_all([lambda: work(1, 2), lambda: work(2, 1)])

    assert sorted(outcomes) == ["committed", "refused"]
    assert stored() == [1, 1, 99]


def run_all(jobs: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


ROUNDS = 200


def test_deadlocks_are_run_again_until_each_is_done_once(
    make_pool: MakePool, sql: Sql, stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    sql("INSERT INTO t (id, a) VALUES (1, 0), (2, 0)")
    pool = make_pool(MAX_SIZE=2)
    calls: Counter[str] = Counter()

    def worker(name: str, first: int, second: int) -> None:
        def transfer(connection: PooledConnection, number: int) -> None:
            calls[name] += 1
            one, other = lock_order(first, second)
            execute(connection, one)
            if number not in met[name]:
                # The first time, until the other one has its first lock, too.
                met[name].add(number)
                both.wait(10)
            execute(connection, other)
            insert(connection, number)

        with pool.connection() as connection:
            for number in range(ROUNDS):
                run_in_transaction(connection, transfer, number, retries=10)
                after.wait(10)

    both, after = threading.Barrier(2), threading.Barrier(2)
    met: dict[str, set[int]] = {"there": set(), "back": set()}
    run_all([lambda: worker("there", 1, 2), lambda: worker("back", 2, 1)])

    again = calls.total() - 2 * ROUNDS
    with capsys.disabled():
        print(f" {2 * ROUNDS} transfers, {again} run again after a deadlock", end=" ")
    assert again >= ROUNDS
    one, two, *numbers = stored()
    assert one == two == 2 * ROUNDS
    assert sorted(numbers) == sorted([*range(ROUNDS), *range(ROUNDS)])


def test_a_lock_wait_timeout_is_run_again_as_a_whole(
    connection: PooledConnection, root: Any, sql: Sql, stored: Stored
) -> None:
    sql("INSERT INTO t (id, a) VALUES (1, 0)")
    execute(connection, "SET innodb_lock_wait_timeout = 1")
    root.begin()
    sql("UPDATE t SET a = 10 WHERE id = 1")
    codes: list[int] = []

    def work(connection: PooledConnection) -> None:
        insert(connection, len(codes))
        try:
            execute(connection, "UPDATE t SET a = a + 1 WHERE id = 1")
        except pymysql.err.OperationalError as error:
            codes.append(error.args[0])
            root.commit()
            raise

    run_in_transaction(connection, work, retries=3)

    assert codes == [1205]
    assert stored() == [11, 1]


def test_a_connection_lost_before_the_commit_is_run_again(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    seen = []

    def work(connection: PooledConnection) -> str:
        seen.append(connection.thread_id())
        insert(connection, len(seen))
        if len(seen) == 1:
            sql(f"KILL {seen[0]}")
            insert(connection, 100)
        return "done"

    assert run_in_transaction(connection, work, retries=3) == "done"
    assert len(set(seen)) == 2
    assert stored() == [2]


def test_a_connection_lost_while_idle_is_replaced_for_the_block(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    execute(connection, "SELECT a FROM t")
    sql(f"KILL {connection.thread_id()}")

    run_in_transaction(connection, insert, 1, retries=1)

    assert stored() == [1]


def test_work_lost_before_the_block_is_nobodys_to_repeat(
    make_pool: MakePool, sql: Sql, stored: Stored
) -> None:
    with make_pool().connection() as connection:
        insert(connection, 1)
        sql(f"KILL {connection.thread_id()}")
        with pytest.raises(pymysql.err.OperationalError):
            insert(connection, 2)

        with pytest.raises(ConnectionLost):
            run_in_transaction(connection, insert, 3, retries=3)

    assert stored() == []


def test_after_a_commit_without_an_answer_nothing_is_run_again(
    make_pool: MakePool, server: LocalServer, proxy: FaultProxy, stored: Stored
) -> None:
    calls = []
    with make_pool(URL=server.url_at(proxy.port)).connection() as connection:

        def work(connection: PooledConnection) -> None:
            calls.append(1)
            insert(connection, 1)
            proxy.cut_after_request()

        with pytest.raises(CommitUnknown, match="look whether") as info:
            run_in_transaction(connection, work, retries=3)

        assert isinstance(info.value.__cause__, pymysql.err.OperationalError)
        assert calls == [1]
        assert stored() == [1]
        with transaction(connection):
            insert(connection, 2)
    assert stored() == [1, 2]


def test_a_connection_found_dead_before_the_commit_is_sent_is_run_again(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    """Nothing was sent, so its outcome is known."""
    calls = []

    def work(connection: PooledConnection) -> None:
        calls.append(connection.thread_id())
        insert(connection, len(calls))
        if len(calls) == 1:
            sql(f"KILL {calls[0]}")
            con = connection._con
            assert con is not None
            con._readable(10_000)

    run_in_transaction(connection, work, retries=1)

    assert stored() == [2]


def test_it_gives_up_after_so_many_times(
    connection: PooledConnection, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("flask_mysqlpool.transaction.time.sleep", pauses.append)
    calls = []

    def work(connection: PooledConnection) -> None:
        calls.append(1)
        insert(connection, 1)
        raise pymysql.err.OperationalError(1213, "Deadlock found")

    with pytest.raises(pymysql.err.OperationalError, match="Deadlock"):
        run_in_transaction(connection, work, retries=4)

    assert len(calls) == 5
    assert len(pauses) == 4
    assert all(0 < pause <= 1.5 for pause in pauses)
    assert stored() == []


@pytest.mark.parametrize(
    "error", [Oops(), pymysql.err.IntegrityError(1062, "x"), PoolTimeout("x")]
)
def test_other_errors_are_not_run_again(
    connection: PooledConnection, stored: Stored, error: Exception
) -> None:
    calls = []

    def work(connection: PooledConnection) -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        run_in_transaction(connection, work, retries=3)

    assert calls == [1]


def test_inside_of_a_block_only_the_outermost_is_run_again(
    connection: PooledConnection, stored: Stored
) -> None:
    calls: Counter[str] = Counter()

    def inner(connection: PooledConnection) -> None:
        calls["inner"] += 1
        if calls["inner"] == 1:
            raise pymysql.err.OperationalError(1213, "Deadlock found")
        insert(connection, 1)

    def outer(connection: PooledConnection) -> None:
        calls["outer"] += 1
        run_in_transaction(connection, inner, retries=3)

    run_in_transaction(connection, outer, retries=3)

    assert calls == {"outer": 2, "inner": 2}
    assert stored() == [1]


def test_a_function_that_commits_by_itself_is_told_so(
    connection: PooledConnection, stored: Stored
) -> None:
    def work(connection: PooledConnection) -> None:
        insert(connection, 1)
        connection.commit()

    with pytest.raises(TransactionError, match="the end of the block commits"):
        run_in_transaction(connection, work, retries=3)

    assert stored() == []


# In Flask


def extension(app: Flask) -> MySQLPool:
    [db] = app.extensions["mysqlpool"]
    assert isinstance(db, MySQLPool)
    return db


def test_in_a_request_the_block_is_on_its_connection(
    make_app: MakeApp, stored: Stored
) -> None:
    app = make_app()
    db = extension(app)

    @app.get("/<int:number>")
    def view(number: int) -> str:
        execute(get_db(), "SELECT 1")
        with db.transaction() as connection:
            assert connection is get_db()
            insert(connection, number)
            if number > 1:
                raise Oops
        return "done"

    client = app.test_client()
    assert client.get("/1").text == "done"
    with pytest.raises(Oops):
        client.get("/2")
    assert stored() == [1]


def test_with_an_app_it_works_outside_of_contexts(
    make_app: MakeApp, stored: Stored
) -> None:
    app = make_app(MAX_SIZE=1)
    db = extension(app)

    with db.transaction(app=app) as connection:
        insert(connection, 1)
    with db.connection(app=app) as connection:
        insert(connection, 2)
        connection.commit()
    with app.app_context():
        db.run_in_transaction(insert, 3)

    assert stored() == [1, 2, 3]


def test_in_debug_mode_a_rollback_at_the_end_is_told(
    make_app: MakeApp, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()

    @app.get("/<int:number>", endpoint="shop.buy")
    def view(number: int) -> str:
        for each in range(number):
            insert(get_db(), each)
        if number == 3:
            get_db().commit()
        if number == 4:
            get_db().rollback()
        if number == 5:
            raise Oops
        return "done"

    client = app.test_client()
    client.get("/2")
    assert caplog.messages == []
    app.debug = True
    for number in (0, 3, 4):
        client.get(f"/{number}")
    with pytest.raises(Oops):
        client.get("/5")
    assert caplog.messages == []
    client.get("/2")

    [message] = caplog.messages
    assert message.startswith("shop.buy changed 2 rows and did not commit")
    assert stored() == [0, 1, 2]

"""Transactions as blocks: all of it or nothing, and again only where that is safe."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from typing import Any

import pymysql.err
import pytest
from conftest import MakeApp, MakePool, Sql, execute, extension, local_server, until
from flask import g
from liars import Liar, Talk, config, refusal

from flask_mysqlpool import (
    CommitUnknown,
    ConnectionLost,
    ConnectionShared,
    Pool,
    PoolConfig,
    PooledConnection,
    PoolTimeout,
    TransactionError,
    get_db,
)
from flask_mysqlpool.pool.driver.statements import side_effects
from flask_mysqlpool.pool.transaction import run_in_transaction, transaction
from flask_mysqlpool.testing import FaultProxy, LocalServer


class Oops(Exception):
    """What only the test raises."""


def insert(connection: PooledConnection, number: int) -> None:
    execute(connection, f"INSERT INTO t (a) VALUES ({number})")


@pytest.fixture
def stored(sql: Sql, table: str) -> Callable[[], list[int]]:
    """What is committed."""
    return lambda: [a for (a,) in sql("SELECT a FROM t ORDER BY id")]


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


@pytest.mark.one_engine
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
        "SET LOCAL autocommit = 1",
        "SET @@local.autocommit := 1",
        "SET `autocommit` = 1",
        "SET @a = 1, autocommit = 1",
        "-- why\nCOMMIT",
        "# why\n  CREATE TABLE other (a INT)",
        "/*! COMMIT */",
        "/*!40000 CREATE TABLE other (a INT) */",
        "/* a */ -- b\n /*!COMMIT*/",
        "CHECK TABLE t",
        "CREATE /* TEMPORARY */ TABLE other (a INT)",
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
        execute(connection, "rollback /* all */ work to here")
        execute(connection, "SET @commit = 'COMMIT', @a = 1")
        execute(connection, "SELECT 1 AS commit_log -- COMMIT")
        execute(connection, "REPLACE INTO mine VALUES (2)")
        execute(connection, "WITH c AS (SELECT 1 AS a) SELECT a FROM c")
        execute(connection, "EXPLAIN SELECT 1")
        execute(connection, "DROP /* it */ TEMPORARY TABLE mine")
        execute(connection, "CREATE TEMPORARY TABLE mine (a INT)")
        execute(connection, "PREPARE p FROM 'INSERT INTO t (a) VALUES (9)'")
        execute(connection, "EXECUTE p")
        execute(connection, "DROP PREPARE p")
        execute(connection, "DROP TEMPORARY TABLE mine")
        assert stored() == []

    assert stored() == [1, 9]


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


PROCEDURES = {
    "commits": "COMMIT",
    "goes_on": "BEGIN INSERT INTO t (a) VALUES (50); COMMIT;"
    " INSERT INTO t (a) VALUES (51); END",
    "begins_anew": "BEGIN COMMIT; START TRANSACTION; END",
    "shows": "BEGIN SELECT 1; COMMIT; END",
    "is_harmless": "BEGIN SELECT 1; INSERT INTO t (a) VALUES (60); END",
    "goes_on_implicitly": "BEGIN COMMIT; INSERT INTO t (a) VALUES (51); END",
    "chains": "BEGIN COMMIT AND CHAIN; INSERT INTO t (a) VALUES (51); END",
    "fails": "BEGIN COMMIT; SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END",
}


@pytest.fixture
def procedures(sql: Sql, table: str) -> None:
    for name, body in PROCEDURES.items():
        sql(f"DROP PROCEDURE IF EXISTS {name}")
        sql(f"CREATE PROCEDURE {name}() {body}")


@pytest.mark.usefixtures("tells")
@pytest.mark.parametrize(
    "name",
    ["commits", "goes_on", "goes_on_implicitly", "chains", "begins_anew", "shows"],
)
@pytest.mark.parametrize("then", ["end", "statement", "exception"])
def test_a_procedure_that_commits_is_told(
    connection: PooledConnection,
    procedures: None,
    stored: Stored,
    name: str,
    then: str,
) -> None:
    # An exception of the block's own is told as it is.
    with pytest.raises(Oops if then == "exception" else TransactionError):
        with transaction(connection):
            insert(connection, 1)
            with connection.cursor() as cursor:
                cursor.execute(f"CALL {name}()")
            if then == "statement":
                insert(connection, 2)
            if then == "exception":
                raise Oops

    # What it has committed stays; nothing that came after it does.
    kept = [n for n in stored() if n != 51 or not autocommits(connection)]
    assert kept == ([1, 50] if name == "goes_on" else [1])


def autocommits(connection: PooledConnection) -> bool:
    return bool(connection.get_autocommit())


@pytest.mark.usefixtures("tells")
def test_a_procedure_that_commits_nothing_is_in_nobodys_way(
    connection: PooledConnection, procedures: None, stored: Stored
) -> None:
    with transaction(connection):
        execute(connection, "CALL is_harmless()")
        with pytest.raises(Oops), transaction(connection):
            execute(connection, "CALL is_harmless()")
            raise Oops
        insert(connection, 1)

    assert stored() == [60, 1]


@pytest.mark.usefixtures("tells")
def test_what_may_have_committed_before_it_failed_is_not_run_again(
    connection: PooledConnection, procedures: None, stored: Stored
) -> None:
    calls = []

    def order(connection: PooledConnection) -> None:
        calls.append(1)
        insert(connection, 7)
        execute(connection, "CALL fails()")

    with pytest.raises(TransactionError, match="check the database"):
        run_in_transaction(connection, order, retries=3)

    assert calls == [1]
    assert stored() == [7]


@pytest.fixture(scope="module")
def strict_server(engine: str) -> Iterator[LocalServer]:
    """A lock wait timeout rolls back all of a transaction there."""
    options = ["--innodb-rollback-on-timeout=ON", "--innodb-lock-wait-timeout=1"]
    with local_server(engine, options=options) as server:
        yield server


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("autocommit", [False, True])
def test_a_lock_wait_that_ends_the_transaction_ends_the_block(
    strict_server: LocalServer, nested: bool, autocommit: bool
) -> None:
    server = strict_server
    pool = Pool(PoolConfig.from_mapping({"URL": server.url, "AUTOCOMMIT": autocommit}))
    with server.connect(database="test") as other, other.cursor() as blocker:
        blocker.execute("DROP TABLE IF EXISTS t")
        blocker.execute("CREATE TABLE t (id INT PRIMARY KEY, a INT)")
        blocker.execute("INSERT INTO t VALUES (1, 0)")
        other.commit()
        other.begin()
        blocker.execute("UPDATE t SET a = 1 WHERE id = 1")
        with pool.connection() as connection:
            with pytest.raises(TransactionError):
                with transaction(connection):
                    execute(connection, "INSERT INTO t VALUES (2, 0)")
                    with pytest.raises(pymysql.err.OperationalError):
                        with transaction(connection) if nested else nullcontext():
                            execute(connection, "UPDATE t SET a = 2 WHERE id = 1")
                    execute(connection, "INSERT INTO t VALUES (3, 0)")
        other.rollback()
        blocker.execute("SELECT id FROM t")
        assert blocker.fetchall() == ((1,),)
    pool.close()


def test_blocks_of_two_tasks_do_not_mix(
    connection: PooledConnection, stored: Stored
) -> None:
    async def one(name: int, entered: asyncio.Event, go: asyncio.Event) -> None:
        with transaction(connection):
            insert(connection, name)
            entered.set()
            await go.wait()

    async def both() -> None:
        entered, go = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(one(1, entered, go))
        await entered.wait()
        with pytest.raises(TransactionError, match="another task or thread"):
            await one(2, entered, go)
        go.set()
        await first

    asyncio.run(both())

    assert stored() == [1]
    with transaction(connection):
        insert(connection, 3)


def test_blocks_of_two_generators_do_not_commit_each_others_halves(
    connection: PooledConnection, stored: Stored
) -> None:
    def block(number: int) -> Iterator[None]:
        with transaction(connection):
            insert(connection, number)
            yield
            insert(connection, number + 10)

    one, other = block(1), block(2)
    next(one)
    next(other)
    for generator in (one, other):
        with pytest.raises(TransactionError):
            next(generator)

    # What the second one did after the first had ended was in no block any more.
    left = [12] if autocommits(connection) else []
    assert stored() == left
    with transaction(connection):
        insert(connection, 3)
    connection.commit()
    assert stored() == [*left, 3]


@pytest.mark.parametrize("both_end", [False, True])
def test_inner_blocks_out_of_step_have_the_outer_one_fail(
    connection: PooledConnection, stored: Stored, both_end: bool
) -> None:
    def inner(number: int) -> Generator[None, None, None]:
        with transaction(connection):
            insert(connection, number)
            yield

    with pytest.raises(TransactionError, match="ended out of order"):
        with transaction(connection):
            insert(connection, 1)
            one, other = inner(2), inner(3)
            next(one)
            next(other)
            for generator in (one, other) if both_end else (one,):
                with pytest.raises(TransactionError):
                    next(generator)
    other.close()

    assert stored() == []
    with transaction(connection):
        insert(connection, 4)
    assert stored() == [4]


@pytest.mark.usefixtures("tells")
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        # What it could not do is told, with the exception of the block as its context.
        (Oops, pymysql.err.OperationalError),
        (KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_an_inner_block_that_cannot_be_undone_has_the_outer_one_fail(
    connection: PooledConnection,
    stored: Stored,
    raised: type[BaseException],
    told: type[BaseException],
) -> None:
    with pytest.raises(TransactionError), transaction(connection):
        insert(connection, 1)
        with pytest.raises(told) as caught, transaction(connection):
            insert(connection, 2)
            execute(connection, f"RELEASE SAVEPOINT {connection.savepoint.format(1)}")
            raise raised
    if told is not raised:
        assert caught.value.args[0] == 1305
        assert isinstance(caught.value.__context__, raised)

    assert stored() == []
    with transaction(connection):
        insert(connection, 3)
    assert stored() == [3]


def test_a_block_that_cannot_be_rolled_back_is_given_up(
    make_pool: MakePool, sql: Sql, stored: Stored
) -> None:
    """Or its half would be committed by what comes next."""
    with make_pool().connection() as connection:
        statement = "SELECT SLEEP(1)"

        def sleep() -> None:
            with suppress(pymysql.err.MySQLError):
                execute(connection, statement)

        thread = threading.Thread(target=sleep)
        query = "SELECT 1 FROM information_schema.processlist WHERE info = %s"
        with pytest.raises(ConnectionShared), transaction(connection):
            insert(connection, 1)
            thread.start()
            until(lambda: sql(query, statement))
            raise Oops
        thread.join()
        with pytest.raises(ConnectionLost):
            insert(connection, 2)
        connection.rollback()
        insert(connection, 3)
        connection.commit()

    assert stored() == [3]


@pytest.mark.parametrize(
    "read",
    [
        "WITH c AS (SELECT a FROM t) SELECT * FROM c",
        "(SELECT a FROM t) UNION (SELECT 1)",
        "SELECT /* hint */ a FROM t",
        "SELECT a FROM t -- c",
        "-- c\nSELECT '#1' FROM t",
        "EXPLAIN SELECT a FROM t",
        "DESCRIBE t",
        "SHOW TABLES",
        "SELECT uuid_short() FROM t",
        "SET time_zone = '+00:00'",
        "USE test",
    ],
)
def test_whatever_only_reads_is_in_no_blocks_way(
    make_pool: MakePool, stored: Stored, read: str
) -> None:
    with make_pool().connection() as connection:
        execute(connection, "SELECT a FROM t")
        execute(connection, read)
        with transaction(connection):
            insert(connection, 1)

    assert stored() == [1]


def test_what_is_remembered_of_statements_is_bounded() -> None:
    for number in range(50):
        side_effects(b"REPLACE INTO t VALUES (%d, '%s')" % (number, b"x" * 100_000))

    gc.collect()
    kept = [each for each in gc.get_objects() if isinstance(each, bytes)]
    assert max(map(len, kept), default=0) < 100_000


def test_a_negative_number_of_retries_is_refused(connection: PooledConnection) -> None:
    with pytest.raises(ValueError, match="retries must be 0 or more"):
        run_in_transaction(connection, insert, 1, retries=-1)


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


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True, scope="session")
def test_a_row_that_has_changed_since_the_snapshot_is_run_again_as_a_whole(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    sql("INSERT INTO t (id, a) VALUES (1, 0)")
    # The default since MariaDB 11.6.
    execute(connection, "SET innodb_snapshot_isolation = ON")
    codes: list[int] = []

    def work(connection: PooledConnection) -> None:
        insert(connection, len(codes))
        execute(connection, "SELECT * FROM t")
        if not codes:
            sql("UPDATE t SET a = 10 WHERE id = 1")
        try:
            execute(connection, "UPDATE t SET a = a + 1 WHERE id = 1")
        except pymysql.err.OperationalError as error:
            codes.append(error.args[0])
            raise

    run_in_transaction(connection, work, retries=3)

    assert codes == [1020]
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

        with pytest.raises(CommitUnknown, match="check the database") as info:
            run_in_transaction(connection, work, retries=3)

        assert isinstance(info.value.__cause__, pymysql.err.OperationalError)
        assert calls == [1]
        assert stored() == [1]
        with transaction(connection):
            insert(connection, 2)
    assert stored() == [1, 2]


def test_what_committed_is_told_though_the_mode_is_asked_for_first(
    make_pool: MakePool, stored: Stored, sql: Sql
) -> None:
    sql("DROP PROCEDURE IF EXISTS commits")
    sql(
        "CREATE PROCEDURE commits() BEGIN SET sql_mode = 'NO_BACKSLASH_ESCAPES';"
        " SELECT 1; COMMIT; START TRANSACTION; SIGNAL SQLSTATE '45000'; END"
    )
    calls = []

    def work(connection: PooledConnection) -> None:
        calls.append(1)
        insert(connection, 1)
        cursor = connection.cursor()
        with suppress(pymysql.err.MySQLError):
            cursor.execute("CALL commits()")
            while cursor.nextset():
                pass
        connection.execute("INSERT INTO t (a) VALUES (%s)", [2])
        raise pymysql.err.OperationalError(1213, "Deadlock")

    with make_pool().connection() as connection:
        with pytest.raises(TransactionError):
            run_in_transaction(connection, work, retries=3)
    assert len(calls) == 1 and stored() == [1]


def test_what_a_refused_begin_has_left_to_autocommit_is_not_run_again() -> None:
    executed = []

    def server(talk: Talk) -> None:
        talk.let_in()
        talk.serve(until=b"\3START TRANSACTION")
        talk.say(refusal(9001, b"Max connect timeout reached"))
        executed.append(talk.hear())
        # The answer to the INSERT, which autocommit has committed, is lost.

    with Liar(server) as liar, closing(Pool(config(liar.port))) as pool:
        connection = pool.connection()
        with pytest.raises(TransactionError, match="may have committed"):
            run_in_transaction(connection, lambda c: insert(c, 1), retries=3)
        connection.close()
    assert len(executed) == 1


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
            con._readable(time.monotonic() + 10)

    run_in_transaction(connection, work, retries=1)

    assert stored() == [2]


def test_it_gives_up_after_so_many_times(
    connection: PooledConnection, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("flask_mysqlpool.pool.transaction.time.sleep", pauses.append)
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


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_decorated_coroutine_runs_in_the_block(
    make_app: MakeApp, stored: Stored, autocommit: bool
) -> None:
    app = make_app(AUTOCOMMIT=autocommit)
    db = extension(app)

    @db.transaction()  # type: ignore[operator]
    async def work(fails: bool) -> int:
        insert(db.get_db(), 1)
        await asyncio.sleep(0)
        if fails:
            raise Oops
        return 7

    with app.app_context():
        with pytest.raises(Oops):
            asyncio.run(work(True))
        assert stored() == []
        assert asyncio.run(work(False)) == 7
    assert stored() == [1]


def test_what_would_run_outside_of_the_block_is_refused(
    make_app: MakeApp, stored: Stored
) -> None:
    app = make_app(AUTOCOMMIT=True)
    db = extension(app)

    async def coroutine(connection: PooledConnection) -> None:
        insert(connection, 1)

    def generator(connection: PooledConnection) -> Iterator[None]:
        insert(connection, 1)
        yield

    async def both(connection: PooledConnection) -> AsyncIterator[None]:
        insert(connection, 1)
        yield

    def returns_one(connection: PooledConnection) -> Any:
        insert(connection, 1)
        return coroutine(connection)

    with app.app_context():
        decorate: Any = db.transaction()
        for function in (generator, both):
            with pytest.raises(TypeError, match="inside it"):
                decorate(function)
        for job in (coroutine, generator, both, returns_one):
            with pytest.raises(TypeError, match="inside it"):
                db.run_in_transaction(job)
    assert stored() == []


# In Flask


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


def test_each_call_of_a_decorated_function_has_a_context_of_its_own(
    make_app: MakeApp, stored: Stored
) -> None:
    app = make_app(MAX_SIZE=2)
    db = extension(app)
    both = threading.Barrier(2, timeout=20)
    found: list[object] = []

    @db.transaction(app=app)  # type: ignore[operator]
    def job(number: int, then: Callable[[], object] = lambda: None) -> None:
        found.append(g.get("number"))
        g.number = number
        insert(get_db(), number)
        then()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(job, [1, 2], [both.wait, both.wait]))
    job(3)
    job(4)

    assert found == [None] * 4
    assert sorted(stored()) == [1, 2, 3, 4]


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

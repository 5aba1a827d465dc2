"""Blocks against interrupts, lost connections, late errors and settings of the server.

What a caller was told is compared with what the database has.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pymysql.err
import pytest
from conftest import MakePool, Sql, execute, until
from pymysql.constants import CLIENT
from pymysql.cursors import SSCursor

import flask_mysqlpool
from flask_mysqlpool import (
    CommitUnknown,
    ConnectionLost,
    Pool,
    PooledConnection,
    TransactionError,
)
from flask_mysqlpool.pool.transaction import (
    TransactionBlock,
    run_in_transaction,
    transaction,
)

Stored = Callable[[], tuple[int, ...]]


class Interrupt(BaseException):
    """As a signal handler raises it."""


class Oops(Exception):
    """What only the test raises."""


def insert(connection: PooledConnection, number: int) -> None:
    execute(connection, f"INSERT INTO t (a) VALUES ({number})")


@pytest.fixture
def stored(sql: Sql, table: str) -> Stored:
    """What is committed."""
    return lambda: tuple(a for (a,) in sql("SELECT a FROM t ORDER BY id"))


# Interrupts

PACKAGE = Path(flask_mysqlpool.__file__).parent
TRACED = {
    contextlib.__file__,
    *(
        str(PACKAGE / "pool" / f"{name}.py")
        for name in (
            *("transaction", "connection", "cursors"),
            *("driver/session", "driver/transport"),
        )
    ),
}


class Tracer:
    """Raises an interrupt at the n-th call, line or return of the package."""

    def __init__(self, moment: int) -> None:
        self.left = moment
        self.where = ""

    def run(self, call: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            call()
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_name
        # What a finalizer raises goes nowhere.
        if frame.f_code.co_filename in TRACED and self.left > 0 and name != "__del__":
            return self._happened(frame, event, arg)
        return None

    def _happened(self, frame: FrameType, event: str, arg: object) -> Any:
        if self.left > 0 and event != "exception":
            self.left -= 1
            if self.left == 0:
                self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}, {event}"
                raise Interrupt
        return self._happened


def plain(connection: PooledConnection) -> None:
    with transaction(connection):
        insert(connection, 1)
        insert(connection, 2)


def nested(connection: PooledConnection) -> None:
    with transaction(connection):
        insert(connection, 1)
        with contextlib.suppress(Oops), transaction(connection):
            insert(connection, 3)
            raise Oops
        with transaction(connection):
            insert(connection, 2)


def repeated(connection: PooledConnection) -> None:
    calls: list[int] = []

    def work(connection: PooledConnection) -> None:
        calls.append(1)
        insert(connection, 1)
        if len(calls) == 1:
            raise pymysql.err.OperationalError(1213, "Deadlock found")
        insert(connection, 2)

    run_in_transaction(connection, work, retries=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", [plain, nested, repeated])
@pytest.mark.parametrize("handled", [True, False], ids=["handled", "over"])
def test_an_interrupt_at_any_moment_ends_the_block(
    make_pool: MakePool,
    sql: Sql,
    stored: Stored,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[PooledConnection], None],
    handled: bool,
) -> None:
    """The exception that is being handled keeps the frames that it went through."""
    monkeypatch.setattr("flask_mysqlpool.pool.transaction.FIRST_PAUSE", 0.0)
    pool = make_pool(AUTOCOMMIT=random.random() < 0.5, MAX_SIZE=1)

    def use_again(connection: PooledConnection) -> None:
        connection.rollback()
        before = stored()
        assert before in ((), (1, 2)), tracer.where
        with transaction(connection):
            insert(connection, 7)
        # A COMMIT may be under way on the connection that was given up.
        assert stored() in ((*before, 7), (1, 2, 7), (7, 1, 2)), tracer.where

    # Every moment would take long; each run begins with another.
    stride = 37
    for moment in count(random.randint(1, stride), stride):
        sql("DELETE FROM t")
        tracer, connection = Tracer(moment), pool.connection()
        try:
            tracer.run(lambda: work(connection))  # noqa: B023
        except Interrupt:
            if handled:
                use_again(connection)
        if not handled and tracer.left == 0:
            use_again(connection)
        connection.close()
        assert pool.stats().in_use == 0, tracer.where
        if tracer.left > 0:
            break

    assert moment > 300
    assert stored() == (1, 2)


def test_a_block_whose_generator_is_dropped_is_rolled_back(
    connection: PooledConnection, stored: Stored
) -> None:
    def work() -> Iterator[None]:
        with transaction(connection):
            insert(connection, 1)
            yield

    generator = work()
    next(generator)
    del generator
    with transaction(connection):
        insert(connection, 2)

    assert stored() == (2,)


@pytest.mark.parametrize("use", ["a statement", "a block"])
@pytest.mark.parametrize("by_a_stack", [False, True])
def test_a_block_whose_end_was_interrupted_is_rolled_back_before_all_else(
    connection: PooledConnection,
    stored: Stored,
    monkeypatch: pytest.MonkeyPatch,
    by_a_stack: bool,
    use: str,
) -> None:
    def interrupted(block: TransactionBlock) -> None:
        raise Interrupt

    block = transaction(connection)  # a stack, and a traceback, would keep it
    with monkeypatch.context() as patch, pytest.raises(Interrupt):
        patch.setattr(TransactionBlock, "_finish", interrupted)
        with contextlib.ExitStack() as stack:
            if by_a_stack:
                stack.enter_context(block)
                insert(connection, 1)
            else:
                with block:
                    insert(connection, 1)
    if use == "a block":
        with transaction(connection):
            insert(connection, 2)
    else:
        insert(connection, 2)
        connection.commit()

    assert stored() == (2,)


def test_each_block_is_for_one_statement(
    connection: PooledConnection, stored: Stored
) -> None:
    block = transaction(connection)
    with block, pytest.raises(TransactionError, match="one 'with'"), block:
        pass  # pragma: no cover

    @transaction(connection)
    def decorated(number: int) -> None:
        insert(connection, number)

    decorated(1)
    decorated(2)
    assert stored() == (1, 2)


# What may have committed by itself

PROCEDURES = {
    "commits": "BEGIN INSERT INTO t (a) VALUES (50); COMMIT; START TRANSACTION; END",
    "shows": "BEGIN SELECT 1; INSERT INTO t (a) VALUES (50); COMMIT;"
    " SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END",
    "duplicates": "BEGIN INSERT INTO t (id, a) VALUES (1, 1);"
    " INSERT INTO t (id, a) VALUES (1, 1); END",
    "sleeps": "BEGIN INSERT INTO t (a) VALUES (50); COMMIT; DO SLEEP(30); END",
}


DEADLOCKS = (
    "CREATE TRIGGER deadlocks BEFORE INSERT ON t FOR EACH ROW BEGIN IF NEW.a = 99"
    " THEN SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF; END"
)


@pytest.fixture
def procedures(sql: Sql, table: str) -> None:
    for name, body in PROCEDURES.items():
        sql(f"DROP PROCEDURE IF EXISTS {name}")
        sql(f"CREATE PROCEDURE {name}() {body}")


def test_a_late_error_of_a_procedure_leaves_the_doubt(
    connection: PooledConnection, procedures: None, stored: Stored
) -> None:
    calls = []

    def work(connection: PooledConnection) -> None:
        calls.append(1)
        connection.cursor().execute("CALL shows()")

    with pytest.raises(TransactionError, match="may have committed"):
        run_in_transaction(connection, work, retries=2)

    assert calls == [1]
    assert stored() == (50,)


@pytest.mark.parametrize("name", ["sleeps", "commits"])
def test_a_connection_lost_in_or_after_a_procedure_leaves_the_doubt(
    connection: PooledConnection, procedures: None, sql: Sql, stored: Stored, name: str
) -> None:
    calls = []

    def work(connection: PooledConnection) -> None:
        calls.append(1)
        number = connection.thread_id()
        if name == "sleeps":
            con: Any = connection._con
            con.raw._read_timeout = 0.3
        execute(connection, f"CALL {name}()")
        sql(f"KILL {number}")
        insert(connection, 7)

    with pytest.raises(TransactionError, match="may have committed"):
        run_in_transaction(connection, work, retries=2)

    assert calls == [1]
    assert stored() == (50,)


def test_a_procedure_that_failed_without_a_commit_raises_its_own_error(
    connection: PooledConnection, procedures: None, stored: Stored
) -> None:
    with pytest.raises(pymysql.err.IntegrityError), transaction(connection):
        execute(connection, "CALL duplicates()")

    assert stored() == ()


def test_with_several_statements_allowed_one_is_judged_by_itself(
    make_pool: MakePool, autocommit: bool, sql: Sql, stored: Stored
) -> None:
    sql(DEADLOCKS)
    flag = {"client_flag": CLIENT.MULTI_STATEMENTS}
    numbers = iter([99, 2])
    with make_pool(AUTOCOMMIT=autocommit, CONNECT_ARGS=flag).connection() as one:
        run_in_transaction(one, lambda one: insert(one, next(numbers)), retries=1)
        with pytest.raises(pymysql.err.IntegrityError), transaction(one):
            execute(one, "INSERT INTO t (id, a) VALUES (8, 1), (8, 1)")
        with pytest.raises(TransactionError, match="refused"), transaction(one):
            one.query("INSERT INTO t (a) VALUES (3); COMMIT")
        with transaction(one):
            one.query("INSERT INTO t (a) VALUES (3); DO 1")

    assert stored() == (2, 3)


def test_a_number_that_a_trigger_signals_ends_nothing(
    connection: PooledConnection, sql: Sql, stored: Stored
) -> None:
    sql(DEADLOCKS)
    with transaction(connection):
        insert(connection, 1)
        with pytest.raises(pymysql.err.OperationalError):
            insert(connection, 99)
        insert(connection, 2)
    assert stored() == (1, 2)


def test_a_signalled_number_has_the_transaction_rolled_back_at_the_return(
    make_pool: MakePool, sql: Sql, stored: Stored
) -> None:
    sql(DEADLOCKS)
    pool = make_pool(RESET_SESSION="transaction", MAX_SIZE=1)
    with pool.connection() as connection:
        insert(connection, 1)
        with pytest.raises(pymysql.err.OperationalError):
            insert(connection, 99)
        with pytest.raises(TransactionError, match="open already"):
            with transaction(connection):
                pass  # pragma: no cover
    with pool.connection() as connection:
        connection.commit()
    assert stored() == ()


# What a statement leaves to be asked


@pytest.mark.parametrize(
    "question",
    [
        "SELECT ROW_COUNT()",
        "SHOW WARNINGS",
        "SELECT @@warning_count",
        "SELECT LAST_INSERT_ID()",
        "SELECT FOUND_ROWS()",
    ],
)
def test_nothing_is_sent_between_a_statement_and_a_question_about_it(
    connection: PooledConnection, procedures: None, question: str
) -> None:
    def answers(within: Callable[[], Any]) -> list[Any]:
        found = []
        with transaction(connection):
            insert(connection, 1)
            execute(connection, "SELECT 1")
            for statement in (
                "CALL is_noted()",
                "INSERT IGNORE INTO t (id, a) VALUES (1000, 1), (1000, 2), (1001, 'x')",
                "SELECT SQL_CALC_FOUND_ROWS a FROM t LIMIT 1",
                "INSERT INTO t (a) VALUES (nosuch)",
            ):
                with within(), contextlib.suppress(pymysql.err.MySQLError):
                    execute(connection, statement)
                with within():
                    found.append(execute(connection, question))
        return found

    execute(connection, "DROP PROCEDURE IF EXISTS is_noted")
    execute(
        connection,
        "CREATE PROCEDURE is_noted() BEGIN UPDATE t SET a = a + 1; END",
    )

    def bare() -> list[Any]:
        con: Any = connection._con
        found = []
        raw = con.raw
        raw.query("DELETE FROM t")
        raw.query("START TRANSACTION")
        raw.query("INSERT INTO t (a) VALUES (1)")
        raw.query("SELECT 1")
        for statement in (
            "CALL is_noted()",
            "INSERT IGNORE INTO t (id, a) VALUES (1000, 1), (1000, 2), (1001, 'x')",
            "SELECT SQL_CALC_FOUND_ROWS a FROM t LIMIT 1",
            "INSERT INTO t (a) VALUES (nosuch)",
        ):
            with contextlib.suppress(pymysql.err.MySQLError):
                raw.query(statement)
            raw.query(question)
            found.append(raw._result.rows)
        raw.query("COMMIT")
        raw.query("DELETE FROM t")
        raw.query("COMMIT")
        raw.told = 0  # of the session's own statements, there were none
        return found

    def comparable(found: list[Any]) -> str:
        return "ids" if "INSERT_ID" in question else repr(found)

    expected = comparable(bare())
    for within in (contextlib.nullcontext, lambda: transaction(connection)):
        assert comparable(answers(within)) == expected
        execute(connection, "DELETE FROM t")
        connection.commit()


# Settings of the server, and names


@pytest.mark.parametrize("completion", ["CHAIN", "RELEASE"])
def test_the_completion_type_ends_no_block(
    make_pool: MakePool, stored: Stored, autocommit: bool, completion: str
) -> None:
    settings = [f"SET completion_type = '{completion}'"]
    pool = make_pool(AUTOCOMMIT=autocommit, SETSESSION=settings, MAX_SIZE=1)
    for _ in range(2):
        with pool.connection() as connection:
            for number in (1, 2):
                with transaction(connection):
                    insert(connection, number)
            with pytest.raises(Oops), transaction(connection):
                insert(connection, 3)
                raise Oops
    with pool.connection() as connection:
        assert pool.stats().opened == 1, pool.stats().discarded_by_reason
        insert(connection, 4)
        # This may end the connection, as it was asked to, and another replaces it.
        connection.commit()

    assert stored() == (1, 2, 1, 2, 4)


def test_a_mode_that_is_set_already_tells_nothing_of_the_transaction(
    connection: PooledConnection, stored: Stored, sql: Sql, autocommit: bool
) -> None:
    sql("DROP PROCEDURE IF EXISTS half")
    sql(
        "CREATE PROCEDURE half() BEGIN START TRANSACTION; INSERT INTO t (a) VALUES (1);"
        " SIGNAL SQLSTATE '45000'; END"
    )
    with pytest.raises(pymysql.err.MySQLError):
        execute(connection, "CALL half()")
    connection.autocommit(autocommit)
    with pytest.raises(TransactionError), transaction(connection):
        insert(connection, 2)
    connection.rollback()
    assert stored() == ()


def test_a_commit_that_begins_anew_is_no_open_transaction(
    connection: PooledConnection, stored: Stored
) -> None:
    execute(connection, "SET completion_type = 'CHAIN'")
    connection.begin()
    insert(connection, 1)
    connection.commit()
    assert connection.changed == 0
    with transaction(connection):
        insert(connection, 2)
    assert stored() == (1, 2)


def test_blocks_work_where_begin_is_something_else(
    make_pool: MakePool, stored: Stored, engine: str
) -> None:
    if engine == "mysql":
        pytest.skip("MySQL has no such mode")
    with make_pool(SQL_MODE="ORACLE").connection() as connection:
        with transaction(connection), transaction(connection):
            insert(connection, 1)
        connection.begin()
        insert(connection, 2)
        connection.commit()
    assert stored() == (1, 2)


def test_savepoints_of_a_user_may_have_any_name(
    connection: PooledConnection, stored: Stored
) -> None:
    with transaction(connection):
        insert(connection, 1)
        with pytest.raises(Oops), transaction(connection):
            insert(connection, 2)
            for name in ("mysqlpool_1", "mysqlpool_probe"):
                execute(connection, f"SAVEPOINT {name}")
            raise Oops
        with transaction(connection):
            execute(connection, "SAVEPOINT mysqlpool_1")
            insert(connection, 3)
            execute(connection, "ROLLBACK TO mysqlpool_1")
            insert(connection, 4)
    assert stored() == (1, 4)


# Errors


def test_an_error_before_anything_was_sent_is_no_loss(make_pool: MakePool) -> None:
    with make_pool().connection() as connection:
        for call in (
            lambda: connection.kill("7"),  # type: ignore[arg-type]
            lambda: connection.select_db(7),  # type: ignore[arg-type]
            lambda: connection.set_character_set("nosuch"),
        ):
            with pytest.raises((TypeError, KeyError, AttributeError)):
                call()
        stream = connection.cursor(SSCursor)
        stream.execute("SELECT 1 UNION SELECT 2")
        with warnings.catch_warnings(), pytest.raises(UserWarning):
            warnings.simplefilter("error")
            connection.query("SELECT 3")
        stream.close()
        assert execute(connection, "SELECT 4") == ((4,),)


def test_a_stream_that_is_ended_by_kill_query_says_so(
    make_pool: MakePool, sql: Sql
) -> None:
    bits = ", ".join(f"(SELECT 0 UNION SELECT 1) AS b{n}" for n in range(15))
    with make_pool().connection() as connection:
        for drained in (False, True):
            stream = connection.cursor(SSCursor)
            stream.execute(f"SELECT REPEAT('x', 500) FROM {bits}")
            stream.fetchone()
            sql(f"KILL QUERY {connection.thread_id()}")
            if not drained:
                for _ in range(2):
                    with pytest.raises(pymysql.err.OperationalError) as info:
                        stream.fetchall()
                    assert info.value.args[0] == 1317
            stream.close()
            assert execute(connection, "SELECT 4") == ((4,),)


def test_a_commit_that_was_answered_by_a_lost_number_is_unknown(
    connection: PooledConnection, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a proxy answers that has lost its server: a number proves nothing."""
    con: Any = connection._con
    tell = con._tell

    def answer(statement: bytes) -> None:
        tell(statement)
        if statement.startswith(b"COMMIT"):
            raise pymysql.err.OperationalError(2006, "MySQL server has gone away")

    monkeypatch.setattr(con, "_tell", answer)
    calls = []

    def work(connection: PooledConnection) -> None:
        calls.append(1)
        insert(connection, 1)

    with pytest.raises(CommitUnknown):
        run_in_transaction(connection, work, retries=2)

    assert calls == [1]
    assert stored() == (1,)


def test_a_demoted_server_is_given_up_before_a_block_begins(
    make_pool: MakePool, stored: Stored
) -> None:
    with make_pool(AUTOCOMMIT=True).connection() as connection:
        first: Any = connection._con
        first.is_demoted, first.discard_reason = True, "invalidated"
        with pytest.raises(Oops), transaction(connection):
            assert connection._con is not first
            insert(connection, 1)
            raise Oops
        with pytest.raises(Oops), transaction(connection):
            con: Any = connection._con
            con.is_demoted = True
            insert(connection, 1)
            raise Oops
    assert stored() == ()


@pytest.mark.parametrize("moment", ["_enter", "_leave"])
def test_a_handle_that_was_interrupted_is_returned_by_any_thread(
    make_pool: MakePool, moment: str
) -> None:
    pool: Pool = make_pool(MAX_SIZE=1)
    for closer in (lambda call: call(), _elsewhere):
        connection = pool.connection()
        guard = connection._guard
        assert guard.acquire(False)  # and an interrupt
        if moment == "_leave":
            connection._inside = 1
        with pytest.raises(ConnectionLost):
            connection.query("SELECT 1")
        assert guard.acquire(False)
        closer(connection.close)
        until(lambda: pool.stats().in_use == 0)


def _elsewhere(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

"""What the server tells of its session counts, beside what the text shows."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import MakePool, Sql, execute
from hypothesis import given
from hypothesis import strategies as st
from pymysql.cursors import SSCursor

from flask_mysqlpool import TransactionError
from flask_mysqlpool.pool.driver.results import effects_of
from flask_mysqlpool.pool.driver.statements import (
    CHANGES,
    DIRTY_SCHEMA,
    ENDS,
    NONE,
    SESSION,
    TRANSACTION,
    WRITES,
)
from flask_mysqlpool.pool.transaction import Blocks, transaction

STATE = b"\2\2\1001"
READ, WRITTEN, BEGUN, LOCKED = (
    b"\5\11\10" + text for text in (b"I_R___S_", b"I___W___", b"T_______", b"_______L")
)
CHARACTERISTICS = b"\4\23\22START TRANSACTION;"


def schema(name: bytes) -> bytes:
    return bytes((1, len(name) + 1, len(name))) + name


@pytest.mark.parametrize(
    ("changes", "effects"),
    [
        (b"", NONE),
        (STATE, SESSION),
        (READ, NONE),
        (WRITTEN, TRANSACTION | WRITES),
        (BEGUN, TRANSACTION),
        (LOCKED, TRANSACTION | SESSION),
        (BEGUN + CHARACTERISTICS, TRANSACTION | ENDS),
        (b"\4\1\0", ENDS),
        (schema(b"other") + STATE, SESSION | DIRTY_SCHEMA),
        (schema(b"shop") + STATE, SESSION),
        # The value of a variable, the identifier of a commit, and what is not known.
        (b"\0\16\12autocommit\2ON" + b"\3\3abc" + b"\x60\0" + READ, NONE),
    ],
)
def test_a_list_of_changes_is_read(changes: bytes, effects: int) -> None:
    assert effects_of(changes, b"shop") == effects


@given(st.binary(max_size=40))
def test_any_bytes_are_read_and_what_cannot_be_read_counts_as_everything(
    changes: bytes,
) -> None:
    effects = effects_of(changes, b"shop")
    at = 0
    while at + 1 < len(changes) and changes[at + 1] <= 250:
        at += 2 + changes[at + 1]
    if at != len(changes):
        assert effects == CHANGES | DIRTY_SCHEMA | ENDS


# On real servers


@pytest.fixture
def views(sql: Sql, table: str) -> None:
    """Views whose functions do what no text shows."""
    sql("SET @@global.log_bin_trust_function_creators = 1")
    for name, body in {
        "sets": "SET @left = 1;",
        "writes": "INSERT INTO t (a) VALUES (7);",
        "harmless": "",
    }.items():
        sql(f"DROP FUNCTION IF EXISTS f_{name}")
        sql(f"CREATE FUNCTION f_{name}() RETURNS INT BEGIN {body} RETURN 1; END")
        sql(f"CREATE OR REPLACE VIEW view_{name} AS SELECT f_{name}() AS a")


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("cursor", [None, SSCursor])
def test_a_variable_that_a_view_sets_is_not_seen_by_the_next(
    make_pool: MakePool, views: None, autocommit: bool, cursor: Any
) -> None:
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=autocommit)
    with pool.connection() as connection, connection.cursor(cursor) as reading:
        reading.execute("SELECT a FROM view_sets")
        assert reading.fetchall() == ([(1,)] if cursor else ((1,),))
        number = connection.thread_id()
    with pool.connection() as connection:
        assert execute(connection, "SELECT @left") == ((None,),)
        assert connection.thread_id() == number


@pytest.mark.parametrize("cursor", [None, SSCursor])
def test_what_a_view_writes_is_an_uncommitted_change(
    make_pool: MakePool, views: None, cursor: Any
) -> None:
    with make_pool(AUTOCOMMIT=False).connection() as connection:
        with connection.cursor(cursor) as reading:
            reading.execute("SELECT a FROM view_harmless")
            reading.fetchall()
        session = connection._con
        assert session is not None and not session.has_uncommitted_writes
        with connection.cursor(cursor) as reading:
            reading.execute("SELECT a FROM view_writes")
            reading.fetchall()
        with pytest.raises(TransactionError, match="open already"):
            transaction(connection).__enter__()
        assert session.has_uncommitted_writes
        assert session.writes.sent


def test_a_read_that_locks_is_no_write(make_pool: MakePool, table: str) -> None:
    """Although the server tells of both in the same way."""
    with make_pool(AUTOCOMMIT=False).connection() as connection:
        execute(connection, "SELECT a FROM t FOR UPDATE")
        session = connection._con
        assert session is not None and not session.writes.sent
        assert not session.has_uncommitted_writes


def test_reads_leave_nothing_to_reset(make_pool: MakePool, table: str) -> None:
    with make_pool(AUTOCOMMIT=True).connection() as connection:
        for statement in ("SELECT a FROM t", "SHOW TABLES", "EXPLAIN SELECT a FROM t"):
            execute(connection, statement)
        with transaction(connection):
            execute(connection, "SELECT a FROM t")
        session = connection._con
        assert session is not None and not session.side_effects & SESSION


@pytest.fixture
def procedures(sql: Sql, table: str) -> None:
    for name, body in {
        "writes_only": "INSERT INTO t (a) VALUES (1)",
        "commits_and_goes_on": "BEGIN COMMIT; INSERT INTO t (a) VALUES (2); END",
        "makes_a_table": "BEGIN DROP TEMPORARY TABLE IF EXISTS mine;"
        " CREATE TEMPORARY TABLE mine (a INT); END",
        "is_quiet": "BEGIN SET session_track_transaction_info = 'OFF'; COMMIT;"
        " INSERT INTO t (a) VALUES (3); SET autocommit = 0; END",
    }.items():
        sql(f"DROP PROCEDURE IF EXISTS {name}")
        sql(f"CREATE PROCEDURE {name}() {body}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions about savepoints, each a round trip."""
    asked: list[str] = []
    execute = Blocks._execute

    def noted(self: Blocks, session: Any, statement: str) -> bool:
        asked.append(statement)
        return execute(self, session, statement)

    monkeypatch.setattr(Blocks, "_execute", noted)
    return asked


def test_whether_a_procedure_commits_is_told_without_a_round_trip(
    make_pool: MakePool, procedures: None, tells: bool, asked: list[str], sql: Sql
) -> None:
    with make_pool(AUTOCOMMIT=True).connection() as connection:
        with transaction(connection):
            for _ in range(3):
                execute(connection, "CALL writes_only()")
    assert len(asked) == (0 if tells else 3)
    assert sql("SELECT COUNT(*) FROM t") == ((3,),)


def test_after_an_end_that_was_none_the_server_is_asked(
    make_pool: MakePool, procedures: None, tells: bool, asked: list[str], sql: Sql
) -> None:
    """MySQL tells of an end when a temporary table is made, and then of no other."""
    with make_pool(AUTOCOMMIT=False).connection() as connection:
        with transaction(connection):
            execute(connection, "INSERT INTO t (a) VALUES (1)")
            execute(connection, "CALL makes_a_table()")
            execute(connection, "INSERT INTO t (a) VALUES (2)")
        with pytest.raises(TransactionError), transaction(connection):
            execute(connection, "CREATE TEMPORARY TABLE other (a INT)")
            execute(connection, "INSERT INTO t (a) VALUES (3)")
            execute(connection, "CALL commits_and_goes_on()")
    assert sql("SELECT a FROM t ORDER BY id") == ((1,), (2,), (3,))
    assert len(asked) >= 1


def test_code_that_switches_it_off_is_found_out_at_the_commit(
    make_pool: MakePool, procedures: None, tells: bool, sql: Sql
) -> None:
    with make_pool(AUTOCOMMIT=False).connection() as connection:
        with pytest.raises(TransactionError), transaction(connection):
            execute(connection, "INSERT INTO t (a) VALUES (1)")
            execute(connection, "CALL is_quiet()")


def test_a_server_that_refuses_the_variables_is_used_as_before(
    make_pool: MakePool,
    views: None,
    monkeypatch: pytest.MonkeyPatch,
    sql: Sql,
) -> None:
    """As a proxy does that offers the flags, and knows nothing of what they are for."""
    where = "flask_mysqlpool.pool.driver.session.ASSIGNMENTS"
    monkeypatch.setattr(where, "session_track_nonsense = 1")
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=True)
    for _ in range(2):
        with pool.connection() as connection:
            assert execute(connection, "SELECT 1") == ((1,),)
            execute(connection, "SET @left = 1")
    with pool.connection() as connection:
        assert execute(connection, "SELECT @left") == ((None,),)
        with transaction(connection):
            execute(connection, "INSERT INTO t (a) VALUES (1)")
    assert sql("SELECT COUNT(*) FROM t") == ((1,),)

"""How often a block waits for the server, and statements that are sent ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pymysql.err
import pytest
from conftest import MakePool, Sql, execute, until
from pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor

from flask_mysqlpool import PooledConnection, SSRowCursor, TransactionError
from flask_mysqlpool.pool.transaction import transaction

ROWS = 300
WAITING = """
    SELECT 1 FROM information_schema.processlist
    WHERE info = 'UPDATE t SET a = 5000 WHERE id = 1' AND state = 'updating'
"""


class CountingSocket:
    """A socket that counts the writes; the client waits for an answer after each."""

    def __init__(self, sock: Any) -> None:
        self.sock, self.turns = sock, 0

    def sendall(self, data: bytes) -> None:
        self.turns += 1
        self.sock.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.fixture(params=[False, True], ids=["manual", "autocommit"])
def connection(
    make_pool: MakePool, table: str, sql: Sql, request: pytest.FixtureRequest
) -> Iterator[PooledConnection]:
    sql("ALTER TABLE t ADD UNIQUE (a)")
    rows = ", ".join(f"({i}, {i})" for i in range(1, ROWS + 1))
    sql(f"INSERT INTO t (id, a) VALUES {rows}")
    with make_pool(AUTOCOMMIT=request.param).connection() as connection:
        yield connection


@pytest.fixture
def turns(connection: PooledConnection) -> Callable[[Callable[[], object]], int]:
    """Count the turns of a function."""
    assert connection._con is not None
    raw = connection._con.raw
    counting = raw._sock = CountingSocket(raw._sock)

    def count(function: Callable[[], object]) -> int:
        counting.turns = 0
        function()
        return counting.turns

    return count


def change(connection: PooledConnection, row: int) -> None:
    with connection.cursor() as cursor:
        assert cursor.execute("UPDATE t SET a = -id WHERE id = %s", (row,)) == 1


def change_all(connection: PooledConnection, broken: int = 0) -> int | None:
    """Change each row by a statement of its own; a duplicate in a row that is given."""
    rows = [(1 if i == broken else -i, i) for i in range(1, ROWS + 1)]
    # The first row keeps its value, so that the broken one has the same.
    rows[0] = 1, 1
    with connection.cursor() as cursor:
        return cursor.executemany("UPDATE t SET a = %s WHERE id = %s", rows)


def changed(sql: Sql) -> int:
    return int(sql("SELECT COUNT(*) FROM t WHERE a <> id")[0][0])


@pytest.mark.parametrize("changes", [1, 3])
def test_a_block_waits_for_its_statements_and_one_commit(
    connection: PooledConnection, turns: Any, sql: Sql, changes: int
) -> None:
    def block() -> None:
        with transaction(connection):
            for row in range(1, changes + 1):
                change(connection, row)

    assert turns(block) == changes + 1
    assert changed(sql) == changes


def test_an_inner_block_waits_for_nothing_of_its_own(
    connection: PooledConnection, turns: Any, sql: Sql
) -> None:
    def block() -> None:
        with transaction(connection), transaction(connection):
            change(connection, 1)
            change(connection, 2)

    assert turns(block) == 3
    assert changed(sql) == 2


def test_an_empty_block_sends_nothing(connection: PooledConnection, turns: Any) -> None:
    def block() -> None:
        with transaction(connection), transaction(connection):
            pass

    assert turns(block) == 0


def test_many_statements_go_out_in_few_writes(
    connection: PooledConnection, turns: Any, sql: Sql
) -> None:
    was_on = connection.get_autocommit()
    found = []

    def block() -> None:
        with transaction(connection):
            found.append(change_all(connection))

    assert turns(block) <= 5
    # The first row had its value already.
    assert found == [ROWS - 1]
    assert changed(sql) == ROWS - 1
    assert connection.get_autocommit() == was_on


def test_an_error_undoes_all_rows_and_says_which_it_was(
    connection: PooledConnection, sql: Sql
) -> None:
    was_on = connection.get_autocommit()
    with transaction(connection):
        change(connection, 7)
        with pytest.raises(pymysql.err.IntegrityError, match=r"\(row 150 of execute"):
            change_all(connection, broken=150)
        execute(connection, "UPDATE t SET a = -8 WHERE id = 8")

    assert sorted(sql("SELECT a FROM t WHERE a <> id")) == [(-8,), (-7,)]
    assert connection.get_autocommit() == was_on


def test_arguments_that_raise_undo_the_rows_before(
    connection: PooledConnection, sql: Sql
) -> None:
    def rows() -> Iterator[tuple[int, int]]:
        for i in range(1, 251):
            yield -i, i
        raise ValueError("no more")

    with transaction(connection):
        with pytest.raises(ValueError, match="no more"), connection.cursor() as cursor:
            cursor.executemany("UPDATE t SET a = %s WHERE id = %s", rows())
        change(connection, 9)

    assert sql("SELECT a FROM t WHERE a <> id") == ((-9,),)


def test_arguments_may_come_from_statements_on_the_same_connection(
    connection: PooledConnection, sql: Sql
) -> None:
    def rows() -> Iterator[tuple[int, int]]:
        for i in range(1, 251):
            [[a]] = execute(connection, f"SELECT a FROM t WHERE id = {i}")
            yield -a, i

    with transaction(connection), connection.cursor() as cursor:
        assert cursor.executemany("UPDATE t SET a = %s WHERE id = %s", rows()) == 250

    assert changed(sql) == 250


def state(cursor: Any) -> list[Any]:
    names = "rowcount rownumber description warning_count lastrowid _executed"
    return [getattr(cursor, name, "missing") for name in names.split()]


@pytest.mark.parametrize("cursor_class", [Cursor, DictCursor, SSCursor, SSDictCursor])
@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("UPDATE t SET a = -%s WHERE id = %s", [(1, 1), (2, 2), (3, 3)]),
        ("UPDATE t SET a = -id WHERE id < 5", [None, None]),
        ("UPDATE t SET a = -%s", []),
        ("DO %s", [(1,)]),
    ],
)
def test_a_cursor_looks_as_pymysqls_after_many_statements(
    connection: PooledConnection,
    root: pymysql.Connection[Any],
    statement: str,
    rows: list[Any],
    cursor_class: type[Cursor],
) -> None:
    def run(cursor: Any) -> list[Any]:
        cursor.execute("SELECT id FROM t WHERE id < 7")
        cursor.fetchall()
        return [cursor.executemany(statement, iter(rows)), *state(cursor)]

    with transaction(connection):
        ours = run(connection.cursor(cursor_class))
        execute(connection, "UPDATE t SET a = id")
    root.begin()
    theirs = run(root.cursor(cursor_class))
    root.rollback()

    assert ours == theirs


def test_a_cursor_shows_no_rows_after_many_statements_have_failed(
    connection: PooledConnection,
) -> None:
    with transaction(connection), connection.cursor() as cursor:
        cursor.execute("SELECT id FROM t")
        with pytest.raises(pymysql.err.IntegrityError):
            cursor.executemany("UPDATE t SET id = %s WHERE id = %s", [(1, 2)])
        assert state(cursor)[:3] == [0, 0, None]
        assert list(cursor.fetchall()) == []


def test_what_is_sent_after_a_deadlock_is_not_committed(
    connection: PooledConnection, make_pool: MakePool, sql: Sql
) -> None:
    # InnoDB ends the transaction that has changed fewer rows.
    with make_pool().connection() as other, pytest.raises(TransactionError):
        with transaction(connection):
            change(connection, 1)
            # A scan of the whole table would lock row 1, too.
            execute(
                other,
                "UPDATE t FORCE INDEX (PRIMARY) SET a = a + 1000 WHERE id >= 100",
            )
            waiting = threading.Thread(
                target=execute, args=(other, "UPDATE t SET a = 5000 WHERE id = 1")
            )
            waiting.start()
            try:
                until(lambda: sql(WAITING))
                with pytest.raises(
                    pymysql.err.OperationalError, match=r"row 98 of"
                ) as e:
                    with connection.cursor() as cursor:
                        cursor.executemany(
                            "UPDATE t SET a = %s WHERE id = %s",
                            [(-i, i) for i in [*range(3, 101), *range(50, 90)]],
                        )
                assert e.value.args[0] == 1213
            finally:
                waiting.join()
            other.rollback()

    assert changed(sql) == 0


def test_calls_of_procedures_are_executed_one_by_one(
    connection: PooledConnection, sql: Sql
) -> None:
    sql("DROP PROCEDURE IF EXISTS negate")
    sql("CREATE PROCEDURE negate(n INT) UPDATE t SET a = -n WHERE id = n")
    with transaction(connection), connection.cursor() as cursor:
        assert cursor.executemany("CALL negate(%s)", [(1,), (2,), (3,)]) == 3

    assert changed(sql) == 3


@pytest.mark.parametrize(
    "load",
    [
        pytest.param("LOAD DATA %s", id="plain"),
        pytest.param(f"/* {'long ' * 300}*/ LOAD DATA %s", id="comment"),
        pytest.param("/*!LOAD DATA %s*/", id="versioned"),
        pytest.param("SET STATEMENT max_statement_time=9 FOR LOAD DATA %s", id="set"),
    ],
)
def test_files_are_loaded_one_by_one(
    make_pool: MakePool,
    table: str,
    sql: Sql,
    root: pymysql.Connection[Any],
    tmp_path: Path,
    engine: str,
    load: str,
) -> None:
    if engine == "mysql" and load.startswith("SET"):
        pytest.skip("only MariaDB has it")
    files = [tmp_path / f"{number}.csv" for number in range(3)]
    for number, file in enumerate(files):
        file.write_text(f"{2 * number + 1}\t1\n{2 * number + 2}\t2\n")
    root.cursor().execute("SET GLOBAL local_infile = 1")
    pool = make_pool(CONNECT_ARGS={"local_infile": True}, MAX_SIZE=1)
    with pool.connection() as connection, transaction(connection):
        loaded = connection.cursor().executemany(
            load % "LOCAL INFILE %s INTO TABLE t (id, a)", [[str(f)] for f in files]
        )

    root.cursor().execute("SET GLOBAL local_infile = DEFAULT")
    assert loaded == 6
    assert sql("SELECT COUNT(*), MAX(id) FROM t") == ((6, 6),)


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize(
    ("cls", "row"), [(SSCursor, (2,)), (SSDictCursor, {"n": 2}), (SSRowCursor, (2,))]
)
def test_an_unbuffered_cursor_has_the_rows_of_the_last_statement(
    connection: PooledConnection, cls: type[Cursor], row: object
) -> None:
    with transaction(connection), connection.cursor(cls) as cursor:
        cursor.executemany("SELECT %s AS n", [(1,), (2,)])
        assert [*cursor] == [row]


def test_after_a_call_that_fails_among_many_the_block_goes_on(
    connection: PooledConnection, sql: Sql
) -> None:
    sql("DROP PROCEDURE IF EXISTS negate")
    sql("CREATE PROCEDURE negate(n INT) UPDATE t SET a = -ABS(n) WHERE id = n * n / n")
    with transaction(connection), connection.cursor() as cursor:
        with pytest.raises(pymysql.err.MySQLError, match=r"\(row 3 of"):
            cursor.executemany("CALL negate(%s)", [(1,), (2,), ("x",)])
        change(connection, 7)

    assert sql("SELECT a FROM t WHERE a <> id") == ((-7,),)


def test_an_error_before_the_first_statement_fails_no_block(
    connection: PooledConnection, sql: Sql
) -> None:
    with transaction(connection):
        with pytest.raises(pymysql.err.MySQLError):
            connection.select_db("nosuch")
        change(connection, 1)

    assert changed(sql) == 1


@pytest.mark.parametrize("policy", ["transaction", "auto"])
def test_a_return_within_a_block_leaves_autocommit_on(
    make_pool: MakePool, table: str, policy: str
) -> None:
    pool = make_pool(AUTOCOMMIT=True, MAX_SIZE=1, RESET_SESSION=policy)
    with pytest.raises(TransactionError), pool.connection() as connection:
        with transaction(connection), connection.cursor() as cursor:
            cursor.executemany("UPDATE t SET a = %s WHERE id = %s", [(1, 2), (3, 4)])
            connection.close()
    with pool.connection() as connection:
        assert execute(connection, "SELECT @@autocommit") == ((1,),)


def test_rows_of_procedures_are_read_before_the_next_call(
    connection: PooledConnection, sql: Sql
) -> None:
    sql("DROP PROCEDURE IF EXISTS negated")
    body = "BEGIN UPDATE t SET a = -n WHERE id = n; SELECT n AS n; SELECT 0 AS n; END"
    sql(f"CREATE PROCEDURE negated(n INT) {body}")
    with transaction(connection), connection.cursor() as cursor:
        with pytest.raises(UnicodeEncodeError):
            cursor.executemany("CALL negated(%s)", [(1,), ("\udcff",)])
        cursor.executemany("CALL negated(%s)", [(2,), (3,), (4,)])
        assert cursor.fetchall() == ((4,),)
        assert cursor.nextset()
        assert cursor.fetchall() == ((0,),)
        change(connection, 5)

    assert changed(sql) == 4


def test_a_merged_insert_stays_one_statement(
    connection: PooledConnection, turns: Any, sql: Sql
) -> None:
    def block() -> None:
        with transaction(connection), connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t (a) VALUES (%s)", [(-1,), (-2,)])

    assert turns(block) == 2
    assert changed(sql) == 2


def test_a_begin_that_fails_fails_the_block(
    connection: PooledConnection, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_mysqlpool.pool.transaction.BEGIN", b"START TRANSACTIO")
    with pytest.raises(TransactionError, match="may have committed"):
        with transaction(connection):
            with pytest.raises(pymysql.err.ProgrammingError, match="TRANSACTIO"):
                change(connection, 1)
            with pytest.raises(TransactionError, match="has been ended"):
                change(connection, 2)
            raise pymysql.err.ProgrammingError(1064, "as before")

    assert changed(sql) == connection.get_autocommit()


def test_a_savepoint_that_fails_undoes_the_block(
    connection: PooledConnection, sql: Sql
) -> None:
    connection.savepoint = "not a name {}"
    with pytest.raises(TransactionError, match="was ended inside its block"):
        with transaction(connection):
            change(connection, 1)
            with pytest.raises(pymysql.err.ProgrammingError, match="not a name"):
                with transaction(connection):
                    change(connection, 2)

    assert changed(sql) == 0

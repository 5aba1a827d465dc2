"""The set-up of a session: what it leaves, what it asks, and what is told of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from conftest import MakePool, Sql
from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import Cursor, DictCursor, SSCursor
from pymysql.err import DataError, MySQLError, ProgrammingError

from flask_mysqlpool import ConnectionLost, Pool, PoolConfig, PoolTimeout
from flask_mysqlpool.pool.driver import transport
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.workers.mysql_server import connect_to


def run(connection: Any, statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def clean_one(pool: Pool) -> None:
    """Have the only session of the pool cleaned, and look at it."""
    with pool.connection() as connection:
        first = connection.thread_id()
        run(connection, "SET @anything = 1")
    with pool.connection() as connection:
        assert connection.thread_id() == first
        assert run(connection, "SELECT @anything") == ((None,),)


TRANSACTIONS = [
    {"INIT_COMMAND": "SELECT a INTO @n FROM t LIMIT 1"},
    {"SETSESSION": ["SELECT a INTO @n FROM t LIMIT 1"]},
    {"INIT_COMMAND": "BEGIN", "SETSESSION": ["INSERT INTO t (a) VALUES (2)"]},
    {"INIT_COMMAND": "START TRANSACTION WITH CONSISTENT SNAPSHOT"},
    {"SETSESSION": ["SET completion_type = 'CHAIN'", "UPDATE t SET a = a + 1"]},
]


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("settings", TRANSACTIONS)
def test_the_set_up_leaves_no_transaction_open(
    settings: dict[str, Any],
    autocommit: bool,
    table: str,
    sql: Sql,
    make_pool: MakePool,
) -> None:
    sql(f"INSERT INTO {table} (a) VALUES (1)")
    sql("COMMIT")
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=autocommit, **settings)
    with pool.connection() as connection:
        number = connection.thread_id()
        assert not connection.server_status & 1
        assert connection.get_autocommit() is autocommit
        run(connection, "SET @anything = 1")
    with pool.connection() as connection:
        assert connection.thread_id() == number
        assert not connection.server_status & 1
        assert connection.get_autocommit() is autocommit
    open_ones = sql(
        "SELECT COUNT(*) FROM information_schema.innodb_trx"
        " WHERE trx_mysql_thread_id = %s",
        number,
    )
    assert open_ones == ((0,),)


def test_what_init_command_inserts_stays(
    table: str, sql: Sql, make_pool: MakePool
) -> None:
    pool = make_pool(MAX_SIZE=1, INIT_COMMAND=f"INSERT INTO {table} (a) VALUES (7)")
    with pool.connection():
        pass
    assert sql(f"SELECT a FROM {table}") == ((7,),)
    sql("COMMIT")
    clean_one(pool)
    assert sql(f"SELECT COUNT(*) > 1 FROM {table}") == ((1,),)


def test_an_autocommit_that_setsession_sets_stays(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=1, SETSESSION=["SET autocommit = 1"])
    clean_one(pool)
    with pool.connection() as connection:
        assert connection.get_autocommit() is True


SETTINGS: dict[str, dict[str, Any]] = {
    "CHARSET, COLLATION or SQL_MODE": {"SQL_MODE": "nonsense"},
    "INIT_COMMAND": {"INIT_COMMAND": "SET nonsense = 1"},
    "SETSESSION": {"INIT_COMMAND": "SET @a = 1", "SETSESSION": ["nonsense"]},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_statement_that_is_wrong_is_laid_to_its_setting(
    setting: str, make_pool: MakePool
) -> None:
    with pytest.raises(MySQLError) as caught:
        make_pool(**SETTINGS[setting]).steady_connection()
    assert caught.value.args[1].startswith(f"{setting}: ")


SIGNALS = [1205, 1213, 1226, 1317, 1820, 1047, 3024]


@pytest.mark.parametrize("number", SIGNALS)
def test_an_error_that_is_not_about_the_statement_is_laid_to_no_setting(
    number: int, sql: Sql, make_pool: MakePool
) -> None:
    sql("DROP PROCEDURE IF EXISTS fails")
    sql(
        "CREATE PROCEDURE fails() SIGNAL SQLSTATE '45000'"
        f" SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'as it is'"
    )
    with pytest.raises(MySQLError) as caught:
        make_pool(INIT_COMMAND="CALL fails()").steady_connection()
    assert caught.value.args == (number, "as it is")


def test_a_limit_of_the_account_is_laid_to_no_setting(
    server: LocalServer, sql: Sql, make_pool: MakePool
) -> None:
    sql("DROP USER IF EXISTS limited@'%%'")
    sql("CREATE USER limited@'%%' IDENTIFIED BY 'pw' WITH MAX_QUERIES_PER_HOUR 4")
    sql("GRANT ALL ON test.* TO limited@'%%'")
    url = f"mysql://limited:pw@{server.host}:{server.port}/test"
    said = []
    for _ in range(3):
        try:
            make_pool(URL=url).steady_connection().close()
        except MySQLError as error:
            said.append(error.args)
    assert said
    assert all(n == 1226 and text.startswith("User 'limited'") for n, text in said)


def test_a_clean_up_that_the_server_refuses_is_logged_once(
    sql: Sql,
    server: LocalServer,
    make_pool: MakePool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = make_pool(MAX_SIZE=1, SETSESSION=["SELECT 1 FROM needed"])
    sql("CREATE TABLE IF NOT EXISTS needed (a INT)")
    caplog.set_level(logging.WARNING, "flask_mysqlpool")
    with pool.connection() as connection:
        # Something else is discarded before, for the same reason.
        con: Any = connection._con
        con.reset_session = lambda: False
    for _ in range(2):
        sql("CREATE TABLE IF NOT EXISTS needed (a INT)")
        with pool.connection() as connection:
            run(connection, "SET @a = 1")
            sql("DROP TABLE needed")
        _wait_for_answers(pool)
        with pytest.raises(MySQLError), pool.connection(timeout=0.2):
            pass
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "could not be cleaned" in text] == [
        "mysqlpool: a session could not be cleaned:"
        " (1146, \"Table 'test.needed' doesn't exist\")"
    ]
    assert pool.stats().discarded_by_reason["reset_failed"] == 3


def _wait_for_answers(pool: Pool) -> None:
    [idle] = pool._state.idle
    deadline = time.monotonic() + 5
    while not idle.is_answered():
        assert time.monotonic() < deadline


def _refuse(value: object) -> object:
    raise AssertionError("our own question was read with the user's conversions")


CONVERSIONS = [
    {"use_unicode": False},
    {"conv": {}},
    {
        "conv": {
            kind: _refuse for kind in vars(FIELD_TYPE).values() if isinstance(kind, int)
        }
    },
]


@pytest.mark.parametrize("arguments", CONVERSIONS, ids=["bytes", "none", "refusing"])
def test_our_own_questions_are_read_without_the_conversions_of_the_user(
    arguments: dict[str, Any], server: LocalServer, make_pool: MakePool
) -> None:
    settings = {"CONNECT_ARGS": arguments, "CURSORCLASS": DictCursor, "MAX_SIZE": 1}
    pool = make_pool(TARGET="primary", **settings)
    with pool.connection() as connection:
        number = connection.thread_id()
        with connection.cursor() as cursor:
            cursor.execute("USE mysql")
    with pool.connection() as connection:
        # The role was set again by what was read of it.
        assert connection.thread_id() == number
        con: Any = connection._con
        rows = con.ask("SELECT 1 AS a, NULL AS b, 'é' AS c", time.monotonic() + 5)
        assert rows == [{"a": "1", "b": None, "c": "é"}]
    config = PoolConfig.from_mapping({"URL": server.url, **settings})
    with connect_to(config) as asked:
        report, facts = asked.report(), asked.facts()
    assert report.connected is not None and report.connected > 0
    assert report.max_connections is not None and report.max_connections > 0
    assert facts.connected >= 0
    assert facts.account.startswith(f"{server.user}@")


PROCEDURES = {
    "reads_once": "SELECT 42",
    "reads_twice": "BEGIN SELECT 42; SELECT REPEAT('x', 50000); END",
    "fails_late": "BEGIN SELECT 42; SIGNAL SQLSTATE '45000'; END",
    "warns": "BEGIN SELECT 42; SELECT CAST('secret' AS SIGNED); END",
}


def create(sql: Sql, name: str, body: str) -> None:
    sql(f"DROP PROCEDURE IF EXISTS {name}")
    sql(f"CREATE PROCEDURE {name}() {body}")


@pytest.mark.parametrize("arguments", [{}, {"conv": {}}])
@pytest.mark.parametrize("name", PROCEDURES)
def test_results_that_no_cursor_read_do_not_cost_the_connection(
    name: str, arguments: dict[str, Any], sql: Sql, make_pool: MakePool
) -> None:
    create(sql, name, PROCEDURES[name])
    pool = make_pool(MAX_SIZE=1, CONNECT_ARGS=arguments)
    for _ in range(20):
        with pool.connection() as connection:
            assert connection.show_warnings() == ()
            cursor = connection.cursor()
            cursor.callproc(name)
            assert int(cursor.fetchall()[0][0]) == 42
    assert pool.stats().opened == 1


def _no_date(text: str) -> object:
    raise DataError(f"no date: {text}")


MANY = " UNION ALL ".join(f"SELECT {n} AS n" for n in range(3000))
#: Results of two columns, of too many to be read fast, and with many rows.
DATES = {
    "one": "SELECT 1, DATE('2024-01-01')",
    "wide": "SELECT DATE('2024-01-01')" + ", 1" * 250,
    "many": f"SELECT n, DATE('2024-01-01') FROM ({MANY}) AS a",
}


@pytest.mark.parametrize("cls", [Cursor, SSCursor])
@pytest.mark.parametrize("rows", DATES)
def test_an_error_of_a_converter_is_not_taken_for_one_of_the_server(
    rows: str, cls: Any, sql: Sql, make_pool: MakePool
) -> None:
    """Its answer is unread, and must not be read as that to the next statement."""
    sql("DROP TABLE IF EXISTS converted")
    sql("CREATE TABLE converted (a INT)")
    sql("INSERT INTO converted VALUES (1), (2)")
    create(sql, "reads_dates", f"BEGIN SELECT 42; {DATES[rows]}; END")
    conv = {**conversions, FIELD_TYPE.DATE: _no_date}
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=True, CONNECT_ARGS={"conv": conv})
    for _ in range(2):  # the second time, the columns are known
        with pool.connection() as connection:
            cursor = connection.cursor(cls)
            with pytest.raises(DataError):
                cursor.execute(DATES[rows])
                cursor.fetchall()
            with pytest.raises(ConnectionLost):
                connection.execute("UPDATE converted SET a = a + 1")
        with pool.connection() as connection:
            cursor = connection.cursor()
            cursor.callproc("reads_dates")
            with suppress(DataError, ConnectionLost):
                connection.execute("SELECT 1")
        with pool.connection() as connection:
            connection.cursor().callproc("reads_dates")  # read at the checkin
        with pool.connection() as connection:
            assert connection.execute("UPDATE converted SET a = a + 1").rowcount == 2
            # An error of the server does not cost the connection.
            with pytest.raises(ProgrammingError):
                connection.execute("SELECT nothing FROM nowhere")
            assert connection.execute("SELECT 5").fetchone() == (5,)


def test_a_procedure_that_goes_on_costs_its_connection_and_delays_no_other(
    sql: Sql, make_pool: MakePool
) -> None:
    create(sql, "goes_on", "BEGIN SELECT 42; DO SLEEP(3); SELECT 43; END")
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection:
        connection.cursor().callproc("goes_on")
        number = connection.thread_id()
    started = time.monotonic()
    with pool.connection() as connection:
        assert connection.thread_id() != number
        assert run(connection, "SELECT 1") == ((1,),)
    assert time.monotonic() - started < 2


def test_an_answer_that_has_not_come_in_time_is_read_later(
    sql: Sql, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MOMENT", 60.0)
    create(sql, "waits", "BEGIN SELECT 42; DO GET_LOCK('it', 30); SELECT 43; END")
    pool = make_pool(MAX_SIZE=1, TIMEOUT=30)
    sql("DO GET_LOCK('it', 0)")
    with pool.connection() as connection:
        connection.cursor().callproc("waits")
        number = connection.thread_id()
    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0.001)
    sql("DO RELEASE_LOCK('it')")
    with pool.connection() as connection:
        assert connection.thread_id() == number


@pytest.mark.parametrize(
    "then",
    [
        lambda c: None,
        lambda c: c.commit(),
        lambda c: c.rollback(),
        lambda c: c.ping(),
        lambda c: run(c, "SELECT 1"),
        lambda c: run(c, "BEGIN"),
    ],
    ids=["nothing", "commit", "rollback", "ping", "select", "begin"],
)
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_warning_of_an_earlier_statement_is_not_shown_to_the_next_borrower(
    then: Callable[[Any], object], unbuffered: bool, make_pool: MakePool
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection:
        with connection.cursor(SSCursor if unbuffered else None) as cursor:
            cursor.execute("SELECT CAST('secret' AS SIGNED)")
            cursor.fetchall()
        then(connection)
    with pool.connection() as connection:
        assert connection.show_warnings() == ()
    assert pool.stats().opened == 1


@pytest.mark.parametrize("read", [True, False])
def test_a_warning_of_the_first_of_several_statements_is_not_shown_to_the_next(
    read: bool, make_pool: MakePool
) -> None:
    flags = {"client_flag": CLIENT.MULTI_STATEMENTS}
    pool = make_pool(MAX_SIZE=1, CONNECT_ARGS=flags)
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT CAST('secret' AS SIGNED); SELECT 1")
        if read:
            assert cursor.nextset()
    with pool.connection() as connection:
        assert connection.show_warnings() == ()
    assert pool.stats().opened == 1


@pytest.mark.parametrize("cls", [Cursor, SSCursor])
@pytest.mark.parametrize("after", [["SELECT 2"], []], ids=["in the middle", "last"])
@pytest.mark.parametrize("reads", ["all", "first", "next statement"])
def test_a_warning_of_a_later_result_is_not_shown_to_the_next_borrower(
    reads: str, after: list[str], cls: Any, make_pool: MakePool
) -> None:
    flags = {"client_flag": CLIENT.MULTI_STATEMENTS}
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=True, CONNECT_ARGS=flags)
    statements = ["SELECT 1", "SELECT CAST('secret' AS SIGNED)", *after]
    with pool.connection() as connection:
        cursor = connection.cursor(cls)
        cursor.execute("; ".join(statements))
        cursor.fetchall()
        while reads == "all" and cursor.nextset():
            cursor.fetchall()
        if reads == "next statement":
            run(connection, "SELECT 3")
    with pool.connection() as connection:
        assert connection.show_warnings() == ()


def test_an_error_at_the_end_of_a_stream_is_not_shown_to_the_next_borrower(
    server: LocalServer, make_pool: MakePool
) -> None:
    """PyMySQL raises no error of a limit of time while it drops the rest."""
    limit = (
        "max_statement_time = 0.3"
        if server.engine == "mariadb"
        else "max_execution_time = 300"
    )
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=True, SETSESSION=[f"SET {limit}"])
    with pool.connection() as connection:
        cursor = connection.cursor(SSCursor)
        cursor.execute(f"SELECT n, SLEEP(0.1) FROM ({MANY}) AS a LIMIT 20")
        connection.rollback()
        number = connection.thread_id()
    with pool.connection() as connection:
        assert connection.thread_id() == number
        assert connection.show_warnings() == ()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 AS [Order #], GET_LOCK('brackets', 0)",
        "SELECT 1 AS [it's], GET_LOCK('brackets', 0), 2 AS [it's]",
    ],
)
def test_a_name_in_square_brackets_hides_no_lock_from_the_clean_up(
    statement: str, server: LocalServer, make_pool: MakePool
) -> None:
    if server.engine != "mariadb":
        pytest.skip("only MariaDB has this SQL mode")
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=True, SQL_MODE="MSSQL")
    with pool.connection() as connection:
        assert run(connection, statement)[0][1] == 1
    with pool.connection() as connection:
        assert run(connection, "SELECT IS_USED_LOCK('brackets')") == ((None,),)
    assert pool.stats().opened == 1


def test_an_error_is_not_shown_to_the_next_borrower(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection, suppress(MySQLError):
        run(connection, "SELECT secret")
    with pool.connection() as connection:
        assert connection.show_warnings() == ()
    assert pool.stats().opened == 1


def test_what_a_procedure_prepares_of_xa_harms_no_next_borrower(
    table: str, sql: Sql, make_pool: MakePool
) -> None:
    body = f"XA START 'x'; INSERT INTO {table} (a) VALUES (1)"
    body += "; XA END 'x'; XA PREPARE 'x'"
    create(sql, "prepares", f"BEGIN {body}; END")
    pool = make_pool(MAX_SIZE=1)
    try:
        with pool.connection() as connection:
            run(connection, "CALL prepares()")
        with pool.connection() as connection:
            assert run(connection, f"SELECT a FROM {table}") == ()
    finally:
        pool.close()
        roll_back_prepared(sql)


def roll_back_prepared(sql: Sql) -> None:
    """Once the session that prepared it has ended, another one may."""
    for _ in range(100):
        with suppress(MySQLError):
            sql("XA ROLLBACK 'x'")
        if not sql("XA RECOVER"):
            return
        time.sleep(0.02)


TRACED = {
    "procedure": ["CALL switches()"],
    "execute": ["PREPARE q FROM 'SET profiling = 1'", "EXECUTE q"],
    "on and off": ["CALL switches()", "SELECT 'card'", "CALL switches_off()"],
    "trace": ["SET optimizer_trace = 'enabled=on'"],
    "trace on and off": [
        "SET optimizer_trace = 'enabled=on'",
        "SELECT 'card' FROM t",
        "SET optimizer_trace = 'enabled=off'",
    ],
}


@pytest.mark.parametrize("how", TRACED)
def test_no_statement_of_a_borrower_is_shown_by_profiles_or_traces(
    how: str, table: str, sql: Sql, make_pool: MakePool
) -> None:
    create(sql, "switches", "SET profiling = 1")
    create(sql, "switches_off", "SET profiling = 0")
    pool = make_pool(MAX_SIZE=1)
    for _ in range(2):
        with pool.connection() as connection:
            for statement in [*TRACED[how], f"SELECT 'card' FROM {table}"]:
                run(connection, statement)
        with pool.connection() as connection:
            assert run(connection, "SELECT 'mine'") == (("mine",),)
            shown = run(connection, "SHOW PROFILES")
            shown += run(connection, "SELECT * FROM information_schema.optimizer_trace")
            assert shown == ()
            assert connection.show_warnings() == ()
    if "trace" not in how:
        assert pool.stats().opened == 1

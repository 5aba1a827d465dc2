"""A cleaned session has what a login gives: compared with a login of bare PyMySQL.

``PYTHONPATH=tests python tests/driver/test_logins.py [mariadb|mysql]`` puts each
session variable into an ``init_connect`` of its own; the suite puts all into one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from audits import TOLD, TRIES, UNIQUE, UNTOUCHED, answer
from conftest import MakePool, Sql, local_server
from pymysql.constants import CLIENT

from flask_mysqlpool import Pool, PoolConfig
from flask_mysqlpool.testing import LocalServer

Picture = dict[str, object]

#: Also told of an account with a limit, by MariaDB; a reset loses it, and it is no more
#: than shown: the limit itself is the account's.
SHOWN_ONLY = {"max_user_connections"}

ASKED = (
    "SELECT ROW_COUNT()",
    "SELECT DATABASE(), CURRENT_ROLE(), @é, @login, 'é', COLLATION('a')",
    "SELECT * FROM seen LIMIT 0",
    "SHOW PROFILES",
    "SELECT query FROM information_schema.optimizer_trace",
)

#: What init_connect does, and whether a session can be cleaned then.
INIT_CONNECTS = {
    "nothing": ("", True),
    "time zone": ("SET SESSION time_zone = '+03:00'", True),
    "two": ("SET time_zone = '+03:00'; SET @@session.wait_timeout = 77;", True),
    "mode": ("SET sql_mode = CONCAT(@@sql_mode, ',ANSI,NO_BACKSLASH_ESCAPES')", True),
    "names": ("SET NAMES latin1, SESSION group_concat_max_len = 8", True),
    "isolation": ("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", True),
    "read only": ("SET SESSION TRANSACTION READ ONLY", True),
    "locale": ("SET lc_time_names = IF(USER() LIKE 'pl%', 'de_DE', 'en_US')", True),
    "traces": ("SET optimizer_trace = 'enabled=on'", True),
    "server": ("SET character_set_server = 'latin2', sql_warnings = 1", True),
    "user variable": ("SET @login = 'é', @é = 1", False),
    "by select": ("SELECT 7 INTO @login", False),
    "next one": ("SET TRANSACTION READ ONLY", False),
    "database": ("SET collation_database = 'latin1_bin'", False),
    "session only": ("SET timestamp = 1000000000", False),
    "function": ("SET sort_buffer_size = 100000 + sets_login()", False),
    "quoted function": ("SET sort_buffer_size = 100000 + `sets_login`()", False),
    "temporary table": ("CREATE TEMPORARY TABLE seen (a INT)", False),
    "elsewhere": ("USE other_login", False),
    "log": ("INSERT INTO logins_log () VALUES ()", False),
    "view": ("SET sort_buffer_size = (SELECT a FROM sees)", False),
    "in a comment": ("SET /* ' */ @login = 1, /* ' */ sql_warnings = 1", False),
    "after dashes": ("SET sql_warnings = 1, -- '\n @login = 'x'", False),
    "after a hash": ("SET sql_warnings = 1, # '\n @login = 'x'", False),
    "backslash": (r"SET sql_warnings = '\\' = (@login := 'x')", False),
    "comment": ("SET /*! @login = 1, */ time_zone = '+03:00'", False),
    "long": ("SET time_zone = '+05:00'" + " " * 2500 + ", @login = 'x'", False),
}

#: With these, a test could not ask any more, or the session is not cleaned.
LIMITING = {
    *("max_join_size", "sql_big_selects", "max_session_mem_used", "autocommit"),
    *("max_statement_time", "max_execution_time", "sql_select_limit"),
    *("tmp_disk_table_size", "character_set_database", "collation_database"),
    *("transaction_read_only", "tx_read_only"),
}

GLOBALS = (
    *("init_connect", "interactive_timeout", "wait_timeout", "sql_mode", "time_zone"),
    *("character_set_server", "collation_server", "max_connections", "autocommit"),
    "character_set_client",
)


@pytest.fixture
def plain(server: LocalServer, sql: Sql) -> Iterator[str]:
    """An account that ``init_connect`` is for; its URL. Globals are put back."""
    before = {name: sql(f"SELECT @@global.{name}")[0][0] for name in GLOBALS}
    for statement in furniture(server.engine):
        sql(statement.replace("%", "%%"))
    yield f"mysql://pläin:pw@{server.host}:{server.port}/lögins"
    for name, value in before.items():
        sql(f"SET GLOBAL {name} = %s", value)
    for statement in ("DATABASE lögins", "DATABASE other_login", "USER pläin@'%%'"):
        sql(f"DROP {statement}")
    sql("DROP ROLE rôle")


def furniture(engine: str) -> Iterator[str]:
    for name in ("lögins", "other_login"):
        yield f"DROP DATABASE IF EXISTS {name}"
        yield f"CREATE DATABASE {name} CHARACTER SET latin2"
    yield "DROP USER IF EXISTS pläin@'%'"
    limits = "MAX_STATEMENT_TIME 12.5" if engine == "mariadb" else ""
    yield (
        "CREATE USER pläin@'%' IDENTIFIED BY 'pw' WITH MAX_USER_CONNECTIONS 50 "
        + limits
    )
    yield "GRANT ALL ON lögins.* TO pläin@'%'"
    yield "GRANT ALL ON other_login.* TO pläin@'%'"
    yield "DROP ROLE IF EXISTS rôle"
    yield "CREATE ROLE rôle"
    yield "GRANT SELECT ON *.* TO rôle"
    yield "GRANT rôle TO pläin@'%'"
    to = "FOR" if engine == "mariadb" else "TO"
    yield f"SET DEFAULT ROLE rôle {to} pläin@'%'"
    yield "CREATE TABLE lögins.logins_log (id INT AUTO_INCREMENT PRIMARY KEY)"
    if engine == "mysql":
        yield "SET GLOBAL log_bin_trust_function_creators = 1"
    yield (
        "CREATE FUNCTION lögins.sets_login() RETURNS INT NO SQL"
        " BEGIN SET @login = 'function'; RETURN 1; END"
    )
    yield "CREATE VIEW lögins.sees AS SELECT 100000 + lögins.sets_login() AS a"


def picture(connection: Any) -> Picture:
    """What a borrower can find out about its session."""
    # Each of these changes the next.
    seen: Picture = {"warnings": connection.show_warnings()}
    seen |= {question: answer(connection, question) for question in ASKED}
    variables: Any = answer(connection, "SHOW SESSION VARIABLES")
    seen |= {f"variable {name}": value for name, value in variables}
    return seen


def as_after_a_login(url: str, **settings: Any) -> Picture:
    """The session that bare PyMySQL gets with the same settings."""
    config = PoolConfig.from_mapping({"URL": url, **settings})
    connection: Any = pymysql.connect(
        host=config.host,
        port=config.port,
        user=config.user,
        password=str(config.password),
        database=config.database,
        charset=config.charset,
        collation=config.collation,
        sql_mode=config.sql_mode,
        init_command=config.init_command,
        autocommit=config.autocommit,
        **config.connect_args,
    )
    try:
        return picture(connection)
    finally:
        connection.close()


TRACES = (
    "SET @login = 'x', time_zone = '+09:00', sql_mode = '', @é = 2",
    "CALL lögins.nothing()",
    "SELECT 1 UNION SELECT 2",
    "SELECT 'card' FROM logins_log",
    "USE other_login",
    "SET ROLE NONE",
)


def differences(
    pool: Pool, expected: Picture, traces: tuple[str, ...] = TRACES
) -> tuple[dict[str, Any], bool]:
    """How a session, cleaned of ``traces``, differs; and whether it was reused."""
    with pool.connection() as connection:
        number = connection.thread_id()
        for statement in traces:
            answer(connection, statement)
    with pool.connection() as connection:
        reused = connection.thread_id() == number
        seen = picture(connection)
    told = expected.keys() | seen.keys()
    found = {
        name: (expected.get(name), seen.get(name))
        for name in told
        if expected.get(name) != seen.get(name)
        and name not in UNIQUE | TOLD
        and name.removeprefix("variable ") not in SHOWN_ONLY
    }
    return found, reused


def without_warnings_of_login(found: dict[str, Any]) -> None:
    """MariaDB shows those of init_connect, after a login."""
    if "warnings" in found and found["warnings"][1] == ():
        del found["warnings"]


@pytest.mark.parametrize("name", INIT_CONNECTS)
def test_a_cleaned_session_has_what_init_connect_gives(
    name: str, plain: str, sql: Sql, make_pool: MakePool
) -> None:
    text, can_be_cleaned = INIT_CONNECTS[name]
    sql("SET GLOBAL init_connect = %s", text)
    expected = as_after_a_login(plain)
    pool = make_pool(URL=plain, MAX_SIZE=1)
    found, reused = differences(pool, expected)
    without_warnings_of_login(found)
    if name == "log":
        # The server counts the logins.
        assert found.keys() == {"variable identity", "variable last_insert_id"}
        found = {}
    assert found == {}
    assert reused is can_be_cleaned


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "interactive": ({"interactive_timeout": 99}, {"client_flag": CLIENT.INTERACTIVE}),
    "ignore space": ({}, {"client_flag": CLIENT.IGNORE_SPACE}),
    "found rows": ({}, {"client_flag": CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS}),
    "latin1": ({"character_set_server": "latin1"}, {}),
    "client": ({"character_set_client": "latin1"}, {}),
    "utf8mb3": ({"collation_server": "utf8mb3_bin"}, {}),
    "modes": ({"sql_mode": "ANSI,NO_BACKSLASH_ESCAPES,HIGH_NOT_PRECEDENCE"}, {}),
    "time zone": ({"time_zone": "+05:00"}, {}),
}


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_a_cleaned_session_has_what_flags_and_other_defaults_give(
    name: str, autocommit: bool, plain: str, sql: Sql, make_pool: MakePool
) -> None:
    values, arguments = OTHERS[name]
    for variable, value in values.items():
        sql(f"SET GLOBAL {variable} = %s", value)
    settings = {"AUTOCOMMIT": autocommit, "CONNECT_ARGS": arguments}
    expected = as_after_a_login(plain, **settings)
    found, reused = differences(make_pool(URL=plain, MAX_SIZE=1, **settings), expected)
    assert found == {}
    assert reused


CONFIGURED: dict[str, dict[str, Any]] = {
    "charset": {"CHARSET": "latin1", "COLLATION": "latin1_german1_ci"},
    "mode": {"SQL_MODE": "ANSI"},
    "init command": {"INIT_COMMAND": "SELECT CAST('x' AS SIGNED) INTO @login"},
    "insert": {"INIT_COMMAND": "INSERT INTO logins_log (id) VALUES (NULL)"},
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_cleaned_session_is_set_up_as_pymysql_does_it(
    name: str, plain: str, sql: Sql, make_pool: MakePool
) -> None:
    sql("SET GLOBAL init_connect = %s", "SET time_zone = '+03:00', sql_mode = 'ANSI'")
    expected = as_after_a_login(plain, **CONFIGURED[name])
    pool = make_pool(URL=plain, MAX_SIZE=1, **CONFIGURED[name])
    found, reused = differences(pool, expected)
    if name == "insert":
        assert found.keys() == {"variable identity", "variable last_insert_id"}
        found = {}
    assert found == {}
    assert reused


@pytest.mark.parametrize("trace", TRACES)
def test_a_session_is_cleaned_of_each_trace_by_itself(
    trace: str, plain: str, make_pool: MakePool
) -> None:
    expected = as_after_a_login(plain)
    pool = make_pool(URL=plain, MAX_SIZE=1)

    assert differences(pool, expected, ("SET @é = 2", trace)) == ({}, True)


def test_stored_code_leaves_no_other_role(
    plain: str, sql: Sql, make_pool: MakePool
) -> None:
    sql(
        "CREATE FUNCTION lögins.leaves_role() RETURNS INT NO SQL SQL SECURITY INVOKER"
        " BEGIN SET ROLE NONE; RETURN 1; END"
    )
    pool = make_pool(URL=plain, MAX_SIZE=1)
    for _ in range(2):
        with pool.connection() as connection:
            assert "rôle" in str(answer(connection, "SELECT CURRENT_ROLE()"))
            assert answer(connection, "SELECT leaves_role()") == ((1,),)
            assert "rôle" not in str(answer(connection, "SELECT CURRENT_ROLE()"))
            number = connection.thread_id()
    with pool.connection() as connection:
        assert connection.thread_id() == number


def test_a_role_granted_after_the_first_login_is_not_left_either(
    plain: str, server: LocalServer, sql: Sql, make_pool: MakePool
) -> None:
    sql("REVOKE rôle FROM pläin@'%%'")
    to = "FOR" if server.engine == "mariadb" else "TO"
    sql(f"SET DEFAULT ROLE NONE {to} pläin@'%%'")
    sql(
        "CREATE FUNCTION lögins.takes_role() RETURNS INT NO SQL SQL SECURITY INVOKER"
        " BEGIN SET ROLE rôle; RETURN 1; END"
    )
    pool = make_pool(URL=plain, MAX_SIZE=1)
    with pool.connection() as connection:
        # As usual, so that the next login is not asked for everything.
        assert "rôle" not in str(answer(connection, "SELECT CURRENT_ROLE()"))
        number = connection.thread_id()
    sql("GRANT rôle TO pläin@'%%'")
    pool.reset()
    with pool.connection() as connection:
        assert connection.thread_id() != number
        assert "rôle" not in str(answer(connection, "SELECT CURRENT_ROLE()"))
        assert answer(connection, "SELECT takes_role()") == ((1,),)
        assert "rôle" in str(answer(connection, "SELECT CURRENT_ROLE()"))
    with pool.connection() as connection:
        assert "rôle" not in str(answer(connection, "SELECT CURRENT_ROLE()"))


def settable(connection: Any) -> Iterator[tuple[str, str]]:
    """Each session variable that this account may set, with another value for it."""
    variables: Any = answer(connection, "SHOW SESSION VARIABLES")
    for name, value in variables:
        if name in UNTOUCHED:
            continue
        for to in TRIES:
            new = to.format(value if value.isdigit() else repr(value), name)
            if answer(connection, f"SET SESSION {name} = {new}") != ():
                continue
            if answer(connection, f"SELECT @@session.{name} = '{value}'") == ((0,),):
                yield name, new
                break


def alone(connection: Any) -> set[str]:
    """The variables without a global value: a session that sets one is not cleaned."""
    own: Any = answer(connection, "SHOW SESSION VARIABLES")
    shared: Any = answer(connection, "SHOW GLOBAL VARIABLES")
    return {name for name, _ in own} - {name for name, _ in shared}


def test_every_variable_that_init_connect_sets_is_set_after_a_clean_up(
    plain: str, server: LocalServer, sql: Sql, make_pool: MakePool
) -> None:
    with make_pool(URL=plain).connection() as connection:
        left_out = alone(connection) | LIMITING
        variables = [v for v in settable(connection) if v[0] not in left_out]
    assert len(variables) > 60
    # In parts, as MariaDB takes 4,096 characters at most.
    for part in (variables[:60], variables[60:]):
        text = "SET " + ", ".join(f"SESSION {name} = {new}" for name, new in part)
        sql("SET GLOBAL init_connect = %s", text)
        expected = as_after_a_login(plain)
        found, reused = differences(make_pool(URL=plain, MAX_SIZE=1), expected)
        without_warnings_of_login(found)
        assert found == {}
        assert reused


def test_a_session_shows_nothing_of_our_questions(
    plain: str, make_pool: MakePool
) -> None:
    """New ones of MariaDB show the FOUND_ROWS() of a connection that was closed."""
    pool = make_pool(URL=plain)
    with pool.connection() as first, pool.connection() as second:
        for connection in first, second:
            assert answer(connection, "SELECT FOUND_ROWS(), ROW_COUNT()")[0][0] == 0  # type: ignore[index]


def main(engine: str) -> int:
    """Try every variable by itself; how many differ."""
    faults = 0
    with local_server(engine) as server, server.connect(autocommit=True) as root:
        for statement in furniture(engine):
            answer(root, statement)
        url = f"mysql://pläin:pw@{server.host}:{server.port}/lögins"
        settings = {"URL": url, "MAX_SIZE": 1, "TIMEOUT": 10}
        pool = Pool(PoolConfig.from_mapping(settings))
        with pool.connection() as connection:
            variables = [v for v in settable(connection) if v[0] not in LIMITING]
        pool.close()
        cleaned = 0
        for name, new in variables:
            with root.cursor() as cursor:
                cursor.execute(
                    "SET GLOBAL init_connect = %s", (f"SET SESSION {name} = {new}",)
                )
            expected = as_after_a_login(url)
            pool = Pool(PoolConfig.from_mapping(settings))
            found, reused = differences(pool, expected)
            pool.close()
            without_warnings_of_login(found)
            cleaned += reused
            if found:
                faults += 1
                print(name, new, found)
        print(
            f"{engine}: {len(variables)} variables, {cleaned} cleaned, {faults} faults"
        )
    return faults


if __name__ == "__main__":
    sys.exit(sum(map(main, sys.argv[1:] or ["mariadb", "mysql"])) > 0)

"""A new session and a reused one, compared in everything that can be asked for.

Each kind of change is made in every spelling, in both autocommit modes; then the
connection goes back, comes out again, and has to look like one that was just opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pymysql
import pytest
from audits import TRIES, UNIQUE, UNTOUCHED, answer
from conftest import MakePool, until
from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.cursors import DictCursor, SSCursor
from pymysql.err import MySQLError

from flask_mysqlpool import Pool, PooledConnection
from flask_mysqlpool.pool.driver.statements import (
    _CALLS_ON,
    RUNS_CODE,
    server_of,
    side_effects,
)
from flask_mysqlpool.testing import LocalServer

Picture = dict[str, object]
Pictures = dict[tuple[object, ...], Picture]


PROBES = {
    "database": "SELECT DATABASE()",
    "last insert id": "SELECT LAST_INSERT_ID()",
    "user": "SELECT CURRENT_USER(), CURRENT_ROLE()",
    "user lock": "SELECT IS_USED_LOCK('audit') = CONNECTION_ID()",
    "temporary table": "SELECT * FROM audited.temporary_one",
    "hidden table": "SELECT a FROM audited.t LIMIT 0",
    "prepared statement": "EXECUTE audited",
    "handler": "HANDLER t READ FIRST",
    "savepoint": "ROLLBACK TO SAVEPOINT audited",
    "profiles": "SHOW PROFILES",
    "literals": "SELECT 'a' || 'b', \"a\", COLLATION('a'), CHARSET('a'), 1.10, NOW()",
    "write": "UPDATE audited.t SET a = a + 1",
    "undo": "ROLLBACK",
}
USER_VARIABLES = {
    "mariadb": "SELECT variable_name, variable_value"
    " FROM information_schema.user_variables ORDER BY 1",
    "mysql": "SELECT variable_name, variable_value"
    " FROM performance_schema.user_variables_by_thread"
    " WHERE thread_id = PS_CURRENT_THREAD_ID() ORDER BY 1",
}
#: What another session can do only if this one holds nothing.
DISTURBED = (
    "UPDATE audited.t SET a = a + 1",
    "ALTER TABLE audited.t COMMENT 'x'",
    "INSERT INTO audited.others VALUES (1)",
    "SELECT 1 / IS_FREE_LOCK('audited')",
    "CREATE TABLE audited.of_somebody_else (a INT)",
    "DROP TABLE audited.of_somebody_else",
)


def picture(connection: PooledConnection, engine: str) -> Picture:
    """Everything that a borrower can find out about its session."""
    seen: Picture = {f"python {k}": v for k, v in _python_side(connection).items()}
    # First of all, since any other statement changes these.
    seen["warnings"] = connection.show_warnings()
    seen["user variables"] = answer(connection, USER_VARIABLES[engine])
    variables: Any = answer(connection, "SHOW SESSION VARIABLES")
    seen |= {f"variable {name}": value for name, value in variables}
    for name, probe in PROBES.items():
        seen[name] = _without_time(answer(connection, probe))
    return seen


def _python_side(connection: Any) -> dict[str, object]:
    raw = connection._con.raw
    state: dict[str, object] = {name: repr(value) for name, value in vars(raw).items()}
    state["insert_id"] = connection.insert_id()
    state["cursor"] = type(connection.cursor()).__name__
    state["get_autocommit"] = connection.get_autocommit()
    state["server_status"] = connection.server_status
    # These are cached lazily, or are objects of the moment.
    for name in ("_result", "_next_seq_id", "_current_timeout", "ctx", "ssl"):
        state.pop(name, None)
    return state


def _without_time(rows: object) -> object:
    return re.sub(r"datetime\(.*?\)", "now", repr(rows))


def differences(new: Picture, reused: Picture) -> dict[str, tuple[object, object]]:
    return {
        name: (new.get(name), reused.get(name))
        for name in new.keys() | reused.keys()
        if new.get(name) != reused.get(name) and name not in UNIQUE
    }


@dataclass(frozen=True)
class Change:
    """Something that a borrower may do to its session."""

    name: str
    #: Statements, or what is done to the connection.
    what: str | Sequence[str] | Callable[[Any], object]
    engine: str = ""
    #: Whether the connection is reused; None where it does not matter.
    reused: bool | None = None

    def __str__(self) -> str:
        return self.name

    def spellings(self) -> Iterator[tuple[str, Callable[[str], str | bytes]]]:
        for spelling, spell in SPELLINGS.items():
            if spelling == "text" or not callable(self.what):
                yield spelling, spell


def _unread_rows(connection: Any) -> None:
    cursor = connection.cursor(SSCursor)
    cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
    cursor.fetchone()


def _unread_rows_dropped(connection: Any) -> None:
    _unread_rows(connection)
    connection.cursor().close()


def _unread_results(connection: Any) -> None:
    connection.cursor().execute("CALL two_results()")


def _insert_and_read_id(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO numbered () VALUES ()")
        assert connection.insert_id()
    connection.commit()


def _commit(connection: Any) -> None:
    connection.cursor().execute("INSERT INTO others VALUES (7)")
    connection.commit()


def _duplicate_key(connection: Any) -> None:
    with suppress(MySQLError):
        connection.cursor().execute("INSERT INTO numbered (id) VALUES (1), (1)")


def _set_cursorclass(connection: Any) -> None:
    connection.cursorclass = DictCursor


def _change_decoders(connection: Any) -> None:
    connection.decoders[FIELD_TYPE.NEWDECIMAL] = float


def _change_encoders(connection: Any) -> None:
    connection.encoders[int] = lambda value, mapping=None: "0"


CHANGES = [
    Change("plain select", "SELECT 1", reused=True),
    Change("select from a table", "SELECT * FROM t", reused=True),
    Change("select with rows", "SELECT 1 UNION SELECT 2 UNION SELECT 3", reused=True),
    Change("select with warning", "SELECT CAST('secret' AS SIGNED)", reused=True),
    Change("locking read", "SELECT * FROM t FOR UPDATE", reused=True),
    Change("user variable", "SET @a = 1", reused=True),
    Change("user variable in select", "SELECT @a := 1", reused=True),
    Change("user variable by into", "SELECT 1 INTO @a", reused=True),
    Change("temporary table", "CREATE TEMPORARY TABLE temporary_one (a INT)"),
    Change("temporary table hides one", "CREATE TEMPORARY TABLE t (b INT)"),
    Change("insert", "INSERT INTO others VALUES (5)", reused=True),
    Change("insert and commit", _commit, reused=True),
    Change("insert id", _insert_and_read_id, reused=True),
    Change("last_insert_id set", "SELECT LAST_INSERT_ID(77)", reused=True),
    Change("update", "UPDATE t SET a = 9", reused=True),
    Change("delete", "DELETE FROM others", reused=True),
    Change("trigger", "INSERT INTO triggering VALUES (1)", reused=True),
    Change("begin", "BEGIN", reused=True),
    Change("begin method", lambda c: c.begin(), reused=True),
    Change("snapshot", ["START TRANSACTION WITH CONSISTENT SNAPSHOT"]),
    Change("read only transaction", "START TRANSACTION READ ONLY"),
    Change("savepoint", ["BEGIN", "UPDATE t SET a = 3", "SAVEPOINT audited"]),
    Change("commit and chain", ["BEGIN", "COMMIT AND CHAIN", "UPDATE t SET a = 4"]),
    Change("autocommit by statement", "SET autocommit = 1 - @@autocommit"),
    Change("autocommit on", lambda c: c.autocommit(True), reused=True),
    Change("autocommit off", lambda c: c.autocommit(False), reused=True),
    Change("isolation", "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    Change("next isolation", "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"),
    Change("next read only", "SET TRANSACTION READ ONLY"),
    Change("session read only", "SET SESSION TRANSACTION READ ONLY"),
    Change("sql_mode", "SET sql_mode = 'ansi,pipes_as_concat'", reused=True),
    Change("time zone", "SET time_zone = '+05:00'", reused=True),
    Change("timestamp", "SET timestamp = 1000000000", reused=True),
    Change("set names", "SET NAMES latin1", reused=True),
    Change("character set", "SET CHARACTER SET latin1"),
    Change("collation", "SET collation_connection = 'utf8mb4_bin'"),
    Change("set_charset", lambda c: c.set_character_set("latin1", None)),
    Change("use", "USE other_one", reused=True),
    Change("select_db", lambda c: c.select_db("other_one"), reused=True),
    Change("foreign_key_checks", "SET foreign_key_checks = 0"),
    Change("unique_checks", "SET unique_checks = 0"),
    Change("wait_timeout", "SET SESSION wait_timeout = 99"),
    Change("several variables", "SET @a = 1, sql_safe_updates = 1, @@sql_notes = 0"),
    Change("insert_id variable", "SET insert_id = 555"),
    Change("profiling", ["SET profiling = 1", "SELECT 1"]),
    Change("max_statement_time", "SET max_statement_time = 60", "mariadb"),
    Change("max_execution_time", "SET max_execution_time = 60000", "mysql"),
    Change("group_concat_max_len", "SET group_concat_max_len = 8"),
    Change("get_lock", "SELECT GET_LOCK('audited', 0)", reused=True),
    Change("two locks", ["DO GET_LOCK('audited', 0)", "DO GET_LOCK('audit', 0)"]),
    Change("lock tables", "LOCK TABLES t WRITE, others READ"),
    Change("flush with lock", "FLUSH TABLES WITH READ LOCK"),
    Change("flush for export", "FLUSH TABLES t FOR EXPORT"),
    Change("prepare", "PREPARE audited FROM 'select 1'"),
    Change("execute immediate", "EXECUTE IMMEDIATE 'set @a = 1'", "mariadb"),
    Change("handler", "HANDLER t OPEN"),
    Change("sql_calc_found_rows", "SELECT SQL_CALC_FOUND_ROWS * FROM t LIMIT 1"),
    Change("procedure", "CALL changes_everything()"),
    Change("function", "SELECT sets_variable(1)", reused=True),
    Change("function by do", "DO sets_variable(1)"),
    Change("function in show", "SHOW TABLES WHERE sets_variable(1)"),
    Change(
        "set statement",
        "SET STATEMENT sort_buffer_size=99999 FOR SET @a = 1",
        "mariadb",
    ),
    Change(
        "compound", "BEGIN NOT ATOMIC SET @a = 1; SET sql_mode = ''; END", "mariadb"
    ),
    Change("optimizer hint", "SELECT /*+ SET_VAR(sort_buffer_size = 99999) */ 1"),
    Change("executable comment", "SELECT /*! @a := */ 1"),
    Change("role", "SET ROLE audited"),
    Change("role with comment", "SET /* */ ROLE audited"),
    Change("role after comment", "/* */ SET ROLE audited"),
    Change(
        "prepared role", ["PREPARE audited FROM 'set role audited'", "EXECUTE audited"]
    ),
    Change("immediate role", "EXECUTE IMMEDIATE 'set role audited'", "mariadb"),
    Change("compound role", "BEGIN NOT ATOMIC SET ROLE audited; END", "mariadb"),
    Change("role in procedure", "CALL sets_role()"),
    Change("xa", "XA START 'x'"),
    Change("xa after comment", "/* */ XA START 'x'"),
    Change("xa in use", ["XA START 'x'", "UPDATE t SET a = 8"]),
    Change("backup stage", "/* */ BACKUP STAGE START", "mariadb"),
    Change("backup lock", "/* */ BACKUP LOCK t", "mariadb"),
    Change("instance lock", "/* */ LOCK INSTANCE FOR BACKUP", "mysql"),
    Change("flush after comment", "/* */ FLUSH TABLES WITH READ LOCK"),
    Change("resource group", "SET /* */ RESOURCE GROUP audited", "mysql"),
    Change("sequence", "SELECT NEXT VALUE FOR s", "mariadb", reused=True),
    Change("explain", "EXPLAIN SELECT sets_variable(1)"),
    Change("analyze", "ANALYZE SELECT sets_variable(1)", "mariadb"),
    Change("explain analyze", "EXPLAIN ANALYZE SELECT sets_variable(1)", "mysql"),
    Change("with", "WITH x AS (SELECT 1) SELECT @a := 2 FROM x"),
    Change("parenthesis", "(SELECT @a := 1)"),
    Change("values", "VALUES (1), (2)", "mariadb"),
    Change(
        "get diagnostics", ["SELECT CAST('x' AS SIGNED)", "GET DIAGNOSTICS @n = NUMBER"]
    ),
    Change("error", "SELECT nosuchcolumn FROM t"),
    Change("duplicate key", _duplicate_key),
    Change("load data", "LOAD DATA LOCAL INFILE 'nosuch' INTO TABLE others"),
    Change("kill query", lambda c: answer(c, f"KILL QUERY {c.thread_id()}")),
    Change("unread rows", _unread_rows, reused=False),
    Change("unread rows, other cursor", _unread_rows_dropped, reused=False),
    Change("unread results", _unread_results, reused=True),
    Change("cursorclass", _set_cursorclass, reused=True),
    Change("decoders", _change_decoders),
    Change("encoders", _change_encoders),
]


@pytest.fixture(scope="session")
def audited(server: LocalServer) -> Iterator[LocalServer]:
    """The server with a database to play in."""
    root = server.connect()
    with root.cursor() as cursor:
        for statement in _furniture(server):
            cursor.execute(statement)
    yield server
    with root.cursor() as cursor:
        for name in ("audited", "other_one"):
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")
        cursor.execute("DROP ROLE audited")
    root.close()


def _furniture(server: LocalServer) -> Iterator[str]:
    for name in ("other_one", "audited"):
        yield f"DROP DATABASE IF EXISTS {name}"
        yield f"CREATE DATABASE {name}"
    yield "USE audited"
    yield "CREATE TABLE t (a INT) ENGINE=InnoDB"
    yield "INSERT INTO t VALUES (1), (2), (3)"
    yield "CREATE TABLE others (a INT)"
    yield "CREATE TABLE numbered (id INT AUTO_INCREMENT PRIMARY KEY)"
    yield "CREATE TABLE triggering (a INT)"
    yield (
        "CREATE TRIGGER triggered BEFORE INSERT ON triggering"
        " FOR EACH ROW SET @from_trigger = NEW.a"
    )
    if server.engine == "mariadb":
        yield "CREATE SEQUENCE s"
    else:
        yield "SET GLOBAL log_bin_trust_function_creators = 1"
    yield (
        "CREATE FUNCTION sets_variable(a INT) RETURNS INT NO SQL"
        " BEGIN SET @from_function = a; RETURN a; END"
    )
    yield "CREATE VIEW setting_view AS SELECT sets_variable(5) a"
    yield (
        "CREATE PROCEDURE changes_everything() BEGIN SET @a = 1;"
        " SET SESSION sql_mode = 'ansi'; SET autocommit = 1 - @@autocommit;"
        " CREATE TEMPORARY TABLE temporary_one (a INT);"
        " PREPARE audited FROM 'select 1'; DO GET_LOCK('audited', 0); END"
    )
    yield "CREATE PROCEDURE sets_role() SQL SECURITY INVOKER SET ROLE audited"
    yield "CREATE PROCEDURE two_results() BEGIN SELECT 1; SELECT 2; END"
    yield "DROP ROLE IF EXISTS audited"
    yield "CREATE ROLE audited"
    for host in ("%", "localhost"):
        yield f"GRANT audited TO '{server.user}'@'{host}'"


MakeAudited = Callable[..., Pool]


@pytest.fixture
def make_audited(audited: LocalServer, make_pool: MakePool) -> MakeAudited:
    def make(**settings: Any) -> Pool:
        return make_pool(**{"DATABASE": "audited", "MAX_SIZE": 1, **settings})

    return make


def make_change(
    connection: Any, what: Any, spell: Callable[[str], str | bytes] = str
) -> None:
    if callable(what):
        what(connection)
        return
    for statement in [what] if isinstance(what, str) else what:
        with suppress(MySQLError), connection.cursor() as cursor:
            cursor.execute(spell(statement))


@dataclass
class Visit:
    """What the next borrower finds."""

    reused: bool
    seen: Picture
    #: What others, meanwhile, could not do.
    blocked: dict[str, object]


def visit(pool: Pool, server: LocalServer, change: Callable[[Any], None]) -> Visit:
    with pool.connection() as connection:
        first = connection.thread_id()
        change(connection)
    # It must not be seen from within an old snapshot.
    with pool.connection() as connection:
        with server.connect(autocommit=True) as root:
            blocked = _blocked(root)
        return Visit(
            connection.thread_id() == first,
            picture(connection, server.engine),
            blocked,
        )


def _blocked(root: pymysql.Connection[Any]) -> dict[str, object]:
    answer(root, "SET lock_wait_timeout = 1, innodb_lock_wait_timeout = 1")
    answers = {statement: answer(root, statement) for statement in DISTURBED}
    return {
        statement: said
        for statement, said in answers.items()
        if isinstance(said, str) or said == ((None,),)
    }


def look_at_new(pool: Pool, engine: str) -> Picture:
    pool.reset()
    with pool.connection() as connection:
        return picture(connection, engine)


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """Those of new sessions, which look alike where their settings are alike."""
    return {}


def oddly(statement: str) -> str:
    return "\n\t /* odd */" + statement.lower() + "\n"


def as_bytes(statement: str) -> bytes:
    return statement.encode()


def in_lower_case(statement: str) -> str:
    return "\r\n " + statement.lower().replace(" ", "  ") + " ;"


SPELLINGS: dict[str, Callable[[str], str | bytes]] = {
    "text": str,
    "bytes": as_bytes,
    "lower": in_lower_case,
    "comment": oddly,
}


def test_two_new_sessions_differ_only_in_what_is_unique_to_a_session(
    make_audited: MakeAudited, server: LocalServer
) -> None:
    pool = make_audited()
    one, other = look_at_new(pool, server.engine), look_at_new(pool, server.engine)

    assert differences(one, other) == {}
    assert len(one) > 400


@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "manual"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_reused_session_looks_like_a_new_one_after(
    change: Change,
    autocommit: bool,
    make_audited: MakeAudited,
    server: LocalServer,
    pictures: Pictures,
) -> None:
    if change.engine not in ("", server.engine):
        pytest.skip(f"only {change.engine} has it")
    pool = make_audited(AUTOCOMMIT=autocommit)
    kind = server.engine, autocommit
    if kind not in pictures:
        pictures[kind] = look_at_new(pool, server.engine)
    check(pool, change, pictures[kind], server)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_it_does_where_the_server_does_not_tell_what_has_changed(
    change: Change,
    make_audited: MakeAudited,
    server: LocalServer,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if change.engine not in ("", server.engine):
        pytest.skip(f"only {change.engine} has it")
    monkeypatch.setattr("flask_mysqlpool.pool.driver.results.TRACKING", 1 << 40)
    pool = make_audited(AUTOCOMMIT=True)
    kind = server.engine, "untold"
    if kind not in pictures:
        pictures[kind] = look_at_new(pool, server.engine)
    check(pool, change, pictures[kind], server, ["text"])


def check(
    pool: Pool,
    change: Change,
    new: Picture,
    server: LocalServer,
    spelled: Container[str] = SPELLINGS,
) -> None:
    """Make the change in each way to spell it, and compare what the next one sees."""
    reused, faults = {}, {}
    for spelling, spell in change.spellings():
        if spelling not in spelled:
            continue
        seen = visit(pool, server, partial(make_change, what=change.what, spell=spell))
        reused[spelling] = seen.reused
        if fault := differences(new, seen.seen) | seen.blocked:
            faults[spelling] = fault

    print("reused", reused)
    assert faults == {}
    assert change.reused in (None, reused["text"])


def count_questions(root: Any) -> int:
    """All that the server was ever asked, this question included."""
    with root.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
        return int(cursor.fetchone()[1])


@pytest.mark.parametrize(("autocommit", "commands"), [(True, 1), (False, 2)])
def test_a_select_costs_itself_and_at_most_a_rollback(
    autocommit: bool, commands: int, make_audited: MakeAudited, server: LocalServer
) -> None:
    pool = make_audited(AUTOCOMMIT=autocommit)
    with pool.connection():
        pass
    with server.connect() as root:
        # What others have left behind is over when nobody asks but this.
        until(lambda: count_questions(root) + 1 == count_questions(root))
        before = count_questions(root)

        for _ in range(100):
            with pool.connection() as connection:
                assert answer(connection, "SELECT a FROM t WHERE a = 1") != ""

        asked = count_questions(root) - before - 1

    # The last rollback may still be under way.
    assert abs(asked - 100 * commands) <= 1
    assert pool.stats().opened == 1


VARIED = {
    "CHARSET": "latin1",
    "COLLATION": "latin1_german1_ci",
    "SQL_MODE": "ANSI_QUOTES",
    "INIT_COMMAND": "SET @started = 1",
    "SETSESSION": ["SET time_zone = '+03:00'", "SET @other = @started + 1"],
}
CONFIGURED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no database": {"URL": None, "DATABASE": None},
    "all": VARIED,
    "always": {"RESET_SESSION": "always"},
    "always and all": {**VARIED, "RESET_SESSION": "always"},
    "cursorclass": {"CURSORCLASS": "DictCursor"},
    "multi": {"CONNECT_ARGS": {"client_flag": CLIENT.MULTI_STATEMENTS}},
}
DIRT = [
    "SET @a = 1, sql_mode = '', time_zone = '+00:00', autocommit = 1 - @@autocommit",
    "SET NAMES utf8mb4",
    "CREATE TEMPORARY TABLE audited.temporary_one (a INT)",
    "USE other_one",
    "USE other_one; SET @b = 2",
    "SELECT 1; SELECT 2",
    "UPDATE audited.t SET a = 5",
]


@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "manual"])
@pytest.mark.parametrize("name", CONFIGURED)
def test_what_is_configured_holds_again_after_cleaning(
    name: str, autocommit: bool, make_audited: MakeAudited, server: LocalServer
) -> None:
    settings = {**CONFIGURED[name], "AUTOCOMMIT": autocommit}
    if name == "no database":
        settings |= {
            "HOST": server.host,
            "PORT": server.port,
            "USER": server.user,
            "PASSWORD": server.password,
        }
    pool = make_audited(**settings)
    new = look_at_new(pool, server.engine)
    for dirt in DIRT:
        seen = visit(pool, server, partial(make_change, what=dirt))

        assert differences(new, seen.seen) | seen.blocked == {}, dirt


def test_without_a_database_only_what_may_change_it_costs_the_connection(
    make_pool: MakePool, audited: LocalServer
) -> None:
    url = audited.url.rpartition("/")[0]
    pool = make_pool(URL=url, MAX_SIZE=1)

    def reused_after(statement: str) -> bool:
        return visit(pool, audited, partial(make_change, what=statement)).reused

    assert reused_after("SELECT 1")
    assert reused_after("SET @a = 1")
    assert not reused_after("USE audited")


def test_only_the_transaction_is_ended_if_that_is_all_that_is_wanted(
    make_audited: MakeAudited, audited: LocalServer
) -> None:
    pool = make_audited(RESET_SESSION="transaction")
    with pool.connection() as connection:
        answer(connection, "SET @a = 'kept'")
        answer(connection, "DELETE FROM audited.t")
        answer(connection, "SELECT GET_LOCK('audited', 0)")
    with pool.connection() as connection:
        assert answer(connection, "SELECT @a, COUNT(*) > 0 FROM t") == (("kept", 1),)
        assert answer(connection, "SELECT IS_FREE_LOCK('audited')") == ((0,),)
    assert pool.stats().opened == 1


def test_what_a_view_calls_is_what_always_is_for(
    make_audited: MakeAudited, audited: LocalServer
) -> None:
    pool = make_audited(RESET_SESSION="always")
    with pool.connection() as connection:
        answer(connection, "SELECT * FROM setting_view")
        assert answer(connection, "SELECT @from_function") == ((5,),)
    with pool.connection() as connection:
        assert answer(connection, "SELECT @from_function") == ((None,),)
    assert pool.stats().opened == 1


def change_every_variable(connection: Any) -> int:
    """Set whatever can be set to something else; how many that were."""
    names: Any = answer(connection, "SHOW SESSION VARIABLES")
    return sum(
        any(_changed(connection, name, value, to) for to in TRIES)
        for name, value in names
        if name not in UNTOUCHED
    )


def _changed(connection: Any, name: str, value: str, to: str) -> bool:
    new = to.format(value if value.isdigit() else repr(value), name)
    if answer(connection, f"SET SESSION {name} = {new}") != ():
        return False
    return answer(connection, f"SELECT @@session.{name} = '{value}'") == ((0,),)


def test_every_session_variable_that_can_be_changed_is_changed_back(
    make_audited: MakeAudited, audited: LocalServer
) -> None:
    pool = make_audited()
    new = look_at_new(pool, audited.engine)
    changed = []

    def change(connection: Any) -> None:
        changed.append(change_every_variable(connection))

    seen = visit(pool, audited, change)

    assert changed[0] > 100
    assert seen.reused
    assert differences(new, seen.seen) == {}


def test_no_name_that_counts_as_harmless_can_be_that_of_a_stored_function(
    make_audited: MakeAudited, audited: LocalServer
) -> None:
    """An unqualified call of it would be a stored function's, and may do anything."""
    taken = []
    with make_audited(TIMEOUT=20).connection() as connection:
        server = server_of(connection.get_server_info())
        for name in sorted(word.decode() for word in _CALLS_ON[server]):
            made = answer(
                connection,
                f"CREATE FUNCTION `{name}`() RETURNS INT NO SQL"
                " BEGIN SET @called = 1; RETURN 1; END",
            )
            for call in (f"SELECT {name}()", f"SELECT {name} ()"):
                answer(connection, "SET @called = 0")
                answer(connection, call)
                called = made == () and answer(connection, "SELECT @called") == ((1,),)
                if called and not side_effects(call.encode(), server) & RUNS_CODE:
                    taken.append(call)
            answer(connection, f"DROP FUNCTION IF EXISTS audited.`{name}`")

    assert taken == []


@pytest.mark.parametrize(
    "call",
    ["audited.abs(3)", "audited . abs(3)", "audited. max (3)", "audited .`max`(3)"],
)
def test_a_stored_function_with_the_name_of_another_is_seen(
    call: str, make_audited: MakeAudited, audited: LocalServer
) -> None:
    pool = make_audited()
    with pool.connection() as connection:
        for name in ("abs", "max"):
            answer(
                connection,
                f"CREATE FUNCTION audited.`{name}`(a INT) RETURNS INT NO SQL"
                " BEGIN SET @called = a; RETURN a; END",
            )
    with pool.connection() as connection:
        assert answer(connection, f"SELECT {call}") == ((3,),)
    with pool.connection() as connection:
        assert answer(connection, "SELECT @called") == ((None,),)


def test_a_function_whose_name_ends_like_punctuation_is_seen(
    make_audited: MakeAudited, audited: LocalServer
) -> None:
    """In Shift-JIS, the second byte of a character may be a backslash."""
    pool = make_audited(CHARSET="cp932")
    with pool.connection() as connection:
        made = answer(
            connection,
            "CREATE FUNCTION fソ(a INT) RETURNS INT NO SQL"
            " BEGIN SET @called = a; RETURN a; END",
        )
        assert made == ()
    with pool.connection() as connection:
        assert answer(connection, "SELECT fソ(3)") == ((3,),)
    with pool.connection() as connection:
        assert answer(connection, "SELECT @called") == ((None,),)
        answer(connection, "DROP FUNCTION fソ")

"""A pooled connection does what PyMySQL's does: a differential test."""

from __future__ import annotations

import array
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pymysql
import pytest
from conftest import MakePool
from pymysql.connections import Connection
from pymysql.constants import CLIENT
from pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor

from flask_mysqlpool import ConnectionReturned, Pool, PooledConnection, RecordedQuery
from flask_mysqlpool.testing import LocalServer


@pytest.fixture
def bare(server: LocalServer) -> Iterator[Any]:
    with closing(server.connect(database="test", autocommit=False)) as connection:
        yield connection


@pytest.fixture
def pool(make_pool: MakePool) -> Pool:
    return make_pool()


def outcome(call: Callable[[], Any]) -> object:
    """What comes of it: a result, or the class and number of an error."""
    try:
        return call()
    except Exception as error:
        cls = type(error)
        return cls, error.args[0] if issubclass(cls, pymysql.err.MySQLError) else None


def public(owner: Any) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


#: These differ from connection to connection, or by our settings.
_OWN = {"host_info", "server_thread_id", "salt", "ctx", "ssl", "password", "port"}
_OWN |= {"host", "unix_socket", "client_flag", "connect_timeout", "user"}
_OWN |= {"autocommit_mode", "init_command"}


def test_every_public_name_of_a_connection_is_there(bare: Any, pool: Pool) -> None:
    with pool.connection() as con:
        missing = {name for name in public(bare) if not hasattr(con, name)}
        assert missing == set()
        for name in sorted(vars(bare)):
            if not name.startswith("_") and name not in _OWN:
                assert getattr(con, name) == getattr(bare, name), name
        assert con.cursorclass is bare.cursorclass


def test_every_public_attribute_can_be_set_until_the_return(pool: Pool) -> None:
    names = vars(Connection(defer_connect=True, ssl_disabled=True))
    for name in sorted(n for n in names if not n.startswith("_")):
        with pool.connection() as con:
            before = getattr(con, name)
            marker = dict(before) if isinstance(before, dict) else before
            setattr(con, name, marker)
            assert getattr(con, name) is marker
    with pool.connection() as con:
        opened = pool.stats().opened
        con.sql_mode = "ANSI"
    with pool.connection() as con:
        assert con.sql_mode is None
        assert con.cursorclass is Cursor
        con.decoders.clear()
    with pool.connection() as con:
        assert con.decoders
    assert pool.stats().opened == opened + 2


def test_a_method_without_arguments_gives_the_same(bare: Any, pool: Pool) -> None:
    names = "affected_rows begin character_set_name commit get_autocommit"
    names += " get_proto_info get_server_info insert_id rollback show_warnings"
    with pool.connection() as con:
        con.query("SELECT 1")  # is not the next one's
    with pool.connection() as con:
        for name in names.split():
            ours, theirs = getattr(con, name)(), getattr(bare, name)()
            assert ours == theirs, name
        for value in (1, "x'", b"\x00'", None, 1.5, [1, "a"], (), {"a": 1}):
            assert outcome(lambda v=value: con.escape(v)) == outcome(  # type: ignore[misc]
                lambda v=value: bare.escape(v)  # type: ignore[misc]
            )


STATEMENTS = [
    *("SELECT 1", b"SELECT 1", bytearray(b"SELECT 1"), memoryview(b"SELECT 1")),
    *(5, 2**40, 0, 1.5, None, True, object(), ["SELECT 1"], ("SELECT 1",), set()),
    *([83, 69, 76, 69, 67, 84, 32, 49], range(3), array.array("b", b"SELECT 1")),
    *(
        "",
        b"",
        "SELECT '\udcff'",
        "SELECT 'é'",
        "SELECT %s",
        "SELECT %(a)s",
        "SELECT '%'",
    ),
]
ARGUMENTS = [
    *(
        None,
        (),
        [],
        (1,),
        [1],
        {"a": 1},
        {},
        1,
        "x",
        b"x",
        1.5,
        (1, 2),
        [[1, 2]],
        object(),
    ),
    ((1,),),
]


@pytest.mark.parametrize("cursor", [Cursor, DictCursor, SSCursor, SSDictCursor])
def test_arguments_are_taken_and_refused_as_pymysql_does(
    bare: Any, pool: Pool, cursor: type[Cursor]
) -> None:
    def run(connection: Any, method: str, *args: Any) -> object:
        def call() -> object:
            with connection.cursor(cursor) as made:
                found = getattr(made, method)(*args)
                return found, made.rowcount, made.fetchall()

        return outcome(call)

    differ = []
    with pool.connection() as con:
        for statement in STATEMENTS:
            for args in ARGUMENTS:
                for method in ("execute", "executemany", "mogrify"):
                    ours, theirs = (
                        run(one, method, statement, args) for one in (con, bare)
                    )
                    if repr(ours) != repr(theirs):
                        differ.append((method, statement, args, ours, theirs))
            for ours, theirs in [
                (run(con, "execute", statement), run(bare, "execute", statement)),
                (run(con, "callproc", statement), run(bare, "callproc", statement)),
                (
                    outcome(lambda s=statement: con.query(s)),  # type: ignore[misc]
                    outcome(lambda s=statement: bare.query(s)),  # type: ignore[misc]
                ),
            ]:
                if repr(ours) != repr(theirs):
                    differ.append(("", statement, None, ours, theirs))

    assert differ == []
    assert pool.stats().opened == 1


def test_a_statement_that_is_no_text_is_not_sent(pool: Pool) -> None:
    with pool.connection() as con, con.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Questions'")
        before = int(cursor.fetchall()[0][1])
        wrong: list[Any] = [5, [83], None, 1.5]
        for statement in wrong:
            with pytest.raises(TypeError):
                cursor.execute(statement)
        cursor.execute("SHOW SESSION STATUS LIKE 'Questions'")
        assert int(cursor.fetchall()[0][1]) == before + 1


class Wrapped:
    """A cursor that is none of PyMySQL's."""

    def __init__(self, connection: Any) -> None:
        self.cursor = connection.cursor()

    def one(self) -> Any:
        self.cursor.execute("SELECT 1 AS a")
        return self.cursor.fetchone()


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, connection: Any) -> Cursor:
        return SSDictCursor(connection)


@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(DictCursor),
        lambda connection: DictCursor(connection),
        Unhashable(),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_any_callable_makes_a_cursor_that_ends_with_the_checkout(
    make_pool: MakePool, factory: Any, recorded: bool
) -> None:
    pool = make_pool(RECORD_QUERIES=recorded)
    queries: list[RecordedQuery] = []
    pool.record(*[queries.append] * recorded)
    con = pool.connection()
    cursor = con.cursor(factory)
    assert isinstance(cursor, DictCursor | SSDictCursor)
    cursor.execute("SELECT 1 AS a")
    assert list(cursor.fetchall()) == [{"a": 1}]
    assert len(queries) == recorded
    con.cursorclass = factory
    assert con.cursorclass is factory
    assert isinstance(con.cursor(), type(cursor))
    con.close()

    with pytest.raises(ConnectionReturned):
        cursor.execute("SELECT 1")
    with pytest.raises(ConnectionReturned):
        cursor.fetchone()
    with pool.connection() as con:
        assert con.cursorclass is Cursor


class _Rewriting(Cursor):
    """Has an execute() of its own, as those of debuggers have."""

    def execute(self, query: Any, args: Any = None) -> int:
        return super().execute(query.replace("?", "%s"), args)


def test_execute_of_a_cursor_class_of_the_users_is_called(pool: Pool) -> None:
    with pool.connection() as con:
        cursor = con.cursor(_Rewriting)
        cursor.execute("SELECT ? AS a", (1,))
        assert cursor.fetchone() == (1,)


def _overriding(base: type[Cursor], name: str) -> tuple[type[Cursor], list[str]]:
    """Derive a class with one method of its own, and list the calls of that."""
    calls: list[str] = []

    def method(self: Any, *args: Any) -> Any:
        calls.append(name)
        return getattr(base, name)(self, *args)

    return type(f"With_{name}", (base,), {name: method}), calls


_METHODS = "_query execute executemany fetchone fetchmany fetchall close"
_BUFFERED, _STREAMED = "nextset", "read_next fetchall_unbuffered"


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *(
            (base, name)
            for bases, names in (
                ((Cursor, DictCursor), f"{_METHODS} {_BUFFERED}"),
                ((SSCursor, SSDictCursor), f"{_METHODS} {_STREAMED}"),
            )
            for base in bases
            for name in names.split()
        ),
    ],
)
def test_a_method_of_the_users_is_called_as_by_pymysql(
    bare: Any, pool: Pool, base: type[Cursor], name: str
) -> None:
    def run(connection: Any) -> list[str]:
        cls, calls = _overriding(base, name)
        cursor = connection.cursor(cls)
        for _ in range(2):
            cursor.execute("SELECT 1 AS a UNION SELECT 2 UNION SELECT 3")
            cursor.fetchone()
            cursor.fetchmany(1)
            cursor.fetchall()
        cursor.executemany("DO %s", [(1,), (2,)])
        if name != "nextset":  # which close() calls only if there is a next set
            cursor.close()
        return calls

    with pool.connection() as con:
        assert run(con) == run(bare)


@pytest.mark.parametrize("cls", [Cursor, SSCursor])
@pytest.mark.parametrize("quoting", ["escape", "mogrify"])
def test_a_value_is_quoted_without_a_loss_of_unread_rows(
    make_pool: MakePool, cls: type[Cursor], quoting: str
) -> None:
    several = {"client_flag": CLIENT.MULTI_STATEMENTS}
    with make_pool(CONNECT_ARGS=several).connection() as con:
        cursor = con.cursor(cls)
        found: list[int] = []
        cursor.execute("SELECT 1 UNION SELECT 2; SELECT 3 UNION SELECT 4")
        while True:
            while (row := cursor.fetchone()) is not None:
                found += row
                if quoting == "escape":
                    assert con.escape("x'") == r"'x\''"
                else:
                    assert con.cursor().mogrify("%s", ["x"]) == "'x'"
            if not cursor.nextset():
                break
        assert found == [1, 2, 3, 4]


class _Logging(Cursor):
    """Logs what its attribute is set to."""

    log: Sequence[int] = ()

    @property
    def rowcount(self) -> int:
        rows: int = self.log[-1]
        return rows

    @rowcount.setter
    def rowcount(self, rows: int) -> None:
        self.log = [*self.log, rows]


def test_a_property_of_the_users_is_set_as_by_pymysql(bare: Any, pool: Pool) -> None:
    with pool.connection() as con:
        cursor = con.cursor(_Logging)
        assert cursor.log == bare.cursor(_Logging).log == [-1]
        cursor.execute("SELECT 1")
        assert cursor.rowcount == cursor.log[-1] == 1


def test_a_factory_may_make_what_is_no_cursor_of_pymysqls(pool: Pool) -> None:
    with pool.connection() as con:
        made: Any = con.cursor(Wrapped)  # type: ignore[type-var]
        assert made.one() == (1,)


def test_the_attributes_are_those_of_the_installed_pymysql() -> None:
    names = vars(Connection(defer_connect=True))

    for name in names:
        if not name.startswith("_"):
            assert isinstance(getattr(PooledConnection, name), property), name

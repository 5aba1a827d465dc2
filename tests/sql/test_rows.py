"""Rows as the caller wants them: execute(), into, and Row."""

from __future__ import annotations

import copy
import gc
import pickle
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, get_origin
from weakref import ref

import pymysql
import pytest
from conftest import MakePool, Sql
from pymysql.cursors import Cursor, DictCursor, SSCursor
from pymysql.err import ProgrammingError
from typing_extensions import NotRequired

from flask_mysqlpool import (
    NotOneRow,
    PooledConnection,
    Row,
    RowCursor,
    SSRowCursor,
    TypedCursor,
)
from flask_mysqlpool.pool.sql.rows import maker

T = TypeVar("T")

PEOPLE = [(1, "Ada", None), (2, "Grace", "navy"), (3, "Linus", "kernel")]
PERSON = (
    "(SELECT 1 AS id, 'Ada' AS name, NULL AS work UNION ALL SELECT 2, 'Grace', 'navy'"
    " UNION ALL SELECT 3, 'Linus', 'kernel')"
)
QUERY = f"SELECT id, name, work FROM {PERSON} AS person ORDER BY id"


@pytest.fixture(params=[Cursor, SSCursor], ids=["buffered", "streamed"])
def connection(
    make_pool: MakePool, request: pytest.FixtureRequest
) -> Iterator[PooledConnection]:
    with make_pool(CURSORCLASS=request.param).connection() as connection:
        yield connection


@dataclass
class Person:
    id: int
    name: str
    work: str | None


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    work: str | None = None
    id: int = 0
    seen: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class ByName:
    work: str | None
    id: int
    name: str


class Named(NamedTuple):
    id: int
    name: str
    work: str | None = "unknown"


class Typed(TypedDict):
    id: int
    name: str
    work: NotRequired[str | None]


class Plain:
    def __init__(self, id: int, *more: int, name: str, **others: Any) -> None:
        self.value = id, name, others


def shout(name: str, **others: Any) -> str:
    return name.upper()


WANTED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "dataclass": (Person, lambda id, name, work: Person(id, name, work)),
    "in another order": (Frozen, lambda id, name, work: Frozen(name, work, id)),
    "keywords": (ByName, lambda id, name, work: ByName(work=work, id=id, name=name)),
    "NamedTuple": (Named, Named),
    "TypedDict": (Typed, lambda id, name, work: dict(id=id, name=name, work=work)),
    "dict": (dict, lambda id, name, work: dict(id=id, name=name, work=work)),
    "tuple": (tuple, lambda *row: row),
    "Row": (Row, lambda *row: row),
    "function": (shout, lambda id, name, work: name.upper()),
    "lambda": (lambda work, id, name: [work, id], lambda id, name, work: [work, id]),
    "namespace": (
        lambda **row: types.SimpleNamespace(**row),
        lambda id, name, work: types.SimpleNamespace(id=id, name=name, work=work),
    ),
}


@pytest.mark.parametrize("name", WANTED)
def test_rows_are_what_was_asked_for(connection: PooledConnection, name: str) -> None:
    into, expected = WANTED[name]
    rows = [expected(*row) for row in PEOPLE]

    def run() -> TypedCursor[Any]:
        return connection.execute(QUERY, into=into)

    assert run().fetchall() == rows
    assert list(run()) == rows
    cursor = run()
    assert [cursor.fetchone(), *cursor.fetchmany(5), cursor.fetchone()] == [*rows, None]
    assert cursor.fetchall() == []
    if name == "Row":
        assert {type(row).__mro__[1] for row in run()} == {Row}


@pytest.mark.one_engine
def test_a_default_in_the_middle_moves_no_column(make_pool: MakePool) -> None:
    with make_pool().connection() as connection:
        query: Any = f"SELECT id, name FROM {PERSON} AS person LIMIT 1"
        assert connection.execute(query, into=Frozen).one() == Frozen("Ada", None, 1)


def test_without_into_rows_are_those_of_the_setting(
    make_pool: MakePool,
) -> None:
    with make_pool(CURSORCLASS="DictCursor").connection() as connection:
        row: Any = connection.execute(QUERY + " LIMIT %s", (1,)).fetchone()
        assert row == {"id": 1, "name": "Ada", "work": None}
        assert isinstance(connection.execute(b"SELECT 1"), DictCursor)
        named = connection.execute("SELECT %(a)s AS b", {"a": 5}, into=dict)
        assert named.one() == {"b": 5}


def test_the_number_of_rows_of_a_stream_is_not_known(
    connection: PooledConnection,
) -> None:
    is_stream = issubclass(connection.cursorclass, SSCursor)
    cursor = connection.execute(QUERY, into=Person)
    assert cursor.rowcount == (-1 if is_stream else 3)
    assert len(cursor.fetchall()) == 3


def test_what_a_statement_without_rows_says(connection: PooledConnection) -> None:
    connection.execute("CREATE TEMPORARY TABLE t2 (id INT AUTO_INCREMENT PRIMARY KEY)")
    insert = "INSERT INTO t2 VALUES (4), (5)"
    with connection.execute(insert, into=Person) as cursor:
        assert (cursor.rowcount, cursor.description) == (2, None)
        assert (cursor.fetchone(), cursor.fetchall(), list(cursor)) == (None, [], [])
    assert connection.execute("INSERT INTO t2 VALUES ()", into=dict).lastrowid == 6
    assert connection.execute("INSERT INTO t2 VALUES ()").lastrowid == 7


@pytest.mark.parametrize(("where", "count"), [("id > 9", 0), ("id > 0", 3)])
def test_one_says_how_many_rows_there_are(
    connection: PooledConnection, where: Any, count: int
) -> None:
    query: Any = f"SELECT * FROM {PERSON} AS person WHERE {where}"
    with pytest.raises(NotOneRow, match=f"found {count or 'none'}") as caught:
        connection.execute(query, into=Person).one()

    assert caught.value.count == count
    assert pickle.loads(pickle.dumps(caught.value)).count == count
    query = f"SELECT * FROM {PERSON} AS person WHERE id = 2"
    assert connection.execute(query, into=Person).one() == Person(*PEOPLE[1])


MISFITS: dict[str, tuple[Callable[..., Any], str]] = {
    "SELECT id, name FROM person": (
        Person,
        "Person takes id, name, work, and the columns are id, name: it needs work;",
    ),
    "SELECT *, 1 AS age FROM person": (Person, "it does not take age"),
    "SELECT id, COUNT(*) FROM person GROUP BY id": (
        Named,
        r"it needs name and it does not take COUNT\(\*\)",
    ),
    "SELECT id FROM person": (Typed, "it needs name"),
    "SELECT id, id, name, work FROM person": (Person, r"it does not take person\.id"),
    "SELECT 5": (lambda: 1, r"<lambda> takes no names, .*does not take 5"),
    "SELECT name FROM person": (int, "int (cannot be asked|takes)"),
    "SELECT 1 AS a": (
        lambda a, b, /: 1,
        "takes no names, .* needs b and it does not take a;",
    ),
}


@pytest.mark.parametrize("query", MISFITS)
def test_what_cannot_take_the_columns_is_told_before_a_row_is_read(
    connection: PooledConnection, query: Any
) -> None:
    into, message = MISFITS[query]
    query = query.replace("FROM person", f"FROM {PERSON} AS person")
    with pytest.raises(TypeError, match=message) as caught:
        connection.execute(query, into=into)

    assert caught.tb  # it refers to the cursor, whose other rows are not missed
    assert connection.execute("SELECT 7").fetchone() == (7,)


def test_an_error_of_the_class_leaves_the_connection_alone(
    connection: PooledConnection,
) -> None:
    def refuse(**columns: Any) -> None:
        # It may use the connection, too, if the rows are not streamed.
        if not issubclass(connection.cursorclass, SSCursor):
            assert connection.execute("SELECT 1").fetchone() == (1,)
        raise ArithmeticError

    cursor = connection.execute(QUERY, into=refuse)
    with pytest.raises(ArithmeticError):
        cursor.fetchall()
    cursor.close()

    assert connection.execute("SELECT 7").fetchone() == (7,)


@pytest.mark.one_engine
def test_a_class_is_compiled_once(make_pool: MakePool) -> None:
    with make_pool().connection() as connection:
        for into in Person, Frozen, Named, shout:
            before = maker.cache_info().hits
            for _ in range(3):
                connection.execute(QUERY, into=into).fetchall()
            assert maker.cache_info().hits >= before + 2


@pytest.mark.one_engine
def test_what_a_view_makes_is_not_kept(make_pool: MakePool) -> None:
    def view() -> list[ref[Any]]:
        class Local:
            def __init__(self, id: int) -> None:
                self.id = id

            def make(self, id: int) -> int:
                return self.id + id

        own = Local(1)
        made: list[Any] = [Local, own, lambda id: own.id + id]
        with make_pool().connection() as connection:
            for into in made[0], own.make, made[2], partial(own.make):
                connection.execute("SELECT 5 AS id", into=into).one()
        return [*map(ref, made)]

    left = view()
    gc.collect()
    assert [made() for made in left] == [None] * 3


@dataclass
class Box(Generic[T]):
    id: T
    name: str


@pytest.mark.parametrize("into", [Box[int], dict[str, Any], tuple[int, str]])
@pytest.mark.one_engine
def test_an_alias_of_a_class_is_that_class(make_pool: MakePool, into: Any) -> None:
    plain = get_origin(into)
    with make_pool().connection() as connection:
        query: Any = f"SELECT id, name FROM {PERSON} AS person LIMIT 1"
        found = connection.execute(query, into=into).one()
        assert found == connection.execute(query, into=plain).one()
        if plain is Box:
            with pytest.raises(TypeError, match="Box takes id, name, .*it needs name"):
                connection.execute("SELECT 1 AS id", into=into)


class Alike(type):
    def __eq__(cls, other: object) -> bool:  # and so no hash
        return type(other) is Alike


class OfAlike(Person, metaclass=Alike):
    pass


def test_a_callable_that_cannot_be_remembered(connection: PooledConnection) -> None:
    @dataclass
    class Adder:  # has __eq__, and so no hash
        number: int

        def __call__(self, id: int) -> int:
            return id + self.number

    assert connection.execute("SELECT 5 AS id", into=Adder(2)).one() == 7
    assert type(connection.execute(QUERY, into=OfAlike).fetchall()[0]) is OfAlike


def test_each_result_of_a_procedure_has_rows_of_the_class(
    connection: PooledConnection, sql: Sql
) -> None:
    sql("DROP PROCEDURE IF EXISTS twice")
    sql("CREATE PROCEDURE twice() BEGIN SELECT 1 AS a; SELECT 2 AS b; END")

    cursor = connection.execute("CALL twice()", into=dict)
    assert cursor.fetchall() == [{"a": 1}]
    assert cursor.nextset()
    assert cursor.fetchall() == [{"b": 2}]
    while cursor.nextset():
        assert cursor.fetchall() == []


@pytest.mark.parametrize("bad", [5, None, 1.5, object(), ["SELECT 1"]])
def test_what_is_no_statement_is_refused(
    connection: PooledConnection, bad: Any
) -> None:
    with pytest.raises(TypeError, match="a statement is text, bytes or a t-string"):
        connection.execute(bad)
    with pytest.raises(TypeError, match="a statement is text, bytes or a t-string"):
        connection.execute(bad, (1,), into=dict)

    assert connection.execute("SELECT 7").fetchone() == (7,)


# Row


@pytest.fixture
def row(make_pool: MakePool) -> Row:
    with make_pool(CURSORCLASS="RowCursor").connection() as connection:
        query = (
            f"SELECT id, name, p.id AS count, work AS `index` FROM {PERSON} p LIMIT 1"
        )
        cursor: Any = connection.execute(query)
        assert isinstance(cursor, RowCursor)
        found = cursor.fetchone()
        assert found is not None
        return found


def test_a_row_has_its_cells_by_position_and_by_name(row: Row) -> None:
    assert (row[0], row["id"], row[1], row["name"], row[-1]) == (
        1,
        1,
        "Ada",
        "Ada",
        None,
    )
    assert row[:2] == (1, "Ada")
    assert dict(row) == {"id": 1, "name": "Ada", "count": 1, "index": None}
    assert row.keys() == ["id", "name", "count", "index"]
    id, name, *rest = row
    assert (id, name, rest, len(row)) == (1, "Ada", [1, None], 4)
    assert repr(row) == "Row(id=1, name='Ada', count=1, index=None)"
    with pytest.raises(KeyError, match="no column 'nme'; there are: id, name"):
        row["nme"]
    with pytest.raises(IndexError):
        row[4]


def test_a_row_cannot_be_changed(row: Row) -> None:
    changed: Any = row
    with pytest.raises(TypeError):
        changed[0] = 5
    with pytest.raises(AttributeError):
        changed.name = "Eve"


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_a_copy_of_a_row_is_a_row(row: Row, twin: Callable[[Row], Row]) -> None:
    made = twin(row)

    assert made == row
    assert hash(made) == hash(row)
    assert made["name"] == "Ada"
    assert repr(made) == repr(row)


def test_a_template_reads_columns_that_are_called_like_methods(row: Row) -> None:
    from flask import Flask, render_template_string

    with Flask(__name__).app_context():
        text = "{{ row.name }} {{ row.count }} {{ row.index }} {{ row[0] }}"
        assert render_template_string(text, row=row) == "Ada 1 None 1"


@pytest.mark.parametrize("cls", [RowCursor, SSRowCursor])
@pytest.mark.parametrize(
    "query",
    [
        QUERY,
        f"SELECT a.id, b.id, a.name FROM {PERSON} a JOIN {PERSON} b ORDER BY 1, 2",
        "SELECT 1 LIMIT 0",
    ],
)
def test_rows_are_the_same_from_a_bare_connection(
    connection: PooledConnection,
    root: pymysql.Connection[Any],
    cls: type[RowCursor],
    query: Any,
) -> None:
    cursors = connection.cursor(cls), root.cursor(cls)
    found: list[list[Any]] = []
    for cursor in cursors:
        cursor.execute(query)
        found.append([*cursor.fetchmany(1), *cursor.fetchall()])

    assert found[0] == found[1]
    assert [r.keys() for r in found[0]] == [r.keys() for r in found[1]]
    assert {type(row).__name__ for row in found[0]} <= {"Row"}


def test_two_columns_of_one_name(connection: PooledConnection) -> None:
    query: Any = (
        f"SELECT a.id, b.id FROM {PERSON} a JOIN {PERSON} b ON b.id = 2 LIMIT 1"
    )
    row = connection.execute(query, into=Row).one()

    assert (row["id"], row["b.id"], row[0], row[1]) == (1, 2, 1, 2)
    assert connection.execute(query, into=dict).one() == {"id": 1, "b.id": 2}


@pytest.mark.one_engine
def test_more_columns_of_one_name(make_pool: MakePool) -> None:
    with make_pool().connection() as connection:
        row = connection.execute("SELECT 1 a, 2 a, 3 a, 4 b", into=Row).one()

    assert (row["a"], row[".a"], row["b"]) == (1, 2, 4)
    for twin in copy.copy(row), pickle.loads(pickle.dumps(row)):
        assert (dict(twin), twin) == (dict(row), row)
    assert repr(row) == "Row(a=1, .a=2, .a=3, b=4)"


def test_an_error_of_the_server_is_raised_as_ever(connection: PooledConnection) -> None:
    with pytest.raises(ProgrammingError):
        connection.execute("SELECT * FROM nowhere", into=Person)

"""Statements in every form, for the type checkers; nothing runs it.

What they are to refuse has a comment that silences the error; such a comment without an
error is an error, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pymysql.cursors import Cursor
from typing_extensions import assert_type

from flask_mysqlpool import (
    PooledCursor,
    Row,
    RowCursor,
    TypedCursor,
    get_db,
    identifier,
)


@dataclass
class Person:
    id: int
    name: str


class Place(NamedTuple):
    name: str


class Shape(TypedDict):
    corners: int


def shout(name: str) -> str:
    return name.upper()


if TYPE_CHECKING:

    def right(name: str, column: str) -> None:
        db = get_db()
        assert_type(db.execute("SELECT 1"), PooledCursor)
        plain: Cursor = db.execute("SELECT 1")
        plain.fetchall()
        assert_type(db.execute("SELECT 1").fetchone()["name"], Any)
        assert_type([row["name"] for row in db.execute("SELECT 1")], list[Any])
        assert_type(db.execute(b"SELECT 1", [name]), PooledCursor)
        people = db.execute("… WHERE name = %s", (name,), into=Person)
        assert_type(people, TypedCursor[Person])
        assert_type(people.fetchone(), Person | None)
        assert_type(people.fetchall(), list[Person])
        assert_type(people.fetchmany(5), list[Person])
        assert_type(people.one(), Person)
        assert_type([p.name for p in people], list[str])
        with db.execute("…", into=Place) as places:
            assert_type(places.one().name, str)
        assert_type(db.execute("…", into=Shape).one(), Shape)
        assert_type(db.execute("…", into=Row).one(), Row)
        assert_type(db.execute("…", into=Row).one()["name"], Any)
        assert_type(db.execute("…", into=Row).one()[0:2], tuple[Any, ...])
        assert_type(db.execute("…", into=dict).fetchall(), list[dict[str, Any]])
        assert_type(db.execute("…", into=shout).fetchone(), str | None)
        assert_type(db.execute("…", into=lambda n: float(n)).one(), float)
        assert_type(db.cursor(RowCursor).fetchone(), Row | None)
        db.execute("… ORDER BY %s", [identifier(column)])
        db.execute("… ORDER BY " + "name" + " DESC")

    def wrong(name: str) -> None:
        db = get_db()
        # A statement that has a value in it: mypy does not know literal strings.
        db.execute(f"… WHERE name = '{name}'")  # pyright: ignore[reportArgumentType]
        db.execute("… WHERE name = " + name)  # pyright: ignore[reportArgumentType]
        db.execute(5)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]
        db.execute("…", into="Person")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
        print(db.execute("…", into=Person).fetchone().name)  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
        print(db.execute("…", into=Person).one().nme)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        db.execute("…", Person)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]
        db.execute("…", 5)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]
        identifier(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

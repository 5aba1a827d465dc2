"""Every statement that the app executes. This module knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pymysql.cursors import DictCursor

from flask_mysqlpool import MySQLPool

db = MySQLPool()

LONGEST_NAME = 50

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS person (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    first_name VARCHAR({LONGEST_NAME}) NOT NULL,
    last_name VARCHAR({LONGEST_NAME}) NOT NULL
) DEFAULT CHARSET = utf8mb4
"""

FIRST_PEOPLE = [(1, "John", "Bob"), (2, "Jane", "Bob"), (3, "Michael", "Clark")]


@dataclass(frozen=True)
class Person:
    id: int
    first_name: str
    last_name: str

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.last_name}"

    @property
    def initials(self) -> str:
        return (self.first_name[:1] + self.last_name[:1]).upper()


def init_db() -> int:
    """Create the table, fill it if it is empty, and return the number of people.

    Existing rows are never changed.
    """
    db.get_db().query(SCHEMA)
    with db.transaction() as connection, connection.cursor(DictCursor) as cursor:
        if count(cursor) == 0:
            # With ids, so that two processes that start at the same moment insert
            # each person once.
            cursor.executemany(
                "INSERT INTO person (id, first_name, last_name) VALUES (%s, %s, %s)"
                " ON DUPLICATE KEY UPDATE id = id",
                FIRST_PEOPLE,
            )
        return count(cursor)


def count(cursor: DictCursor) -> int:
    cursor.execute("SELECT COUNT(*) AS people FROM person")
    row: dict[str, Any] | None = cursor.fetchone()
    return row["people"] if row else 0


def all_people() -> list[Person]:
    with db.get_db().cursor(DictCursor) as cursor:
        cursor.execute("SELECT id, first_name, last_name FROM person ORDER BY id")
        return [Person(**row) for row in cursor]


def first_person() -> Person | None:
    with db.get_db().cursor(DictCursor) as cursor:
        cursor.execute(
            "SELECT id, first_name, last_name FROM person ORDER BY id LIMIT 1"
        )
        row = cursor.fetchone()
    return Person(**row) if row else None


def add_person(first_name: str, last_name: str) -> Person:
    with db.transaction() as connection, connection.cursor(DictCursor) as cursor:
        cursor.execute(
            "INSERT INTO person (first_name, last_name) VALUES (%s, %s)",
            (first_name, last_name),
        )
        return Person(cursor.lastrowid, first_name, last_name)


def remove_person(person_id: int) -> Person | None:
    """Delete a person and return it, or None if no person has this id."""
    with db.transaction() as connection, connection.cursor(DictCursor) as cursor:
        cursor.execute(
            "SELECT id, first_name, last_name FROM person WHERE id = %s FOR UPDATE",
            (person_id,),
        )
        row = cursor.fetchone()
        cursor.execute("DELETE FROM person WHERE id = %s", (person_id,))
    return Person(**row) if row else None


def describe(error: BaseException) -> str:
    """Return the error as one line, the server's error number first if it has one."""
    return " ".join(": ".join(map(str, error.args)).split())

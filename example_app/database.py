"""Every statement that the app executes. This module knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from flask_mysqlpool import MySQLPool, PooledConnection, Row

db = MySQLPool()

#: As in the schema, which is text without values: type checkers want that.
LONGEST_NAME = 50

SCHEMA = """
CREATE TABLE IF NOT EXISTS person (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    first_name VARCHAR(50) NOT NULL,
    last_name VARCHAR(50) NOT NULL
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
    db.get_db().execute(SCHEMA)
    with db.transaction() as connection:
        if count(connection) == 0:
            # With ids, so that two processes that start at the same moment insert
            # each person once.
            connection.cursor().executemany(
                "INSERT INTO person (id, first_name, last_name) VALUES (%s, %s, %s)"
                " ON DUPLICATE KEY UPDATE id = id",
                FIRST_PEOPLE,
            )
        return count(connection)


def count(connection: PooledConnection) -> int:
    row = connection.execute("SELECT COUNT(*) AS people FROM person", into=Row).one()
    people: int = row["people"]
    return people


def all_people() -> list[Person]:
    query = "SELECT id, first_name, last_name FROM person ORDER BY id"
    return db.get_db().execute(query, into=Person).fetchall()


def first_person() -> Person | None:
    query = "SELECT id, first_name, last_name FROM person ORDER BY id LIMIT 1"
    return db.get_db().execute(query, into=Person).fetchone()


def add_person(first_name: str, last_name: str) -> Person:
    with db.transaction() as connection:
        cursor = connection.execute(
            "INSERT INTO person (first_name, last_name) VALUES (%s, %s)",
            [first_name, last_name],
        )
        return Person(cursor.lastrowid, first_name, last_name)


def remove_person(person_id: int) -> Person | None:
    """Delete a person and return it, or None if no person has this id."""
    query = "SELECT id, first_name, last_name FROM person WHERE id = %s FOR UPDATE"
    with db.transaction() as connection:
        person = connection.execute(query, [person_id], into=Person).fetchone()
        connection.execute("DELETE FROM person WHERE id = %s", [person_id])
    return person


def describe(error: BaseException) -> str:
    """Return the error as one line, the server's error number first if it has one."""
    return " ".join(": ".join(map(str, error.args)).split())

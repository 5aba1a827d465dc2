"""Everything that this app says to MySQL. Nothing here knows of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pymysql.constants import CR, ER
from pymysql.cursors import DictCursor
from pymysql.err import MySQLError

from flask_mysqlpool import MySQLPool
from flask_mysqlpool.workers.mysql_server import connect_to

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

#: MariaDB's answer to a statement whose own connection was killed; not in PyMySQL.
CONNECTION_KILLED = 1927

#: What the last words of a connection that kills itself may be.
LAST_WORDS = {
    CONNECTION_KILLED,
    ER.QUERY_INTERRUPTED,
    CR.CR_SERVER_GONE_ERROR,
    CR.CR_SERVER_LOST,
}


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
    """Create the table, fill it if it is empty; how many people there are then.

    What somebody has entered is never touched.
    """
    db.get_db().query(SCHEMA)
    with db.transaction() as connection, connection.cursor(DictCursor) as cursor:
        if count(cursor) == 0:
            # With their ids, so that nobody gets in twice when two processes start
            # at the same moment.
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
    """Delete a person and say who it was; None if there is nobody with this id."""
    with db.transaction() as connection, connection.cursor(DictCursor) as cursor:
        cursor.execute(
            "SELECT id, first_name, last_name FROM person WHERE id = %s FOR UPDATE",
            (person_id,),
        )
        row = cursor.fetchone()
        cursor.execute("DELETE FROM person WHERE id = %s", (person_id,))
    return Person(**row) if row else None


def end_connections() -> int:
    """Have the server end this user's connections to this database; how many.

    A user may always kill what is its own. The connection that asks goes last.
    """
    with db.connection() as connection, connection.cursor(DictCursor) as cursor:
        cursor.execute("SELECT CONNECTION_ID() AS id")
        [own_id] = [row["id"] for row in cursor]
        cursor.execute("SHOW PROCESSLIST")
        threads = {row["Id"]: (row["User"], row["db"]) for row in cursor}
        own = threads.pop(own_id)
        others = [thread for thread, whose in threads.items() if whose == own]
        ended = sum(kill(cursor, thread) for thread in others)
        kill_own(cursor)
        return ended + 1


def end_connections_from_outside() -> int:
    """The same over a connection that is not the pool's, so it needs none of them."""
    with connect_to(db.pool().config) as server:
        return server.kill(server.report().threads)


def sleep(seconds: float) -> float:
    """Keep this request's connection busy for so long."""
    with db.get_db().cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", (seconds,))
    return seconds


def kill(cursor: DictCursor, thread: int) -> bool:
    """End one connection; False if it had ended already."""
    try:
        cursor.execute("KILL %s", (thread,))
    except MySQLError as error:
        if error.args[0] != ER.NO_SUCH_THREAD:
            raise
        return False
    return True


def kill_own(cursor: DictCursor) -> None:
    """End the connection that says so: where that works, it ends in an error."""
    try:
        cursor.execute("KILL CONNECTION_ID()")
    except MySQLError as error:
        if error.args[0] not in LAST_WORDS:
            raise


def describe(error: BaseException) -> str:
    """An error in one line, the server's number first if it has one."""
    return " ".join(": ".join(map(str, error.args)).split())

"""Statements that keep connections busy, or kill them."""

from __future__ import annotations

from pymysql.constants import CR, ER
from pymysql.cursors import DictCursor
from pymysql.err import MySQLError

from flask_mysqlpool.workers.mysql_server import connect_to

from ..database import db

#: MariaDB's answer to a statement whose own connection was killed; not in PyMySQL.
CONNECTION_KILLED = 1927

#: The answers to a connection that kills itself.
KILLED = {
    CONNECTION_KILLED,
    ER.QUERY_INTERRUPTED,
    CR.CR_SERVER_GONE_ERROR,
    CR.CR_SERVER_LOST,
}


def end_connections() -> int:
    """Kill the account's connections to this database, and return how many there were.

    An account may always kill its own connections. The one that asks is the last.
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
    """Do the same over a connection of its own, as the pool may have none left."""
    with connect_to(db.pool().config) as server:
        return server.kill(server.threads())


def sleep(seconds: float) -> float:
    """Keep the request's connection busy."""
    db.get_db().execute("SELECT SLEEP(%s)", [seconds])
    return seconds


def kill(cursor: DictCursor, thread: int) -> bool:
    """Kill a connection; return False if it had ended already."""
    try:
        cursor.execute("KILL %s", (thread,))
    except MySQLError as error:
        if error.args[0] != ER.NO_SUCH_THREAD:
            raise
        return False
    return True


def kill_own(cursor: DictCursor) -> None:
    """Kill the cursor's own connection; the server's answer to that is an error."""
    try:
        cursor.execute("KILL CONNECTION_ID()")
    except MySQLError as error:
        if error.args[0] not in KILLED:
            raise

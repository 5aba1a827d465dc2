"""What is put into session variables, and what a statement answers."""

from __future__ import annotations

from typing import Any

import pymysql
from pymysql.err import MySQLError

#: What differs between any two sessions, by necessity; more is a failing test.
UNIQUE = {
    "variable gtid_executed",
    "variable last_gtid",
    "variable pseudo_thread_id",
    "variable rand_seed1",
    "variable rand_seed2",
    "variable statement_id",
    "variable timestamp",
    # Python's side of it: the sockets, and what the server's greeting says.
    "python _auth_plugin_data",
    "python _rfile",
    "python _sock",
    "python salt",
    "python server_thread_id",
}


#: What the set-up of a pooled session has the server tell.
TOLD = {
    "variable session_track_state_change",
    "variable session_track_transaction_info",
}


def answer(connection: Any, statement: str) -> object:
    """What the server says to it, be that an error."""
    try:
        with connection.cursor(pymysql.cursors.Cursor) as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())
    except MySQLError as error:
        return f"error {error.args[0]}"


#: Those of replication, and one that is known to cost the connection.
UNTOUCHED = {
    "pseudo_slave_mode",
    "pseudo_replica_mode",
    "pseudo_thread_id",
    "profiling",
    "profiling_history_size",
}


TRIES = ("1 - {0}", "{0} + 1", "{0} * 2", "16384", "'x'", "'latin1'", "1 - @@{1}", "''")

"""peewee on our pools: a database whose connection is that of the request.

By itself, peewee knows a connection by its thread. It would go on with one that was
returned at the end of the request; and as it opens one with a lock held, one thread
that waits for the pool would keep the others from returning theirs. Here the request
has the state, and no lock is needed.
"""

from __future__ import annotations

from typing import Any

from flask import g
from peewee import MySQLDatabase, _ConnectionState
from pymysql.cursors import Cursor
from werkzeug.local import LocalProxy

from ..extension import get_db
from ..extension.app_state import request_context
from ..pool.connection import PooledConnection


class PooledDatabase(MySQLDatabase):
    """``PooledDatabase("peewee")`` is the database of the bind ``peewee``.

    The bind needs ``AUTOCOMMIT``, for peewee writes ``BEGIN`` and ``COMMIT`` itself.
    There are no hooks to connect and to close: the first statement takes the connection
    of the request, and the end of the request returns it. One that was returned is not
    replaced in the middle of ``atomic()``, which would commit half of it.
    """

    def __init__(self, bind: str = "default") -> None:
        super().__init__(bind, thread_safe=False)
        self._state = LocalProxy(self._state_of_context)

    def _state_of_context(self) -> Any:
        # As in the extension: several requests may share one g.
        key = "_mysqlpool_peewee", self.database, request_context()
        states: dict[Any, Any] = g.__dict__
        state = states.get(key) or states.setdefault(key, _ConnectionState())
        if state.conn and state.conn.returned and not state.transactions:
            state.reset()
        return state

    def cursor(self, named_cursor: Any = None) -> Any:
        # peewee reads rows by number, whatever CURSORCLASS says.
        made: Any = super()
        return made.cursor(named_cursor).connection.cursor(Cursor)

    def _connect(self) -> PooledConnection:
        connection = get_db(self.database)
        if not connection.get_autocommit():
            raise RuntimeError(
                f"peewee needs AUTOCOMMIT; set it for the bind {self.database!r}"
            )
        return connection

    def rollback(self) -> None:
        # What broke the connection is the news, not that there is none to roll back.
        state: Any = self._state
        if state.conn:
            state.conn.rollback()

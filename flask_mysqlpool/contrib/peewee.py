"""A peewee database whose connection is that of the request.

peewee keeps connections by thread. It would continue with a connection that was
returned at the end of a request; and as it connects while holding a lock, a thread that
waits for the pool would prevent others from returning their connections. Here the state
is kept by request, which needs no lock.
"""

from __future__ import annotations

from typing import Any

from flask import g
from peewee import MySQLDatabase, _ConnectionState
from pymysql.cursors import Cursor
from werkzeug.local import LocalProxy

from ..extension import get_db
from ..extension.contexts import request_context
from ..pool.connection import PooledConnection


class PooledDatabase(MySQLDatabase):
    """The database of a bind: ``PooledDatabase("peewee")``.

    The bind needs ``AUTOCOMMIT``, because peewee sends ``BEGIN`` and ``COMMIT`` itself.
    No hooks are needed: the first statement takes the connection of the request, and
    the end of the request returns it. A connection that was returned within
    ``atomic()`` is not replaced, because half of the block would be committed.
    """

    def __init__(self, bind: str = "default") -> None:
        super().__init__(bind, thread_safe=False)
        self._state = LocalProxy(self._state_of_context)

    def _state_of_context(self) -> Any:
        # Up to Flask 3.1 several requests may share one g.
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
        # Without a connection, do not hide the error that has broken it.
        state: Any = self._state
        if state.conn:
            state.conn.rollback()

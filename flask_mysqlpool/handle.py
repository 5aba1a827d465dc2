"""What a caller holds between checkout and return: a connection and its cursors.

A handle is made for each checkout and is dead afterwards, and so are its cursors, which
know the session only through it. The session itself goes on to the next handle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from os import getpid
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from pymysql.connections import Connection
from pymysql.cursors import Cursor, SSCursor
from pymysql.err import MySQLError

from .connection import PhysicalConnection
from .errors import ConnectionLost, ConnectionReturned, ConnectionShared


class _Pool(Protocol):
    """What a :class:`PooledConnection` needs of the pool that it came from."""

    name: str

    def cache(self, con: PhysicalConnection) -> None: ...
    def checkout(self, timeout: float | None = None) -> PhysicalConnection: ...
    def dropped(self, con: PhysicalConnection) -> None: ...


if TYPE_CHECKING:
    _Face = Connection[Cursor]
else:
    _Face = object


class PooledConnection(_Face):
    """A connection between its checkout and its return.

    It does what a PyMySQL connection does, with these differences:

    * ``close()``, or the end of ``with``, returns it to the pool. What was not
      committed is rolled back. After that, it and its cursors raise
      :exc:`~flask_mysqlpool.errors.ConnectionReturned`.
    * When the server is lost, everything raises
      :exc:`~flask_mysqlpool.errors.ConnectionLost` until ``rollback()``, which gives
      up what was not committed; the next statement then gets another connection.
    * Two threads in it at once, or a forked child, get
      :exc:`~flask_mysqlpool.errors.ConnectionShared`.
    * ``ping()`` never reconnects.
    """

    __slots__ = ("__weakref__", "_con", "_pool", "_returned", "cursorclass")

    def __init__(self, pool: _Pool, con: PhysicalConnection) -> None:
        self._con: PhysicalConnection | None = con
        self._pool = pool
        self._returned = False
        #: For :meth:`cursor`; as in PyMySQL it may be set, here for this handle only.
        self.cursorclass: Any = None

    def _enter(self) -> PhysicalConnection:
        """Get into the connection, alone; whoever gets in must leave."""
        con = self._con or self._reconnected()
        if con.pid != getpid():
            con.abandon()
            raise ConnectionShared(
                "this connection was taken before the fork and belongs to the parent"
                " process; take another one in the child"
            )
        if not con.guard.acquire(False):
            raise ConnectionShared(
                "another thread is using this connection right now; take one for"
                " each thread"
            )
        con.inside = get_ident()
        if self._con is con and con.lost is None:
            return con
        con.guard.release()
        if self._con is not con:
            raise self._use_after_return()
        raise ConnectionLost(
            "the connection to the server was lost, and with it whatever was not"
            " committed; call rollback() to go on with another connection"
        ) from con.lost

    def _leave(self, con: PhysicalConnection) -> None:
        con.guard.release()
        if self._con is not con:
            # It was returned in the middle of what is over now.
            self._pool.cache(con)

    def _use_after_return(self) -> ConnectionReturned:
        return ConnectionReturned(
            f"this connection has been returned to the pool {self._pool.name!r};"
            " check out another one"
        )

    def _reconnected(self) -> PhysicalConnection:
        if self._returned:
            raise self._use_after_return()
        con = self._con = self._pool.checkout()
        return con

    def _command(self, name: str, *args: Any) -> Any:
        """Call a method of PyMySQL that talks to the server."""
        con = self._enter()
        try:
            con.about_to(name)
            result = getattr(con.raw, name)(*args)
            if name in ("commit", "rollback"):
                con.transaction_ended()
            return result
        except BaseException as error:
            con.failed(error)
            raise
        finally:
            self._leave(con)

    def query(self, sql: str | bytes, unbuffered: bool = False) -> int:
        """Execute one statement; cursors call this."""
        if not isinstance(sql, bytes):
            # Out here, what cannot be encoded does no harm to the connection.
            sql = sql.encode(self.encoding) if isinstance(sql, str) else bytes(sql)
        con = self._enter()
        try:
            con.about_to_execute(sql)
            return con.raw.query(sql, unbuffered)  # type: ignore[no-any-return]
        except BaseException as error:
            con.failed(error)
            raise
        finally:
            self._leave(con)

    def next_result(self, unbuffered: bool = False) -> int:
        return self._command("next_result", unbuffered)  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Begin a transaction."""
        self._command("begin")

    def commit(self) -> None:
        """Make permanent what was done since the last commit or rollback."""
        self._command("commit")

    def rollback(self) -> None:
        """Undo what was done since the last commit or rollback.

        On a connection that is lost the server has done so already. This then gives
        up the dead connection; the next statement gets another one.
        """
        if self._con is None and not self._returned:
            return
        try:
            self._command("rollback")
        except MySQLError:
            con = self._con
            if con is None or con.lost is None:
                raise
            self._let_go(con)

    def ping(self, reconnect: bool | None = False) -> None:
        """Ask the server whether it is there; raises if it is not.

        ``reconnect`` is accepted and ignored: a connection that came back by itself
        would have lost its transaction without anybody noticing.
        """
        self._command("ping")

    def select_db(self, db: str) -> None:
        self._command("select_db", db)

    def autocommit(self, value: bool) -> None:
        self._command("autocommit", value)

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        self._command("set_character_set", charset, collation)

    def set_charset(self, charset: str) -> None:
        self._command("set_charset", charset)

    def show_warnings(self) -> Any:
        return self._command("show_warnings")

    def kill(self, thread_id: int) -> Any:
        return self._command("kill", thread_id)

    def connect(self, sock: Any = None) -> None:
        """Raises: connecting is the pool's business."""
        raise ConnectionShared("a pooled connection is opened by its pool alone")

    def cursor(self, cursor: type[Cursor] | None = None) -> Any:
        """A new cursor of the given class, by default that of ``CURSORCLASS``."""
        con = self._con or self._reconnected()
        bound = _bound_cursor(cursor or self.cursorclass or con.raw.cursorclass)
        if con.traced:
            return con.dbapi_connection.cursor(lambda _: bound(self))
        return bound(self)

    def thread_id(self) -> int:
        """The server's number for this connection, as in its process list."""
        return self._peek().thread_id()  # type: ignore[no-any-return]

    def escape(self, obj: object, mapping: Any = None) -> str:
        return self._peek().escape(obj, mapping)  # type: ignore[no-any-return]

    @property
    def returned(self) -> bool:
        """Whether it has gone back to the pool, and is of no further use."""
        return self._returned

    @property
    def open(self) -> bool:
        """Whether it can be used: not returned, and not known to be lost."""
        con = self._con
        return con is not None and con.lost is None and bool(con.raw.open)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return (self._con or self._reconnected()).raw.encoding  # type: ignore[no-any-return]

    @property
    def _result(self) -> Any:
        return (self._con or self._reconnected()).raw._result

    def _peek(self) -> Any:
        """PyMySQL's own object, for what needs no server."""
        return (self._con or self._reconnected()).raw

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._peek(), name)

    def close(self) -> None:
        """Return it to the pool; any further time, do nothing.

        Raises :exc:`~flask_mysqlpool.errors.ConnectionShared` if another thread is in
        the middle of a statement on it; the connection is then discarded.
        """
        self._returned = True
        con = self._con
        if con is not None:
            self._let_go(con)

    def _let_go(self, con: PhysicalConnection) -> None:
        """Give the physical connection back, once, whoever else is doing so."""
        if not con.guard.acquire(False):
            if con.inside != get_ident():
                raise self._returned_in_use(con)
            # An interrupt came just between getting in and being sure to leave.
            con.failed(ConnectionShared("interrupted on the way to the server"))
        owned = self._con is con
        self._con = None
        con.guard.release()
        if owned:
            self._pool.cache(con)

    def _returned_in_use(self, con: PhysicalConnection) -> ConnectionShared:
        """End a connection that another thread is inside of; that one gives it back."""
        error = ConnectionShared("returned in the middle of a statement")
        con.lost = error
        self._con = None
        con.interrupt()
        if con.guard.acquire(False):
            # It has left, perhaps before it could see that it should.
            con.guard.release()
            self._pool.cache(con)
        return error

    def __enter__(self) -> PooledConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        con = self._con
        state = "returned" if con is None else f"thread {con.raw.thread_id()}"
        return f"<PooledConnection of {self._pool.name!r}: {state}>"

    def __del__(self) -> None:
        # Neither locks nor the network are allowed here: this may run at any
        # moment, in a thread that holds the pool's lock.
        con = self._con
        if con is not None and con.pid == getpid():
            message = f"{self!r} was never returned"
            self._con = None
            self._pool.dropped(con)
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)


class _BoundCursor(Cursor):
    """Makes a cursor end with the checkout of its connection."""

    connection: Any

    def _check_executed(self) -> None:
        handle = self.connection
        if handle is not None and handle._returned:
            raise handle._use_after_return()
        Cursor._check_executed(self)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self.connection is not None and not self.connection.open:
            # Nothing can be left to read, and reading is what closing does.
            self.connection = None
        super().close()


class _BoundSSCursor(_BoundCursor, SSCursor):
    """The same for cursors that read rows as they are asked for."""

    def read_next(self) -> Any:
        handle = self.connection
        con = handle._enter()
        try:
            return super().read_next()
        except BaseException as error:
            con.failed(error)
            raise
        finally:
            handle._leave(con)

    def close(self) -> None:
        # PyMySQL reads on to the last row here. Rows that nobody reads cost the
        # connection when it is returned, which is cheaper; and if there is a next
        # statement, it reads them.
        self.connection = None

    __del__ = close


_BOUND: dict[type[Cursor], type[Cursor]] = {}


def _bound_cursor(cls: type[Cursor]) -> Callable[[PooledConnection], Cursor]:
    bound = _BOUND.get(cls)
    if bound is None:
        base = _BoundSSCursor if issubclass(cls, SSCursor) else _BoundCursor
        names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        bound = _BOUND[cls] = type(cls.__name__, (base, cls), names)
    return bound

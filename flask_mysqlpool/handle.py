"""What a caller holds between checkout and return: a connection.

A handle is made for each checkout and is dead afterwards, and so are its cursors, which
know the session only through it. The session itself goes on to the next handle.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from os import getpid
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from pymysql.connections import Connection
from pymysql.cursors import Cursor
from pymysql.err import MySQLError

from . import cursors
from .connection import PhysicalConnection
from .errors import (
    ConnectionLost,
    ConnectionReturned,
    ConnectionShared,
    PoolError,
    TransactionError,
)
from .leaks import Stack
from .link import without_traceback
from .recording import Recorder
from .residue import TRANSACTION

C = TypeVar("C", bound=Cursor)


class _Pool(Protocol):
    """What a :class:`PooledConnection` needs of the pool that it came from."""

    name: str
    recorder: Recorder | None

    def lend(self, handle: PooledConnection, timeout: float | None = None) -> None: ...
    def cache(self, con: PhysicalConnection) -> None: ...
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
    """

    __slots__ = (
        "__weakref__",
        "_con",
        "_cursorclass",
        "_guard",
        "_inside",
        "_pool",
        "_result",
        "_returned",
        "block_owner",
        "blocks",
        "endpoint",
        "savepoint",
        "stack",
    )

    def __init__(self, pool: _Pool, endpoint: str | None = None) -> None:
        self._pool = pool
        #: Set by the pool. None again after a rollback that gave up a lost one.
        self._con: PhysicalConnection | None = None
        # Held by the thread that is inside; and for good by whoever returns it, which
        # is why it can be returned just once, and nobody gets in after that.
        self._guard = threading.Lock()
        self._inside, self._returned = 0, False
        #: Of the last statement, for PyMySQL's cursors.
        self._result: Any = None
        #: For :meth:`cursor`, if it was set.
        self._cursorclass: Any = None
        #: What the connection was taken for, as status shows it.
        self.endpoint = endpoint
        #: Where it was taken, if that is asked for.
        self.stack: Stack = ()
        #: How many blocks (:mod:`.transaction`) it is in, and their savepoints' names.
        self.blocks = 0
        self.savepoint = "mysqlpool_{}"
        self.block_owner: object = None

    # Getting in and out

    def _enter(self) -> PhysicalConnection:
        """Get into the connection, alone; whoever gets in must leave."""
        con = self._con
        if con is not None and con.pid != getpid():
            con.abandon()
            raise self._refusal()
        if not self._guard.acquire(False):
            raise self._refusal()
        try:
            self._inside = threading.get_ident()
            if self._con is None:
                self._pool.lend(self)
                if self._returned:
                    raise self._refusal()
            con = self._con
            if con is not None and con.lost is None:
                return con
        except BaseException:
            self._leave()
            raise
        self._leave()
        raise ConnectionLost(
            "the connection to the server was lost, and with it whatever was not"
            " committed; call rollback() to go on with another connection"
        ) from (con and con.lost)

    def _leave(self) -> None:
        self._inside = 0
        self._guard.release()
        if self._returned:
            # By another thread, in the middle of what is over now.
            self._give_back(lost=True)

    def _refusal(self) -> PoolError:
        """Why nobody is let in."""
        if self._returned:
            return ConnectionReturned(
                "this connection has been returned to the pool"
                f" {self._pool.name!r}; check out another one"
            )
        if self._con is not None and self._con.pid != getpid():
            return ConnectionShared(
                "this connection was taken before the fork and belongs to the parent"
                " process; take another one in the child"
            )
        return ConnectionShared(
            "another thread is using this connection right now; take one for each"
            " thread"
        )

    def close(self) -> None:
        """Return it to the pool; any further time, do nothing.

        Raises :exc:`~flask_mysqlpool.errors.ConnectionShared` if another thread is in
        the middle of a statement on it; the connection is then discarded.
        """
        already, self._returned = self._returned, True
        if self._give_back() or already:
            return
        con, inside = self._con, self._inside
        if con is None or con.pid != getpid():
            self._con = None
        elif inside == threading.get_ident():
            # An interrupt hit this thread when it was in and not yet sure to leave.
            self._guard.release()
            self._give_back(lost=True)
        elif inside:
            con.interrupt()
            raise ConnectionShared("returned while another thread was inside")

    def _give_back(self, lost: bool = False) -> bool:
        """Return what is held, unless somebody is inside. Only one can do so."""
        if not self._guard.acquire(False):
            return False
        con, self._con = self._con, None
        if con is not None:
            if lost and con.lost is None:
                con.lost = ConnectionShared("returned in the middle of its use")
            self._pool.cache(con)
        return True

    # What talks to the server

    def _command(self, name: str, *args: Any) -> Any:
        """Call a method of PyMySQL that talks to the server."""
        con = self._enter()
        try:
            answer = con.command(name, *args)
            self._result = con.raw._result
            return answer
        finally:
            self._leave()

    def query(self, sql: str | bytes, unbuffered: bool = False) -> int:
        """Execute one statement; its result is the connection's until the next."""
        con = self._enter()
        try:
            affected = con.execute(sql, unbuffered)
            self._result = con.raw._result
            return affected
        finally:
            self._leave()

    def next_result(self, unbuffered: bool = False) -> int:
        return self._command("next_result", unbuffered)  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Begin a transaction."""
        self._refuse_in_block("begin()", "nest transaction(), for a savepoint")
        self._command("begin")

    def commit(self) -> None:
        """Make permanent what was done since the last commit or rollback."""
        self._refuse_in_block("commit()", "the end of the block commits")
        con = self._enter()
        try:
            con.commit()
        finally:
            self._leave()

    def rollback(self) -> None:
        """Undo what was done since the last commit or rollback.

        On a connection that is lost the server has done so already. This then gives
        up the dead connection; the next statement gets another one.
        """
        self._refuse_in_block("rollback()", "raise an exception, and let it out")
        if self._con is None and not self._returned:
            return
        try:
            self._command("rollback")
        except MySQLError:
            if not self._give_up():
                raise
        else:
            self._give_up()

    def _refuse_in_block(self, what: str, instead: str) -> None:
        if self.blocks:
            raise TransactionError(f"{what} inside of transaction(): {instead}")

    def begin_block(self) -> None:
        """Begin a transaction that :meth:`commit` and :meth:`rollback` may not end.

        They may after :meth:`end_block`. What :func:`~.transaction.transaction` uses.
        """
        con = self._enter()
        try:
            con.begin_block()
        finally:
            self._leave()
            # With nothing uncommitted before, there is nothing to tell of.
            self._give_up()
        self.blocks = 1

    def end_block(self) -> None:
        """Let :meth:`commit` and :meth:`rollback` through again."""
        self.blocks = 0
        if self._con is not None:
            self._con.end_block()

    def block_is_open(self) -> bool:
        """Whether the transaction of the block can still go on.

        True on a connection that is lost, too: that shows at the next statement.
        """
        con = self._con
        if con is None or self._returned:
            return False
        if con.lost is not None:
            return True
        con = self._enter()
        try:
            return con.block_is_open()
        finally:
            self._leave()

    def spoil_block(self) -> None:
        """Have the block fail at its end."""
        if self._con is not None:
            self._con.spoil_block()

    def condemn(self, error: BaseException) -> None:
        """Give up a connection that could not be rolled back, whoever is inside."""
        con = self._con
        if con is not None and con.lost is None:
            con.lost = without_traceback(error)
            con.interrupt()

    @property
    def may_be_committed(self) -> bool:
        """Whether some of the block may have been committed by itself."""
        return self._con is not None and self._con.may_be_committed

    @property
    def changed(self) -> int:
        """Rows that the open transaction has changed."""
        return self._con.changed if self._con and self._con.lost is None else 0

    @property
    def lost_in_commit(self) -> bool:
        """Whether it was lost with a COMMIT on its way, which may have been done."""
        return self._con is not None and self._con.lost_in_commit

    @property
    def given_up(self) -> bool:
        """Whether it was lost and rolled back; it takes another one when needed."""
        return self._con is None and not self._returned

    def _give_up(self) -> bool:
        """Let go of a connection that is dead, or of a server that no longer will do.

        False if it is neither, or not ours.
        """
        if not self._guard.acquire(False):
            return False
        con = self._con
        lost = con is not None and (con.lost is not None or con.confirm_demotion())
        if lost:
            self._con = None
        self._leave()
        if con is not None and lost:
            self._pool.cache(con)
        return lost

    def ping(self, reconnect: bool | None = False) -> None:
        """Ask the server whether it is there; raises if it is not.

        ``reconnect`` is accepted and ignored: a connection that came back by itself
        would have lost its transaction without anybody noticing.
        """
        self._command("ping")

    def select_db(self, db: str) -> None:
        self._command("select_db", db)

    def autocommit(self, value: bool) -> None:
        self._refuse_in_block("autocommit()", "call it before")
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

    @overload
    def cursor(self, cursor: None = None) -> Cursor: ...
    @overload
    def cursor(self, cursor: type[C]) -> C: ...

    def cursor(self, cursor: type[Cursor] | None = None) -> Any:
        """A new cursor of the given class, by default that of ``CURSORCLASS``."""
        con = self._con or self._attached()
        cls = cursor or self._cursorclass or con.raw.cursorclass
        # By their module, for of a name that is imported a method is found more slowly.
        bound = cursors.BOUND.get(cls) if isinstance(cls, type) else None
        if bound is None:
            if not (isinstance(cls, type) and issubclass(cls, Cursor)):
                return self._made_by(cls)
            bound = cursors.bound_class(cls)
        if self._pool.recorder is not None:
            bound = cursors.RECORDING.get(bound) or cursors.recording_class(bound)
        if con.traced:
            return con.dbapi_connection.cursor(lambda _: bound(self))
        return bound(self)

    def _made_by(self, factory: Callable[[PooledConnection], Any]) -> Any:
        """Return what a function makes of this connection, which need be no cursor."""
        made = factory(self)
        if isinstance(made, Cursor):
            bound = cursors.bound_class(type(made))
            if self._pool.recorder is not None:
                bound = cursors.recording_class(bound)
            made.__class__ = bound
        return made

    @property
    def cursorclass(self) -> Any:
        """What :meth:`cursor` makes by default; may be set, for this checkout only."""
        return self._cursorclass or self._attached().raw.cursorclass

    @cursorclass.setter
    def cursorclass(self, cls: Any) -> None:
        self._cursorclass = cls

    def thread_id(self) -> int:
        """The server's number for this connection, as in its process list."""
        return self._attached().raw.thread_id()  # type: ignore[no-any-return]

    def escape(self, obj: object, mapping: Any = None) -> str:
        return self._attached().raw.escape(obj, mapping)  # type: ignore[no-any-return]

    @property
    def may_have_written(self) -> bool:
        """Whether more than reading was done since the checkout."""
        con = self._con
        return con is not None and (con.has_written or bool(con.residue & TRANSACTION))

    @property
    def holder(self) -> int | None:
        """The thread that took what it holds."""
        return self._con.holder if self._con else None

    @property
    def returned(self) -> bool:
        """Whether it has gone back to the pool, and is of no further use."""
        return self._returned

    @property
    def open(self) -> bool:
        """Whether it can be used: not returned, and not known to be lost."""
        con = self._con
        return con is not None and con.lost is None and bool(con.raw.open)

    def _attached(self) -> PhysicalConnection:
        """What is held; if it was given up as lost, another one."""
        con = self._con
        if con is None:
            con = self._enter()
            self._leave()
        return con

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        con = self._attached()
        if name in ("decoders", "encoders"):
            # They can be changed in place, and would be so for everybody.
            con.retired = "invalidated"
        return getattr(con.raw, name)

    def __enter__(self) -> PooledConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        con = self._con
        state = "returned" if con is None else f"thread {con.raw.thread_id()}"
        return f"<PooledConnection of {self._pool.name!r}: {state}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a pooled connection cannot be copied, nor pickled")

    def __del__(self, at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        # The network is not allowed here: this may run in a thread that is in the
        # middle of something with the pool. At exit, modules have lost their imports.
        con = self._con
        if con is not None and not at_exit() and con.pid == getpid():
            message = f"{self!r} was never returned"
            self._con = None
            con.dropped_by = self.endpoint, self.stack
            self._pool.dropped(con)
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)


def _attribute(name: str) -> property:
    """Let one of PyMySQL's attributes be read, and set until the return."""

    def read(self: PooledConnection) -> Any:
        return self.__getattr__(name)

    def write(self: PooledConnection, value: Any) -> None:
        con = self._attached()
        # Not for the next borrower.
        con.retired = con.retired or "invalidated"
        setattr(con.raw, name, value)

    return property(read, write)


_OF_CONNECTED = "ctx server_version server_status server_thread_id server_capabilities"
for _name in [
    *vars(Connection(defer_connect=True, ssl_disabled=True)),
    *_OF_CONNECTED.split(),
]:
    if not _name.startswith("_") and _name not in vars(PooledConnection):
        setattr(PooledConnection, _name, _attribute(_name))

"""The connection that a caller holds from checkout to checkin.

Each checkout makes a new handle. After the checkin the handle and its cursors raise,
while the session goes on to another handle.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import methodcaller
from threading import Lock, get_ident
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, overload

from pymysql.connections import Connection
from pymysql.constants import SERVER_STATUS
from pymysql.converters import escape_str
from pymysql.cursors import Cursor, SSCursor
from pymysql.err import MySQLError, ProgrammingError

from ..errors import (
    ConnectionLost,
    ConnectionReturned,
    ConnectionShared,
    PoolError,
    TransactionError,
)
from .diagnostics import Stack
from .driver.process import process
from .driver.session import Session, Writes
from .driver.statements import TRANSACTION
from .query_log import Recorder
from .sql import cursors
from .sql.rows import TypedCursor
from .sql.scripts import Script
from .sql.templates import Identifier, plain
from .transaction import OWN, Blocks, Progress, TransactionBlock, after_commit_of

C = TypeVar("C", bound=Cursor)
T = TypeVar("T")


class _Pool(Protocol):
    """The part of a pool that :class:`PooledConnection` uses."""

    name: str
    recorder: Recorder | None

    def checkout(
        self, handle: PooledConnection, timeout: float | None = None
    ) -> None: ...
    def checkin(self, con: Session) -> None: ...
    def dropped(self, con: Session) -> None: ...


if TYPE_CHECKING:
    from typing_extensions import LiteralString

    _Face = Connection[Cursor]
    # Literal text, so that type checkers refuse text with values in it: see PEP 675.
    if sys.version_info >= (3, 14):
        from string.templatelib import Template

        Statement: TypeAlias = LiteralString | bytes | Template
    else:
        Statement: TypeAlias = LiteralString | bytes
    Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any] | None
else:
    _Face = object


class PooledConnection(_Face):
    """A connection that is checked out.

    It behaves like a PyMySQL connection, with these differences:

    * ``close()``, or the end of ``with``, returns it to the pool and rolls back
      uncommitted changes. After that, it and its cursors raise
      :exc:`~flask_mysqlpool.errors.ConnectionReturned`.
    * When the connection to the server is lost, each call raises
      :exc:`~flask_mysqlpool.errors.ConnectionLost` until ``rollback()``. The next
      statement then uses another connection.
    * If two threads use it at once, or a forked child uses it,
      :exc:`~flask_mysqlpool.errors.ConnectionShared` is raised.
    """

    #: The session. Set by the pool; None after the checkin, or the rollback of a lost
    #: session.
    _con: Session | None = None
    #: The thread that uses the session, or 0.
    _inside = 0
    _returned = False
    #: The result of the last statement, for PyMySQL's cursors.
    _result: Any = None
    #: The default of :meth:`cursor`, if it was set.
    _cursorclass: Any = None
    #: The stack of the checkout, if LEAK_THRESHOLD is set.
    stack: Stack = ()
    #: The open blocks; None outside blocks.
    blocks: Blocks | None = None
    #: Those that were open at the checkin.
    _rolled_back: Blocks | None = None
    #: Makes them; and the format of the names of savepoints.
    make_blocks: type[Blocks] = Blocks
    savepoint = OWN + "_{}"

    def __init__(self, pool: _Pool, endpoint: str | None = None) -> None:
        self._pool = pool
        # Held by the thread that uses the session. The checkin acquires it and never
        # releases it, so there is one checkin, and no use after it.
        self._guard = Lock()
        #: Where to record that rows may have been changed.
        self.writes = Writes()
        #: The purpose of the checkout, shown in statistics.
        self.endpoint = endpoint

    # Exclusive use

    def _enter(self) -> Session:
        """Acquire exclusive use of the session, until :meth:`_leave`.

        Check out another session if a lost one has been rolled back.
        """
        if not self._guard.acquire(False):
            self._take_over_from_an_interrupt()
        try:
            self._inside = get_ident()
            con = self._con
            if self._returned or con is None or con.pid != process():
                con = self._attach()
            if self.blocks is not None and not self.blocks.settle(con):
                self.blocks = None
            if con.lost is None:
                return con
        except BaseException:
            self._leave()
            raise
        self._leave()
        raise ConnectionLost(
            "the connection to the server was lost, and uncommitted changes with it;"
            " call rollback() to continue on another connection"
        ) from con.lost

    def _attach(self) -> Session:
        """Check out a session, if there is none; refuse one of another process."""
        if self._con is None and not self._returned:
            self._pool.checkout(self)
        con = self._con
        if self._returned or con is None or con.pid != process():
            raise self._refusal()
        return con

    def _leave(self) -> None:
        """End exclusive use."""
        self._inside = 0
        self._guard.release()
        if self._returned:
            # Another thread called close() meanwhile and left the checkin to this one.
            self._give_back(lost=True)

    def _take_over_from_an_interrupt(self) -> None:
        """Use a guard that no thread holds; raise if a thread is using the session.

        An interrupt may have ended a use before it released the guard. The session is
        then in an unknown state, and taken to be lost.
        """
        con = self._con
        is_foreign = con is not None and con.pid != process()
        if self._returned or is_foreign or self._is_in_use(but=1):
            raise self._refusal()
        if self._con is not None and self._con.lost is None:
            self._con.lost = ConnectionShared("an interrupt came while it was in use")

    def _is_in_use(self, but: int = 0) -> bool:
        """Return whether a thread is using the session, by the stacks of all threads.

        Ignore the first ``but`` calls on the stack of the current thread.
        """
        stacks = sys._current_frames()
        me = get_ident()
        if me not in stacks:
            return bool(self._inside)  # gevent numbers threads differently
        for number, frame in stacks.items():
            calls = 0
            top: FrameType | None = frame
            while top is not None:
                if top.f_code in _CALLS or top.f_code in cursors.CALLS:
                    names = top.f_locals
                    calls += self in (names.get("self"), names.get("handle"))
                top = top.f_back
            if calls > (but if number == me else 0):
                return True
        return False

    def _refusal(self) -> PoolError:
        """Return the error that explains why this handle cannot be used."""
        if self._returned:
            return ConnectionReturned(
                "this connection has been returned to the pool"
                f" {self._pool.name!r}; check out another one"
            )
        if self._con is not None and self._con.pid != process():
            self._con.abandon()
            return ConnectionShared(
                "this connection was taken before the fork and belongs to the parent"
                " process; take another one in the child"
            )
        return ConnectionShared(
            "another thread is using this connection right now; take one for each"
            " thread"
        )

    def close(self) -> None:
        """Return the connection to the pool; further calls do nothing.

        Raises :exc:`~flask_mysqlpool.errors.ConnectionShared` if another thread is
        executing a statement on it; the connection is then discarded.
        """
        already, self._returned = self._returned, True
        if self._give_back() or already:
            return
        con, inside = self._con, self._inside
        if con is None or con.pid != process():
            self._con = None
        elif inside == get_ident() or not self._is_in_use():
            # An interrupt has ended a use before it released the guard.
            with suppress(RuntimeError):
                self._guard.release()
            self._give_back(lost=True)
        elif inside:
            con.interrupt()
            raise ConnectionShared("returned while another thread was using it")

    def _give_back(self, lost: bool = False) -> bool:
        """Check the session in, once; False while a thread is using it."""
        if not self._guard.acquire(False):
            return False
        con, self._con = self._con, None
        self.blocks, self._rolled_back = None, self.blocks
        if con is not None:
            if lost and con.lost is None:
                con.lost = ConnectionShared("returned in the middle of its use")
            self._pool.checkin(con)
        return True

    # Calls to the server

    def _do(self, call: Callable[[Session], object]) -> None:
        """Call a function with the session, of which it has exclusive use."""
        con = self._enter()
        try:
            call(con)
        finally:
            self._leave()

    def _command(self, name: str, *args: Any) -> Any:
        """Call a method of PyMySQL that talks to the server, with exclusive use."""
        con = self._enter()
        try:
            answer = con.command(name, *args)
            self._result = con.raw._result
            return answer
        finally:
            self._leave()

    def query(self, sql: str | bytes, unbuffered: bool = False) -> int:
        """Execute one statement, whose result is kept until the next."""
        con = self._enter()
        try:
            self._result = con.execute(sql, unbuffered)
            return self._result.affected_rows  # type: ignore[no-any-return]
        finally:
            self._leave()

    def executescript(self, text: str | bytes) -> int:
        """Execute all statements of a script, and return how many these were.

        They are told apart as the ``mysql`` client does it, by ``;`` or what
        ``DELIMITER`` sets, outside strings and comments. They run in a transaction, or
        not, as the script says. Rows that they return are dropped. An error ends the
        script; its text ends with the line of its statement. A quote or a comment that
        is not closed is a :exc:`pymysql.err.ProgrammingError`, raised before anything
        is executed.
        """
        script = Script(self, text)
        try:
            script.execute()
        except MySQLError as error:
            script.name_line(error)
            raise
        return script.count

    def execute_many(self, statements: Iterable[bytes]) -> Progress | None:
        """Execute statements of a block, many at once; None outside blocks."""
        con = self._enter()
        try:
            if con.blocks is None:
                return None
            done: Progress = con.blocks.execute_many(con, statements)
            self._result = done.result
            return done
        finally:
            self._leave()

    def next_result(self, unbuffered: bool = False) -> int:
        """Read the next result of the last statement."""
        return self._command("next_result", unbuffered)  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Begin a transaction."""
        self._refuse_in_block("begin()", "nest transaction(), for a savepoint")
        self._do(methodcaller("begin"))

    def commit(self) -> None:
        """Commit the open transaction."""
        self._refuse_in_block("commit()", "the end of the block commits")
        self._do(methodcaller("commit"))

    def rollback(self) -> None:
        """Roll back the open transaction.

        After the loss of the connection, the server has done so already: discard the
        dead connection. The next statement uses another one.
        """
        self._refuse_in_block("rollback()", "let an exception leave the block")
        if self._con is None and not self._returned:
            return
        try:
            self._do(methodcaller("rollback"))
        except MySQLError:
            if not self._detach():
                raise
        else:
            self._detach()

    # Blocks

    def _refuse_in_block(self, what: str, instead: str) -> None:
        if self.blocks is not None and self.block is not None:
            raise TransactionError(f"{what} inside transaction(): {instead}")

    @property
    def block(self) -> TransactionBlock | None:
        """The innermost open block."""
        if self.blocks is not None and self.blocks.has_left():
            with suppress(ConnectionLost):
                self._do(self.blocks.settle)
        blocks = self.blocks
        return blocks.stack[-1]() if blocks is not None and blocks.stack else None

    def after_commit(self, function: Callable[[], object]) -> None:
        """Call a function once the work so far is committed.

        In a block, that is after the COMMIT of the outermost one was answered; it is
        not called if this block, or one around it, is rolled back. Outside of blocks,
        it is called at once. What it raises is logged.

        Raises :exc:`~flask_mysqlpool.errors.ConnectionReturned` after the checkin: the
        block may have been rolled back.
        """
        if self._returned:
            raise self._refusal()
        after_commit_of(self.block, function)

    @property
    def in_returned_block(self) -> bool:
        """Whether a block goes on that the checkin has rolled back."""
        return self._rolled_back is not None and self._rolled_back.go_on()

    @property
    def changed(self) -> int:
        """Rows changed by the open transaction, as far as the server has reported."""
        return self._con.changed if self._con and self._con.lost is None else 0

    @property
    def has_uncommitted_writes(self) -> bool:
        """Whether an open transaction may have changed rows."""
        con = self._con
        return con is not None and con.lost is None and con.has_uncommitted_writes

    @property
    def detached(self) -> bool:
        """Whether a lost connection was rolled back and not replaced yet."""
        return self._con is None and not self._returned

    def _detach(self) -> bool:
        """Check in a session that is lost, or whose server was demoted.

        False if it is neither, or if a thread is using it.
        """
        if not self._guard.acquire(False):
            return False
        con = self._con
        lost = con is not None and (con.lost is not None or con.confirm_demotion())
        if lost:
            self._con = self.blocks = None
        self._leave()
        if con is not None and lost:
            self._pool.checkin(con)
        return lost

    def ping(self, reconnect: bool | None = False) -> None:
        """Check that the server answers; raise if it does not.

        ``reconnect`` is ignored: to reconnect would lose the open transaction silently.
        """
        self._command("ping")

    def select_db(self, db: str) -> None:
        """Select another database, until the checkin."""
        self._command("select_db", db)

    def autocommit(self, value: bool) -> None:
        """Switch autocommit on or off, until the checkin."""
        self._refuse_in_block("autocommit()", "call it before the block")
        self._command("autocommit", value)

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Set the character set and the collation, until the checkin."""
        self._command("set_character_set", charset, collation)

    def set_charset(self, charset: str) -> None:
        """Set the character set, until the checkin."""
        self._command("set_charset", charset)

    def insert_id(self) -> Any:
        """Return the AUTO_INCREMENT value that the last statement has made, or 0."""
        return self._result.insert_id if self._result else 0

    def show_warnings(self) -> Any:
        """Return the server's warnings about the last statement."""
        return self._command("show_warnings")

    def kill(self, thread_id: int) -> Any:
        """Have the server end another connection."""
        return self._command("kill", thread_id)

    def connect(self, sock: Any = None) -> None:
        """Refuse: only the pool opens connections."""
        raise ConnectionShared("a pooled connection is opened by its pool alone")

    @overload
    def cursor(self, cursor: None = None) -> Cursor: ...
    @overload
    def cursor(self, cursor: type[C]) -> C: ...

    def cursor(self, cursor: type[Cursor] | None = None) -> Any:
        """Make a cursor of the given class; the default is ``CURSORCLASS``."""
        con = self._con or self._attached()
        cls = cursor or self._cursorclass or con.raw.cursorclass
        # Not imported by name: calling methods of an imported name is slower.
        try:
            bound = cursors.BOUND[cls]
        except (KeyError, TypeError):  # a factory may not be hashable
            if not (isinstance(cls, type) and issubclass(cls, Cursor)):
                return self._made_by(cls)
            bound = cursors.bound_class(cls)
        if self._pool.recorder is not None:
            bound = cursors.RECORDING.get(bound) or cursors.recording_class(bound)
        if con.traced:
            return con.dbapi_connection.cursor(lambda _: bound(self))
        return bound(self)

    @overload
    def execute(
        self, query: Statement, args: Parameters = None
    ) -> cursors.PooledCursor: ...
    @overload
    def execute(
        self, query: Statement, args: Parameters = None, *, into: type[dict[Any, Any]]
    ) -> TypedCursor[dict[str, Any]]: ...
    @overload
    def execute(
        self, query: Statement, args: Parameters = None, *, into: Callable[..., T]
    ) -> TypedCursor[T]: ...

    def execute(
        self, query: Any, args: Any = None, *, into: Callable[..., Any] | None = None
    ) -> Any:
        """Execute a statement, and return the cursor.

        The parameters ``args`` are a sequence, for ``%s`` in the statement, or a
        mapping, for ``%(name)s``. On Python 3.14 and newer, the statement may be a
        t-string, whose values become parameters.

        The rows are those of ``CURSORCLASS`` or, with ``into``, of a dataclass, a
        ``NamedTuple``, a ``TypedDict``, ``dict``, ``tuple``, :class:`Row`, or what any
        callable returns that takes the columns by their names. Raises :exc:`TypeError`
        if that does not take these columns.
        """
        query, args = plain(query, args)
        try:
            if into is not None:
                base = SSCursor if _is_unbuffered(self.cursorclass) else Cursor
                return TypedCursor(self.cursor(base), into, query, args)
            cursor: Any = self.cursor()
            cursor.execute(query, args)
            return cursor
        except (ProgrammingError, ValueError) as error:
            # Python's own text about a place for a value; the server's has a number.
            if len(error.args) != 1 or args is None or "format" not in str(error):
                raise
            raise type(error)(f"{error}{_HOW_TO_WRITE_PLACES}") from None

    def _made_by(self, factory: Callable[[PooledConnection], Any]) -> Any:
        """Call a factory that was given as the class of a cursor."""
        made = factory(self)
        if isinstance(made, Cursor):
            bound = cursors.bound_class(type(made))
            if self._pool.recorder is not None:
                bound = cursors.recording_class(bound)
            made.__class__ = bound
        return made

    @property
    def cursorclass(self) -> Any:
        """The default class of :meth:`cursor`; may be set until the checkin."""
        return self._cursorclass or self._attached().raw.cursorclass

    @cursorclass.setter
    def cursorclass(self, cls: Any) -> None:
        self._cursorclass = cls

    def thread_id(self) -> int:
        """Return the server's number for this connection, as in its process list."""
        return self._attached().raw.thread_id()  # type: ignore[no-any-return]

    def _settle_mode(self) -> None:
        """Make sure how the server reads a backslash in the statement that is next.

        What was left unread of the last answer, and is lost, may tell of another mode.
        """
        con = self._attached()
        if con.several and con.raw._result is not None:
            self._do(methodcaller("read_leftovers"))
        if (con.raw.server_status ^ con.known_mode) & _NO_BACKSLASH_ESCAPES:
            self._do(methodcaller("settle_mode"))

    def escape(self, obj: Any, mapping: Any = None) -> str:
        """Return a value as an SQL literal."""
        kind, con = type(obj), self._attached()
        raw = con.raw
        if (raw.server_status ^ con.known_mode) & _NO_BACKSLASH_ESCAPES:
            result = raw._result
            if not (result and (result.unbuffered_active or result.has_next)):
                self._do(methodcaller("settle_mode"))
        if kind is str:
            return raw.escape(obj, mapping)  # type: ignore[no-any-return]
        if kind is Identifier:
            return obj.quoted()  # type: ignore[no-any-return]
        encoders = raw.encoders if mapping is None else mapping
        if isinstance(obj, str):
            # Without the methods of its class: those of Markup escape for HTML.
            obj = str.__str__(obj)
        elif isinstance(obj, bytes | bytearray):
            obj = bytes(memoryview(obj))
        elif kind in _LISTS or isinstance(obj, _LISTS) and kind not in encoders:
            return f"({','.join(self.escape(item, mapping) for item in obj)})"
        elif kind not in encoders and encoders.get(str) is escape_str:
            # PyMySQL would escape it by backslashes even where the server takes these
            # for characters.
            obj = str.__str__(str(obj))
        return raw.escape(obj, mapping)  # type: ignore[no-any-return]

    literal = escape

    @property
    def may_have_written(self) -> bool:
        """Whether this checkout may have changed rows, or locked them."""
        con = self._con
        return self.writes.sent or (
            con is not None and bool(con.side_effects & TRANSACTION)
        )

    def note_writes_in(self, writes: Writes) -> None:
        """Record possible changes of rows in an object shared with other handles."""
        self.writes = writes
        if self._con is not None:
            self._con.writes = writes

    @property
    def holder(self) -> int | None:
        """The number of the thread that checked out the session."""
        return self._con.holder if self._con else None

    @property
    def returned(self) -> bool:
        """Whether it was returned to the pool and cannot be used any more."""
        return self._returned

    @property
    def open(self) -> bool:
        """Whether it can be used: not returned, not known lost, of this process."""
        con = self._con
        if con is None or con.lost is not None or con.pid != process():
            return False
        return bool(con.raw.open)

    def _attached(self) -> Session:
        """Return the session; check out another one if a lost one was rolled back."""
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
            # The caller may change them in place, and the next checkout would see that.
            con.discard_reason = "invalidated"
            con.raw.conversions = None
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
        # No I/O here: this may run while its thread holds the lock of the pool. At
        # exit, modules have lost their imports.
        con = self._con
        if con is not None and not at_exit() and con.pid == process():
            message = f"{self!r} was never returned"
            self._con = None
            con.dropped_by = self.endpoint, self.stack
            self._pool.dropped(con)
            warnings.warn(message, ResourceWarning, stacklevel=1, source=self)


#: What becomes a list in brackets; also named tuples, and rows of the type ``Row``.
_LISTS = tuple, list, set, frozenset

_NO_BACKSLASH_ESCAPES = SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES


_HOW_TO_WRITE_PLACES = (
    "; with parameters, write %s or %(name)s for a value, and %% for a percent sign"
)


def _is_unbuffered(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, SSCursor)


def _attribute(name: str) -> property:
    """Make a property of one of PyMySQL's attributes."""

    def read(self: PooledConnection) -> Any:
        return self.__getattr__(name)

    def write(self: PooledConnection, value: Any) -> None:
        con = self._attached()
        # The next checkout must not see the changed attribute.
        con.discard_reason = "invalidated"
        con.raw.conversions = None
        setattr(con.raw, name, value)

    return property(read, write)


_OF_CONNECTED = "ctx server_version server_status server_thread_id server_capabilities"
for _name in [
    *vars(Connection(defer_connect=True, ssl_disabled=True)),
    *_OF_CONNECTED.split(),
]:
    if not _name.startswith("_") and _name not in vars(PooledConnection):
        setattr(PooledConnection, _name, _attribute(_name))


#: The methods that use a session and may be interrupted before they release it.
_CALLS = frozenset(
    method.__code__
    for method in (
        *(PooledConnection._do, PooledConnection._command, PooledConnection.query),
        *(PooledConnection.execute_many, PooledConnection._attached),
        PooledConnection._detach,
    )
)

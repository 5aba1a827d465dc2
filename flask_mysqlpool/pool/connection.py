"""What a caller holds between checkout and return: a connection.

A handle is made for each checkout and is dead afterwards, and so are its cursors, which
know the session only through it. The session itself goes on to the next handle.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload
from weakref import ref

from pymysql.connections import Connection
from pymysql.cursors import Cursor
from pymysql.err import MySQLError

from ..errors import (
    ConnectionLost,
    ConnectionReturned,
    ConnectionShared,
    PoolError,
    TransactionError,
)
from . import cursors
from .diagnostics import Stack
from .driver.process import process
from .driver.session import OWN, Session, Writes
from .driver.statements import TRANSACTION
from .driver.transport import without_traceback
from .query_log import Recorder

C = TypeVar("C", bound=Cursor)


class Block(Protocol):
    """What a :class:`PooledConnection` knows of a block that it is in."""

    #: The task or thread that has begun it.
    owner: object

    @property
    def is_over(self) -> bool: ...


class _Pool(Protocol):
    """What a :class:`PooledConnection` needs of the pool that it came from."""

    name: str
    recorder: Recorder | None

    def checkout(
        self, handle: PooledConnection, timeout: float | None = None
    ) -> None: ...
    def checkin(self, con: Session) -> None: ...
    def dropped(self, con: Session) -> None: ...


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
        "blocks",
        "endpoint",
        "savepoint",
        "stack",
        "writes",
    )

    def __init__(self, pool: _Pool, endpoint: str | None = None) -> None:
        self._pool = pool
        #: Set by the pool. None again after a rollback that gave up a lost one.
        self._con: Session | None = None
        # Held by the thread that is inside; and for good by whoever returns it, which
        # is why it can be returned just once, and nobody gets in after that.
        self._guard = threading.Lock()
        self._inside, self._returned = 0, False
        #: Of the last statement, for PyMySQL's cursors.
        self._result: Any = None
        #: For :meth:`cursor`, if it was set.
        self._cursorclass: Any = None
        #: Where to note that something may have changed rows.
        self.writes = Writes()
        #: What the connection was taken for, as status shows it.
        self.endpoint = endpoint
        #: Where it was taken, if that is asked for.
        self.stack: Stack = ()
        #: The blocks (:mod:`.transaction`) that it is in, and their savepoints' names.
        self.blocks: list[ref[Block]] = []
        self.savepoint = OWN + "_{}"

    # Getting in and out

    def _enter(self) -> Session:
        """Get into the connection, alone; whoever gets in must leave."""
        con = self._con
        if con is not None and con.pid != process():
            con.abandon()
            raise self._refusal()
        if not self._guard.acquire(False):
            self._take_over_from_an_interrupt()
        try:
            self._inside = threading.get_ident()
            if self._returned:
                raise self._refusal()
            if self._con is None:
                self._pool.checkout(self)
                if self._returned:
                    raise self._refusal()
            con = self._con
            if con is not None and con.lost is None:
                if self.blocks:
                    self._undo_what_was_left(con)
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

    def _take_over_from_an_interrupt(self) -> None:
        """Have the guard in spite of all; refuse if a thread is indeed inside.

        Where an interrupt has hit between getting in and leaving, none is. What it came
        in the middle of is not known, so the connection is lost.
        """
        if self._returned or self._is_in_use(but=1):
            raise self._refusal()
        if self._con is not None and self._con.lost is None:
            self._con.lost = ConnectionShared("an interrupt came while it was in use")

    def _is_in_use(self, but: int = 0) -> bool:
        """Whether a thread is inside, as the stacks of all threads tell.

        Of the calls of this very thread, ``but`` so many do not count.
        """
        stacks = sys._current_frames()
        me = threading.get_ident()
        if me not in stacks:
            return bool(self._inside)  # as with gevent, which has other numbers
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
        """Why nobody is let in."""
        if self._returned:
            return ConnectionReturned(
                "this connection has been returned to the pool"
                f" {self._pool.name!r}; check out another one"
            )
        if self._con is not None and self._con.pid != process():
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
        if con is None or con.pid != process():
            self._con = None
        elif inside == threading.get_ident() or not self._is_in_use():
            # An interrupt hit when a thread was in and not yet sure to leave.
            with suppress(RuntimeError):
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
            self._pool.checkin(con)
        return True

    # What talks to the server

    def _do(self, name: str, *args: Any) -> Any:
        """Call a method of the connection, alone in it."""
        con = self._enter()
        try:
            return getattr(con, name)(*args)
        finally:
            self._leave()

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
        self._do("begin")

    def commit(self) -> None:
        """Make permanent what was done since the last commit or rollback."""
        self._refuse_in_block("commit()", "the end of the block commits")
        self._do("commit")

    def rollback(self) -> None:
        """Undo what was done since the last commit or rollback.

        On a connection that is lost the server has done so already. This then gives
        up the dead connection; the next statement gets another one.
        """
        self._refuse_in_block("rollback()", "raise an exception, and let it out")
        if self._con is None and not self._returned:
            return
        try:
            self._do("rollback")
        except MySQLError:
            if not self._detach():
                raise
        else:
            self._detach()

    # Blocks

    def _refuse_in_block(self, what: str, instead: str) -> None:
        if self.blocks and self.block is not None:
            raise TransactionError(f"{what} inside of transaction(): {instead}")

    @property
    def block(self) -> Block | None:
        """The innermost block that it is in."""
        if any(map(_is_left, self.blocks)):
            try:
                if not self._returned:
                    self._settle_blocks()
            except MySQLError:
                if self._con is not None and self._con.lost is None:
                    raise
            # On a connection that is lost, the server has rolled back.
            self._forget_what_was_left()
        return self.blocks[-1]() if self.blocks else None

    def _settle_blocks(self) -> None:
        self._enter()
        self._leave()

    def _undo_what_was_left(self, con: Session) -> None:
        """Roll all of it back if a block was left by an interrupt, before its end."""
        if any(map(_is_left, self.blocks)):
            self._undo_all(con)
            self._forget_what_was_left()
            if self.blocks:
                con.leave_block(fails=True)

    def _undo_all(self, con: Session) -> None:
        if con.block is not None:
            con.undo_block()

    def _forget_what_was_left(self) -> None:
        self.blocks[:] = [block for block in self.blocks if not _is_left(block)]

    def forget_block(self, block: Block) -> None:
        """Take a block, and those that are within it, to be over."""
        for index, each in enumerate(self.blocks):
            if each() is block:
                del self.blocks[index:]
                return

    def begin_block(self) -> None:
        """Begin a transaction that :meth:`commit` and :meth:`rollback` may not end."""
        self._do("refuse_open_transaction")
        # With nothing uncommitted, there is nothing to tell of.
        self._detach()
        try:
            self._do("begin_block")
        except MySQLError:
            self._detach()
            raise

    def begin_savepoint(self, name: str) -> None:
        """Begin a block within the block; the server hears of it once it writes."""
        self._do("begin_savepoint", name)

    def block_is_open(self) -> bool:
        """Whether the transaction of the block can still go on.

        True on a connection that is lost, too: that shows at the next statement.
        """
        con = self._con
        if con is None or self._returned:
            return False
        if con.lost is not None:
            return True
        return self._do("block_is_open")  # type: ignore[no-any-return]

    def end_savepoint(self, name: str) -> bool:
        """End a block within the block; False if it is known to be of no avail."""
        return self._do("end_savepoint", name)  # type: ignore[no-any-return]

    def undo_savepoint(self, name: str) -> None:
        """Undo what was done in a block within the block."""
        if self._returned or not self.open:
            return
        self._do("undo_savepoint", name)

    def end_block(self) -> None:
        """End the block by a COMMIT."""
        self._do("commit_block")

    def undo_block(self) -> bool:
        """Undo the block; whether it is certain that nothing of it was committed.

        A connection on which that fails is given up, whatever thread is inside.
        """
        con = self._con
        if con is None or self._returned:
            return True
        try:
            if con.lost is None:
                try:
                    return self._do("undo_block")  # type: ignore[no-any-return]
                finally:
                    self._detach()
        except BaseException as failure:
            if con.lost is None:
                con.lost = without_traceback(failure)
                con.interrupt()
                raise
            if not isinstance(failure, MySQLError):
                raise
        certain = not (con.is_marked or con.has_committed)
        con.leave_block()
        self._detach()
        return certain

    @property
    def changed(self) -> int:
        """Rows that the open transaction has changed, as far as the server says so."""
        return self._con.changed if self._con and self._con.lost is None else 0

    @property
    def commit_unknown(self) -> bool:
        """Whether a COMMIT was sent, and it was not answered what came of it."""
        return self._con is not None and self._con.commit_unknown

    @property
    def has_uncommitted_writes(self) -> bool:
        """Whether a transaction may be open that may have changed rows."""
        con = self._con
        return con is not None and con.lost is None and con.has_uncommitted_writes

    @property
    def detached(self) -> bool:
        """Whether it was lost and rolled back; it takes another one when needed."""
        return self._con is None and not self._returned

    def _detach(self) -> bool:
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
            self._pool.checkin(con)
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
        try:
            bound = cursors.BOUND[cls]
        except (KeyError, TypeError):  # what is no class may have no hash
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
        """Whether more than reading was done by what it was taken for."""
        con = self._con
        return self.writes.sent or (
            con is not None and bool(con.side_effects & TRANSACTION)
        )

    def note_writes_in(self, writes: Writes) -> None:
        """Share with other handles the note that something may have changed rows."""
        self.writes = writes
        if self._con is not None:
            self._con.writes = writes

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

    def _attached(self) -> Session:
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
            con.discard_reason = "invalidated"
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
        if con is not None and not at_exit() and con.pid == process():
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
        con.discard_reason = "invalidated"
        setattr(con.raw, name, value)

    return property(read, write)


_OF_CONNECTED = "ctx server_version server_status server_thread_id server_capabilities"
for _name in [
    *vars(Connection(defer_connect=True, ssl_disabled=True)),
    *_OF_CONNECTED.split(),
]:
    if not _name.startswith("_") and _name not in vars(PooledConnection):
        setattr(PooledConnection, _name, _attribute(_name))


def _is_left(reference: ref[Block]) -> bool:
    """Whether the ``with`` statement of a block is no more."""
    block = reference()
    return block is None or block.is_over


#: What gets into a connection, and leaves it, and may be interrupted in between.
_CALLS = frozenset(
    method.__code__
    for method in (
        *(PooledConnection._do, PooledConnection._command, PooledConnection.query),
        *(PooledConnection._attached, PooledConnection._settle_blocks),
        PooledConnection._detach,
    )
)

"""Transactions as ``with`` blocks, and their repetition where that is safe.

A block begins a transaction, or sets a savepoint if one is open, and ends it by COMMIT
or, after any exception, by ROLLBACK. Statements known to end a transaction (DDL, or an
explicit COMMIT) are refused in a block. If one ends it nevertheless, such as a call of
a procedure that commits, the block raises.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from pymysql.constants import ER
from pymysql.err import MySQLError

from ..errors import CommitUnknown, ConnectionLost, PoolError, TransactionError
from .connection import PooledConnection
from .driver.error_codes import CONFLICTS, pause_after

T = TypeVar("T")

#: Reasons why the outcome of a COMMIT is unknown.
_CONNECTION_LOST = (
    "the connection was lost after COMMIT was sent and before it was answered"
)
_SERVER_LOST_IT = "the server cannot say whether what was sent with COMMIT is stored"

_ENDED = (
    "the transaction was ended inside its block: by an error of the server that was"
    " caught, by returning the connection, by another block that ended out of order,"
    " or by a statement that commits (a procedure may); what was committed stays, and"
    " the rest is rolled back"
)

#: Back-off between tries: seconds, from the first to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0


class _Exit:
    """Makes a new ``__exit__`` for each ``with`` statement, to tell when it has ended.

    Only the ``with`` statement refers to it. So a weak reference to it is dead once the
    statement has been left, even if an interrupt came before the call of ``__exit__``,
    and even while a traceback keeps all frames alive.
    """

    def __get__(self, block: TransactionBlock | None, cls: type[Any]) -> Any:
        if block is None:
            return cls.leave  # for an ExitStack, which holds the block itself
        leave = partial(cls.leave, block)
        block.is_held_by(leave)
        return leave


class TransactionBlock(ContextDecorator):
    """A block that is one transaction or, within another block, a savepoint.

    If its ``with`` statement is left without a call of ``__exit__``, by an interrupt,
    the transaction is rolled back before the connection does anything else.

    :param take: returns the connection.
    :param within: a context manager around the block.
    """

    def __init__(
        self,
        take: Callable[[], PooledConnection],
        within: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._take, self._within = take, within
        self._holder: ref[Any] | None = None
        self._is_open = self._has_ended = False
        #: Whether it is certain that all of it was rolled back.
        self.is_undone = False

    def _recreate_cm(self) -> TransactionBlock:
        return TransactionBlock(self._take, self._within)

    def is_held_by(self, holder: object) -> None:
        """Assume that the ``with`` statement has been left once this object is gone."""
        if not self._is_open:
            self._holder = ref(holder)

    @property
    def is_over(self) -> bool:
        """Whether its ``with`` statement has been left."""
        return self._has_ended or (self._holder is not None and not self._holder())

    def __enter__(self) -> PooledConnection:
        if self._is_open:
            raise TransactionError("each transaction() is for one 'with' statement")
        self._is_open = True
        if self._within is not None:
            self._within.__enter__()
        try:
            self._connection = connection = self._take()
            self._begin(connection)
        except BaseException as error:
            self._has_ended = True
            if self._within is not None:
                self._within.__exit__(type(error), error, error.__traceback__)
            raise
        return connection

    if TYPE_CHECKING:

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...

    else:
        __exit__ = _Exit()

    def leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit, or after an error roll back."""
        try:
            if error is None:
                self._finish()
            else:
                self._undo(error)
        finally:
            self._has_ended = True
            if self._within is not None:
                self._within.__exit__(kind, error, traceback)

    def _begin(self, connection: PooledConnection) -> None:
        outer = connection.block
        self.owner = _current_owner()
        if outer is not None and outer.owner != self.owner:
            raise TransactionError(
                "another task or thread is inside transaction() on this connection;"
                " use one of your own: 'with db.connection() as conn:'"
            )
        self._savepoint = ""
        # Before BEGIN, so that the transaction is undone after an interrupt.
        connection.add_block(self)
        if outer is None:
            connection.begin_block()
        else:
            self._savepoint = connection.savepoint.format(len(connection.blocks) - 1)
            connection.begin_savepoint(self._savepoint)

    def _finish(self) -> None:
        """Commit, or end the savepoint; raise if the transaction is no longer open."""
        connection = self._connection
        try:
            if self._savepoint:
                # Whether a procedure has committed is checked before the next write.
                is_open = connection.block is self
                self._require(is_open and connection.end_savepoint(self._savepoint))
            else:
                self._require(connection.block is self and connection.block_is_open())
                connection.end_block()
        except BaseException as error:
            unknown = connection.commit_unknown and isinstance(error, Exception)
            unknown = unknown and not self._savepoint
            try:
                self._undo(error)
            except MySQLError:
                # A Galera node outside its cluster refuses even a ROLLBACK.
                if not unknown:
                    raise
            if unknown:
                said = error.args[:1] == (ER.ERROR_DURING_COMMIT,)
                why = _SERVER_LOST_IT if said else _CONNECTION_LOST
                raise CommitUnknown(
                    f"{why}: check the database before retrying"
                ) from error
            raise
        connection.forget_block(self)

    def _require(self, is_open: bool) -> None:
        if not is_open:
            raise TransactionError(_ENDED)

    def _undo(self, error: BaseException) -> None:
        """Roll back; raise if the server's error may come after an implicit commit."""
        connection = self._connection
        try:
            self._roll_back(connection)
        except Exception:
            if isinstance(error, Exception):
                raise
            return
        if self._savepoint or self.is_undone:
            return
        if isinstance(error, MySQLError) and not _is_ours(error):
            raise TransactionError(
                "the block failed after a statement that may have committed, such as a"
                " call of a procedure: check the database before retrying"
            ) from error

    def _roll_back(self, connection: PooledConnection) -> None:
        """Undo this block; out of order, leave it to be undone with the outermost."""
        innermost = connection.block
        if self not in [block() for block in connection.blocks]:
            # An outer block has ended before this one.
            if not connection.blocks and not connection.returned:
                connection.rollback()
        elif not self._savepoint:
            self.is_undone = connection.undo_block()
            connection.forget_block(self)
        elif innermost is self:
            connection.undo_savepoint(self._savepoint)
            connection.forget_block(self)


def transaction(connection: PooledConnection) -> TransactionBlock:
    """Make a block that is one transaction or, within another block, a savepoint.

    The block raises :exc:`~.errors.TransactionError` if a transaction is open that is
    not a block, or if the transaction was ended inside; and
    :exc:`~.errors.CommitUnknown` if the connection is lost between the COMMIT and its
    answer.
    """
    return TransactionBlock(lambda: connection)


def _current_owner() -> object:
    """Return the current asyncio task, or the number of the current thread."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, PoolError) and not isinstance(error, ConnectionLost)


def run_in_transaction(
    connection: PooledConnection, function: Callable[..., T], *args: Any, retries: int
) -> T:
    """Call ``function(connection, *args)`` in a transaction; repeat it after conflicts.

    Repeat at most ``retries`` times, with a back-off, after a deadlock, a lock wait
    timeout, or the loss of the connection before COMMIT is sent. Never repeat after a
    COMMIT whose outcome is unknown, nor where a statement may have committed, such as a
    call of a procedure.
    """
    if retries < 0:
        raise ValueError("retries must be 0 or more")
    if connection.block is not None:
        # A deadlock ends the outer transaction, too: only that can be repeated.
        with transaction(connection):
            return function(connection, *args)
    tried = 0
    while True:
        block = transaction(connection)
        try:
            with block:
                return function(connection, *args)
        except MySQLError as error:
            if tried == retries or not _may_be_repeated(error, block, connection):
                raise
        tried += 1
        time.sleep(pause_after(tried, FIRST_PAUSE, LONGEST_PAUSE))


def _may_be_repeated(
    error: MySQLError, block: TransactionBlock, connection: PooledConnection
) -> bool:
    if _is_ours(error):
        return False
    # If a connection was lost in the block, its rollback has detached the session. One
    # that was lost before the block is still attached, with work of others.
    if connection.detached:
        return True
    return block.is_undone and bool(error.args and error.args[0] in CONFLICTS)

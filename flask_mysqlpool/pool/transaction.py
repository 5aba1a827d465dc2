"""Transactions as ``with`` blocks, and their repetition where that is safe.

A block begins a transaction, or sets a savepoint if one is open, and ends it by COMMIT
or, after any exception, by ROLLBACK. Statements known to end a transaction (DDL, or an
explicit COMMIT) are refused in a block. If one ends it nevertheless, such as a call of
a procedure that commits, the block raises.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ContextDecorator
from functools import partial
from logging import ERROR
from operator import methodcaller
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import ref

from pymysql.constants import ER, SERVER_STATUS
from pymysql.err import MySQLError

from ..errors import (
    CommitUnknown,
    ConnectionLost,
    PoolError,
    ServerUnavailable,
    TransactionError,
)
from .driver.error_codes import CONFLICTS, pause_after
from .driver.logs import log
from .driver.results import MOST_SENT
from .driver.session import BEGIN, COMMIT, ROLLBACK, Session
from .driver.statements import (
    ENDS,
    LOADS,
    MAY_END,
    NONE,
    SESSION,
    TRANSACTION,
    WRITES,
    side_effects,
)
from .driver.transport import without_traceback

if TYPE_CHECKING:
    from .connection import PooledConnection

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

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

_NOT_TOLD = (
    "the server does not tell that a transaction is open after START TRANSACTION, so"
    " transaction() cannot promise all or nothing: use commit() and rollback()"
)

#: The isolation levels, as they are written in a statement.
LEVELS = "READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"

#: Back-off between tries: seconds, from the first to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0

#: Prefix of the names of savepoints, to avoid collisions with the user's.
OWN = f"mysqlpool_{os.urandom(6).hex()}"
_PROBE, _MANY = f"{OWN}_probe", f"{OWN}_many"

#: Side effects of statements before which the savepoints of inner blocks are set.
_CHANGES = TRANSACTION | WRITES | MAY_END

#: The number of a transaction that cannot continue; no transaction has it.
_FAILED = -1

#: Statements, and bytes of them, that :meth:`Blocks.execute_many` sends in one piece.
#: Few enough that the answers fit into the socket's buffers: while the client writes,
#: nothing reads them.
MOST_AT_ONCE, BYTES_AT_ONCE = 200, 1 << 16


class Progress:
    """What :meth:`Blocks.execute_many` has done so far."""

    #: The number of the current statement, from 1.
    count = 0
    #: Rows changed by all statements, and the result of the last one.
    rows = 0
    result: Any = None

    def add(self, result: Any) -> None:
        """Add the result of one statement."""
        self.rows += result.affected_rows
        self.result = result


class Blocks:
    """The open blocks of a connection: a transaction of the server, and savepoints.

    The session refers to them until the outermost block ends, and asks them before each
    statement.
    """

    #: Whether a statement may have committed the transaction, and the server has not
    #: told since whether it did; see :meth:`_settle_doubt`.
    pending_check = False
    #: Whether the server tells with an answer if the transaction has ended; and whether
    #: that was relied on.
    is_told = was_told = False
    #: Whether the transaction is known to have been ended by a statement.
    has_committed = False
    #: Whether autocommit is off until the end; see :meth:`execute_many`.
    autocommit_is_off = False
    #: The statements that begin the transaction.
    beginning: tuple[bytes, ...] = (BEGIN,)

    def __init__(self) -> None:
        #: The blocks, from the outermost.
        self.stack: list[ref[TransactionBlock]] = []
        #: Savepoints of inner blocks, to be set before the next statement that writes.
        self.savepoints_due: list[str] = []
        #: The number of the transaction; None until the first statement begins it.
        self.number: int | None = None

    def begin(self, session: Session) -> None:
        """Begin the outermost block, whose first statement begins the transaction."""
        session.refuse_open_transaction()
        if session.check_first:
            session.check_status()
        session.commit_unanswered = False
        session.blocks = self

    def has_left(self) -> bool:
        """Return whether the ``with`` statement of one of the blocks was left."""
        return any(map(_is_left, self.stack))

    def go_on(self) -> bool:
        """Return whether the ``with`` statement of one of the blocks was not left."""
        return not all(map(_is_left, self.stack))

    def settle(self, session: Session) -> bool:
        """Roll back all if an interrupt has left one of the blocks before its end.

        On a session that is lost, the server has done so. False if no block is open.
        """
        if self.has_left():
            open_ones = [block for block in self.stack if not _is_left(block)]
            try:
                if session.lost is None:
                    self.undo(session, ends=not open_ones)
            except MySQLError:
                if session.lost is None:
                    raise
            self.stack = open_ones
        return bool(self.stack)

    # Before and instead of statements

    def check(self, session: Session, left: int) -> None:
        """Refuse a statement that would end the transaction, and any after its end."""
        if self.pending_check and (self.is_told or left & _CHANGES):
            self._settle_doubt(session)
        if self.number not in (None, session.transactions):
            raise TransactionError(
                "the transaction of this block has been ended, by a deadlock or by a"
                " statement that commits implicitly; let the exception out of the block"
            )
        if left & ENDS:
            raise TransactionError(
                "a statement that ends the transaction, or commits it implicitly (DDL"
                " does), was refused inside transaction(): execute it outside; to"
                " roll back, let an exception out; to nest, use transaction() again"
            )

    def _prepare(self, session: Session, left: int) -> list[bytes]:
        """Return the statements to send before one with these side effects.

        Guard one that may end the transaction. Send nothing before a mere read, which
        may ask about the statement before it, as ``SELECT ROW_COUNT()`` does. An error
        between this and the answers loses the connection.
        """
        first: list[bytes] = []
        if self.number is None:
            first += self.beginning
            session.transaction_ended()  # BEGIN commits, but there is nothing to commit
            session.side_effects |= TRANSACTION
            self.number = session.transactions
        if left & _CHANGES:
            first += [f"SAVEPOINT {name}".encode() for name in self.savepoints_due]
            self.savepoints_due.clear()
        if left & MAY_END:
            first.append(f"SAVEPOINT {_PROBE}".encode())
            self.pending_check = True
        return first

    def execute(
        self, session: Session, statement: bytes, left: int, unbuffered: bool
    ) -> None:
        """Execute a statement after those to send before it, all sent in one piece."""
        raw = session.raw
        first = self._prepare(session, left)
        together = first and session.pipelines and len(statement) < MOST_SENT
        if first:
            self._send(session, first, [statement] if together else [])
        if together:
            raw._next_seq_id = 1
            raw._affected_rows = raw._read_query_result(unbuffered)
        else:
            raw.query(statement, unbuffered)

    def _send(
        self, session: Session, first: list[bytes], statements: list[bytes]
    ) -> None:
        """Send statements after others, in one piece; read the answers to the others.

        If one is an error, read those to the statements, too: these were executed
        outside the transaction, or without a savepoint.
        """
        errors = []
        begins = first[:1] == [*self.beginning[:1]]
        pieces = [first] if session.pipelines else [[one] for one in first]
        for piece in pieces:
            session.send([*piece, *statements])
            errors += [session.read_to_end() for _ in piece]
            if any(errors):
                break
        error = next(filter(None, errors), None)
        told, session.raw.told = session.raw.told, NONE
        if error is None:
            if begins:
                self.is_told = bool(told & ENDS)
                if not session.raw.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
                    # What was sent after BEGIN may have been committed already, or may
                    # be committed by whatever is sent next.
                    session.failed(OSError(_NOT_TOLD))
                    raise TransactionError(_NOT_TOLD)
            return
        self.number = _FAILED
        outside = begins and any(errors[: len(self.beginning)])
        # What was sent after it may be committed, until its answer says otherwise.
        self.has_committed |= outside
        later = [session.read_to_end() for _ in statements]
        session.raw._result = None
        if outside:
            self.has_committed = any(
                failed is None
                and side_effects(statement, session._server) & (WRITES | MAY_END)
                for statement, failed in zip(statements, later, strict=True)
            )
        raise error

    def execute_many(self, session: Session, statements: Iterable[bytes]) -> Progress:
        """Execute statements, many sent in one piece: all of them or none.

        Raise the first error, with the number of its row, from 1.
        """
        done = Progress()
        session.read_leftovers()
        if session.check_first:
            session.check_status()
        self.savepoints_due.append(_MANY)
        try:
            most = MOST_AT_ONCE if session.pipelines else 1
            for left, piece in _pieces(statements, session._server, most):
                if len(piece) > 1:
                    self._execute_piece(session, left, piece, done)
                else:
                    done.count += 1
                    done.add(session.execute(piece[0], False))
        except BaseException as error:
            if session.lost is None:
                self._undo_many(session)
            if isinstance(error, MySQLError) and len(error.args) > 1 and done.count:
                text = f"{error.args[1]} (row {done.count} of executemany())"
                error.args = error.args[0], text
            raise
        self._was_due(_MANY)
        return done

    def _execute_piece(
        self, session: Session, left: int, piece: list[bytes], done: Progress
    ) -> None:
        left |= WRITES  # has the savepoint set
        self.check(session, left)
        session.side_effects |= left
        session.writes.sent = True
        if session.comment:
            piece = [session.comment + statement for statement in piece]
        session.attempt(self._send_and_read, session, left, piece, done)

    def _send_and_read(
        self, session: Session, left: int, piece: list[bytes], done: Progress
    ) -> None:
        raw = session.raw
        failure: MySQLError | None = None
        first = self._prepare(session, left)
        if raw.server_status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT:
            # A deadlock ends the transaction. What was sent after it must not be
            # committed.
            first.append(b"SET autocommit = 0")
            self.autocommit_is_off = True
        self._send(session, first, piece)
        for _ in piece:
            done.count += failure is None
            error = session.read_to_end()
            if error is not None:
                failure = failure or error
                continue
            done.add(raw._result)
            if raw._result.warning_count:
                session.side_effects |= SESSION
            session._note_change(raw._result.affected_rows, more=False)
        raw._result = None
        if failure is not None:
            raise failure

    def _undo_many(self, session: Session) -> None:
        """Undo what :meth:`execute_many` has done before an error."""
        if self._was_due(_MANY):
            return
        session.read_leftovers(wanted=False)
        if self._execute(session, f"ROLLBACK TO SAVEPOINT {_MANY}"):
            session.transaction_unknown = session.check_first = False
            self.pending_check = False
        else:
            # What was sent after a deadlock has begun another transaction.
            session.side_effects |= TRANSACTION

    def _execute(self, session: Session, statement: str) -> bool:
        """Execute a statement about a savepoint; False if the transaction has ended."""
        try:
            session.attempt(session._tell, statement.encode())
        except MySQLError as error:
            if session.lost is not None or error.args[0] != ER.SP_DOES_NOT_EXIST:
                raise
            session.transaction_ended()
            return False
        return True

    def _settle_doubt(self, session: Session) -> None:
        """Find out whether a statement has ended the transaction.

        The server may have told that it has not, with the answer to the statement or,
        after an error, with that to the next command. MySQL also tells of an end when a
        temporary table is created. So then, the savepoint is what counts that was set
        before the statement: it is gone if the statement has committed.
        """
        if self.is_told and session.check_first:
            session.check_status()
        if self.is_told:
            self.was_told = True
        elif not self._execute(session, f"RELEASE SAVEPOINT {_PROBE}"):
            self.has_committed = True
        self.pending_check = False

    # Ends

    def is_open(self, session: Session) -> bool:
        """Return whether the transaction is open; ask the server if that is unknown."""
        session.read_leftovers()
        if session.check_first:
            session.check_status()
        if self.pending_check:
            self._settle_doubt(session)
        return self.number in (None, session.transactions)

    def end_block(self, session: Session) -> None:
        """Commit, and end the blocks; raise if the transaction was ended before."""
        if not self.is_open(session):
            raise TransactionError(_ENDED)
        if self.number is not None:
            session.commit(COMMIT)
            if self.was_told and not session.told_of_commit & ENDS:
                # Stored code has switched off what the server tells.
                raise TransactionError(_ENDED)
        self.end(session)

    def undo(self, session: Session, ends: bool = True) -> None:
        """Roll back; unless this ends the blocks, later statements in them raise."""
        session.read_leftovers(wanted=False)
        if self.pending_check:
            self._settle_doubt(session)
        if self.number is not None:
            session.rollback(ROLLBACK)
        self.number = _FAILED
        if ends:
            self.end(session)

    def end(self, session: Session) -> None:
        """Switch autocommit on again, or give up the connection; end the blocks."""
        if self.autocommit_is_off:
            try:
                session.attempt(session._tell, b"SET autocommit = 1")
            except MySQLError as error:
                session.failed(OSError(f"autocommit cannot be restored: {error}"))
        session.blocks = None

    def end_savepoint(self, session: Session, name: str) -> None:
        """End an inner block, whose changes become the outer block's.

        Raise if the transaction is known to have ended; a pending check is left to the
        outer block.
        """
        self._was_due(name)
        if self.number not in (None, session.transactions):
            raise TransactionError(_ENDED)

    def undo_savepoint(self, session: Session, name: str) -> None:
        """Undo an inner block, if it has made changes and the transaction is open."""
        if self._was_due(name):
            return
        session.read_leftovers(wanted=False)
        if self.is_open(session):
            session.attempt(session._tell, f"ROLLBACK TO SAVEPOINT {name}".encode())

    def _was_due(self, name: str) -> bool:
        """Return whether a savepoint was not set yet; it will not be set any more."""
        was_due = name in self.savepoints_due
        if was_due:
            self.savepoints_due.remove(name)
        return was_due


def _pieces(
    statements: Iterable[bytes], server: int, most: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Divide statements into pieces to be sent at once, with their side effects.

    One that may end the transaction is alone, and so is LOAD DATA: the server may ask
    for a file, and would take the next statements for its content.
    """
    piece: list[bytes] = []
    size = effects = 0
    for statement in statements:
        left = side_effects(statement, server)
        alone = left & (MAY_END | ENDS | LOADS)
        size += len(statement)
        if piece and (alone or size > BYTES_AT_ONCE or len(piece) == most):
            yield effects, piece
            piece, size, effects = [], len(statement), 0
        piece.append(statement)
        effects |= left
        if alone:
            size = BYTES_AT_ONCE + 1
    if piece:
        yield effects, piece


def _is_left(reference: ref[TransactionBlock]) -> bool:
    """Return whether the ``with`` statement of a block has been left."""
    block = reference()
    return block is None or block.is_over


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
        if not block._is_open:
            block._holder = ref(leave)
        return leave


class TransactionBlock(ContextDecorator):
    """A block that is one transaction or, within another block, a savepoint.

    If its ``with`` statement is left without a call of ``__exit__``, by an interrupt,
    the transaction is rolled back before the connection does anything else.

    :param take: returns the connection.
    :param within: makes a context manager around the block.
    :param beginning: the statements that begin the transaction.
    """

    def __init__(
        self,
        take: Callable[[], PooledConnection],
        within: Callable[[], AbstractContextManager[Any]] | None = None,
        beginning: tuple[bytes, ...] = (BEGIN,),
    ) -> None:
        self._take, self._make_within, self._beginning = take, within, beginning
        self._within: AbstractContextManager[Any] | None = None
        #: Functions to call after the COMMIT of the outermost block.
        self.after_commit: list[Callable[[], object]] = []
        #: The ``with`` statement has been left once this object is gone.
        self._holder: ref[Any] | None = None
        self._is_open = self._has_ended = False
        #: Whether it is certain that all of it was rolled back.
        self.is_undone = False

    def _recreate_cm(self) -> TransactionBlock:
        return TransactionBlock(self._take, self._make_within, self._beginning)

    def __call__(self, function: F) -> F:
        """Decorate a function: each call is in a block of its own."""
        refuse_generator(function)
        if not inspect.iscoroutinefunction(function):
            return super().__call__(function)

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._recreate_cm():
                return await function(*args, **kwargs)

        return cast("F", wrapper)

    @property
    def is_over(self) -> bool:
        """Whether its ``with`` statement has been left."""
        return self._has_ended or (self._holder is not None and not self._holder())

    def __enter__(self) -> PooledConnection:
        if self._is_open:
            raise TransactionError("each transaction() is for one 'with' statement")
        self._is_open = True
        if self._make_within is not None:
            self._within = self._make_within()
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

    __exit__: Any = _Exit()

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
        if outer is None:
            connection._do(methodcaller("refuse_open_transaction"))
            # Nothing is uncommitted, so a lost connection can be replaced without an
            # error.
            connection._detach()
            connection.blocks = connection.make_blocks()
            connection.blocks.beginning = self._beginning
        assert connection.blocks is not None
        if self._beginning not in ((BEGIN,), connection.blocks.beginning):
            raise TransactionError(
                "isolation and read_only are of the outermost transaction(), and this"
                " one is a savepoint in it: leave them out, or set them there"
            )
        blocks = self._blocks = connection.blocks
        # Before it begins, so that it is undone after an interrupt.
        blocks.stack.append(ref(self))
        if outer is None:
            connection._do(blocks.begin)
        else:
            name = self._savepoint = connection.savepoint.format(len(blocks.stack) - 1)
            connection._do(lambda _: blocks.savepoints_due.append(name))

    def _finish(self) -> None:
        """Commit, or end the savepoint; raise if the transaction is no longer open."""
        connection, blocks, name = self._connection, self._blocks, self._savepoint
        try:
            if connection.block is not self:
                raise TransactionError(_ENDED)
            connection._do(
                partial(blocks.end_savepoint, name=name) if name else blocks.end_block
            )
        except BaseException as error:
            # A Galera node that loses the others during the commit reports this error,
            # although they may have committed.
            said = error.args[:1] == (ER.ERROR_DURING_COMMIT,)
            con = connection._con
            unknown = (
                con is not None
                and con.commit_unanswered
                and (said or con.lost is not None)
                and not name
                and isinstance(error, Exception)
            )
            try:
                self._undo(error)
            except MySQLError:
                # A Galera node outside its cluster refuses even a ROLLBACK.
                if not unknown:
                    raise
            if unknown:
                why = _SERVER_LOST_IT if said else _CONNECTION_LOST
                raise CommitUnknown(
                    f"{why}: check the database before retrying"
                ) from error
            raise
        if name:
            blocks.stack.pop()
            outer = connection.block
            if outer is not None:
                outer.after_commit += self.after_commit
        else:
            connection.blocks = None
            for function in self.after_commit:
                call_after_commit(function)

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
        blocks, name = self._blocks, self._savepoint
        is_innermost = connection.block is self
        if connection.blocks is not blocks:
            # An outer block, or the checkout, has ended before this one.
            if connection.blocks is None and not connection.returned:
                connection.rollback()
        elif not name:
            self._undo_all(connection)
            connection.blocks = None
        elif is_innermost:
            if connection.open:
                connection._do(partial(blocks.undo_savepoint, name=name))
            blocks.stack.pop()
        self.is_undone = not (name or blocks.pending_check or blocks.has_committed)

    def _undo_all(self, connection: PooledConnection) -> None:
        """Undo the outermost block.

        If that fails, mark the connection as lost, even if another thread uses it.
        """
        con = connection._con
        if con is None or connection.returned:
            return
        try:
            try:
                connection._do(self._blocks.undo)
            finally:
                connection._detach()
        except BaseException as failure:
            if con.lost is None:
                con.lost = without_traceback(failure)
                con.interrupt()
                raise
            if not isinstance(failure, MySQLError):
                raise


def beginning_of(isolation: str | None, read_only: bool) -> tuple[bytes, ...]:
    """Return the statements that begin a transaction of this isolation level.

    Raises :exc:`ValueError` for an unknown one.
    """
    begin = BEGIN + b" READ ONLY" if read_only else BEGIN
    if isolation is None:
        return (begin,)
    level = " ".join(str(isolation).upper().replace("_", " ").replace("-", " ").split())
    if level not in LEVELS:
        known = ", ".join(LEVELS)
        raise ValueError(f"isolation must be one of {known}, not {isolation!r:.60}")
    # For the next transaction only, and refused in one that a SELECT has begun.
    return COMMIT, f"SET TRANSACTION ISOLATION LEVEL {level}".encode(), begin


def after_commit_of(
    block: TransactionBlock | None, function: Callable[[], object]
) -> None:
    """Have a function called after the COMMIT of a block, or without one at once."""
    if not callable(function):
        raise TypeError(f"after_commit() takes a function, not {function!r:.60}")
    if block is None:
        call_after_commit(function)
    else:
        block.after_commit.append(function)


def call_after_commit(function: Callable[[], object]) -> None:
    """Call a function that is to follow a COMMIT; log what it raises."""
    try:
        function()
    except Exception as error:
        text = "what was to be done after a COMMIT has failed, and the COMMIT stays"
        log(ERROR, text, error=error)


def transaction(
    connection: PooledConnection,
    *,
    isolation: str | None = None,
    read_only: bool = False,
) -> TransactionBlock:
    """Make a block that is one transaction or, within another block, a savepoint.

    The ``isolation`` level, such as ``"READ COMMITTED"``, and ``read_only`` are those
    of this transaction alone.

    The block raises :exc:`~.errors.TransactionError` if a transaction is open that is
    not a block, if the transaction was ended inside, or if an inner block has an
    isolation level of its own; and :exc:`~.errors.CommitUnknown` if the connection is
    lost between the COMMIT and its answer.
    """
    beginning = beginning_of(isolation, read_only)
    return TransactionBlock(lambda: connection, beginning=beginning)


def _current_owner() -> object:
    """Return the current asyncio task, or the number of the current thread."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


def _is_ours(error: BaseException) -> bool:
    of_server = ConnectionLost, ServerUnavailable
    return isinstance(error, PoolError) and not isinstance(error, of_server)


def run_in_transaction(
    connection: PooledConnection,
    function: Callable[..., T],
    *args: Any,
    retries: int,
    isolation: str | None = None,
    read_only: bool = False,
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
        with transaction(connection, isolation=isolation, read_only=read_only):
            return _call(function, connection, *args)
    tried = 0
    while True:
        block = transaction(connection, isolation=isolation, read_only=read_only)
        try:
            with block:
                return _call(function, connection, *args)
        except MySQLError as error:
            if tried == retries or not _may_be_repeated(error, block, connection):
                raise
        tried += 1
        time.sleep(pause_after(tried, FIRST_PAUSE, LONGEST_PAUSE))


def refuse_generator(function: Callable[..., Any]) -> None:
    """Raise TypeError for a function whose work comes after its call."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            "a generator would run outside of the transaction; use 'with transaction()'"
            " inside it"
        )


def _call(function: Callable[..., T], *args: Any) -> T:
    refuse_generator(function)
    result = function(*args)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            "a coroutine would run outside of the transaction; use 'with transaction()'"
            " inside it"
        )
    return result


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

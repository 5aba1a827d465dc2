"""Transactions as blocks: all of it or nothing, and again where that is safe.

A block begins a transaction, or sets a savepoint if one is open, and ends it by COMMIT
or, after any exception, by ROLLBACK. What is known to end a transaction (DDL, or a
COMMIT of one's own) is refused inside; what did so unseen, such as a procedure, is an
error.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pymysql.constants import ER
from pymysql.err import MySQLError

from .connection import ROLLED_BACK
from .errors import CommitUnknown, ConnectionLost, PoolError, TransactionError
from .handle import PooledConnection

T = TypeVar("T")

#: Errors after which all of it may be tried again, since it is rolled back: by the
#: server, or after a lock wait timeout by the block.
CONFLICTS = ROLLED_BACK | {ER.LOCK_WAIT_TIMEOUT}

#: Why it is not known what came of a COMMIT.
_CONNECTION_LOST = (
    "the connection was lost after COMMIT was sent and before it was answered"
)
_SERVER_LOST_IT = "the server cannot say whether what was sent with COMMIT is stored"

#: Pauses before another try: seconds, doubling from the first to the last, jittered.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0


@contextmanager
def transaction(connection: PooledConnection) -> Iterator[PooledConnection]:
    """A block that is one transaction or, inside of another, a savepoint.

    Raises :exc:`~.errors.TransactionError` where one is open already that is no block,
    and at the end if the transaction was ended inside;
    :exc:`~.errors.CommitUnknown` if the connection is lost between the COMMIT and its
    answer; and what the server says.
    """
    if connection.blocks:
        with _savepoint(connection):
            yield connection
        return
    connection.begin_block()
    connection.block_owner = _who()
    try:
        yield connection
        _check(connection, 1)
    except BaseException as error:
        _roll_back(connection, error)
        raise
    _commit(connection)


def _check(connection: PooledConnection, depth: int) -> None:
    if connection.blocks == depth and connection.block_is_open():
        return
    raise TransactionError(
        "the transaction was ended inside of its block: by an error of the server that"
        " was caught, by returning the connection, by another block that was not in"
        " step with this one, or by something that commits (a procedure may); what such"
        " a thing has committed stays, and the rest is rolled back"
    )


def _who() -> object:
    """Whose block it is: a task's, or a thread's."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


@contextmanager
def _savepoint(connection: PooledConnection) -> Iterator[None]:
    if connection.block_owner != _who():
        raise TransactionError(
            "another task or thread is inside of transaction() on this connection; use"
            " one of your own: 'with db.connection() as conn:'"
        )
    name = connection.savepoint.format(connection.blocks)
    connection.query(f"SAVEPOINT {name}")
    connection.blocks += 1
    depth = connection.blocks
    try:
        yield
        _check(connection, depth)
    except BaseException as error:
        _roll_back_to(connection, name, depth, error)
        raise
    connection.blocks = depth - 1
    connection.query(f"RELEASE SAVEPOINT {name}")


def _roll_back_to(
    connection: PooledConnection, name: str, depth: int, error: BaseException
) -> None:
    """Undo a block inside of a block; where that fails, the outer one has to fail."""
    in_step = connection.blocks == depth
    if not connection.blocks:
        # The outer one has ended before this one, and taken with it what there was.
        connection.rollback()
        return
    connection.blocks = depth - 1
    try:
        if in_step and connection.open and connection.block_is_open():
            connection.query(f"ROLLBACK TO SAVEPOINT {name}")
        elif not in_step:
            connection.spoil_block()
    except BaseException as failure:
        connection.spoil_block()
        if isinstance(failure, Exception) and not isinstance(error, Exception):
            return
        raise


def _roll_back(connection: PooledConnection, error: BaseException) -> None:
    """Undo all of it; and if that is not possible, let nobody go on with it."""
    uncertain = connection.may_be_committed
    if not connection.returned and connection.open and not uncertain:
        try:
            uncertain = not connection.block_is_open() and connection.may_be_committed
        except MySQLError:
            pass  # lost, and so rolled back
    connection.end_block()
    if connection.returned:
        return
    try:
        connection.rollback()
    except BaseException as failure:
        connection.condemn(failure)
        raise
    if uncertain and isinstance(error, MySQLError) and not _is_ours(error):
        raise TransactionError(
            "the block failed after something in it that may have committed by itself,"
            " such as a procedure: look what is there before doing it again"
        ) from error


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, PoolError) and not isinstance(error, ConnectionLost)


def _commit(connection: PooledConnection) -> None:
    connection.end_block()
    try:
        connection.commit()
    except BaseException as error:
        unknown = connection.lost_in_commit and isinstance(error, Exception)
        _roll_back(connection, error)
        if unknown:
            said = error.args[:1] == (ER.ERROR_DURING_COMMIT,)
            why = _SERVER_LOST_IT if said else _CONNECTION_LOST
            raise CommitUnknown(
                f"{why}: look whether the work is there, before doing it again"
            ) from error
        raise


def run_in_transaction(
    connection: PooledConnection, function: Callable[..., T], *args: Any, retries: int
) -> T:
    """Call ``function(connection, *args)`` in a transaction, and again if need be.

    So it is after a deadlock, after a lock wait timeout, and if the connection is lost
    before COMMIT is sent; at most ``retries`` times, after pauses that grow. It never
    is after a COMMIT of unknown outcome, nor after an error of something that may have
    committed by itself, such as a procedure.
    """
    if retries < 0:
        raise ValueError("retries must be 0 or more")
    if connection.blocks:
        # A deadlock ends the outer transaction too, so only all of it can be repeated.
        with transaction(connection):
            return function(connection, *args)
    tried = 0
    while True:
        try:
            with transaction(connection):
                return function(connection, *args)
        except CommitUnknown:
            raise
        except MySQLError as error:
            if tried == retries or not _may_be_repeated(error, connection):
                raise
        pause = min(FIRST_PAUSE * 2.0**tried, LONGEST_PAUSE)
        time.sleep(pause * random.uniform(0.5, 1.5))
        tried += 1


def _may_be_repeated(error: MySQLError, connection: PooledConnection) -> bool:
    if _is_ours(error):
        return False
    # A connection that was lost has been given up by the rollback of the block; if
    # not, it was lost before, with work that is nobody's here to repeat.
    return connection.given_up or bool(error.args and error.args[0] in CONFLICTS)

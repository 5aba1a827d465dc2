"""Transactions as blocks: all of it or nothing, and again where that is safe.

A block begins a transaction, or sets a savepoint if one is open, and ends it by COMMIT
or, after any exception, by ROLLBACK. What ends a transaction behind the block's back
(DDL, or a COMMIT of one's own) is not hidden: at the end of the block it is an error.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pymysql.constants import ER
from pymysql.err import MySQLError

from .errors import CommitUnknown, ConnectionLost, PoolError, TransactionError
from .handle import PooledConnection

T = TypeVar("T")

#: Errors after which all of it may be tried again, since it is rolled back: by the
#: server after a deadlock, or when the members of a group disagree (3101); by the block
#: after a lock wait timeout, or after a change since the snapshot (1020, MariaDB).
CONFLICTS = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.CHECKREAD, 3101})

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
    try:
        yield connection
    except BaseException:
        connection.end_block()
        _roll_back(connection)
        raise
    if connection.end_block():
        _commit(connection)
    else:
        _roll_back(connection)
        raise TransactionError(
            "the transaction was ended inside of its block, by a deadlock that was"
            " caught, by returning the connection, or by something that commits (a"
            " procedure may); what came before that is committed or lost, and what came"
            " after is not one with it"
        )


@contextmanager
def _savepoint(connection: PooledConnection) -> Iterator[None]:
    name = f"mysqlpool_{connection.blocks}"
    connection.query(f"SAVEPOINT {name}")
    connection.blocks += 1
    try:
        yield
    except BaseException:
        if connection.block_is_open:
            connection.query(f"ROLLBACK TO SAVEPOINT {name}")
        raise
    finally:
        connection.blocks -= 1
    connection.query(f"RELEASE SAVEPOINT {name}")


def _roll_back(connection: PooledConnection) -> None:
    if not connection.returned:
        connection.rollback()


def _commit(connection: PooledConnection) -> None:
    try:
        connection.commit()
    except BaseException as error:
        unknown = connection.lost_in_commit and isinstance(error, Exception)
        _roll_back(connection)
        if unknown:
            raise CommitUnknown(
                "the connection was lost after COMMIT was sent and before it was"
                " answered: look whether the work is there, before doing it again"
            ) from error
        raise


def run_in_transaction(
    connection: PooledConnection, function: Callable[..., T], *args: Any, retries: int
) -> T:
    """Call ``function(connection, *args)`` in a transaction, and again if need be.

    So it is after a deadlock, after a lock wait timeout, and if the connection is lost
    before COMMIT is sent; at most ``retries`` times, after pauses that grow. After a
    COMMIT of unknown outcome it never is.
    """
    if connection.blocks:
        # A deadlock ends the outer transaction too, so only all of it can be repeated.
        with transaction(connection):
            return function(connection, *args)
    for tried in range(retries + 1):
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
    raise AssertionError("unreachable")


def _may_be_repeated(error: MySQLError, connection: PooledConnection) -> bool:
    if isinstance(error, PoolError) and not isinstance(error, ConnectionLost):
        return False
    # A connection that was lost has been given up by the rollback of the block; if
    # not, it was lost before, with work that is nobody's here to repeat.
    return connection.given_up or bool(error.args and error.args[0] in CONFLICTS)

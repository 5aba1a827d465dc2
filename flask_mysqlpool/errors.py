"""All exceptions of this package.

They are subclasses of the exceptions that callers may already catch: an exhausted pool
raises a :exc:`pymysql.err.OperationalError` for code written for PyMySQL, which is a
:exc:`dbutils.pooled_db.TooManyConnectionsError` for code written for DBUtils.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any

from click import ClickException
from dbutils.pooled_db import InvalidConnectionError, TooManyConnectionsError
from pymysql.constants import CR
from pymysql.err import InterfaceError, OperationalError, ProgrammingError


class PoolError(Exception):
    """Base class of all errors of this package; they can be pickled and copied."""

    def __reduce__(self) -> Any:
        # Without __init__, whose parameters may differ from args.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__ or None  # type: ignore[attr-defined]


class ConfigError(PoolError, ValueError, ClickException):
    """The settings are invalid.

    :attr:`faults` has one sentence for *every* fault, each naming its key; the message
    lists them all and shows no secret. The ``flask`` command prints the faults, without
    a traceback, and exits with 1.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        ClickException.__init__(self, "; ".join(self.faults))

    def format_message(self) -> str:
        """Return what the ``flask`` command prints: each fault on a line of its own."""
        if len(self.faults) == 1:
            return self.faults[0]
        return "\n  ".join([f"{len(self.faults)} settings are wrong:", *self.faults])


class PoolTimeout(PoolError, OperationalError, TooManyConnectionsError):  # type: ignore[misc]
    """No connection became available before the checkout's deadline.

    The message begins with the pool's name and tells how long the checkout waited, how
    many connections are in use, and which holder has one for longest. The last connect
    error, if any, is the ``__cause__``.
    """


class PoolFull(PoolError, OperationalError, TooManyConnectionsError):  # type: ignore[misc]
    """``MAX_WAITING`` checkouts are waiting: this one fails at once."""


class ServerUnavailable(PoolError, OperationalError):
    """No connection could be opened: the server is out of reach, or full.

    ``args`` are the number and the text of the error: 2002, 2003, 2005, 2006 and 2013
    (out of reach), 1040, 1203 and 1226 (full), 1047 (a Galera node outside its
    cluster), 1053 (shutting down), 9001 (a ProxySQL without a server).
    """


class PoolClosed(PoolError, InterfaceError):
    """The pool has been closed and lends no more connections."""


class ConnectionLost(OperationalError, PoolError):
    """The connection to the server was lost, with all work that was not committed.

    Every statement and ``commit()`` raises this until the caller calls ``rollback()``
    or returns the connection, so that the second half of a transaction is never
    committed without the first. The error that broke the connection is the
    ``__cause__``. ``args`` are a number and a text, like those of a server's error.
    """

    def __init__(self, text: str) -> None:
        super().__init__(CR.CR_SERVER_GONE_ERROR, text)


class TransactionError(PoolError, ProgrammingError):
    """A transaction was begun or ended in a state that does not allow it."""


class NotOneRow(PoolError, LookupError):
    """``one()`` has found no row, or several: :attr:`count` says how many."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"expected one row, found {count or 'none'}")


class CommitUnknown(OperationalError, PoolError):
    """The connection was lost between sending COMMIT and receiving its answer.

    A Galera node that loses its cluster during COMMIT raises it, too (1180). The work
    may have been committed or not. The error that broke the connection is the
    ``__cause__``.
    """


class ConnectionReturned(PoolError, InterfaceError, InvalidConnectionError):  # type: ignore[misc]
    """A connection, or a cursor of it, was used after its return to the pool."""


class ConnectionShared(PoolError, InterfaceError):
    """Two threads, or a process and its forked child, used one connection."""

"""Every error that this package raises, and what each means to a caller.

Those that a caller may already be catching are subclasses of what it catches:
a pool that is out of connections is a :exc:`pymysql.err.OperationalError` to
code that knows PyMySQL, and a :exc:`dbutils.pooled_db.TooManyConnectionsError`
to code that knows DBUtils.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any

from dbutils.pooled_db import InvalidConnectionError, TooManyConnectionsError
from pymysql.constants import CR
from pymysql.err import InterfaceError, OperationalError, ProgrammingError


class PoolError(Exception):
    """Base of every error of this package. Each survives ``pickle`` and ``copy``."""

    def __reduce__(self) -> Any:
        # Not by way of __init__, which may take something else than what is in args.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__ or None  # type: ignore[attr-defined]


class ConfigError(PoolError, ValueError):
    """The settings are wrong.

    :attr:`faults` holds one sentence for *every* fault found, each naming its
    key; the message lists them all and shows no secret.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class PoolTimeout(PoolError, OperationalError, TooManyConnectionsError):  # type: ignore[misc]
    """No connection could be had before the checkout's deadline.

    The message begins with the pool's name and says how many seconds were
    waited, what is in use, and who has held a connection for longest; the last
    connect error, if there was one, is the ``__cause__``.
    """


class PoolFull(PoolError, OperationalError, TooManyConnectionsError):  # type: ignore[misc]
    """``MAX_WAITING`` checkouts wait already: this one is refused at once."""


class PoolClosed(PoolError, InterfaceError):
    """The pool has been closed; it hands nothing out any more."""


class ConnectionLost(OperationalError, PoolError):
    """The server is gone, and with it the work that was not committed.

    Every statement and ``commit()`` raises this until the caller calls
    ``rollback()`` or returns the connection, so that the second half of a
    transaction is never committed without its first. The error that broke the
    connection is the ``__cause__``. ``args`` are a number and a text, as those of an
    error of the server.
    """

    def __init__(self, text: str) -> None:
        super().__init__(CR.CR_SERVER_GONE_ERROR, text)


class TransactionError(PoolError, ProgrammingError):
    """A transaction was begun, or ended, where that cannot be what was meant."""


class CommitUnknown(OperationalError, PoolError):
    """The connection was lost after COMMIT was sent and before it was answered.

    Or a node of a Galera cluster lost the others meanwhile (1180). The work may be
    there, or not. What broke the connection is the ``__cause__``.
    """


class ConnectionReturned(PoolError, InterfaceError, InvalidConnectionError):  # type: ignore[misc]
    """A connection, or a cursor of it, was used after its return to the pool."""


class ConnectionShared(PoolError, InterfaceError):
    """Two threads, or a process and its forked child, used one connection."""

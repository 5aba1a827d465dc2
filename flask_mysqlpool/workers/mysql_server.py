"""What the server itself says: its version, its limits and who is connected.

Asked over a connection of its own, so it needs nothing from any pool. Without further
privileges a MySQL user sees, and may end, just its own threads; that is enough here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from socket import gethostname
from typing import Any

from pymysql.constants import ER
from pymysql.err import MySQLError

from ..config import PoolConfig
from ..pool.driver.connector import Connector
from ..pool.driver.logs import is_exit, kind, plain
from ..pool.driver.session import Session

#: Errors of a server that does not let this account see what clients call themselves.
_NOT_FOR_US = frozenset(
    {ER.TABLEACCESS_DENIED_ERROR, ER.DBACCESS_DENIED_ERROR, ER.NO_SUCH_TABLE}
)


#: Errors whose text tells an operator what to do. What a PASSWORD that is a function
#: raises is told by its kind before it comes here.
_TOLD = MySQLError, OSError, RuntimeError


@dataclass(frozen=True)
class Thread:
    """One connection, as the server sees it."""

    thread_id: int
    user: str
    #: Where it comes from: ``address:port``, or ``localhost`` for a socket.
    client: str
    database: str | None
    #: What it is doing; ``Sleep`` between two statements.
    command: str
    #: Seconds that it has been doing so.
    seconds: int
    statement: str | None
    #: What its client calls itself; None if the server does not keep that.
    program: str | None = None

    @property
    def sleeps(self) -> bool:
        return self.command == "Sleep"


@dataclass(frozen=True)
class ServerReport:
    """The server at one instant."""

    version: str
    max_connections: int
    #: Connections of all clients together.
    connected: int
    #: Those of this user to this database, without the one that asked.
    threads: tuple[Thread, ...]


@dataclass(frozen=True)
class Facts:
    """What a doctor wants to know; durations in seconds."""

    version: str
    #: How long the connect took, and how long an answer takes.
    connect: float
    round_trip: float
    #: Of the TLS connection; None without one.
    cipher: str | None
    #: ``user@host`` that the server took us for, and how it made sure.
    account: str
    plugin: str
    read_only: bool
    wait_timeout: int
    max_connections: int
    #: The most that this account may have; 0 if that is not limited.
    max_user_connections: int
    #: Connections of all clients, and those of this user, this one not counted.
    connected: int
    of_this_user: int
    #: Of these, those from other hosts, by what they call themselves.
    of_other_hosts: int = 0


class Unanswered(Exception):
    """A server could not be asked: MySQL's number, if there is one, and what was said.

    Its cause is the error that was raised, whose text is here only if it is the
    server's, the system's or the driver's.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.number: int | None = None
        self.text = kind(error)
        if issubclass(type(error), _TOLD):
            number = next(iter(error.args), None)
            self.number = number if type(number) is int else None
            self.text = ": ".join(map(plain, error.args)) or self.text
        self.__cause__ = error

    def __str__(self) -> str:
        return self.text


class Server:
    """Asks one server over one connection; make it with :func:`connect_to`."""

    def __init__(self, config: PoolConfig, connection: Session) -> None:
        self._config = config
        self._connection = connection
        self._raw = connection.raw
        self._opened_in = time.monotonic() - connection.opened

    def _rows(self, statement: str) -> tuple[tuple[Any, ...], ...]:
        patience = self._config.read_timeout or self._config.connect_timeout
        rows = self._connection.ask(statement, time.monotonic() + patience)
        return tuple(tuple(row.values()) for row in rows)

    def report(self) -> ServerReport:
        """Ask for everything, in three statements."""
        [(version, limit)] = self._rows("SELECT VERSION(), @@max_connections")
        [(_, connected)] = self._rows("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
        threads = tuple(self._threads())
        return ServerReport(plain(version), _number(limit), _number(connected), threads)

    def facts(self) -> Facts:
        """Ask for all that decides whether this server and a pool will get along."""
        [(version, account, *numbers)] = self._rows(
            "SELECT VERSION(), CURRENT_USER(), @@read_only, @@session.wait_timeout,"
            " @@max_connections, @@max_user_connections"
        )
        [(_, cipher)] = self._rows("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        [(_, connected)] = self._rows("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
        threads = self._rows("SHOW PROCESSLIST")
        own = [_number(row[0]) for row in threads if row[1] == self._config.account]
        programs = self._programs()
        here = gethostname()
        read_only, wait_timeout, max_connections, max_user_connections = numbers
        return Facts(
            version=plain(version),
            connect=self._opened_in,
            round_trip=min(self._round_trip() for _ in range(5)),
            cipher=plain(cipher) if cipher else None,
            account=plain(account),
            plugin=plain(self._raw._auth_plugin_name or "the server's default plugin"),
            read_only=str(read_only).upper() not in ("0", "OFF"),
            wait_timeout=_number(wait_timeout),
            max_connections=_number(max_connections),
            max_user_connections=_number(max_user_connections),
            connected=_number(connected) - 1,
            of_this_user=len(own) - 1,
            of_other_hosts=sum(_host(programs.get(n)) not in (None, here) for n in own),
        )

    def _round_trip(self) -> float:
        started = time.monotonic()
        self._raw.ping(reconnect=False)
        return time.monotonic() - started

    def _programs(self) -> dict[int, str]:
        """What this account's connections call themselves, where that is kept."""
        try:
            rows = self._rows(
                "SELECT PROCESSLIST_ID, ATTR_VALUE"
                " FROM performance_schema.session_account_connect_attrs"
                " WHERE ATTR_NAME = 'program_name'"
            )
        except MySQLError as error:
            if error.args[0] not in _NOT_FOR_US:
                raise
            return {}
        return {_number(number): plain(program) for number, program in rows}

    def _threads(self) -> Iterator[Thread]:
        programs = self._programs()
        for row in self._rows("SHOW FULL PROCESSLIST"):
            number, user, client, database, command, seconds, _, statement = row[:8]
            thread = Thread(
                *(_number(number), user, plain(client), database, plain(command)),
                *(_number(seconds or 0), None if statement is None else str(statement)),
                program=programs.get(_number(number)),
            )
            if thread.thread_id != self._raw.thread_id() and self._is_ours(thread):
                yield thread

    def _is_ours(self, thread: Thread) -> bool:
        config = self._config
        return (thread.user, thread.database) == (config.account, config.database)

    def kill(self, threads: Iterable[Thread]) -> int:
        """End these connections; how many there still were to end."""
        return sum(self._killed(thread) for thread in threads)

    def _killed(self, thread: Thread) -> bool:
        try:
            self._rows(f"KILL {thread.thread_id:d}")
        except MySQLError as error:
            if error.args[0] != ER.NO_SUCH_THREAD:
                raise
            return False
        return True


def _number(value: Any) -> int:
    number = int(value)
    if abs(number) >= 1 << 64:
        raise ValueError("no number of MySQL is so large")
    return number


def _host(program: str | None) -> str | None:
    """The host that is named, if it is one of our pools that calls itself so."""
    parts = (program or "").rsplit(" ", 2)
    return parts[1] if len(parts) == 3 and parts[2].isdigit() else None


@contextmanager
def connect_to(config: PoolConfig) -> Iterator[Server]:
    """A :class:`Server` for a ``with`` block.

    Whatever is raised on the way is an :exc:`Unanswered`. Connecting takes no longer
    than ``CONNECT_TIMEOUT``, and an answer, too, unless there is a ``READ_TIMEOUT``.
    """
    seconds = config.connect_timeout
    config = replace(config, read_timeout=config.read_timeout or seconds)
    try:
        connection = Connector(config).connect(time.monotonic() + seconds)
        try:
            yield Server(config, connection)
        finally:
            connection.close()
    except BaseException as error:
        if is_exit(error):
            raise
        raise Unanswered(error) from error

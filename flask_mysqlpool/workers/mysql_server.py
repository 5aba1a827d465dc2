"""MySQL's own view: the server's version, its limits and its connected clients.

It is queried over a dedicated connection, independent of every pool. Without further
privileges a MySQL account sees and may kill only its own threads, which is enough here.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import gethostname
from typing import Any, NamedTuple

from pymysql.constants import ER
from pymysql.err import MySQLError

from ..config import PoolConfig
from ..config.settings import altered
from ..config.validators import mode_of
from ..pool.driver.connector import Connector
from ..pool.driver.error_codes import NOT_OF_A_STATEMENT
from ..pool.driver.logs import is_exit, kind, plain
from ..pool.driver.session import Session

_THREADS = "SHOW FULL PROCESSLIST"

#: Errors whose text is shown to an operator. What a PASSWORD function raises may have a
#: secret text, which the connector has replaced by the error's class.
_SHOWN = MySQLError, OSError, RuntimeError


@dataclass(frozen=True)
class Thread:
    """One row of the server's process list."""

    thread_id: int
    user: str
    #: The client's ``address:port``, or ``localhost`` for a socket.
    client: str
    database: str | None
    #: The kind of command; ``Sleep`` between two statements.
    command: str
    #: Seconds since the command began.
    seconds: int
    statement: str | None
    #: The client's attribute ``program_name``; None if the server does not keep it.
    program: str | None = None

    @property
    def sleeps(self) -> bool:
        return self.command == "Sleep"


@dataclass(frozen=True)
class ServerReport:
    """The server at one moment."""

    version: str
    #: None, here and below: the server does not tell.
    max_connections: int | None
    #: Connections of all clients together.
    connected: int | None
    #: Those of this user to this database, without this connection.
    threads: tuple[Thread, ...] | None


@dataclass(frozen=True)
class Facts:
    """The facts that ``check`` examines; durations in seconds."""

    version: str
    #: Durations of the connect, and of one round trip.
    connect: float
    round_trip: float
    #: Of the TLS connection; None without one.
    cipher: str | None
    #: ``user@host`` of the account, and its authentication plugin.
    account: str
    plugin: str
    #: None, here and below: the server does not tell.
    read_only: bool | None
    wait_timeout: int | None
    max_connections: int | None
    #: The limit of connections of this account; 0: unlimited, or not known.
    max_user_connections: int
    #: Connections of all clients, and those of this user, without this connection; 0 if
    #: they are not known.
    connected: int
    of_this_user: int
    #: Of these, the pools' connections on other hosts, by their ``program_name``.
    of_other_hosts: int = 0
    #: Whether several commands may be sent at once.
    pipelines: bool = True
    #: The strictest ``SSL_MODE`` that TLS fulfils which ``CONNECT`` or ``SSL_CONTEXT``
    #: has set up, and which of the two; None if ``SSL_MODE`` decides.
    verified: tuple[str, str] | None = None


class Login(NamedTuple):
    """How a connection was opened, for a client that opens another one."""

    host: str
    port: int
    #: A ``PASSWORD`` function may return another one the next time.
    password: bytes
    is_encrypted: bool
    is_mariadb: bool


class Unanswered(Exception):
    """A server could not be queried: MySQL's error number, if any, and a text.

    Its cause is the error that was raised. The text is that error's only if it comes
    from the server, the system or the driver; otherwise it is the error's class.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.number: int | None = None
        self.text = kind(error)
        if issubclass(type(error), _SHOWN):
            number = next(iter(error.args), None)
            self.number = number if type(number) is int else None
            self.text = ": ".join(map(plain, error.args)) or self.text
        self.__cause__ = error

    def __str__(self) -> str:
        return self.text


class Server:
    """Queries one server over one connection; made by :func:`connect_to`."""

    def __init__(self, config: PoolConfig, connection: Session) -> None:
        self._config = config
        self._connection = connection
        self._raw = connection.raw
        self._opened_in = time.monotonic() - connection.opened

    def login(self) -> Login:
        """Return the host that was chosen, and by what it was logged in to."""
        raw = self._raw
        return Login(
            host=raw.host,
            port=raw.port,
            password=bytes(raw.password),
            is_encrypted=isinstance(raw._sock, ssl.SSLSocket),
            is_mariadb="MariaDB" in raw.server_version,
        )

    def _rows(self, statement: str) -> tuple[tuple[Any, ...], ...]:
        patience = self._config.read_timeout or self._config.connect_timeout
        rows = self._connection.ask(statement, time.monotonic() + patience)
        return tuple(tuple(row.values()) for row in rows)

    def _try(self, statement: str) -> tuple[tuple[Any, ...], ...] | None:
        """Return the rows of a statement, or None if the server refuses it."""
        try:
            return self._rows(statement)
        except MySQLError as error:
            is_lost = self._connection.lost is not None
            if is_lost or error.args[0] in NOT_OF_A_STATEMENT:
                raise
            return None

    def _values(self, *expressions: str) -> tuple[Any, ...]:
        """Query these at once or, if the server refuses one, each; None if refused."""
        if rows := self._try(f"SELECT {', '.join(expressions)}"):
            return rows[0]
        if len(expressions) == 1:
            return (None,)
        return tuple(self._values(expression)[0] for expression in expressions)

    def _status(self, scope: str, name: str) -> Any:
        """Return the value of a status variable; None if the server has none."""
        rows = self._try(f"SHOW {scope} STATUS LIKE '{name}'")
        return rows[0][1] if rows else None

    def report(self) -> ServerReport:
        """Query version, limits and threads, in three statements."""
        version, limit = self._values("VERSION()", "@@max_connections")
        connected = self._status("GLOBAL", "Threads_connected")
        rows = self._try(_THREADS)
        threads = None if rows is None else tuple(self._ours(rows))
        return ServerReport(
            plain(version), _known_number(limit), _known_number(connected), threads
        )

    def facts(self) -> Facts:
        """Query what ``check`` compares with the settings of a pool."""
        version, account, *numbers = self._values(
            *("VERSION()", "CURRENT_USER()", "@@read_only", "@@session.wait_timeout"),
            *("@@max_connections", "@@max_user_connections"),
        )
        cipher = self._status("SESSION", "Ssl_cipher")
        if cipher is None and self._raw._secure:
            cipher = "a cipher that the server does not tell"
        connected = _known_number(self._status("GLOBAL", "Threads_connected"))
        threads = self._try("SHOW PROCESSLIST") or ()
        own = [_number(row[0]) for row in threads if row[1] == self._config.account]
        programs = self._programs()
        here = gethostname()
        read_only, wait_timeout, max_connections, max_user_connections = numbers
        verified, sock = None, self._raw._sock
        if isinstance(sock, ssl.SSLSocket) and not self._raw.ssl:
            # The server does not know of it.
            [cipher, *_] = sock.cipher() or [None]
            verified = mode_of(sock.context), "CONNECT"
        elif self._config.ssl_context is not None:
            verified = mode_of(self._config.ssl_context), "SSL_CONTEXT"
        return Facts(
            version=plain(version),
            connect=self._opened_in,
            round_trip=min(self._round_trip() for _ in range(5)),
            cipher=plain(cipher) if cipher else None,
            account=plain(account),
            plugin=plain(self._raw._auth_plugin_name or "the server's default plugin"),
            read_only=(
                None
                if read_only is None
                else str(read_only).upper() not in ("0", "OFF")
            ),
            wait_timeout=_known_number(wait_timeout),
            max_connections=_known_number(max_connections),
            max_user_connections=_known_number(max_user_connections) or 0,
            connected=max((connected or 0) - 1, 0),
            of_this_user=max(len(own) - 1, 0),
            pipelines=self._connection.pipelines,
            verified=verified,
            of_other_hosts=sum(_host(programs.get(n)) not in (None, here) for n in own),
        )

    def _round_trip(self) -> float:
        started = time.monotonic()
        self._raw.ping(reconnect=False)
        return time.monotonic() - started

    def _programs(self) -> dict[int, str]:
        """Return each connection's ``program_name`` by thread id, where it is kept."""
        rows = self._try(
            "SELECT PROCESSLIST_ID, ATTR_VALUE"
            " FROM performance_schema.session_account_connect_attrs"
            " WHERE ATTR_NAME = 'program_name'"
        )
        return {_number(number): plain(program) for number, program in rows or ()}

    def threads(self) -> tuple[Thread, ...]:
        """Query the connections of this user to this database."""
        return tuple(self._ours(self._rows(_THREADS)))

    def _ours(self, rows: Iterable[Sequence[Any]]) -> Iterator[Thread]:
        programs = self._programs()
        for row in rows:
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
        """Kill these threads, and return how many of them still existed."""
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


def _known_number(value: Any) -> int | None:
    return None if value is None else _number(value)


def _host(program: str | None) -> str | None:
    """Return the host in a ``program_name`` that one of our pools has set."""
    parts = (program or "").rsplit(" ", 2)
    return parts[1] if len(parts) == 3 and parts[2].isdigit() else None


@contextmanager
def connect_to(config: PoolConfig) -> Iterator[Server]:
    """Connect to a server for a ``with`` block.

    Every error, also of the block, becomes an :exc:`Unanswered`. The connect is bounded
    by ``CONNECT_TIMEOUT``, and each answer by ``READ_TIMEOUT``, by default the same.
    """
    seconds = config.connect_timeout
    config = altered(config, read_timeout=config.read_timeout or seconds)
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

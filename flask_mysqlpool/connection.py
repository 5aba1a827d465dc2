"""One session with the server: how it is opened, checked, cleaned and ended.

This module and :mod:`.handle`, which is what a caller sees of a session, are the only
ones that know PyMySQL; this one alone knows DBUtils' ``SteadyDB``.
"""

from __future__ import annotations

import copy
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os import getpid
from typing import Any

import pymysql
from dbutils.steady_db import SteadyDBConnection
from pymysql.constants import COMMAND, CR, ER, SERVER_STATUS
from pymysql.err import MySQLError, OperationalError

from .config import PoolConfig
from .residue import DATABASE, INDELIBLE, NONE, SESSION, TRANSACTION, residue

#: The DB-API module that the pool is built on.
DRIVER = pymysql

#: Error numbers after which the server has closed the connection, or will.
LOST = frozenset({0, 1053, 1927, 2006, 2013, 2014, 2045, 2055, 4031})

#: Error numbers of a server that has become a replica: ours should move on.
READ_ONLY = frozenset({1290, 1792, 1836})

#: Not in PyMySQL: makes the session as good as new, at the price of a round trip.
COM_RESET_CONNECTION = 0x1F

_ROLLBACK = ((COMMAND.COM_QUERY, b"ROLLBACK"),)

#: What the methods of PyMySQL that talk to the server leave behind.
_RESIDUE_OF = {
    "begin": TRANSACTION,
    "select_db": SESSION | DATABASE,
    "autocommit": SESSION,
    "set_character_set": SESSION,
    "set_charset": SESSION,
}


#: Readers of sockets that belong to a parent process, kept from being finalized.
_INHERITED: list[Any] = []


class _NeverRaised(Exception):
    """Tells SteadyDB which errors to fail over on: none.

    Its failover executes the statement again, on a new connection and outside
    the transaction that the first one was in.
    """


@contextmanager
def _bounded(raw: Any, deadline: float) -> Iterator[None]:
    """Let PyMySQL read and write no later than the deadline.

    Its own timeouts cover single reads only, so a server that sends a byte now
    and then could go on for ever. An attribute of the instance shadows the
    method, because the many reads that need no deadline must not pay for one.
    """

    def read_bytes(wanted: int) -> bytes:
        data = b""
        while len(data) < wanted:
            raw._write_timeout = raw._current_timeout = left = _left(deadline)
            raw._sock.settimeout(left)
            # read1() alone would ask the socket for no more than it was asked for.
            raw._rfile.peek(1)
            chunk = raw._rfile.read1(wanted - len(data))
            if not chunk:
                raise ConnectionError("the server closed the connection")
            data += chunk
        return data

    write_timeout = raw._write_timeout
    raw._read_bytes = read_bytes
    try:
        raw._write_timeout = _left(deadline)
        yield
    except OSError as error:
        raw._force_close()
        raise OperationalError(
            CR.CR_SERVER_LOST, f"Lost connection to MySQL server ({error})"
        ) from error
    except BaseException:
        raw._force_close()
        raise
    finally:
        del raw._read_bytes
        raw._write_timeout = write_timeout
        raw._current_timeout = -1.0


def _may_be_in_transaction(status: int) -> bool:
    """Judge by the server's last OK; with autocommit off, a SELECT gives none."""
    return bool(
        status & SERVER_STATUS.SERVER_STATUS_IN_TRANS
        or not status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
    )


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class Connector:
    """Opens connections as one :class:`PoolConfig` says.

    The TLS context is made once: building it costs more than connecting.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self._tls: ssl.SSLContext | None = None

    def connect(self, deadline: float) -> PhysicalConnection:
        """Open a connection and set its session up, all before the deadline.

        Raises what PyMySQL raises (2003 unreachable, 1045 refused, 1049 unknown
        database, …). A deadline that passes on the way is a 2003 or a 2013.
        """
        try:
            return self._open(deadline)
        except OperationalError as error:
            rotates = callable(self.config.password)
            if error.args[0] != ER.ACCESS_DENIED_ERROR or not rotates:
                raise
        # It may have been changed between being given out and being used.
        return self._open(deadline)

    def _open(self, deadline: float) -> PhysicalConnection:
        password = self.config.password
        if callable(password):
            password = password()
        connection = PhysicalConnection(self.config, self._arguments(password))
        raw = connection.raw
        if self._wants_tls():
            # Not a cached property: that has a lock, which a fork may leave held.
            self._tls = self._tls or self._make_tls()
            raw.ssl, raw.ctx = True, self._tls
            raw._ssl_required = self.config.ssl_mode != "PREFERRED"
        connection.open(deadline)
        return connection

    def _arguments(self, password: str | None) -> dict[str, Any]:
        config = self.config
        return {
            "host": config.host,
            "port": config.port,
            "unix_socket": config.unix_socket,
            "user": config.user,
            # PyMySQL would take text for Latin-1, and the server takes it for UTF-8.
            "password": (password or "").encode(),
            "database": config.database,
            "charset": config.charset,
            "collation": config.collation,
            "cursorclass": config.cursorclass,
            "read_timeout": config.read_timeout,
            "write_timeout": config.write_timeout,
            "program_name": config.name,
            **config.connect_args,
            # PyMySQL would spend a round trip each on what `setup` does in one,
            # and build a TLS context for every connection.
            "autocommit": None,
            "ssl_disabled": True,
            "defer_connect": True,
        }

    def _wants_tls(self) -> bool:
        config = self.config
        preferred = config.ssl_mode == "PREFERRED"
        return config.ssl_mode != "DISABLED" and not (preferred and config.unix_socket)

    def _make_tls(self) -> ssl.SSLContext:
        """The TLS context for ``SSL_MODE``, which means what it means to ``mysql``."""
        config = self.config
        mode = config.ssl_mode
        context = ssl.create_default_context(cafile=config.ssl_ca)
        # The certificates that MySQL makes for itself fail the strict check that
        # Python 3.13 turned on.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = mode == "VERIFY_IDENTITY"
        if mode not in ("VERIFY_CA", "VERIFY_IDENTITY"):
            context.verify_mode = ssl.CERT_NONE
        if config.ssl_cert is not None:
            context.load_cert_chain(config.ssl_cert, config.ssl_key)
        return context


class PhysicalConnection(SteadyDBConnection):  # type: ignore[misc]
    """One session with the server, and what its pool has to remember about it.

    A ``SteadyDBConnection`` in kind, so that it is what DBUtils expects; nothing of
    its failover is left.
    """

    def __init__(self, config: PoolConfig, arguments: dict[str, Any]) -> None:
        self.config = config
        #: Used by nobody but this process.
        self.pid = getpid()
        #: The error that ended the session, once one has, and whether it says that the
        #: server went away, rather than that we lost patience with it.
        self.lost: BaseException | None = None
        self.is_disconnected = False
        #: What its borrower may have left in the session.
        self.residue = NONE
        #: Whether it should go when it comes back, although it works.
        self.retired = False
        #: Times in `time.monotonic()` seconds.
        self.opened = self.since = time.monotonic()
        self.expires = float("inf")
        self.generation = 0
        #: How often it was handed out, and the thread that has it now.
        self.uses = 0
        self.holder = 0
        #: Commands that were sent and whose answers were not read yet.
        self.unanswered = 0
        super().__init__(pymysql, failures=(_NeverRaised,), ping=0, **arguments)
        # Tracing wraps what pymysql.connect returns in a transparent proxy; it
        # gets to make the cursors, and the protocol is spoken on the real thing.
        self.raw: Any = getattr(self._con, "__wrapped__", self._con)
        self.traced = self.raw is not self._con

    def open(self, deadline: float) -> None:
        """Connect and set the session up; see :meth:`Connector.connect`."""
        try:
            self._connect(deadline)
            self._setup = self._commands_for_setup()
            raw = self.raw
            self._charset = raw.charset, raw.encoding, raw.collation
            self.write(self._setup)
            self.read_answers(deadline)
        except BaseException:
            self.abandon()
            raise

    def _connect(self, deadline: float) -> None:
        raw = self.raw
        try:
            sock = _dial(raw, deadline)
        except OSError as error:
            raise OperationalError(
                CR.CR_CONN_HOST_ERROR,
                f"Can't connect to MySQL server on {raw.host!r} ({error})",
            ) from error
        # connect() would spend a round trip on SET NAMES alone.
        raw.set_character_set = lambda *_: None
        try:
            with _bounded(raw, deadline):
                raw.connect(sock)
        finally:
            del raw.set_character_set
        self._readable = _watch(raw._sock)

    def _commands_for_setup(self) -> list[tuple[int, bytes]]:
        """The commands that give a fresh session the settings of this pool."""
        config, raw = self.config, self.raw
        names = f"SET NAMES {raw.charset}"
        if raw.collation:
            names += f" COLLATE {raw.collation}"
        names += f", autocommit = {int(config.autocommit)}"
        if config.sql_mode is not None:
            names += f", sql_mode = {raw.escape(config.sql_mode)}"
        statements = [names, *config.setsession]
        if config.init_command:
            statements.insert(1, config.init_command)
        return [(COMMAND.COM_QUERY, text.encode(raw.encoding)) for text in statements]

    def write(self, commands: Sequence[tuple[int, bytes]]) -> bool:
        """Send commands in one piece, without waiting for room or for answers.

        False if the network would not take them at once; the connection is then
        of no further use.
        """
        raw = self.raw
        data = b"".join(
            struct.pack("<iB", len(payload) + 1, command) + payload
            for command, payload in commands
        )
        try:
            raw._sock.settimeout(0.0)
            raw._current_timeout = 0.0
            complete = bool(raw._sock.send(data) == len(data))
        except OSError as error:
            self.failed(error)
            return False
        self.unanswered += len(commands)
        return complete

    def read_answers(self, deadline: float) -> None:
        """Read the answers to what :meth:`write` sent.

        Raises what the server answers; a 2013 if it has not done so by the deadline.
        """
        raw = self.raw
        patience = max(deadline - time.monotonic(), 0.0)
        try:
            if not self._readable(patience):
                raise OperationalError(
                    CR.CR_SERVER_LOST, "Lost connection to MySQL server (no answer)"
                )
            with _bounded(raw, deadline):
                while self.unanswered:
                    raw._next_seq_id = 1
                    raw._read_query_result()
                    while raw._result.has_next:
                        raw.next_result()
                    self.unanswered -= 1
        except MySQLError as error:
            self.failed(error)
            raise
        raw._result = None

    def is_alive(self) -> bool:
        """Whether the server still holds its end open; costs no round trip.

        A server says nothing unasked, so an idle connection with something to read
        has been closed, killed, timed out, or is out of step.
        """
        return self.raw._sock is not None and not self._readable(0)

    def is_answered(self) -> bool:
        """Whether the answers to what was written have begun to come."""
        return not self.unanswered or bool(self._readable(0))

    def execute(self, statement: str | bytes, unbuffered: bool) -> int:
        """Execute, and remember what this leaves behind in the session."""
        raw = self.raw
        if isinstance(statement, str):
            statement = statement.encode(raw.encoding)
        elif not isinstance(statement, bytes):
            statement = bytes(statement)
        if raw._result is not None:
            self.attempt(self._finish_stream)
        self.residue |= residue(statement)
        return self.attempt(raw.query, statement, unbuffered)  # type: ignore[no-any-return]

    def command(self, name: str, *args: Any) -> Any:
        """Call a method of PyMySQL that talks to the server, likewise."""
        if name != "next_result":
            self.attempt(self._finish_stream)
        self.residue |= _RESIDUE_OF.get(name, NONE)
        result = self.attempt(getattr(self.raw, name), *args)
        if name in ("commit", "rollback"):
            self._transaction_ended()
        return result

    def attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call into the driver and judge what comes out of it."""
        try:
            return call(*args)
        except BaseException as error:
            self.failed(error)
            raise

    def _finish_stream(self) -> None:
        """Read the rows that a closed cursor left: they stand before the next reply.

        If the cursor is still open, PyMySQL does so, and warns.
        """
        result = self.raw._result
        if result is not None and getattr(result, "unwanted", False):
            result._finish_unbuffered_query()

    def failed(self, error: BaseException) -> None:
        """Judge an error that came out of the driver.

        An error that the server reported leaves the two in step. Anything else (a
        timeout, an interrupt, a reply that could not be decoded) may have left
        half a reply unread, and then there is no way back.
        """
        code = error.args[0] if error.args else None
        if isinstance(error, MySQLError) and self.raw._sock and code not in LOST:
            self.retired = self.retired or code in READ_ONLY
            return
        if self.lost is None:
            self.is_disconnected = _tells_of_a_disconnect(error)
            # A traceback would keep alive the frames that it went through, and with
            # them the handle, which could then never be found to have been dropped.
            self.lost = without_traceback(error)
        self.abandon()

    def _transaction_ended(self) -> None:
        """Note a COMMIT or ROLLBACK that succeeded."""
        if not self.raw.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
            self.residue &= ~TRANSACTION

    def ping(self, deadline: float) -> None:
        """Make the server answer, at the price of a round trip.

        Raises a 2013 if it does not do so by the deadline.
        """
        self.write([(COMMAND.COM_PING, b"")])
        self.read_answers(deadline)

    def reset_session(self) -> bool:
        """Make the session fit for the next borrower, without waiting.

        False if that is not certain to succeed; it must then be discarded.
        """
        raw = self.raw
        result = raw._result
        if result is not None:
            if result.unbuffered_active or result.has_next:
                return False
            raw._result = None
        left, self.residue = self.residue, NONE
        policy = self.config.reset_session
        if policy == "always":
            left |= SESSION
        elif policy == "transaction":
            left &= TRANSACTION
        if left & INDELIBLE:
            return False
        if left & (SESSION | DATABASE):
            return self._start_over(change_database=bool(left & DATABASE))
        if left and _may_be_in_transaction(raw.server_status):
            return self.write(_ROLLBACK)
        return True

    def _start_over(self, change_database: bool) -> bool:
        """Reset all that the server forgets when told to, and set up what it forgot."""
        raw = self.raw
        raw.charset, raw.encoding, raw.collation = self._charset
        commands = [(COM_RESET_CONNECTION, b""), *self._setup]
        if change_database:
            database = self.config.database
            if database is None:
                # There is no command to go back to having none.
                return False
            commands.insert(1, (COMMAND.COM_INIT_DB, database.encode(raw.encoding)))
        return self.write(commands)

    def _close(self) -> None:
        """Say goodbye, without waiting, and close. SteadyDB's close() calls this."""
        if self.pid == getpid() and self.raw._sock is not None:
            self.write([(COMMAND.COM_QUIT, b"")])
        self.abandon()

    def abandon(self) -> None:
        """Close this process's end of the socket without a word to the server."""
        raw = self.raw
        result = raw._result
        if result is not None:
            # Otherwise its finalizer would go on reading.
            result.unbuffered_active = False
        if self.pid == getpid():
            raw._force_close()
        elif raw._sock is not None:
            # A thread of the parent may have been reading at the fork. Here it will
            # never end, and closing the buffered reader would wait for it.
            sock, raw._sock = raw._sock, None
            _INHERITED.append(raw._rfile)
            raw._rfile = None
            os.close(sock.detach())
        self._closed = True

    def interrupt(self) -> None:
        """End the connection under the thread that is reading from it."""
        with suppress(OSError, AttributeError):
            self.raw._sock.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        """Do nothing: a finalizer may run in a forked child, or under the lock.

        PyMySQL's own closes the descriptor.
        """


def without_traceback(error: BaseException) -> BaseException:
    """A copy that keeps no frame alive, and that may be raised in another thread."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:
        return RuntimeError(repr(error))


def _tells_of_a_disconnect(error: BaseException) -> bool:
    if isinstance(error, OperationalError):
        impatient = isinstance(error.__context__, TimeoutError)
        return bool(error.args) and error.args[0] in LOST and not impatient
    return isinstance(error, ConnectionError)


def _watch(sock: socket.socket) -> Callable[[float], Any]:
    """A function that waits, so many seconds at most, for something to read."""
    if not hasattr(select, "poll"):  # Windows
        return lambda seconds: select.select([sock], [], [], seconds)[0]
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda seconds: poll.poll(seconds * 1000)


def _dial(raw: Any, deadline: float) -> socket.socket:
    """Open the socket: all addresses of the name are tried within the deadline."""
    if raw.unix_socket:
        raw.host_info, raw._secure = "Localhost via UNIX socket", True
        return _connected(
            socket.AF_UNIX,
            socket.SOCK_STREAM,
            0,
            raw.unix_socket,
            None,
            _left(deadline),
        )
    source = (raw.bind_address, 0) if raw.bind_address is not None else None
    addresses = socket.getaddrinfo(raw.host, raw.port, type=socket.SOCK_STREAM)
    raw.host_info = f"socket {raw.host}:{raw.port}"
    failure: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        share = _left(deadline) / (len(addresses) - index)
        try:
            sock = _connected(family, kind, protocol, address, source, share)
        except OSError as error:
            failure = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock
    raise failure or OSError(f"no address for {raw.host!r}")


def _connected(
    family: int, kind: int, protocol: int, address: Any, source: Any, timeout: float
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.settimeout(timeout)
        if source is not None:
            sock.bind(source)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock

"""One socket to the server: opened, written, read, found dead and closed, on time.

This is the network's half of a connection. What the server knows of it, the session, is
:class:`~.session.PhysicalConnection`'s.
"""

from __future__ import annotations

import copy
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any

import pymysql
from dbutils.steady_db import SteadyDBConnection
from pymysql.connections import Connection
from pymysql.constants import COMMAND, CR, SERVER_STATUS
from pymysql.err import MySQLError, OperationalError

from .process import process
from .results import ReadingConnection
from .sockets import connect_socket, io_deadline, readable_now, time_left, wait_readable

#: The DB-API module that the pool is built on.
DRIVER = pymysql

#: Error numbers after which the server has closed the connection, or will.
LOST = frozenset({0, 1053, 1927, 2006, 2013, 2014, 2045, 2055, 4031})

#: Seconds that results which a borrower left unread may still take to be read.
MOMENT = 0.05

#: What the server answers to a question: by their names, the columns of each row.
Rows = list[dict[str, str | None]]

#: Bytes. What claims to send a longer packet before the login is no such server.
LONGEST_OF_LOGIN = 1 << 20

#: Seconds after which a server that has not answered is taken to be out of reach.
SILENCE = 0.25

#: Seconds that there are in any case for the rest of an answer that has begun.
REST = 0.05

#: Where the readers of sockets are told that their sockets are.
_ORIGIN = 1 << 40

#: Seconds that a server may take to close a connection after saying that it will.
CLOSING = 0.1

#: Readers of sockets that belong to a parent process, kept from being finalized.
_INHERITED: list[Any] = []


class _NeverRaised(Exception):
    """Tells SteadyDB which errors to fail over on: none.

    Its failover executes the statement again, on a new connection and outside
    the transaction that the first one was in.
    """


class NotAnswered(OperationalError):
    """The server has not answered yet, and has not had the time for it either."""

    def __init__(self) -> None:
        super().__init__(CR.CR_SERVER_LOST, "no answer in time")


class Transport(SteadyDBConnection):  # type: ignore[misc]
    """A PyMySQL connection of this process, and whether it can still be used.

    A ``SteadyDBConnection`` in kind, so that it is what DBUtils expects; nothing of
    its failover is left.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        #: Used by nobody but this process.
        self.pid = process()
        #: The error that ended the session, once one has, and whether it says that the
        #: server went away, rather than that we lost patience with it.
        self.lost: BaseException | None = None
        self.is_disconnected = False
        #: Its place among the connections of this host, if they are counted; kept
        #: for as long as the socket is open.
        self.slot: object = None
        #: Whether results that the last borrower left stand before the answers.
        self.unread = False
        #: Commands that were sent and whose answers were not read yet.
        self.unanswered = 0
        #: Whether the server has accepted the account.
        self.is_logged_in = False
        #: The answers that were read, while others are still to come.
        self._answers: list[Any] = []
        #: When something was last written, in `time.monotonic()` seconds.
        self.asked = 0.0
        super().__init__(pymysql, failures=(_NeverRaised,), ping=0, **arguments)
        # Tracing wraps what pymysql.connect returns in a transparent proxy; it
        # gets to make the cursors, and the protocol is spoken on the real thing.
        self.raw: Any = getattr(self._con, "__wrapped__", self._con)
        self.traced = self.raw is not self._con
        if type(self.raw) is Connection:
            self.raw.__class__ = ReadingConnection

    def establish(self, deadline: float) -> None:
        """Open the socket and log in, both by the deadline."""
        raw = self.raw
        try:
            sock = connect_socket(raw, deadline)
        except (OSError, UnicodeError) as error:
            raise OperationalError(
                CR.CR_CONN_HOST_ERROR,
                f"Can't connect to MySQL server on {raw.unix_socket or raw.host!r}"
                f" ({error})",
            ) from error
        # connect() would spend a round trip on SET NAMES alone.
        raw.set_character_set = lambda *_: None
        try:
            with io_deadline(raw, deadline, LONGEST_OF_LOGIN):
                raw.connect(sock)
        finally:
            del raw.set_character_set
        self.is_logged_in = True
        self._socket_is = _identity(raw._sock.fileno())
        self._readable = wait_readable(raw._sock)
        self._has_news = readable_now(raw._sock)
        # Then the reader's position tells whether its buffer holds unread bytes.
        raw._rfile.raw.tell = repeat(_ORIGIN).__next__
        self._position = raw._rfile.tell

    def write(self, commands: Sequence[tuple[int, bytes]]) -> bool:
        """Send commands in one piece, without waiting for room or for answers.

        False if the network would not take them at once, or if the server has sent
        something unasked; the connection is then of no further use.
        """
        if not (self.unanswered or self.unread or self.is_alive()):
            self.failed(
                OSError("the server has closed the connection, or answers twice")
            )
            return False
        return self._send(commands)

    def _send(self, commands: Sequence[tuple[int, bytes]]) -> bool:
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
        self.asked = time.monotonic()
        return complete

    def read_answers(self, deadline: float) -> list[Rows]:
        """Read the answers to what :meth:`write` sent: the rows of each.

        Raises the first error among them, after all of them were read; a 2013 if they
        have not come by the deadline.
        """
        answers = self.read_each(deadline)
        for answer in answers:
            if isinstance(answer, MySQLError):
                self.failed(answer)
                raise answer
        return answers

    def read_each(self, deadline: float) -> list[Any]:
        """Read the same answers, with each error of the server in its place.

        Raises :exc:`NotAnswered` if the deadline is so early that the server may still
        be about to answer: what is missing can then be read later.
        """
        if self.unread:
            patience = self.asked + MOMENT
            self.attempt(self._read_the_rest, min(deadline, patience))
            if self.unread:
                if time.monotonic() < patience:
                    raise NotAnswered
                self.attempt(_no_answer, deadline)
        self.attempt(_no_answer if self._closed else self._read_answers, deadline)
        if self.unanswered:
            if time.monotonic() < self.asked + SILENCE:
                raise NotAnswered
            self.attempt(_no_answer, deadline)
        answers, self._answers = self._answers, []
        return answers

    def _read_answers(self, deadline: float) -> None:
        """Read those answers that begin to come before the deadline."""
        raw = self.raw
        # The rest of an answer that has begun is a matter of microseconds, if not of
        # other threads; to stop in the middle would cost the connection.
        to_the_end = max(deadline, time.monotonic() + REST)
        with io_deadline(raw, to_the_end):
            while self.unanswered and (
                self._position() != _ORIGIN or self._readable(deadline)
            ):
                raw._sock.settimeout(time_left(to_the_end))
                done = self._read_ok()
                self._answers.append([] if done else self._read_answer())
                self.unanswered -= 1
        raw._result = None

    def _read_the_rest(self, deadline: float) -> None:
        """Read the results that the last borrower left, in front of the answers.

        Those that have not begun to come by the deadline stay unread.
        """
        raw = self.raw
        with io_deadline(raw, max(deadline, time.monotonic() + REST)):
            try:
                while raw._result.has_next:
                    if self._position() == _ORIGIN and not self._readable(deadline):
                        return
                    raw.next_result()
            except MySQLError as error:
                if not self._is_answer(error):
                    raise
        self.unread, raw._result = False, None

    def _is_answer(self, error: MySQLError) -> bool:
        """Whether the server reported it, and the two are still in step."""
        return self.raw._sock is not None and error.args[0] not in LOST

    def _read_ok(self) -> bool:
        """Read the next packet if it is all here and a plain OK, as almost all are."""
        raw = self.raw
        # An OK that has changed no rows: length, number; 0, 0, 0, status, warnings.
        packet = raw._rfile.peek()
        size = int.from_bytes(packet[:3], "little")
        if size < 7 or len(packet) < size + 4 or packet[3:7] != b"\1\0\0\0":
            return False
        status = packet[7] | packet[8] << 8
        if status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS:
            return False
        raw._rfile.read1(size + 4)
        raw.server_status = status
        raw._next_seq_id = 2
        return True

    def _read_answer(self) -> Rows | MySQLError:
        raw = self.raw
        raw._next_seq_id = 1
        try:
            raw._read_query_result()
            while raw._result.has_next:
                raw.next_result()
        except MySQLError as error:
            if not self._is_answer(error):
                raise
            return error
        result = raw._result
        if not result.field_count:
            return []
        names = [column[0] for column in result.description]
        texts = (
            [None if v is None else v.decode(raw.encoding, "replace") for v in row]
            for row in result.rows
        )
        return [dict(zip(names, row, strict=True)) for row in texts]

    def ask(self, question: str, deadline: float) -> Rows:
        """Ask the server one thing of our own; see :meth:`read_answers`."""
        self.write([(COMMAND.COM_QUERY, question.encode())])
        [rows] = self.read_answers(deadline)
        return rows

    def is_alive(self) -> bool:
        """Whether the server still holds its end open; costs no round trip.

        A server says nothing unasked, so an idle connection with something to read
        has been closed, killed, timed out, or is out of step.
        """
        return (
            self.raw._sock is not None
            and self._position() == _ORIGIN
            and not self._has_news()
        )

    def is_answered(self) -> bool:
        """Whether the answers to what was written have begun to come."""
        return not self.unanswered or bool(self._has_news())

    def ping(self, deadline: float) -> None:
        """Make the server answer, at the price of a round trip.

        Raises a 2013 if it does not do so by the deadline.
        """
        self.write([(COMMAND.COM_PING, b"")])
        try:
            self.read_answers(deadline)
        except NotAnswered:
            raise
        except MySQLError:
            # That takes the server no time, so it must be out of reach.
            self.is_disconnected = True
            raise

    def attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call into the driver and judge what comes out of it."""
        try:
            return call(*args)
        except BaseException as error:
            self.failed(error)
            raise

    def failed(self, error: BaseException) -> None:
        """Judge an error that came out of the driver.

        An error that the server reported leaves the two in step. Anything else (a
        timeout, an interrupt, a reply that could not be decoded) may have left
        half a reply unread, and then there is no way back.
        """
        code = error.args[0] if error.args else None
        if isinstance(error, MySQLError) and self.raw._sock and code not in LOST:
            self.reported(error, code)
            return
        if self.lost is None:
            told = _tells_of_a_disconnect(error)
            self.is_disconnected = told and self._is_closing()
            # A traceback would keep alive the frames that it went through, and with
            # them the handle, which could then never be found to have been dropped.
            self.lost = without_traceback(error)
        self.abandon()

    def _is_closing(self) -> bool:
        """Whether the server closes the connection, as its error says.

        A trigger may SIGNAL the same numbers. A server that means it does so at once.
        """
        return self.raw._sock is None or bool(self._readable(CLOSING * 1000))

    def reported(self, error: MySQLError, code: Any) -> None:
        """Note an error that the server reported, and that leaves the two in step."""

    def _close(self) -> None:
        """Say goodbye, without waiting, and close. SteadyDB's close() calls this."""
        if self.pid == process() and self.raw._sock is not None:
            self._send([(COMMAND.COM_QUIT, b"")])
        self.abandon()

    def abandon(self) -> None:
        """Close this process's end of the socket without a word to the server."""
        raw = self.raw
        result = raw._result
        if result is not None:
            # Otherwise its finalizer would go on reading.
            result.unbuffered_active = False
        if self.pid == process():
            raw._force_close()
        elif raw._sock is not None:
            # A thread of the parent may have been reading at the fork. Here it will
            # never end, and closing the buffered reader would wait for it.
            sock, raw._sock = raw._sock, None
            _INHERITED.append(raw._rfile)
            raw._rfile = None
            number = sock.detach()
            # The child may have closed all that it inherited, and opened other files.
            with suppress(OSError):
                if _identity(number) == self._socket_is:
                    os.close(number)
        self._closed = True
        self.slot = None

    def interrupt(self) -> None:
        """End the connection under the thread that is reading from it."""
        with suppress(OSError, AttributeError):
            self.raw._sock.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        """Do nothing: a finalizer may run in a forked child, or under the lock.

        PyMySQL's own closes the descriptor.
        """


def _identity(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino


def without_traceback(error: BaseException) -> BaseException:
    """A copy that keeps no frame alive, and that may be raised in another thread."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:
        return RuntimeError(repr(error))


def _no_answer(deadline: float) -> None:
    try:
        raise TimeoutError("no answer")
    except TimeoutError as error:
        raise OperationalError(
            CR.CR_SERVER_LOST, f"Lost connection to MySQL server ({error})"
        ) from error


def _tells_of_a_disconnect(error: BaseException) -> bool:
    if isinstance(error, OperationalError):
        impatient = isinstance(error.__context__, TimeoutError)
        return bool(error.args) and error.args[0] in LOST and not impatient
    return isinstance(error, ConnectionError)

"""One socket to the server: open, write, read, check and close it, by deadlines.

The state of the session is kept by :class:`~.session.Session`.
"""

from __future__ import annotations

import copy
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import repeat
from traceback import walk_tb
from typing import Any

import pymysql
from dbutils.steady_db import SteadyDBConnection
from pymysql.connections import Connection
from pymysql.constants import COMMAND, CR, SERVER_STATUS
from pymysql.err import MySQLError, OperationalError

from .error_codes import LOST
from .process import process
from .results import CONVERTING, STATE_CHANGED, ReadingConnection, faithful
from .sockets import connect_socket, io_deadline, readable_now, time_left, wait_readable
from .statements import NONE

#: The DB-API module that the pool is built on.
DRIVER = pymysql

#: Seconds in which results that were left unread at the checkin can still be read.
MOMENT = 0.05

#: The rows of an answer: the values by the names of the columns.
Rows = list[dict[str, str | None]]

#: Maximum size, in bytes, of a packet during the login; a longer one is not MySQL's.
LONGEST_OF_LOGIN = 1 << 20

#: Seconds without an answer after which a server is taken to be unreachable.
SILENCE = 0.25

#: Minimum seconds to read the rest of an answer that has begun.
REST = 0.05

#: The file position that the raw readers of sockets report.
_ORIGIN = 1 << 40

#: Seconds in which a server closes a connection after an error that says so.
CLOSING = 0.1

#: Readers inherited from a parent process, kept alive because finalizing one may block.
_INHERITED: list[Any] = []


class _NeverRaised(Exception):
    """The only error on which SteadyDB fails over; it is never raised.

    A failover would execute the statement again, on a new connection and outside its
    transaction.
    """


class NotAnswered(OperationalError):
    """The deadline has passed before the server had a fair time to answer."""

    def __init__(self) -> None:
        super().__init__(CR.CR_SERVER_LOST, "no answer in time")


class Transport(SteadyDBConnection):  # type: ignore[misc]
    """A PyMySQL connection of this process, and whether it can still be used.

    It is a ``SteadyDBConnection``, as DBUtils expects, without the failover.
    """

    #: Idle seconds after which TCP probes the connection; 0 leaves it to the system.
    keepalive = 0.0

    def __init__(self, arguments: dict[str, Any]) -> None:
        #: The only process that may use it.
        self.pid = process()
        #: The error that ended the session, if one has; and whether the server has
        #: closed the connection, rather than failed to answer in time.
        self.lost: BaseException | None = None
        self.is_disconnected = False
        #: Whether another thread has ended a wait for an answer.
        self.interrupted = False
        #: The port of this end; 0 without TCP.
        self.port = 0
        #: Its reservation among the connections of this host, if these are limited;
        #: kept until the socket is closed.
        self.host_slot: object = None
        #: Whether results that were left unread come before the answers.
        self.unread = False
        #: Number of commands sent whose answers have not been read.
        self.unanswered = 0
        #: Whether the server has accepted the account.
        self.is_logged_in = False
        #: Whether commands are sent before those ahead of them are answered.
        self.pipelines = True
        #: Commands that wait for those ahead of them; counted as unanswered.
        self._unsent: deque[tuple[int, bytes]] = deque()
        #: Answers read so far, while others are still missing.
        self._answers: list[Any] = []
        #: When the last command was sent, in `time.monotonic()` seconds.
        self.asked = 0.0
        super().__init__(pymysql, failures=(_NeverRaised,), ping=0, **arguments)
        # Tracing libraries wrap the connection in a proxy, which makes the cursors;
        # everything else uses the wrapped connection.
        raw: Any = getattr(self._con, "__wrapped__", self._con)
        self.raw = raw
        self.traced = self.raw is not self._con
        #: What the server tells of its session, if it does; see :mod:`.results`.
        raw.told, raw.is_tracking = NONE, False
        if type(raw) is Connection:
            raw.__class__ = ReadingConnection
        raw.encoding = faithful(raw.encoding)

    def open_socket(self, deadline: float) -> socket.socket:
        """Open the socket to the server."""
        return connect_socket(self.raw, deadline, self.keepalive)

    def establish(self, deadline: float) -> None:
        """Open the socket and log in, both by the deadline."""
        raw = self.raw
        try:
            sock = self.open_socket(deadline)
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
        if isinstance(raw, ReadingConnection):
            raw.read_faster()
        if raw._sock.family in (socket.AF_INET, socket.AF_INET6):
            self.port = raw._sock.getsockname()[1]
        self._socket_is = _identity(raw._sock.fileno())
        self._readable = wait_readable(raw._sock)
        self._has_news = readable_now(raw._sock)
        # The reader's position is then _ORIGIN minus the unread bytes in its buffer.
        raw._rfile.raw.tell = repeat(_ORIGIN).__next__
        self._position = raw._rfile.tell

    def write(self, commands: Sequence[tuple[int, bytes]]) -> bool:
        """Send commands in one piece, without waiting for buffer space or for answers.

        Without pipelining, send the first one; :meth:`read_answers` and
        :meth:`send_waiting` send the others.
        False if the socket's buffer is full or the server has sent unexpected data; the
        connection must then be closed.
        """
        if not (self.unanswered or self.unread or self.is_alive()):
            self.failed(
                OSError("the server has closed the connection, or answers twice")
            )
            return False
        ahead = self.unanswered or self.unread
        self.unanswered += len(commands)
        if self.pipelines:
            return self._send(commands)
        self._unsent.extend(commands)
        return bool(ahead) or self._send([self._unsent.popleft()])

    def _send(self, commands: Sequence[tuple[int, bytes]]) -> bool:
        """Send commands; False if the socket did not take all bytes at once."""
        raw = self.raw
        data = packets(commands)
        try:
            raw._sock.settimeout(0.0)
            raw._current_timeout = 0.0
            complete = bool(raw._sock.send(data) == len(data))
        except OSError as error:
            self.failed(error)
            return False
        self.asked = time.monotonic()
        return complete

    def read_answers(self, deadline: float) -> list[Rows]:
        """Read the answers to the commands that :meth:`write` sent: the rows of each.

        Read all answers, then raise the first error among them. Raise a 2013 if they do
        not arrive by the deadline.
        """
        answers = self.read_each(deadline)
        for answer in answers:
            if isinstance(answer, MySQLError):
                self.failed(answer)
                raise answer
        return answers

    def read_each(self, deadline: float) -> list[Any]:
        """Read the same answers, and return errors of the server among them.

        Raises :exc:`NotAnswered` if the server had less than SILENCE seconds to answer;
        the missing answers can then be read later.
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

    @property
    def has_waiting(self) -> bool:
        """Whether commands wait for the answers to those ahead of them."""
        return bool(self._unsent)

    def send_waiting(self) -> None:
        """Send the commands whose turn has come, without waiting for an answer.

        The last answer is left to :meth:`read_answers`, which judges all of them.
        """
        now = time.monotonic()
        if self.unread:
            self.attempt(self._read_the_rest, now)
        if not self.unread:
            self.attempt(self._read_answers, now, True)

    def _read_answers(self, deadline: float, only_to_send: bool = False) -> None:
        """Read the answers that begin to arrive before the deadline.

        With ``only_to_send``, stop as soon as all commands have been sent.
        """
        raw = self.raw
        self._send_next()
        # The rest of an answer usually arrives within microseconds, and to stop in the
        # middle would cost the connection.
        to_the_end = max(deadline, time.monotonic() + REST)
        with io_deadline(raw, to_the_end):
            while (self._unsent if only_to_send else self.unanswered) and (
                self._position() != _ORIGIN or self._readable(deadline)
            ):
                raw._sock.settimeout(time_left(to_the_end))
                done = self._read_ok()
                self._answers.append([] if done else self._read_answer())
                self.unanswered -= 1
                self._send_next()
        raw._result = None

    def _send_next(self) -> None:
        """Send the next command, if it waits for nothing any more."""
        if self._unsent and len(self._unsent) == self.unanswered:
            if not self._send([self._unsent.popleft()]):
                raise OperationalError(CR.CR_SERVER_LOST, "a command cannot be sent")

    def _read_the_rest(self, deadline: float) -> None:
        """Read the results that were left unread before the answers.

        Those that do not begin to arrive by the deadline remain unread.
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
        """Return whether the server reported this error and the protocol is in step."""
        return (
            self.raw._sock is not None
            and bool(error.args)
            and error.args[0] not in LOST
            and _is_of_the_driver(error)
        )

    def _read_ok(self) -> bool:
        """Read the next packet, if it is complete and a plain OK, as most are."""
        raw = self.raw
        # A plain OK: length, sequence number, 0, 0 rows, insert id 0, status, warnings.
        packet = raw._rfile.peek()
        size = int.from_bytes(packet[:3], "little")
        if size < 7 or len(packet) < size + 4 or packet[3:7] != b"\1\0\0\0":
            return False
        status = packet[7] | packet[8] << 8
        if status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS:
            return False
        raw._rfile.read1(size + 4)
        raw.server_status = status & ~STATE_CHANGED
        raw._next_seq_id = 2
        return True

    def read_to_end(self) -> MySQLError | None:
        """Read all results of one command; return the error, if the server reports one.

        Otherwise the last result is that of the driver's connection.
        """
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
        return None

    def _read_answer(self) -> Rows | MySQLError:
        """Read the answer to one command: its rows, or the server's error."""
        if error := self.read_to_end():
            return error
        raw = self.raw
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
        """Send one query and return its rows; see :meth:`read_answers`."""
        self.write([(COMMAND.COM_QUERY, question.encode())])
        [rows] = self.read_answers(deadline)
        return rows

    def is_alive(self) -> bool:
        """Return whether the server has kept the connection open, without a round trip.

        A server sends nothing unasked, so an idle connection with something to read has
        been closed, killed, timed out, or is out of step.
        """
        return (
            self.raw._sock is not None
            and self._position() == _ORIGIN
            and not self._has_news()
        )

    def is_answered(self) -> bool:
        """Return whether no answer is missing, or the missing ones begin to arrive."""
        return not self.unanswered or bool(self._has_news())

    def ping(self, deadline: float) -> None:
        """Check by a round trip that the server answers.

        Raises a 2013 if it does not answer by the deadline.
        """
        self.write([(COMMAND.COM_PING, b"")])
        try:
            self.read_answers(deadline)
        except NotAnswered:
            raise
        except MySQLError:
            # A server answers a ping at once, so it must be unreachable.
            self.is_disconnected = True
            raise

    def attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the driver, and judge the error that it may raise."""
        try:
            return call(*args)
        except BaseException as error:
            self.failed(error)
            raise

    def failed(self, error: BaseException) -> None:
        """Close the connection after an error of the driver, unless it is in step.

        It is in step after an error reported by the server. Any other error (a timeout,
        an interrupt, a reply that cannot be decoded) may leave half a reply unread.
        """
        if isinstance(error, MySQLError) and self._is_answer(error):
            self.reported(error, error.args[0])
            return
        if self.lost is None:
            told = _tells_of_a_disconnect(error)
            self.is_disconnected = told and self._is_closing()
            # The traceback would keep its frames alive and with them the handle, whose
            # finalizer would then never run.
            self.lost = without_traceback(error)
        self.abandon()

    def _is_closing(self) -> bool:
        """Return whether the server closes the connection, as its error says.

        A trigger may SIGNAL the same numbers; then the server keeps it open.
        """
        until = time.monotonic() + CLOSING
        return self.raw._sock is None or bool(self._readable(until))

    def reported(self, error: MySQLError, code: Any) -> None:
        """Note an error reported by the server, after which the protocol is in step."""

    def _close(self) -> None:
        """Send COM_QUIT without waiting, and close; called by SteadyDB's close()."""
        if self.pid == process() and self.raw._sock is not None:
            self._send([(COMMAND.COM_QUIT, b"")])
        self.abandon()

    def abandon(self) -> None:
        """Close this process's end of the socket without telling the server."""
        raw = self.raw
        result = raw._result
        if result is not None:
            # Otherwise its finalizer would read the remaining rows.
            result.unbuffered_active = False
        if self.pid == process():
            raw._force_close()
        elif raw._sock is not None:
            # A thread of the parent may have held the reader's lock at the fork. In
            # this process it is never released, and closing the reader would block.
            sock, raw._sock = raw._sock, None
            _INHERITED.append(raw._rfile)
            raw._rfile = None
            number = sock.detach()
            # The child may have closed this descriptor and reused its number.
            with suppress(OSError):
                if _identity(number) == self._socket_is:
                    os.close(number)
        self._closed = True
        self.host_slot = None

    def interrupt(self) -> None:
        """Shut the socket down, while another thread is reading from it."""
        self.interrupted = True
        with suppress(OSError, AttributeError):
            self.raw._sock.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        """No-op: a finalizer may run in a forked child, or under the pool's lock.

        PyMySQL's own finalizer closes the descriptor.
        """


def packets(commands: Iterable[tuple[int, bytes]]) -> bytes:
    """Return commands as they are sent, each in a packet of its own."""
    return b"".join(
        struct.pack("<iB", len(payload) + 1, command) + payload
        for command, payload in commands
    )


def _identity(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_dev, about.st_ino


def without_traceback(error: BaseException) -> BaseException:
    """Copy an error without its traceback, so that another thread can raise it."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:
        return RuntimeError(repr(error))


def _is_of_the_driver(error: MySQLError) -> bool:
    """Return whether the driver raised this error, rather than a user's converter.

    A converter is called while the rest of the answer is unread.
    """
    module, converts = "", False
    for frame, _ in walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        converts = converts or frame.f_code.co_name in CONVERTING
    return module.startswith("pymysql.") and not converts


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

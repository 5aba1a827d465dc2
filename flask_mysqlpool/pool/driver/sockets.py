"""Name look-ups, connects and reads that end by a deadline."""

from __future__ import annotations

import _thread
import ctypes
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

from pymysql.connections import Connection
from pymysql.constants import CR
from pymysql.err import MySQLError, OperationalError

from .process import process

#: Maximum number of look-ups at once, including timed-out ones that still hang.
MOST = 16

_Addresses = list[tuple[Any, ...]]


class _LookUp:
    """One call of ``getaddrinfo``, on its own thread."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.done = threading.Event()
        self.addresses: _Addresses = []
        self.error: Exception | None = None

    def run(self, slots: threading.Semaphore) -> None:
        try:
            self.addresses = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM
            )
        except Exception as error:
            self.error = error.with_traceback(None)
        finally:
            slots.release()
            self.done.set()


class _Process:
    """The look-ups of one process."""

    def __init__(self) -> None:
        self.slots = threading.Semaphore(MOST)
        self.under_way: dict[tuple[str, int], _LookUp] = {}


#: By process, because threads and locks do not survive a fork.
_processes: dict[int, _Process] = {}


def addresses(host: str, port: int, deadline: float) -> _Addresses:
    """Call ``socket.getaddrinfo``, and raise TimeoutError at the deadline.

    An IP address needs no look-up.
    """
    for family in socket.AF_INET, socket.AF_INET6:
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return [(family, socket.SOCK_STREAM, 0, "", (host, port))]
    own = _processes.setdefault(process(), _Process())
    place = host, port
    look_up = own.under_way.get(place)
    if look_up is None or look_up.done.is_set():
        if not own.slots.acquire(timeout=_left(deadline)):
            raise TimeoutError(f"timed out: {MOST} look-ups of names hang")
        look_up = own.under_way[place] = _LookUp(host, port)
        try:
            _thread.start_new_thread(look_up.run, (own.slots,))
        except BaseException:
            own.slots.release()
            own.under_way.pop(place, None)
            raise
    done = look_up.done.wait(_left(deadline))
    if own.under_way.get(place) is look_up:
        own.under_way.pop(place, None)
    if not done:
        raise TimeoutError("timed out: the look-up of the name hangs")
    if look_up.error is not None:
        # A new object, because other threads may raise the same error.
        raise type(look_up.error)(*look_up.error.args)
    return look_up.addresses


def _left(deadline: float) -> float:
    return min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)


#: The system's poll(), called without releasing the GIL.
_POLL = getattr(ctypes.PyDLL(None), "poll", None) if os.name == "posix" else None


def connect_socket(raw: Any, deadline: float) -> socket.socket:
    """Open the socket: try all addresses of the host name by the deadline."""
    if raw.unix_socket:
        raw.host_info, raw._secure = "Localhost via UNIX socket", True
        return _connected(
            socket.AF_UNIX,
            socket.SOCK_STREAM,
            0,
            raw.unix_socket,
            None,
            time_left(deadline),
        )
    source = None
    if raw.bind_address is not None:
        [(*_, source), *_] = addresses(raw.bind_address, 0, deadline)
    found = addresses(raw.host, raw.port, deadline)
    raw.host_info = f"socket {raw.host}:{raw.port}"
    failure: OSError | None = None
    for index, (family, kind, protocol, _, address) in enumerate(found):
        share = time_left(deadline) / (len(found) - index)
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


@contextmanager
def io_deadline(raw: Any, deadline: float, largest: float = inf) -> Iterator[None]:
    """Have PyMySQL read and write by the deadline, without the user's conversions.

    A packet that claims to be larger than ``largest`` bytes is an error.

    PyMySQL's timeouts apply to single reads, so a server that sends single bytes could
    go on indefinitely. An attribute of the instance shadows the method, so reads
    without a deadline cost nothing extra.
    """

    def read_bytes(wanted: int) -> bytes:
        data = b""
        if wanted > largest:
            raise ConnectionError("what answers does not speak the protocol of MySQL")
        while len(data) < wanted:
            raw._write_timeout = raw._current_timeout = left = time_left(deadline)
            raw._sock.settimeout(left)
            # read1() alone would read no more than these bytes from the socket.
            raw._rfile.peek(1)
            chunk = raw._rfile.read1(wanted - len(data))
            if not chunk:
                raise ConnectionError("the server closed the connection")
            data += chunk
        return data

    write_timeout = raw._write_timeout
    before = raw.use_unicode, raw.decoders, getattr(raw, "conversions", None)
    raw.use_unicode, raw.decoders, raw.conversions = False, {}, None
    raw._read_bytes = read_bytes
    raw._read_packet = partial(Connection._read_packet, raw)
    try:
        raw._write_timeout = time_left(deadline)
        yield
    except OSError as error:
        raw._force_close()
        raise OperationalError(
            CR.CR_SERVER_LOST, f"Lost connection to MySQL server ({error})"
        ) from error
    except MySQLError:
        # Reported by the server, or PyMySQL has closed the socket already.
        raise
    except BaseException:
        raw._force_close()
        raise
    finally:
        del raw._read_bytes, raw._read_packet
        raw.use_unicode, raw.decoders, raw.conversions = before
        raw._write_timeout = write_timeout
        raw._current_timeout = -1.0


#: Seconds, 23 days: poll() and settimeout() take milliseconds as a C int.
LONGEST_WAIT = 2e6


def longest(seconds: float | None) -> float | None:
    """Limit a timeout of the settings to one that a socket accepts."""
    return None if seconds is None else min(seconds, LONGEST_WAIT)


def time_left(deadline: float) -> float:
    """Return the seconds until the deadline, as a socket's timeout.

    Raises TimeoutError if it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return min(left, LONGEST_WAIT)


def wait_readable(sock: socket.socket) -> Callable[[float], Any]:
    """Make a function that waits until a deadline for something to read."""

    def patience(deadline: float) -> float:
        return min(max(deadline - time.monotonic(), 0.0), LONGEST_WAIT)

    if not hasattr(select, "poll"):  # Windows
        return lambda deadline: select.select([sock], [], [], patience(deadline))[0]
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda deadline: poll.poll(patience(deadline) * 1000)


class _PollFD(ctypes.Structure):
    """``struct pollfd`` of POSIX."""

    _fields_ = (
        ("fd", ctypes.c_int),
        ("events", ctypes.c_short),
        ("revents", ctypes.c_short),
    )


def readable_now(sock: socket.socket) -> Callable[[], Any]:
    """Make a function that returns whether there is something to read.

    It keeps the GIL. ``select.poll`` releases it for the half microsecond that the call
    takes; with many threads, getting it back takes a hundred times as long.
    """
    if _POLL is None:
        look = partial(wait_readable(sock), 0)
    else:
        place = ctypes.byref(_PollFD(sock.fileno(), select.POLLIN))
        look = partial(_POLL, place, 1, 0)
    pending = getattr(sock, "pending", None)  # of TLS
    return look if pending is None else lambda: pending() or look()

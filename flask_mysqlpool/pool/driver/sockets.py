"""Name look-ups, connects and reads that end by a deadline."""

from __future__ import annotations

import _thread
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

from pymysql.connections import Connection
from pymysql.constants import CR
from pymysql.err import MySQLError, OperationalError

from ...config import PoolConfig
from .logs import kind, plain
from .process import process
from .tls import adopt

try:
    from ctypes import PyDLL, byref, create_string_buffer
except ImportError:  # PyPy has no PyDLL; a Python built without libffi has no ctypes
    _POLL = None
else:
    #: The system's poll(), called without releasing the GIL.
    _POLL = getattr(PyDLL(None), "poll", None) if os.name == "posix" else None

#: Maximum number of look-ups at once, including timed-out ones that still hang.
MOST = 16

#: TCP's probes of an idle connection: seconds between two, and how many may be lost;
#: the longest idle time, in seconds, that Linux accepts before the first.
PROBE_INTERVAL, PROBES = 10, 3
LONGEST_IDLE = 32767

_Address = tuple[Any, ...]
_Addresses = list[_Address]


class _Process:
    """The look-ups of one process."""

    def __init__(self) -> None:
        self.slots = threading.Semaphore(MOST)
        self.under_way: dict[tuple[str, int], Future[_Addresses]] = {}

    def start(self, host: str, port: int, deadline: float) -> Future[_Addresses]:
        """Start a look-up on a thread of its own."""
        if not self.slots.acquire(timeout=_left(deadline)):
            raise TimeoutError(f"timed out: {MOST} look-ups of names hang")
        look_up = self.under_way[host, port] = Future()
        try:
            _thread.start_new_thread(self._run, (look_up, host, port))
        except BaseException:
            self.slots.release()
            self.under_way.pop((host, port), None)
            raise
        return look_up

    def _run(self, look_up: Future[_Addresses], host: str, port: int) -> None:
        try:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            finally:
                self.slots.release()
            look_up.set_result(found)
        except Exception as error:
            look_up.set_exception(error.with_traceback(None))


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
    if look_up is None or look_up.done():
        look_up = own.start(host, port, deadline)
    try:
        error = look_up.exception(_left(deadline))
    except futures.TimeoutError:
        raise TimeoutError("timed out: the look-up of the name hangs") from None
    finally:
        if own.under_way.get(place) is look_up:
            own.under_way.pop(place, None)
    if error is not None:
        # A new object, because other threads may raise the same error.
        raise type(error)(*error.args)
    return look_up.result()


def connect_socket(raw: Any, deadline: float, keepalive: float) -> socket.socket:
    """Open the socket: try all addresses of the host name by the deadline.

    After ``keepalive`` idle seconds, TCP probes begin; 0 leaves that to the system.
    """
    source = None
    if raw.unix_socket:
        raw.host_info, raw._secure = "Localhost via UNIX socket", True
        found = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", raw.unix_socket)]
    else:
        raw.host_info = f"socket {raw.host}:{raw.port}"
        if raw.bind_address is not None:
            [(*_, source), *_] = addresses(raw.bind_address, 0, deadline)
        found = addresses(raw.host, raw.port, deadline)
    failure: OSError | None = None
    for index, address in enumerate(found):
        share = time_left(deadline) / (len(found) - index)
        try:
            sock = _connected(address, source, share)
        except OSError as error:
            failure = error
            continue
        _tune(sock, keepalive)
        return sock
    raise failure or OSError(f"no address for {raw.host!r}")


def socket_of_connect(raw: Any, deadline: float, config: PoolConfig) -> socket.socket:
    """Have ``CONNECT`` open the socket, and set it up as :func:`connect_socket` does.

    Raises its OSError or PyMySQL error, a 2000 for another one or if it returns no open
    socket, and a 2026 for TLS that leaves settings without effect.
    """
    assert config.connect is not None
    raw.host_info = f"socket {raw.host}:{raw.port}"
    try:
        sock: Any = config.connect(raw.host, raw.port, time_left(deadline))
    except (OSError, MySQLError):
        raise
    except Exception as error:
        text = f"CONNECT raised {kind(error)}: {plain(error)}"
        raise OperationalError(CR.CR_UNKNOWN_ERROR, text) from error
    try:
        if not isinstance(sock, socket.socket) or sock.fileno() < 0:
            text = (
                f"CONNECT must return an open socket.socket, and returned {kind(sock)}"
            )
            raise OperationalError(CR.CR_UNKNOWN_ERROR, text)
        sock.settimeout(time_left(deadline))
        _tune(sock, config.keepalive)
        if isinstance(sock, ssl.SSLSocket):
            adopt(sock, raw, config)
    except BaseException:
        if callable(close := getattr(sock, "close", None)):
            close()
        raise
    return sock


def _tune(sock: socket.socket, idle: float) -> None:
    """Have a TCP socket send at once, and idle connections probed.

    The probes also keep a NAT from forgetting the connection.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not idle:
        return
    first = min(max(1, round(idle)), LONGEST_IDLE)
    for name, value in {
        "TCP_KEEPIDLE": first,
        "TCP_KEEPINTVL": PROBE_INTERVAL,
        "TCP_KEEPCNT": PROBES,
        # The same for data that nothing acknowledges, in milliseconds.
        "TCP_USER_TIMEOUT": (first + PROBE_INTERVAL * PROBES) * 1000,
    }.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _connected(address: _Address, source: Any, timeout: float) -> socket.socket:
    sock = socket.socket(*address[:3])
    try:
        sock.settimeout(timeout)
        if source is not None:
            sock.bind(source)
        sock.connect(address[4])
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def io_deadline(raw: Any, deadline: float, largest: float = inf) -> Iterator[None]:
    """Have PyMySQL read and write by the deadline, without the user's conversions.

    No file is sent, which no answer to a statement of ours asks for.

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
    conversions = getattr(raw, "conversions", None)
    before = raw.use_unicode, raw.decoders, conversions, raw._local_infile
    raw.use_unicode, raw.decoders, raw.conversions = False, {}, None
    raw._local_infile = False
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
        raw.use_unicode, raw.decoders, raw.conversions, raw._local_infile = before
        raw._write_timeout = write_timeout
        raw._current_timeout = -1.0


#: Seconds, 23 days: poll() and settimeout() take milliseconds as a C int.
LONGEST_WAIT = 2e6


def longest(seconds: float | None) -> float | None:
    """Limit a timeout of the settings to one that a socket accepts."""
    return None if seconds is None else min(seconds, LONGEST_WAIT)


def _left(deadline: float) -> float:
    """Return the seconds until the deadline, as a timeout; 0 if it has passed."""
    return min(max(deadline - time.monotonic(), 0.0), LONGEST_WAIT)


def time_left(deadline: float) -> float:
    """Do the same as :func:`_left`, and raise TimeoutError if it has passed."""
    left = _left(deadline)
    if not left:
        raise TimeoutError("timed out")
    return left


def wait_readable(sock: socket.socket) -> Callable[[float], Any]:
    """Make a function that waits until a deadline for something to read."""
    if not hasattr(select, "poll"):  # Windows
        return lambda deadline: select.select([sock], [], [], _left(deadline))[0]
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return lambda deadline: poll.poll(_left(deadline) * 1000)


def readable_now(sock: socket.socket) -> Callable[[], Any]:
    """Make a function that returns whether there is something to read.

    It keeps the GIL. ``select.poll`` releases it for the half microsecond that the call
    takes; with many threads, getting it back takes a hundred times as long.
    """
    if _POLL is None:
        look = partial(wait_readable(sock), 0)
    else:
        # struct pollfd of POSIX
        entry = struct.pack("ihh", sock.fileno(), select.POLLIN, 0)
        look = partial(_POLL, byref(create_string_buffer(entry, 8)), 1, 0)
    pending = getattr(sock, "pending", None)  # of TLS
    return look if pending is None else lambda: pending() or look()

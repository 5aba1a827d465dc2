"""TLS sockets that fail by their own faults alone.

OpenSSL keeps a queue of errors for each thread, not for each socket. An error that
another socket has left in it is taken for the result of the next call that has to wait.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from pymysql.constants import CR
from pymysql.err import OperationalError

from ...config import PoolConfig

# The class to derive from is known at run time only: gevent replaces it.
if TYPE_CHECKING:
    _Socket = ssl.SSLSocket
else:
    _Socket = object


class _IsolatedSocket(_Socket):
    """Leaves no error in the thread's queue, and ignores what others have left in it.

    It never falls back to plain text, as a closed ``SSLSocket`` does.
    """

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        wanted = nbytes or len(buffer)
        try:
            return self.read(wanted, buffer)  # type: ignore[return-value]
        except ValueError:
            raise _closed() from None
        except BaseException as error:
            received: int = _call_again(error, self.read, wanted, buffer)
            if not received:
                raise
            return received

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return self.write(data)
        except ValueError:
            raise _closed() from None
        except BaseException as error:
            sent: int = _call_again(error, self.write, data)
            if not sent:
                raise
            return sent

    def sendall(self, data: Any, flags: int = 0) -> None:
        unsent = memoryview(data)
        while unsent:
            unsent = unsent[self.send(unsent) :]

    def do_handshake(self, **options: Any) -> None:  # type: ignore[override]
        try:
            super().do_handshake(**options)
        except BaseException:
            _empty_error_queue()
            raise

    def getpeername(self) -> Any:
        try:
            return super().getpeername()
        except OSError:
            # The server has reset it before the handshake, which Python 3.11 lets fail
            # without closing the socket.
            self.close()
            raise

    def shutdown(self, how: int) -> None:
        # SSLSocket's would have another thread continue in plain text.
        socket.socket.shutdown(self, how)


def isolate(context: ssl.SSLContext) -> None:
    """Have the context make sockets that do not share errors."""
    base = context.sslsocket_class
    context.sslsocket_class = type("IsolatedSocket", (_IsolatedSocket, base), {})


def _closed() -> OSError:
    return OSError(errno.EBADF, "another thread has closed this socket")


def _call_again(failure: BaseException, call: Callable[..., Any], *args: Any) -> Any:
    """Repeat a failed call with an empty queue; return 0 if the failure was real.

    OpenSSL continues a write where it stopped: no byte is sent twice.
    """
    _empty_error_queue()
    timed_out = isinstance(failure, TimeoutError) and failure.errno is None
    if timed_out or not isinstance(failure, OSError):
        return 0
    try:
        return call(*args)
    except OSError:
        return 0
    finally:
        _empty_error_queue()


def _empty_error_queue() -> None:
    # Python clears the queue when it makes a TLS object; it exports no function for it.
    _spare_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


@cache
def _spare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return context


#: Seconds for which a renewal may be half done: one file replaced, another not yet.
RENEWAL, RENEWAL_STEP = 1.0, 0.02

monotonic = time.monotonic
_Identity = tuple[int, ...]


class Certificates:
    """Makes the context that ``SSL_MODE`` and the files of ``SSL_…`` ask for.

    Making one costs more than connecting; looking at the files costs microseconds.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._made: tuple[list[_Identity], ssl.SSLContext] | None = None

    def context(self, deadline: float) -> ssl.SSLContext:
        """The context by the files as they are now.

        Files that have been replaced, and cannot be read or do not fit together, are
        looked at again for a while. Raises a 2026 if they are still no good then.
        """
        give_up = min(deadline, monotonic() + RENEWAL) if self._made else 0.0
        while True:
            # Before they are read: what changes meanwhile is read by the next connect.
            identities = self._identities()
            # No lock: that could be held at a fork. Two threads may make one each.
            made = self._made
            # gevent may have replaced the class meanwhile: with gunicorn --preload.
            if (
                made is not None
                and made[0] == identities
                and isinstance(made[1], ssl.SSLContext)
            ):
                return made[1]
            try:
                context = self._make()
            except OSError as error:
                failure = OperationalError(
                    CR.CR_SSL_CONNECTION_ERROR,
                    f"SSL_CA, SSL_CERT or SSL_KEY cannot be used ({error})",
                )
                failure.__cause__ = error.with_traceback(None)
            else:
                self._made = identities, context
                return context
            if monotonic() >= give_up:
                raise failure
            time.sleep(RENEWAL_STEP)

    def _identities(self) -> list[_Identity]:
        """What tells each file from one that replaces it, links followed."""
        config = self._config
        files = [config.ssl_ca, config.ssl_cert, config.ssl_key]
        if self._verifies and config.ssl_ca is None:
            files.append(ssl.get_default_verify_paths().cafile)
        return [_identity(file) for file in files if file is not None]

    @property
    def _verifies(self) -> bool:
        return self._config.ssl_mode in ("VERIFY_CA", "VERIFY_IDENTITY")

    def _make(self) -> ssl.SSLContext:
        """A context in which each mode means what it means to ``mysql``."""
        config = self._config
        if self._verifies:
            context = ssl.create_default_context(cafile=config.ssl_ca)
            # The certificates that MySQL makes for itself fail the strict check that
            # Python 3.13 turned on.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.check_hostname = config.ssl_mode == "VERIFY_IDENTITY"
        else:
            # Without the system's authorities, which take 20 ms to load.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if config.ssl_ca is not None:
                context.load_verify_locations(config.ssl_ca)
        if config.ssl_cert is not None:
            # With a password, for OpenSSL would ask the terminal for that of a key.
            context.load_cert_chain(config.ssl_cert, config.ssl_key, password="")
        isolate(context)
        return context


def _identity(file: str) -> _Identity:
    try:
        about = os.stat(file)
    except OSError:
        return ()
    changed = about.st_mtime_ns, about.st_ctime_ns
    return about.st_dev, about.st_ino, about.st_size, *changed

"""TLS contexts, and sockets that are not affected by the errors of other sockets.

OpenSSL has one queue of errors for each thread, not for each socket. An error of
another socket in that queue is taken for the result of the next call that would block.
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
from ...config.validators import mode_of

# The class to derive from is known at run time only: gevent replaces it.
if TYPE_CHECKING:
    _Socket = ssl.SSLSocket
else:
    _Socket = object


class _IsolatedSocket(_Socket):
    """Leaves no error in the thread's queue, and ignores errors of other sockets.

    Never falls back to plain text, as a closed ``SSLSocket`` does.
    """

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        return _isolated(self.read, nbytes or len(buffer), buffer)

    def send(self, data: Any, flags: int = 0) -> int:
        return _isolated(self.write, data)

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
            # The server has reset the connection before the handshake; Python 3.11
            # raises without closing the socket.
            self.close()
            raise

    def shutdown(self, how: int) -> None:
        # After SSLSocket's own, another thread would continue in plain text.
        socket.socket.shutdown(self, how)


def isolate(context: ssl.SSLContext) -> None:
    """Make the context create isolated sockets."""
    base: Any = context.sslsocket_class
    context.sslsocket_class = _isolated_class(base)


def _isolate_socket(sock: Any) -> None:
    base: Any = type(sock)
    sock.__class__ = _isolated_class(base)


@cache
def _isolated_class(base: Any) -> Any:
    if issubclass(base, _IsolatedSocket):
        return base
    return type("IsolatedSocket", (_IsolatedSocket, base), {})


class OthersContext:
    """Makes isolated sockets of a context that is not ours to change."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_socket(self, sock: socket.socket, server_hostname: str) -> ssl.SSLSocket:
        try:
            made = self._context.wrap_socket(sock, server_hostname=server_hostname)
        except BaseException:
            _empty_error_queue()
            raise
        _isolate_socket(made)
        return made


def adopt(sock: ssl.SSLSocket, raw: Any, config: PoolConfig) -> None:
    """Use the TLS of a socket of ``CONNECT``, instead of asking the server for TLS.

    Raises a 2026 if settings ask for TLS that only the pool itself could provide.
    """
    if config.ssl_mode in VERIFYING or config.ssl_cert or config.ssl_context:
        raise OperationalError(
            CR.CR_SSL_CONNECTION_ERROR,
            "CONNECT returned a socket that speaks TLS already, so SSL_CA, SSL_CERT,"
            " SSL_CONTEXT and what SSL_MODE verifies would have no effect: leave them"
            " out, and have CONNECT verify the server",
        )
    _isolate_socket(sock)
    raw.ssl, raw._secure = False, True


def is_verified(sock: object) -> bool:
    """Return whether the server has proved by a certificate who it is."""
    return isinstance(sock, ssl.SSLSocket) and mode_of(sock.context) in VERIFYING


def _isolated(call: Callable[..., Any], *args: Any) -> int:
    """Read or write; if that fails, repeat it once with an empty queue.

    OpenSSL continues a write where it stopped: no byte is sent twice.
    """
    done: int
    try:
        done = call(*args)
    except ValueError:
        text = "another thread has closed this socket"
        raise OSError(errno.EBADF, text) from None
    except BaseException as error:
        _empty_error_queue()
        timed_out = isinstance(error, TimeoutError) and error.errno is None
        if timed_out or not isinstance(error, OSError):
            raise
        try:
            done = call(*args)
        except OSError:
            done = 0
        finally:
            _empty_error_queue()
        if not done:
            raise
    return done


def _empty_error_queue() -> None:
    # Python exports no function for this, but creating a TLS object clears the queue.
    _spare_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


@cache
def _spare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return context


#: Values of ``SSL_MODE`` with which the server's certificate is verified.
VERIFYING = "VERIFY_CA", "VERIFY_IDENTITY"

#: Seconds in which a renewal may be incomplete, with one file replaced, another not.
RENEWAL, RENEWAL_STEP = 1.0, 0.02

monotonic = time.monotonic
_Identity = tuple[int, ...]


class Certificates:
    """Makes the context for ``SSL_MODE`` and the files of ``SSL_…``, and caches it.

    To make one takes longer than to connect; to check the files takes microseconds.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._made: tuple[list[_Identity], ssl.SSLContext | None] = [], None

    def context(self, deadline: float) -> ssl.SSLContext | OthersContext:
        """Return ``SSL_CONTEXT``, or one for the current contents of the files.

        If replaced files cannot be read or do not match each other, try again for a
        while, then raise a 2026.
        """
        if self._config.ssl_context is not None:
            return OthersContext(self._config.ssl_context)
        give_up = min(deadline, monotonic() + RENEWAL) if self._made[1] else 0.0
        while True:
            # Before reading them: the next connect then sees a change made meanwhile.
            identities = self._identities()
            # No lock, which could be held at a fork: two threads may each make one.
            made_of, context = self._made
            # gevent may have replaced the class meanwhile, with gunicorn --preload.
            if made_of == identities and isinstance(context, ssl.SSLContext):
                return context
            try:
                context = self._make()
            except OSError as error:
                if monotonic() >= give_up:
                    raise OperationalError(
                        CR.CR_SSL_CONNECTION_ERROR,
                        f"SSL_CA, SSL_CERT or SSL_KEY cannot be used ({error})",
                    ) from error
                time.sleep(RENEWAL_STEP)
            else:
                self._made = identities, context
                return context

    def _identities(self) -> list[_Identity]:
        """Return what distinguishes each file, after links, from its replacement."""
        config = self._config
        files = [config.ssl_ca, config.ssl_cert, config.ssl_key]
        if config.ssl_mode in VERIFYING and config.ssl_ca is None:
            files.append(ssl.get_default_verify_paths().cafile)
        return [_identity(file) for file in files if file is not None]

    def _make(self) -> ssl.SSLContext:
        """Make a context in which each mode means what it means to ``mysql``."""
        config = self._config
        if config.ssl_mode in VERIFYING:
            context = ssl.create_default_context(cafile=config.ssl_ca)
            # Certificates generated by MySQL fail the strict check, which is on by
            # default since Python 3.13.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.check_hostname = config.ssl_mode == "VERIFY_IDENTITY"
        else:
            # Without the system's certificates, which take 20 ms to load.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if config.ssl_ca is not None:
                context.load_verify_locations(config.ssl_ca)
        if config.ssl_cert is not None:
            # With a password, or OpenSSL would ask for one on the terminal.
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

"""TLS sockets that fail by their own faults alone.

OpenSSL keeps a queue of errors for each thread, not for each socket. An error that
another socket has left in it is taken for the result of the next call that has to wait.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

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

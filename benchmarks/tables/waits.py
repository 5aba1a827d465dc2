"""How many round trips a caller waits for, counted at its sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

SENDING = "send", "sendall"
RECEIVING = "recv", "recv_into"


class Waits:
    """While this is entered, the sockets of the current thread are counted.

    Time is counted in round trips: the answer to what is sent arrives one round trip
    later, and who receives from the socket has waited until then. So a statement that
    is sent without waiting costs nothing, unless its answer is needed at once. Each
    answer is taken as that to the last write, so of writes that overlap this is the
    most that is waited for.

    Nothing is counted of a driver in C, of a handshake of TLS, of a connection that was
    open before, and of a class of sockets that is made later, as by a pool with TLS.
    """

    def __init__(self) -> None:
        self.trips = 0
        self._thread = threading.get_ident()
        self._due: WeakKeyDictionary[socket.socket, int] = WeakKeyDictionary()
        self._patched: list[tuple[type[Any], str, Any]] = []

    def __enter__(self) -> Waits:
        notes = dict.fromkeys(SENDING, self._sent)
        notes |= dict.fromkeys(RECEIVING, self._received)
        for name, note in notes.items():
            for cls in {_owner(cls, name) for cls in _classes(socket.socket)}:
                self._patched.append((cls, name, vars(cls).get(name)))
                setattr(cls, name, self._noted(getattr(cls, name), note))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for cls, name, before in self._patched:
            if before is None:  # inherited
                delattr(cls, name)
            else:
                setattr(cls, name, before)

    def let_arrive(self) -> None:
        """Let all answers arrive that are under way."""
        for sock in self._due:
            self._due[sock] = self.trips

    def _noted(
        self, method: Callable[..., Any], note: Callable[[socket.socket], None]
    ) -> Callable[..., Any]:
        def noted(sock: socket.socket, *args: Any, **options: Any) -> Any:
            result = method(sock, *args, **options)
            if threading.get_ident() == self._thread:
                note(sock)
            return result

        return noted

    def _sent(self, sock: socket.socket) -> None:
        self._due[sock] = self.trips + 1

    def _received(self, sock: socket.socket) -> None:
        # The first thing from a new connection is the server's greeting.
        self.trips = max(self.trips, self._due.get(sock, self.trips + 1))
        self._due[sock] = self.trips


def _owner(cls: type[socket.socket], name: str) -> type[Any]:
    """The class in Python that has the method, or gets one instead of that in C."""
    owner = next(base for base in cls.__mro__ if name in vars(base))
    return socket.socket if issubclass(socket.socket, owner) else owner


def _classes(cls: type[socket.socket]) -> Iterator[type[socket.socket]]:
    """The class and all that derive from it, such as those of TLS."""
    yield cls
    for derived in cls.__subclasses__():
        yield from _classes(derived)

"""A TCP proxy that simulates network faults between a client and its server."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from .links import CHUNK, END, Link

HOST = "127.0.0.1"
BACKLOG = 128
CALL_SECONDS = 30.0


class FaultProxy:
    """A proxy between client and server, whose methods inject faults.

    ::

        with FaultProxy(server.host, server.port) as proxy:
            connection = pymysql.connect(host=proxy.host, port=proxy.port, ...)
            proxy.cut()

    Methods are thread-safe; when one returns, the fault is in effect.

    :param host: the server's host.
    :param port: the server's port.
    :param delay: latency in seconds in each direction; may be set at any time, for data
        read from then on. It does not limit the throughput.
    """

    host = HOST

    def __init__(self, host: str, port: int, *, delay: float = 0.0) -> None:
        self.target = (host, port)
        self.delay = delay
        self.port = 0
        self.connections = 0
        """Connections accepted so far."""
        self.round_trips = 0
        """How often a client has sent data after a reply, over all connections."""
        self.bytes_up = 0
        """Bytes received from clients."""
        self.bytes_down = 0
        """Bytes received from the server."""
        self._links: dict[Link, None] = {}
        self._held = self._dropping = self._armed = self._stopping = False
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        mode = (
            "held" if self._held else "dropping replies" if self._dropping else "open"
        )
        return (
            f"<FaultProxy {self.host}:{self.port} to port {self.target[1]}"
            f" {mode} live={self.live}>"
        )

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def live(self) -> int:
        """Open connections."""
        return len(self._links)

    def start(self) -> None:
        """Listen on a free port, and set :attr:`port`."""
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake_up)
        self._stopping = False
        self._listen()
        self._thread = threading.Thread(
            target=self._run, name=f"fault-proxy-{self.port}", daemon=True
        )
        _proxies.add(self)
        self._thread.start()

    def close(self) -> None:
        """Close all connections, and end the thread."""
        if self._thread is not None:
            self._call(self._stop)
            self._thread.join()
            self._thread = None
            # Not before the join: the thread may still read from it.
            self._waker.close()
            self._woken.close()

    def hang(self) -> None:
        """Accept connections, but forward neither bytes nor FINs."""
        self._call(lambda: self._set(held=True))

    def drop_replies(self) -> None:
        """Forward requests, and drop the server's replies."""
        self._call(lambda: self._set(dropping=True))

    def resume(self) -> None:
        """Forward everything again, first the data that :meth:`hang` has held."""
        self._call(self._set)

    def refuse(self) -> None:
        """Refuse new connections; open ones stay."""
        self._call(self._refuse)

    def listen(self) -> None:
        """Accept connections again after :meth:`refuse`, on the same port."""
        self._call(self._listen)

    def cut(self) -> None:
        """End all connections with a FIN, to both sides."""
        self._call(lambda: self._drop_all(reset=False))

    def reset(self) -> None:
        """End all connections with a RST, to both sides."""
        self._call(lambda: self._drop_all(reset=True))

    def half_close(self) -> None:
        """Send the clients a FIN; their data still reach the server."""
        self._call(self._half_close)

    def cut_after_request(self) -> None:
        """Lose one reply, on the connection on which a client sends data next.

        The request reaches the server. Its reply is dropped, and the connection cut.
        """
        self._call(self._arm)

    def _call(self, action: Callable[[], None]) -> None:
        """Call a function in the proxy's thread, which alone uses the sockets."""
        if self._thread is None:
            raise RuntimeError("the proxy is not running")
        done: Future[None] = Future()
        self._calls.append((action, done))
        with suppress(OSError):
            self._waker.send(b"!")
        done.result(CALL_SECONDS)

    def _set(self, *, held: bool = False, dropping: bool = False) -> None:
        self._held = held
        self._dropping = dropping

    def _arm(self) -> None:
        self._armed = True

    def _stop(self) -> None:
        self._stopping = True

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._listener = listener

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _half_close(self) -> None:
        for link in self._links:
            link.down.finish()

    def _drop_all(self, *, reset: bool) -> None:
        for link in list(self._links):
            self._drop(link, reset=reset)

    def _drop(self, link: Link, *, reset: bool) -> None:
        if link in self._links:
            del self._links[link]
            for end in link.ends():
                self._watch(end, 0, link)
            link.close(reset)

    def _run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select(self._next_delay()):
                key.data(key.fileobj, events)
            for link in list(self._links):
                self._guard(link, self._update)
            self._answer_calls()
        self._refuse()
        self._drop_all(reset=False)
        self._selector.close()

    def _next_delay(self) -> float | None:
        """Return the seconds until delayed data are due."""
        if self._held:
            return None
        moments = [moment for link in self._links for moment in link.due()]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _answer_calls(self) -> None:
        while self._calls:
            action, done = self._calls.popleft()
            try:
                action()
            except OSError as error:
                done.set_exception(error)
                continue
            for link in list(self._links):
                self._guard(link, self._update)
            done.set_result(None)

    def _wake_up(self, woken: socket.socket, events: int) -> None:
        with suppress(OSError):
            woken.recv(CHUNK)

    def _accept(self, listener: socket.socket, events: int) -> None:
        with suppress(OSError):
            client, _ = listener.accept()
            self._links[Link(client)] = None
            self.connections += 1

    def _guard(self, link: Link, action: Callable[[Link], None]) -> None:
        """Call a function; if one side has broken the connection, reset both."""
        try:
            if link in self._links:
                action(link)
        except OSError:
            self._drop(link, reset=True)

    def _update(self, link: Link) -> None:
        """Write the data that are due, and register the events to wait for."""
        if not self._held:
            if not link.begun:
                link.begin(self.target)
            now = time.monotonic()
            link.up.write(now)
            link.down.write(now)
        if link.finished:
            return self._drop(link, reset=False)
        for end, events in link.wants():
            self._watch(end, 0 if self._held else events, link)

    def _watch(self, end: socket.socket, events: int, link: Link) -> None:
        known = self._selector.get_map().get(end)
        if known is None:
            if events:
                self._selector.register(end, events, partial(self._handle, link))
        elif not events:
            self._selector.unregister(end)
        elif known.events != events:
            self._selector.modify(end, events, known.data)

    def _handle(self, link: Link, end: socket.socket, events: int) -> None:
        self._guard(link, lambda link: self._transfer(link, end, events))

    def _transfer(self, link: Link, end: socket.socket, events: int) -> None:
        source, sink = (
            (link.up, link.down) if end is link.client else (link.down, link.up)
        )
        if events & selectors.EVENT_WRITE:
            sink.blocked = False
        if not events & selectors.EVENT_READ:
            return
        data = source.read()
        if data is None:
            return
        note = self._note_request if source is link.up else self._note_reply
        if note(link, data):
            source.put(data, time.monotonic() + self.delay)

    def _note_request(self, link: Link, data: bytes) -> bool:
        self.bytes_up += len(data)
        if data and link.replied:
            link.replied = False
            self.round_trips += 1
        if data and self._armed:
            self._armed = False
            link.cut_at_reply = True
        return True

    def _note_reply(self, link: Link, data: bytes) -> bool:
        """Count a reply, and return whether to forward it."""
        self.bytes_down += len(data)
        link.replied = True
        if link.cut_at_reply:
            self._drop(link, reset=False)
            return False
        return not self._dropping or data == END

    def _close_after_fork(self) -> None:
        """Close the child's copies of the sockets, which would keep ports open."""
        if self._thread is None:
            return
        self._thread = None
        ends = [end for link in self._links for end in link.ends()]
        for thing in (self._listener, self._waker, self._woken, *ends):
            if thing is not None:
                thing.close()
        # Without unregistering: the parent uses the same kernel object.
        self._selector.close()


_proxies: weakref.WeakSet[FaultProxy] = weakref.WeakSet()


def _after_fork() -> None:
    for proxy in list(_proxies):
        proxy._close_after_fork()


os.register_at_fork(after_in_child=_after_fork)

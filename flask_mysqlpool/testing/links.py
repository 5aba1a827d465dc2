"""Both connections, and both directions, of one client of the proxy."""

from __future__ import annotations

import selectors
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

CHUNK = 65536
# Bounded, so that a slow reader slows the writer as it would without a proxy.
MOST_QUEUED = 64 * 1024 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END = b""


class Stream:
    """One direction of a connection: data that were read and not yet written."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued = 0
        self.reading = True
        self.blocked = False
        self.done = False

    @property
    def wants_data(self) -> bool:
        return self.reading and self.queued < MOST_QUEUED

    def read(self) -> bytes | None:
        """Return available data, :data:`END` at the end, None if there are none."""
        try:
            data = self.source.recv(CHUNK)
        except BlockingIOError:
            return None
        self.reading = bool(data)
        return data

    def put(self, data: bytes, due: float) -> None:
        if not self.done:
            self.queue.append((due, data))
            self.queued += len(data)

    def write(self, now: float) -> None:
        """Write the data that are due, as far as the receiver accepts them."""
        while self.queue and not self.blocked and self.queue[0][0] <= now:
            due, data = self.queue.popleft()
            if data == END:
                self.finish()
                continue
            sent = self._send(data)
            self.queued -= sent
            if sent < len(data):
                self.queue.appendleft((due, data[sent:]))
                self.blocked = True

    def finish(self) -> None:
        """Send a FIN, and drop queued and further data."""
        self.done = True
        self.queue.clear()
        self.queued = 0
        with suppress(OSError):
            self.sink.shutdown(socket.SHUT_WR)

    def _send(self, data: bytes) -> int:
        try:
            return self.sink.send(data)
        except BlockingIOError:
            return 0


class Link:
    """A client's connection, and the corresponding one to the server."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server = socket.socket()
        for end in self.ends():
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.up = Stream(client, self.server)
        self.down = Stream(self.server, client)
        self.begun = False
        self.replied = False
        self.cut_at_reply = False

    def ends(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.server

    def begin(self, target: tuple[str, int]) -> None:
        self.begun = True
        # The socket becomes writable when it is connected.
        self.up.blocked = True
        self.server.connect_ex(target)

    @property
    def finished(self) -> bool:
        return self.up.done and self.down.done

    def due(self) -> Iterator[float]:
        for stream in (self.up, self.down):
            if stream.queue and not stream.blocked:
                yield stream.queue[0][0]

    def wants(self) -> Iterator[tuple[socket.socket, int]]:
        """Yield each socket with the events to wait for."""
        for source, sink in ((self.up, self.down), (self.down, self.up)):
            read = selectors.EVENT_READ if source.wants_data else 0
            write = selectors.EVENT_WRITE if sink.blocked else 0
            yield source.source, read | write

    def close(self, reset: bool) -> None:
        for end in self.ends():
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                else:
                    _shut_down(end)
            end.close()


def _shut_down(end: socket.socket) -> None:
    """Send a FIN, and read: closing a socket with unread data would send a RST."""
    end.shutdown(socket.SHUT_WR)
    with suppress(BlockingIOError):
        while end.recv(CHUNK):
            pass

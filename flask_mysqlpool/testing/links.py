"""The two connections, and the two directions, of one client of a proxy."""

from __future__ import annotations

import selectors
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

CHUNK = 65536
# A reader that is too slow slows the writer, as it would without a proxy.
MOST_QUEUED = 64 * 1024 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END = b""


class Stream:
    """One direction of one connection: what was read and is not yet written."""

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
        """What is there, :data:`END` at the end, ``None`` if nothing is there."""
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
        """Write what is due, as far as the receiver takes it."""
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
        """End the writing with a FIN; what is queued or comes now is lost."""
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


class Transport:
    """A client's connection and that to the server which belongs to it."""

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
        self.doomed = False

    def ends(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.server

    def begin(self, target: tuple[str, int]) -> None:
        self.begun = True
        # It becomes writable when it is connected.
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
        """Each socket with the events that it is to be watched for."""
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
                    _say_goodbye(end)
            end.close()


def _say_goodbye(end: socket.socket) -> None:
    """A FIN that stays one: closing with unread data would send a RST instead."""
    end.shutdown(socket.SHUT_WR)
    with suppress(BlockingIOError):
        while end.recv(CHUNK):
            pass

"""A TCP proxy that simulates network faults between a client and its server."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import wraps
from typing import Any

HOST = "127.0.0.1"
BACKLOG = 128
CHUNK = 65536
END = b""
CALL_SECONDS = 30.0
SECOND_COMMANDS = "close", "swallow", "reorder"
# The header of the packet after which a client goes on with TLS.
SSL_REQUEST = b"\x20\x00\x00\x01"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Stream:
    """One direction of a connection: data that were read and not yet written."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        # Held while the receiver is not ready. Then nothing is read, so that a slow
        # reader slows the writer as it would without a proxy.
        self.sending = asyncio.Lock()
        self.writer: asyncio.Task[None] | None = None
        self.is_finished = False


class _Link:
    """A client's connection, and the corresponding one to the server."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server = socket.socket()
        for end in self.ends():
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.up = _Stream(client, self.server)
        self.down = _Stream(self.server, client)
        self.tasks: list[asyncio.Task[None]] = []
        self.replied = False
        self.cut_at_reply = False
        #: Set by the first data of the client.
        self.is_encrypted: bool | None = None
        #: Commands that were read and are not complete yet.
        self.piece = b""

    def ends(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.server


def _in_thread_of_proxy(
    action: Callable[[FaultProxy], None],
) -> Callable[[FaultProxy], None]:
    """Decorate a method: call it in the proxy's thread, which alone uses sockets."""

    @wraps(action)
    def call_and_wait(proxy: FaultProxy) -> None:
        if proxy._thread is None:
            raise RuntimeError("the proxy is not running")

        async def call() -> None:
            action(proxy)

        asyncio.run_coroutine_threadsafe(call(), proxy._loop).result(CALL_SECONDS)

    return call_and_wait


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
        self._second_command: str | None = None
        self._links: dict[_Link, None] = {}
        #: "open", "held" or "dropping replies".
        self._mode = "open"
        self._armed = False
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return (
            f"<FaultProxy {self.host}:{self.port} to port {self.target[1]}"
            f" {self._mode} live={self.live}>"
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

    @property
    def second_command(self) -> str | None:
        """What happens to commands that a client sends in one piece (pipelining).

        ``None`` forwards them. The other values act like proxies that take one command
        at a time: ``"close"`` closes the connection, ``"swallow"`` forwards only the
        first command, ``"reorder"`` forwards the second one before the first, so that
        the answers are out of order. They have no effect on connections with TLS.
        """
        return self._second_command

    @second_command.setter
    def second_command(self, value: str | None) -> None:
        if value not in (None, *SECOND_COMMANDS):
            known = ", ".join(map(repr, SECOND_COMMANDS))
            raise ValueError(f"second_command must be None or one of {known}")
        self._second_command = value

    def start(self) -> None:
        """Listen on a free port, and set :attr:`port`."""
        self._loop = asyncio.SelectorEventLoop()
        # Not set while data are held.
        self._flowing = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fault-proxy", daemon=True
        )
        _proxies.add(self)
        self._thread.start()
        self.resume()
        self.listen()

    def close(self) -> None:
        """Close all connections, and end the thread."""
        if self._thread is not None:
            self.refuse()
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None
            self._loop.close()

    @_in_thread_of_proxy
    def hang(self) -> None:
        """Accept connections, but forward neither bytes nor FINs."""
        self._flowing.clear()
        self._mode = "held"

    @_in_thread_of_proxy
    def drop_replies(self) -> None:
        """Forward requests, and drop the server's replies."""
        self._flowing.set()
        self._mode = "dropping replies"

    @_in_thread_of_proxy
    def resume(self) -> None:
        """Forward everything again, first the data that :meth:`hang` has held."""
        self._flowing.set()
        self._mode = "open"

    @_in_thread_of_proxy
    def refuse(self) -> None:
        """Refuse new connections; open ones stay."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    @_in_thread_of_proxy
    def listen(self) -> None:
        """Accept connections again after :meth:`refuse`, on the same port."""
        if self._listener is None:
            listener = socket.create_server((HOST, self.port), backlog=BACKLOG)
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self._loop.add_reader(listener, self._accept, listener)
            self._listener = listener

    @_in_thread_of_proxy
    def forget(self) -> None:
        """Forward nothing more on open connections, which stay open; new ones work.

        So does a NAT that has forgotten idle connections.
        """
        for link in list(self._links):
            for task in link.tasks:
                task.cancel()

    @_in_thread_of_proxy
    def cut(self) -> None:
        """End all connections with a FIN, to both sides."""
        for link in list(self._links):
            self._drop(link)

    @_in_thread_of_proxy
    def reset(self) -> None:
        """End all connections with a RST, to both sides."""
        for link in list(self._links):
            self._drop(link, reset=True)

    @_in_thread_of_proxy
    def half_close(self) -> None:
        """Send the clients a FIN; their data still reach the server."""
        for link in list(self._links):
            if link.down.writer is not None:
                link.down.writer.cancel()
            self._finish(link, link.down)

    @_in_thread_of_proxy
    def cut_after_request(self) -> None:
        """Lose one reply, on the connection on which a client sends data next.

        The request reaches the server. Its reply is dropped, and the connection cut.
        """
        self._armed = True

    def _drop(self, link: _Link, *, reset: bool = False) -> None:
        """Close both connections, and end the tasks that use them."""
        if link in self._links:
            del self._links[link]
            for task in link.tasks:
                task.cancel()
            for end in link.ends():
                self._loop.remove_reader(end)
                self._loop.remove_writer(end)
                _close(end, reset)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            client, _ = listener.accept()
            self.connections += 1
            link = _Link(client)
            self._links[link] = None
            self._spawn(self._connect, link)

    def _spawn(
        self, work: Callable[..., Coroutine[Any, Any, None]], link: _Link, *args: Any
    ) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work(link, *args)
            except OSError:  # one side has broken the connection
                self._drop(link, reset=True)

        task = self._loop.create_task(guarded())
        link.tasks.append(task)
        return task

    async def _connect(self, link: _Link) -> None:
        await self._flowing.wait()
        await self._loop.sock_connect(link.server, self.target)
        for stream in (link.up, link.down):
            self._spawn(self._read, link, stream)
            stream.writer = self._spawn(self._write, link, stream)

    async def _read(self, link: _Link, stream: _Stream) -> None:
        note = self._note_request if stream is link.up else self._note_reply
        data = None
        while data != END:
            async with stream.sending:
                await self._flowing.wait()
            data = await self._loop.sock_recv(stream.source, CHUNK)
            await self._flowing.wait()
            rest = note(link, data)
            if rest is not None and not stream.is_finished:
                stream.queue.put_nowait((time.monotonic() + self.delay, rest))

    async def _write(self, link: _Link, stream: _Stream) -> None:
        data = None
        while data != END:
            due, data = await stream.queue.get()
            await asyncio.sleep(due - time.monotonic())
            await self._flowing.wait()
            async with stream.sending:
                await self._loop.sock_sendall(stream.sink, data)
        self._finish(link, stream)

    def _finish(self, link: _Link, stream: _Stream) -> None:
        """Send a FIN, after which no more data are written in this direction."""
        stream.is_finished = True
        with suppress(OSError):
            stream.sink.shutdown(socket.SHUT_WR)
        if link.up.is_finished and link.down.is_finished:
            self._drop(link)

    def _note_request(self, link: _Link, data: bytes) -> bytes | None:
        """Count a request; return what to forward of it, None for nothing."""
        self.bytes_up += len(data)
        if data and link.replied:
            link.replied = False
            self.round_trips += 1
        if data and self._armed:
            self._armed = False
            link.cut_at_reply = True
        if link.is_encrypted is None:
            link.is_encrypted = data.startswith(SSL_REQUEST)
        if link.is_encrypted or self._second_command is None or data == END:
            return data
        return self._forward_commands(link, data, self._second_command)

    def _forward_commands(self, link: _Link, data: bytes, mode: str) -> bytes | None:
        """Return what to forward of the commands of one piece, once it is complete."""
        link.piece += data
        commands = _split(link.piece)
        if commands is None:
            return None
        piece, link.piece = link.piece, b""
        if len(commands) < 2:
            return piece
        first, second, *others = commands
        if mode == "close":
            self._drop(link)
            return None
        return first if mode == "swallow" else b"".join([second, first, *others])

    def _note_reply(self, link: _Link, data: bytes) -> bytes | None:
        """Count a reply; return what to forward of it, None for nothing."""
        self.bytes_down += len(data)
        link.replied = True
        if link.cut_at_reply:
            self._drop(link)
            return None
        return None if data and self._mode == "dropping replies" else data

    def _close_after_fork(self) -> None:
        """Close the child's copies of the sockets, which would keep ports open."""
        if self._thread is None:
            return
        self._thread = None
        ends = [end for link in self._links for end in link.ends()]
        for thing in (self._listener, *ends):
            if thing is not None:
                thing.close()


def _split(piece: bytes) -> list[bytes] | None:
    """Split what a client has sent into commands; None if the last is incomplete.

    The header of a packet has its length in three bytes, and a number in one. The
    numbers begin at 0 with each command; those of the login are higher.
    """
    commands: list[bytes] = []
    while piece:
        end = 4 + int.from_bytes(piece[:3], "little")
        if len(piece) < end:
            return None
        packet, piece = piece[:end], piece[end:]
        if packet[3] == 0 or not commands:
            commands.append(packet)
        else:
            commands[-1] += packet
    return commands


def _close(end: socket.socket, reset: bool) -> None:
    with suppress(OSError):
        if reset:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        else:
            end.shutdown(socket.SHUT_WR)
            # Closing a socket with unread data would send a RST.
            while end.recv(CHUNK):
                pass
    end.close()


_proxies: weakref.WeakSet[FaultProxy] = weakref.WeakSet()


def _after_fork() -> None:
    for proxy in list(_proxies):
        proxy._close_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""Servers that pass on what they get, by TLS or after what SOCKS asks for first."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from flask_mysqlpool.testing import LocalServer


class Relay:
    """Passes on what a client sends to the socket that ``target`` opens for it.

    With a context it speaks TLS with the client. ``SSLSocket.shutdown`` would go on in
    plain text, so the one of ``socket`` is called.
    """

    def __init__(
        self,
        target: Callable[[socket.socket], socket.socket],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._target, self._context = target, context
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *error: object) -> None:
        # First of all no more clients: a pool may be connecting.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for sock in self._open:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in [self._listener, *self._open]:
            sock.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            with suppress(OSError):  # it may leave in the middle of the handshake
                if self._context is not None:
                    client = self._context.wrap_socket(client, server_side=True)
                self.join(client, self._target(client))

    def join(self, *ends: socket.socket) -> None:
        """Pass on what comes from one of two sockets to the other, both ways."""
        self._open += ends
        for source, sink in ends, ends[::-1]:
            thread = threading.Thread(target=self._pass_on, args=(source, sink))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            socket.socket.shutdown(sink, socket.SHUT_RDWR)


def by_socket(server: LocalServer) -> Callable[[socket.socket], socket.socket]:
    """The target that is a server, by its Unix socket."""

    def target(client: socket.socket) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(server.unix_socket)
        return sock

    return target


def socks(names: dict[str, str]) -> Callable[[socket.socket], socket.socket]:
    """The target of a SOCKS 5 proxy, which alone knows the addresses of these names."""

    def target(client: socket.socket) -> socket.socket:
        with client.makefile("rb") as asked:
            _, methods = asked.read(2)
            asked.read(methods)
            client.sendall(b"\5\0")
            *_, kind, size = asked.read(5)
            assert kind == 3, "an address, and not a name"
            name = asked.read(size).decode()
            [port] = struct.unpack(">H", asked.read(2))
        sock = socket.create_connection((names[name], port))
        client.sendall(b"\5\0\0\1" + bytes(6))
        return sock

    return target

"""The clients of a website: ``python -m benchmarks.visitors PORT CLIENTS SECONDS``."""

from __future__ import annotations

import json
import socket
import sys

from .clock import durations, quantile, together

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def main(port: int, clients: int, seconds: float) -> None:
    times = together(clients, lambda: _visit(port, seconds))
    every = [time for own in times for time in own]
    figures = {
        "per_second": len(every) / seconds,
        "p99_ms": quantile(every, 0.99) * 1e3,
    }
    print(json.dumps(figures))


def _visit(port: int, seconds: float) -> list[float]:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        return durations(lambda: _ask(connection), seconds)


def _ask(connection: socket.socket) -> None:
    """One request on a connection that is kept; the answers are short."""
    connection.sendall(REQUEST)
    answer = b""
    while not _is_whole(answer):
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError("the website hung up")
        answer += chunk
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(answer.decode())


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(found) and len(body) >= int(length or 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))

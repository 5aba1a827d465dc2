"""Names of hosts, looked up with an end: the system's look-up knows no deadline.

Each look-up has a thread of its own, which a caller can leave behind at its deadline.
Callers that ask for a name that is being looked up share the look-up, until one of them
has lost patience with it: a second one may succeed where the first hangs.
"""

from __future__ import annotations

import _thread
import socket
import threading
import time
from typing import Any

from .process import process

#: The most look-ups at once, those included that were given up and still hang.
MOST = 16

_Addresses = list[tuple[Any, ...]]


class _LookUp:
    """One call of ``getaddrinfo``, on its own thread."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.done = threading.Event()
        self.addresses: _Addresses = []
        self.error: Exception | None = None

    def run(self, slots: threading.Semaphore) -> None:
        try:
            self.addresses = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM
            )
        except Exception as error:
            self.error = error.with_traceback(None)
        finally:
            slots.release()
            self.done.set()


class _Process:
    """The look-ups of one process."""

    def __init__(self) -> None:
        self.slots = threading.Semaphore(MOST)
        self.under_way: dict[tuple[str, int], _LookUp] = {}


#: By process: a fork copies neither threads nor locks that work.
_processes: dict[int, _Process] = {}


def addresses(host: str, port: int, deadline: float) -> _Addresses:
    """What ``socket.getaddrinfo`` says, by the deadline.

    Raises what it raises, and TimeoutError. An IP address takes no look-up.
    """
    for family in socket.AF_INET, socket.AF_INET6:
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return [(family, socket.SOCK_STREAM, 0, "", (host, port))]
    own = _processes.setdefault(process(), _Process())
    place = host, port
    look_up = own.under_way.get(place)
    if look_up is None or look_up.done.is_set():
        if not own.slots.acquire(timeout=_left(deadline)):
            raise TimeoutError(f"timed out: {MOST} look-ups of names hang")
        look_up = own.under_way[place] = _LookUp(host, port)
        try:
            _thread.start_new_thread(look_up.run, (own.slots,))
        except BaseException:
            own.slots.release()
            own.under_way.pop(place, None)
            raise
    done = look_up.done.wait(_left(deadline))
    if own.under_way.get(place) is look_up:
        own.under_way.pop(place, None)
    if not done:
        raise TimeoutError("timed out: the look-up of the name hangs")
    if look_up.error is not None:
        # Others may be raising it, too.
        raise type(look_up.error)(*look_up.error.args)
    return look_up.addresses


def _left(deadline: float) -> float:
    return min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)

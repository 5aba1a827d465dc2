"""What nothing but the GIL made one step of several.

These fail on a Python without one if it is so again; elsewhere they say little.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from flask_mysqlpool.pool.maintenance import MaintenanceThread
from flask_mysqlpool.pool.state import ConnectAttempts

#: Seconds for which it is tried.
LONG_ENOUGH = 0.5


def together(*steps: Callable[[], object]) -> None:
    """Run all of these over and over, at once."""
    end = time.monotonic() + LONG_ENOUGH

    def repeat(step: Callable[[], object]) -> None:
        while time.monotonic() < end:
            step()

    with ThreadPoolExecutor(len(steps)) as threads:
        for done in [threads.submit(repeat, step) for step in steps]:
            done.result()


def test_connects_are_counted_while_others_are_let_go_of() -> None:
    connects, lock = ConnectAttempts(), threading.Lock()

    def connect() -> None:
        with lock:
            connect = connects.begin(0, 0.0)
        del connect

    def look() -> None:
        with lock:
            assert 0 <= connects.outdated(1) <= 3
            assert 0 <= len(connects) <= 3

    together(connect, connect, connect, look)

    assert len(connects) == 0


class Guest:
    def maintain(self) -> float:
        return 0.0005


def test_what_is_let_go_of_does_not_disturb_maintenance() -> None:
    keeper = MaintenanceThread()

    def come_and_go() -> None:
        for guest in [Guest() for _ in range(20)]:
            keeper.watch(guest)
        time.sleep(0.0005)

    keeper.watch(Guest())
    first = keeper._thread
    together(come_and_go, come_and_go, come_and_go)

    assert keeper._thread is first is not None and first.is_alive()

"""One thread per process that lets pools do what nobody asks for.

It starts when there is first something to look after, sleeps for good while there
is nothing, and knows of a pool only that it has a ``housekeep()``.
"""

from __future__ import annotations

import logging
import threading
from os import getpid
from queue import Empty, SimpleQueue
from typing import Protocol
from weakref import WeakSet, ref

#: Seconds between two rounds.
INTERVAL = 1.0

log = logging.getLogger(__name__)


class Kept(Protocol):
    def housekeep(self) -> bool: ...


class Housekeeper:
    """Calls ``housekeep()`` of the pools it watches, until they are at rest."""

    def __init__(self) -> None:
        self._mail: SimpleQueue[ref[Kept] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def watch(self, pool: Kept) -> None:
        """Look after this pool until it says that nothing is left to do."""
        self._mail.put(ref(pool))
        if self._thread is None or not self._thread.is_alive():
            with self._starting:
                self._start()

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(
            target=self._run,
            name="mysqlpool-housekeeper",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("no housekeeping until the next connect: %s", error)
        else:
            self._thread = thread

    def nudge(self) -> None:
        """Make a round now. Safe in a finalizer, as ``SimpleQueue.put`` is."""
        self._mail.put(None)

    def _run(self) -> None:
        pools: WeakSet[Kept] = WeakSet()
        while True:
            try:
                mentioned = self._mail.get(timeout=INTERVAL if pools else None)
            except Empty:
                mentioned = None
            pool = mentioned() if mentioned is not None else None
            if pool is not None:
                pools.add(pool)
            for pool in tuple(pools):
                if not _has_more_to_do(pool):
                    pools.discard(pool)
            # The thread must not be what keeps a pool alive while it sleeps.
            del pool


def _has_more_to_do(pool: Kept) -> bool:
    """Let the pool do what is due."""
    try:
        return pool.housekeep()
    except Exception:
        log.exception("housekeeping failed; trying again in %s s", INTERVAL)
        return True


_OF_PROCESS: dict[int, Housekeeper] = {}


def housekeeper() -> Housekeeper:
    """That of this process; its thread, locks and mail do not survive a fork."""
    return _OF_PROCESS.setdefault(getpid(), Housekeeper())
